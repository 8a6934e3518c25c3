"""Self-attention over a packed row: tokens see only their own sequence.

A packed row holds whole sequences end to end, so the attention matrix is block-diagonal. It needs
no mask, no padding and no value that could overflow in half precision, and no sequence sees
another. If the device has a kernel for sequences of various lengths, as GPUs do, one call computes
all blocks. Otherwise, as on a CPU, there is one call per sequence.

Shapes: T tokens of the packed row, N sequences, H heads, K head dim.
"""

from __future__ import annotations

import enum
import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import activate_flash_attention_impl

from pretrain.model.cpu_attention import attention_with_dropout, draws_attention

if TYPE_CHECKING:
    from pretrain.data.packing import PackedBatch

FA3_MODULE = "flash_attn_interface"  # FlashAttention 3

logger = logging.getLogger(__name__)


class Kernel(enum.Enum):
    """Which code computes attention."""

    flash = "flash"  # 16 bits, compute capability 8.0 or more
    efficient = "memory-efficient"  # torch's other kernel for all sequences: a T4, fp32
    by_sequence = "by sequence"


def attention(
    qkv: Tensor, batch: PackedBatch, dropout_p: float, kernel: Kernel | None = None
) -> Tensor:
    """softmax(QK' / sqrt(K)) V inside each sequence, dropout on the probabilities.

    `qkv` is (T, 3, H, K), queries, keys and values; returns (T, H * K) of the same dtype.
    `kernel`: the answer of `kernel_of`, which compiled code cannot ask for; None: ask now.
    Devlin et al. 2018, section 3; Vaswani et al. 2017, section 3.2.
    """
    if kernel is None:
        kernel = kernel_of(qkv.device, qkv.dtype, qkv.shape[-1])
    if kernel is Kernel.by_sequence:
        return _by_sequence(qkv, batch, dropout_p)
    in_one_call = _flash if kernel is Kernel.flash else _efficient
    return in_one_call(qkv, batch.cu_seqlens, batch.max_seqlen, dropout_p).flatten(1)


@functools.cache
def kernel_of(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """The fastest kernel that takes such heads.

    The flash kernel needs 16-bit numbers, a head size that is a multiple of 8 up to 256, and a GPU
    of compute capability 8.0 or more. The memory-efficient one takes rows of 16 bytes on any GPU.
    It is tried once: no test without a GPU runs it.
    """
    is_half = dtype in (torch.bfloat16, torch.float16)
    if device.type != "cuda" or head_dim * dtype.itemsize % 16:
        return Kernel.by_sequence
    has_tensor_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    if is_half and head_dim <= 256 and has_tensor_bf16:
        return Kernel.flash
    if dtype in (torch.float32, torch.float16) or (is_half and has_tensor_bf16):
        if not (why := _fault(_efficient, device, dtype, head_dim)):
            return Kernel.efficient
        logger.warning("attention is one call per sequence, which is slower: %s", why)
    return Kernel.by_sequence


def use_fa3(device: torch.device, dropout_p: float) -> bool:
    """Let torch's flash operator run FlashAttention 3, if it can; otherwise it is 2.

    That is for Hopper, needs a package of its own, and has no dropout.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    if dropout_p > 0 or importlib.util.find_spec(FA3_MODULE) is None:
        return False
    try:
        activate_flash_attention_impl("FA3")
    except (ImportError, RuntimeError) as error:  # another version of the package
        logger.warning("attention stays FlashAttention 2: FA3 of %s: %s", FA3_MODULE, error)
        return False
    logger.info("attention without dropout is FlashAttention 3, of %s", FA3_MODULE)
    return True


def _flash(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float) -> Tensor:
    """All sequences at once: (T, 3, H, K) to (T, H, K).

    `max_seqlen` is the data's, not this batch's, because code is compiled for one value. The kernel
    only derives its number of blocks from it.

    The public `varlen_attn` has no dropout. On Hopper it takes cuDNN's kernel from torch 2.14 on,
    which before cuDNN 9.25 is not made for sequences without tokens, as unused slots are.
    """
    q, k, v = qkv.unbind(1)
    return torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, False, False
    )[0]


def _efficient(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float) -> Tensor:
    """As `_flash`. The kernel that torch's nested tensors take; no public function has lengths."""
    q, k, v = qkv.unsqueeze(0).unbind(2)
    return torch.ops.aten._efficient_attention_forward(
        q, k, v, None, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, 0, True
    )[0][0]


def _fault(
    in_one_call: Callable[[Tensor, Tensor, int, float], Tensor],
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
) -> str:
    """What is wrong with a kernel's outputs or gradients, next to one call per sequence; or ""."""
    lengths, bound = [5, 3], 1e-2 if dtype.itemsize == 2 else 1e-4
    values = torch.randn(8, 3, 2, head_dim, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0, 5, 8, 8], dtype=torch.int32, device=device)  # and an unused slot
    found = []
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, None, False):
        for one_call in (True, False):
            qkv = values.to(device, dtype).requires_grad_()
            try:
                out = (
                    in_one_call(qkv, ends, 8, 0.0)
                    if one_call
                    else torch.cat([one_sequence(x, 0.0) for x in torch.split(qkv, lengths)])
                )
                (grad,) = torch.autograd.grad(out.square().sum(), qkv)
            except (RuntimeError, TypeError) as error:  # another torch, or another GPU
                return str(error).partition("\n")[0]
            found.append(torch.stack([*grad.unbind(1), out]).detach().float())
    off = (found[0] - found[1]).abs().max().item() / found[1].abs().max().item()
    return "" if off <= bound else f"the kernel for all is off by {off:.2g} (bound {bound:g})"


# Not compiled: the lengths would be constants in the code, different for every batch
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _by_sequence(qkv: Tensor, batch: PackedBatch, dropout_p: float) -> Tensor:
    """One call per sequence: (T, 3, H, K) to (T, H * K)."""
    lengths = [n for n in batch.lengths if n > 0]  # unused slots are at the end
    if draws_attention(qkv, dropout_p):
        return attention_with_dropout(qkv, lengths, dropout_p)
    blocks = [one_sequence(block, dropout_p) for block in torch.split(qkv, lengths)]
    return torch.cat(blocks).flatten(1)


def one_sequence(qkv: Tensor, dropout_p: float) -> Tensor:
    """Attention of one sequence of L tokens: (L, 3, H, K) to (L, H, K)."""
    q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1)  # each (1, H, L, K): four axes are the fast path
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)[0].transpose(0, 1)

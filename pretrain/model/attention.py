"""Self-attention over a packed row: tokens see only their own sequence.

A packed row holds whole sequences end to end, so the attention matrix is block-diagonal. It needs
no mask, no padding and no value that could overflow in half precision, and no sequence sees
another. If the device has a kernel for sequences of various lengths, one call computes all blocks.
Otherwise (a CPU, fp32 on a GPU) there is one call per sequence.

Shapes: T tokens of the packed row, N sequences, H heads, K head dim.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
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


def attention(
    qkv: Tensor, batch: PackedBatch, dropout_p: float, in_one_call: bool | None = None
) -> Tensor:
    """softmax(QK' / sqrt(K)) V inside each sequence, dropout on the probabilities.

    `qkv` is (T, 3, H, K), queries, keys and values; returns (T, H * K) of the same dtype.
    `in_one_call`: the answer of `has_kernel`, which compiled code cannot ask for; None: ask now.
    Devlin et al. 2018, section 3; Vaswani et al. 2017, section 3.2.
    """
    if in_one_call is None:
        in_one_call = has_kernel(qkv.device, qkv.dtype, qkv.shape[-1])
    if in_one_call:
        return _in_one_call(qkv, batch.cu_seqlens, batch.max_seqlen, dropout_p).flatten(1)
    return _by_sequence(qkv, batch, dropout_p)


@functools.cache
def has_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether torch's flash kernel takes such heads, so that one call serves all sequences.

    It needs 16-bit numbers, a head size that is a multiple of 8 up to 256, and a GPU of compute
    capability 8.0 or more.
    """
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim % 8 == 0
        and head_dim <= 256
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


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


def _in_one_call(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float) -> Tensor:
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

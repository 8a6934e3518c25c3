"""Self-attention over a packed row: tokens see their own sequence only.

A packed row holds whole sequences end to end, so the attention matrix is block-diagonal: no mask, no
padding, no value that could overflow in half precision, and nothing of a neighbour can leak. Where
the device has a kernel for sequences of various lengths, one call computes all blocks; elsewhere
(a CPU, fp32 on a GPU) there is one call a sequence.

Shapes: T tokens of the packed row, N sequences, H heads, K head dim.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from pretrain.model.cpu_attention import attention_with_dropout, draws_attention

if TYPE_CHECKING:
    from pretrain.data.packing import PackedBatch


def attention(qkv: Tensor, batch: PackedBatch, dropout_p: float) -> Tensor:
    """softmax(QK' / sqrt(K)) V inside each sequence, dropout on the probabilities.

    `qkv` is (T, 3, H, K), queries, keys and values; the result is (T, H * K) of the same type.
    Devlin et al. 2018, section 3; Vaswani et al. 2017, section 3.2.
    """
    if has_kernel(qkv):
        return _in_one_call(qkv, batch.cu_seqlens, batch.max_seqlen, dropout_p).flatten(1)
    return _by_sequence(qkv, batch, dropout_p)


def has_kernel(qkv: Tensor) -> bool:
    """Whether one call does for all sequences: torch's flash kernel takes these heads.

    It wants 16 bits, so that fp32 on a GPU goes the other way; heads of a multiple of 8 up to 256;
    and a GPU of compute capability 8.0 or more.
    """
    head_dim = qkv.shape[-1]
    return (
        qkv.is_cuda
        and qkv.dtype in (torch.bfloat16, torch.float16)
        and head_dim % 8 == 0
        and head_dim <= 256
        and _is_ampere_or_later(qkv.device)
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
@functools.cache
def _is_ampere_or_later(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _in_one_call(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout_p: float) -> Tensor:
    """All sequences at once: (T, 3, H, K) to (T, H, K).

    Compiled code is made for one `max_seqlen`, so that it is the data's and not this batch's; the
    kernel takes no more from it than the number of its blocks.
    """
    q, k, v = qkv.unbind(1)
    if dropout_p == 0:
        out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        return cast(Tensor, out)  # a pair only where one is asked for
    # the same kernel, by a name that torch may change: `varlen_attn` always passes it a dropout of 0
    return torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, False, False
    )[0]


# Compiled code calls it from outside: the lengths in it would be constants, others with every batch
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _by_sequence(qkv: Tensor, batch: PackedBatch, dropout_p: float) -> Tensor:
    """One call a sequence: (T, 3, H, K) to (T, H * K)."""
    lengths = [n for n in batch.lengths if n > 0]  # unused slots lie behind
    if draws_attention(qkv, dropout_p):
        return attention_with_dropout(qkv, lengths, dropout_p)
    blocks = [one_sequence(block, dropout_p) for block in torch.split(qkv, lengths)]
    return torch.cat(blocks).flatten(1)


def one_sequence(qkv: Tensor, dropout_p: float) -> Tensor:
    """Attention of one sequence of L tokens: (L, 3, H, K) to (L, H, K)."""
    q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(
        1
    )  # each (1, H, L, K): four axes take the fast path
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)[0].transpose(0, 1)

"""Attention with dropout on a CPU, where torch's fast kernel has none.

One sequence at a time, all heads together; the kept elements are drawn as in cpu_dropout. With P =
softmax(S), B = P where kept and 0 elsewhere, and c the scale of the kept elements, the output is O
= c B V, and the gradients are

    dV = c B' dO,    dS = B (c dO V') - P delta,    delta = rowsum(dO O)

so that the backward pass needs only P and B. (delta for a row of probabilities is that of Dao et
al., "FlashAttention", arXiv 2205.14135, appendix B.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.model.cpu_dropout import draw_kept, draws_lanes


def draws_attention(qkv: Tensor, dropout_p: float) -> bool:
    """Whether `attention_with_dropout` is faster than torch's: not in half precision."""
    return qkv.dtype in (torch.float32, torch.float64) and draws_lanes(qkv, dropout_p)


def attention_with_dropout(qkv: Tensor, lengths: list[int], dropout_p: float) -> Tensor:
    """As pretrain.model.attention: (T, 3, H, K) to (T, H * K). Keeps two numbers per score."""
    return _Attention.apply(qkv, lengths, dropout_p)  # type: ignore[no-any-return, no-untyped-call]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, lengths: list[int], dropout_p: float) -> Tensor:
        out = qkv.new_empty(qkv.shape[0], *qkv.shape[2:])
        zero, ctx.root = qkv.new_zeros(()), qkv.shape[-1] ** -0.5
        ctx.lengths = [n for n in lengths if n > 0]
        kept_for_backward = []
        for block, into in zip(_split(qkv, ctx.lengths), _split(out, ctx.lengths), strict=True):
            q, k, v = block
            scores = torch.baddbmm(zero, q, k.transpose(1, 2), beta=0, alpha=ctx.root)
            probabilities = torch.softmax(scores, -1, out=scores)
            kept, ctx.scale = draw_kept(probabilities, dropout_p)
            torch.mul(kept.mul_(probabilities) @ v, ctx.scale, out=into)
            kept_for_backward += [probabilities, kept]
        ctx.save_for_backward(qkv, out, *kept_for_backward)
        return out.flatten(1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        qkv, out, *kept_from_forward = ctx.saved_tensors
        grad = grad.view_as(out)
        delta = (grad * out).sum(-1, keepdim=True)
        grad_qkv = torch.empty_like(qkv)
        blocks = (_split(x, ctx.lengths) for x in (qkv, grad_qkv, grad * ctx.scale, delta))
        pairs = zip(kept_from_forward[::2], kept_from_forward[1::2], strict=True)
        for (probabilities, kept), (q, k, v), (dq, dk, dv), do, delta_block in zip(
            pairs, *blocks, strict=True
        ):
            torch.bmm(kept.transpose(1, 2), do, out=dv)
            ds = torch.bmm(do, v.transpose(1, 2)).mul_(kept)
            ds.addcmul_(probabilities, delta_block, value=-1)
            torch.mul(ds @ k, ctx.root, out=dq)
            torch.mul(ds.transpose(1, 2) @ q, ctx.root, out=dk)
        return grad_qkv, None, None


def _split(x: Tensor, lengths: list[int]) -> list[Tensor]:
    """Views of the sequences of (T, ..., H, K), each (..., H, L, K)."""
    return [block.movedim(0, -2) for block in torch.split(x, lengths)]

"""Dropout on a CPU: a quarter of a random 64-bit word decides on an element.

F.dropout draws an element's fate at 7 ns, more than all else that a small model does to it between
two matrix products. Here 64 bits are drawn at once, by torch's default generator, and each 16 of
them are compared with p * 65536: p is exact to 1/65536, and the scale is that of the p in use.
Whoever seeds the generator, or puts its state back to recompute a layer, gets the same elements.

Elsewhere, in compiled code, and where many threads share the work (the words come from one), it is
F.dropout.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LEVELS = 2**16
_MOST_THREADS = 4


def draws_lanes(x: Tensor, p: float) -> bool:
    """Whether `x` is dropped out by 16-bit lanes, and not by torch."""
    return (
        x.device.type == "cpu"
        and 0 < p < 1 - 1 / _LEVELS
        and not torch.compiler.is_compiling()
        and torch.get_num_threads() <= _MOST_THREADS
    )


def draw_kept(like: Tensor, p: float) -> tuple[Tensor, float]:
    """1 where an element stays and 0 elsewhere, of the shape and type of `like`; and their scale.

    The scale is 1 / (1 - p) with the p in use. Takes ceil(numel / 4) numbers from the generator.
    """
    threshold = round(p * _LEVELS)
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    lanes = words.view(torch.int16)[: like.numel()].view(like.shape)
    kept = torch.empty(like.shape, dtype=like.dtype)
    torch.ge(lanes, threshold - _LEVELS // 2, out=kept)
    return kept, _LEVELS / (_LEVELS - threshold)


class Dropout(nn.Module):
    """As nn.Dropout: zeroes elements with probability p in training, and scales what stays."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and type as `x`."""
        if self.training and draws_lanes(x, self.p):
            return _ByLanes.apply(x, self.p)  # type: ignore[no-any-return, no-untyped-call]
        return F.dropout(x, self.p, self.training)


class _ByLanes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept, scale = draw_kept(x, p)
        kept.mul_(scale)
        ctx.save_for_backward(kept)
        return x * kept

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grad * kept, None

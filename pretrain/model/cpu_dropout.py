"""Dropout on a CPU: 16 random bits per element, drawn as 64-bit words.

F.dropout takes 7 ns per element, more than all else that a small model does between two matrix
products. Here torch's default generator draws 64 bits at once, and each 16 of them are compared
with p * 65536: p is exact to 1/65536, and the scale is that of the p in use. The same seed or
restored generator state gives the same elements.

On other devices, in compiled code, and with many threads (one thread draws all words), F.dropout is
used.
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
    """Whether the elements of `x` are drawn as 16-bit lanes, not by torch."""
    return (
        x.device.type == "cpu"
        and 0 < p < 1 - 1 / _LEVELS
        and not torch.compiler.is_compiling()
        and torch.get_num_threads() <= _MOST_THREADS
    )


def draw_kept(like: Tensor, p: float) -> tuple[Tensor, float]:
    """1 where an element is kept and 0 elsewhere, with the shape and dtype of `like`, and the
    scale.

    The scale is 1 / (1 - p) with the p in use. Draws ceil(numel / 4) numbers from the generator.
    """
    threshold = round(p * _LEVELS)
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    lanes = words.view(torch.int16)[: like.numel()].view(like.shape)
    kept = torch.empty(like.shape, dtype=like.dtype)
    torch.ge(lanes, threshold - _LEVELS // 2, out=kept)
    return kept, _LEVELS / (_LEVELS - threshold)


class Dropout(nn.Module):
    """As nn.Dropout: in training zeroes elements with probability p, and scales the others."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and dtype as `x`."""
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

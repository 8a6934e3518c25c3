"""Modules whose gradients are given, so that an optimizer is tested without a model's rounding."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Arrays = dict[str, NDArray[np.float64]]


def products(self: nn.Module, name: str, given: Any) -> Tensor:
    """A loss whose gradients are those given; in each module's own forward, as ZeRO 3 needs."""
    parts = [(p * given.gradient(f"{name}.{n}", p)).sum() for n, p in self.named_parameters()]
    return torch.stack(parts).sum()


class Table(nn.Embedding):
    forward = products


class Line(nn.Linear):
    forward = products


class Norm(nn.LayerNorm):
    forward = products


@dataclass(frozen=True)
class Given:
    """One rank's rows of a step's gradients."""

    step: int
    rows: range

    def to(self, device: torch.device) -> Any:
        return self

    def gradient(self, name: str, parameter: Tensor) -> Tensor:
        parts = [given_row(self.step, row, name, tuple(parameter.shape)) for row in self.rows]
        return torch.from_numpy(sum(parts)).to(parameter.dtype)


def given_row(step: int, row: int, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Sixteenths from -1 to 1: sums of all rows are exact in bfloat16, too."""
    if name.startswith("never"):
        return np.zeros(shape)
    drawn = np.random.default_rng([step, row, *name.encode()]).integers(-16, 17, shape)
    return drawn / 16.0


def mean_gradients(weights: Arrays, num_steps: int, num_rows: int) -> list[Arrays]:
    """Of each step, the mean over all rows."""
    return [
        {
            name: sum(given_row(step, row, name, weight.shape) for row in range(num_rows))
            / num_rows
            for name, weight in weights.items()
        }
        for step in range(num_steps)
    ]


def relative_errors(got: dict[str, Tensor], expected: Arrays) -> dict[str, float]:
    """Of each tensor, in the norm."""
    assert got.keys() == expected.keys()
    return {
        name: float(np.linalg.norm(got[name].double().numpy() - e) / (np.linalg.norm(e) or 1.0))
        for name, e in expected.items()
    }

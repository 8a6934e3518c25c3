"""The matrices that Muon orthogonalises, and on which rank. Plans use this, too: no torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretrain.config.settings import ModelSettings, OptimizerName
from pretrain.optim.buckets import runs

# What a rank holds of each parameter: its first element, and how many follow
Held = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Matrix:
    """A parameter, or one of several matrices that are stacked in it."""

    parameter: str
    first: int  # its first element in the parameter
    rows: int
    columns: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.rows * self.columns

    @property
    def scale(self) -> float:
        """Factor that gives an orthogonal matrix of this shape the usual RMS of AdamW's updates.

        0.2 sqrt(max(rows, columns)): Liu et al. 2025, arXiv 2502.16982, section 2.2.
        """
        return 0.2 * math.sqrt(max(self.rows, self.columns))

    def flops(self, steps: int) -> int:
        """Floating-point operations of `steps` Newton-Schulz steps, a multiply-add counting 2."""
        short, long = sorted((self.rows, self.columns))
        return steps * 2 * short**2 * (2 * long + short)


@dataclass(frozen=True)
class Part:
    """The elements [start, end) of a matrix, which one rank holds and one orthogonalises."""

    matrix: int  # its index
    holder: int  # rank
    owner: int  # rank that orthogonalises the matrix
    start: int
    end: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.end - self.start


def is_matrix(name: str, num_dims: int) -> bool:
    """Whether Muon updates the parameter: the weights of the layers, without biases and norms."""
    return name.startswith("layers.") and num_dims == 2


def shapes_of(model: ModelSettings) -> dict[str, tuple[int, int]]:
    """(rows, columns) of the parameters that Muon updates, in the model's order."""
    hidden, inner = model.hidden_size, model.intermediate_size
    of_layer = {
        "qkv": (3 * hidden, hidden),
        "attention_out": (hidden, hidden),
        "feed_forward_in": (inner, hidden),
        "feed_forward_out": (hidden, inner),
    }
    return {
        f"layers.{layer}.{name}.weight": shape
        for layer in range(model.num_hidden_layers)
        for name, shape in of_layer.items()
    }


def matrix_elements(model: ModelSettings, optimizer: OptimizerName) -> int:
    """Elements of the parameters that have one moment instead of two; 0 without Muon."""
    if optimizer is not OptimizerName.muon:
        return 0
    return sum(rows * columns for rows, columns in shapes_of(model).values())


def split(name: str, shape: Sequence[int]) -> list[Matrix]:
    """The matrices in a parameter: queries, keys and values are three."""
    stacked = 3 if name.endswith("qkv.weight") else 1
    rows, columns = shape[0] // stacked, shape[1]
    return [Matrix(name, i * rows * columns, rows, columns) for i in range(stacked)]


def assign(matrices: Sequence[Matrix], held: Sequence[Held]) -> list[Part]:
    """Parts of all matrices that ranks hold, by matrix and rank, each matrix with one owner.

    `held` is by rank. The owner holds the whole matrix, if a rank does, so that nothing has to be
    collected; otherwise a part of it. Among these the one with the least work so far, the largest
    matrices first. The result depends on nothing but the arguments.
    """
    holdings = [[_overlap(matrix, of_rank) for of_rank in held] for matrix in matrices]
    candidates = []
    for matrix, of_matrix in zip(matrices, holdings, strict=True):
        whole = [rank for rank, part in enumerate(of_matrix) if len(part) == matrix.numel]
        candidates.append(whole or [rank for rank, part in enumerate(of_matrix) if part])
    work, parts = [0] * len(held), []
    for index in sorted(
        range(len(matrices)), key=lambda i: (len(candidates[i]), -matrices[i].flops(1), i)
    ):
        of_matrix = holdings[index]
        owner = min(candidates[index], key=lambda rank: (work[rank], -len(of_matrix[rank]), rank))
        work[owner] += matrices[index].flops(1)
        parts += [
            Part(index, rank, owner, part.start, part.stop)
            for rank, part in enumerate(of_matrix)
            if part
        ]
    return sorted(parts, key=lambda part: (part.matrix, part.holder))


def is_collected(matrices: Sequence[Matrix], parts: Sequence[Part]) -> bool:
    """Whether owners lack parts of their matrices. At ZeRO 0 they do not: all ranks hold all."""
    whole = {p.matrix for p in parts if p.holder == p.owner and p.numel == matrices[p.matrix].numel}
    return any(part.matrix not in whole for part in parts)


def _overlap(matrix: Matrix, held: Held) -> range:
    """The elements of the matrix that a rank holds."""
    first, numel = held.get(matrix.parameter, (0, 0))
    start = max(0, first - matrix.first)
    return range(start, max(start, min(matrix.numel, first + numel - matrix.first)))


def shards(sizes: Mapping[str, int], stage: int, num_ranks: int) -> list[Held]:
    """What each rank holds of parameters of these sizes under a ZeRO stage of DeepSpeed.

    The parameters are those of one group, in its order. This is for plans: training takes what the
    engine finds.
    """
    if stage == 0:
        return [{name: (0, size) for name, size in sizes.items()}] * num_ranks
    found: list[dict[str, tuple[int, int]]] = [{} for _ in range(num_ranks)]
    if stage == 3:  # each parameter is cut and padded by itself
        for name, size in sizes.items():
            share = -(-size // num_ranks)
            for rank in range(num_ranks):
                found[rank][name] = (rank * share, max(0, min(share, size - rank * share)))
        return list(found)
    for run in runs([sizes], num_ranks)[0]:
        # one row of its parameters, padded to a multiple of twice the ranks
        share, begin = 2 * -(-sum(sizes[name] for name in run) // (2 * num_ranks)), 0
        for name in run:
            size = sizes[name]
            for rank in range(begin // share, (begin + size - 1) // share + 1):
                start = max(0, rank * share - begin)
                found[rank][name] = start, min(size, (rank + 1) * share - begin) - start
            begin += size
    return list(found)


def sent(matrices: Sequence[Matrix], parts: Sequence[Part], num_ranks: int) -> list[int]:
    """Elements that each rank sends to others in one update."""
    elements, is_both_ways = [0] * num_ranks, is_collected(matrices, parts)
    for part in parts:
        if part.holder != part.owner:
            elements[part.owner] += part.numel
            elements[part.holder] += part.numel * is_both_ways
    return elements

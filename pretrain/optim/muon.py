"""Muon (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982): orthogonal updates of matrices.

Not torch.optim.Muon: it takes whole parameters of one rank, multiplies in bfloat16 on every device,
and would orthogonalise queries, keys and values as one matrix. DeepSpeed's collects every matrix on
every rank. Here ZeRO's flat shards stay where they are: each matrix is collected on one rank,
orthogonalised there, and its parts are sent back, so that the work is divided over the ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from pretrain.optim.lamb import Piece
from pretrain.optim.matrices import Held, Matrix, Part, assign, is_collected, split
from pretrain.optim.newton_schulz import orthogonal, with_equal_rows

MATRICES = "matrices"  # label of the group that Muon updates; AdamW updates the others
_STACK_ELEMENTS = 2**24  # matrices are orthogonalised in stacks of this size, to bound the memory


class Muon(Optimizer):
    """Muon for the group of matrices, AdamW for the others. One update of a matrix W, gradient G:

        M = momentum M + (1 - momentum) G
        U = momentum M + (1 - momentum) G             Nesterov's
        O = U's nearest orthogonal matrix             see `orthogonal`
        O's rows scaled to one norm                   if equal_rows
        W = W - rate (0.2 sqrt(max(rows, columns)) O + decay W)    rate = lr matrix_rate

    The factor gives the update the RMS that AdamW's have, so that one rate serves both. State of
    matrices: exp_avg, which is M, and step; of the others exp_avg_sq, too.

    The group labelled MATRICES has the `names` of its parameters, which must be whole when the
    optimizer is made.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0,
        *,
        momentum: float,
        matrix_rate: float,
        newton_schulz_steps: int,
        equal_rows: bool = False,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True},
        )
        self._momentum, self._matrix_rate = momentum, matrix_rate
        self._newton_schulz_steps, self._equal_rows = newton_schulz_steps, equal_rows
        (group,) = [g for g in self.param_groups if g["label"] == MATRICES]
        named = dict(zip(group["names"], group["params"], strict=True))
        self._matrices = [m for name, p in named.items() for m in split(name, p.shape)]
        self._pieces = {p: [Piece(name, 0, p.numel())] for name, p in named.items()}
        self._held: Sequence[Held] = [{name: (0, p.numel()) for name, p in named.items()}]
        self._rank, self._dtype, self._process_group = 0, torch.float32, None
        self._exchanges: dict[tuple[str, ...], _Exchange] = {}

    def attach(
        self,
        pieces: Mapping[Tensor, Sequence[Piece]],
        held: Sequence[Held],
        rank: int,
        dtype: torch.dtype,
        process_group: Any = None,
    ) -> None:
        """Pass what ZeRO made of the parameters. Before the first step.

        pieces: those that each tensor of this rank holds, see `Lamb.attach`
        held: by rank of the process group, what it holds of each parameter
        rank: this one's in the process group
        dtype: of the products of Newton-Schulz steps, and of what ranks send to each other
        process_group: the ranks that share the matrices; None: all
        """
        self._pieces = {tensor: list(of_tensor) for tensor, of_tensor in pieces.items()}
        self._held, self._rank, self._dtype = held, rank, dtype
        self._process_group = process_group

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all tensors that have a gradient; those of matrices are overwritten.

        Collective where ranks hold different parts. DeepSpeed calls it once per group.
        """
        assert closure is None, "the gradients exist before the step: no closure is called"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            gradients = [p.grad for p in params if p.grad is not None]
            if group["label"] == MATRICES:
                self._update_matrices(params, gradients, group)
            else:
                self._update_others(params, gradients, group)

    def _update_others(
        self, params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> None:
        moments, squares, steps = self._states_of(params, "exp_avg", "exp_avg_sq", "step")
        beta_1, beta_2 = group["betas"]
        hyper = {name: group[name] for name in ("lr", "weight_decay", "eps")}
        adamw(
            params, gradients, moments, squares, [], steps, beta1=beta_1, beta2=beta_2,
            amsgrad=False, maximize=False, fused=True, **hyper,
        )  # fmt: skip

    def _update_matrices(
        self, params: list[Tensor], updates: list[Tensor], group: dict[str, Any]
    ) -> None:
        """`updates` are the gradients, which are overwritten."""
        moments, steps = self._states_of(params, "exp_avg", "step")
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(moments, updates, 1 - self._momentum)
        torch._foreach_lerp_(updates, moments, self._momentum)
        flat = [update.view(-1) for update in updates]
        self._exchange(params).orthogonalise(flat, self._newton_schulz_steps, self._equal_rows)
        rate = group["lr"] * self._matrix_rate
        torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
        torch._foreach_add_(params, updates, alpha=-rate)

    def _states_of(self, params: list[Tensor], *keys: str) -> list[list[Tensor]]:
        """The state of each parameter by key; 0 at first, `step` a scalar on the device."""
        for parameter in params:
            if not self.state[parameter]:
                shapes = [(key, () if key == "step" else parameter.shape) for key in keys]
                made = {key: torch.zeros(s, device=parameter.device) for key, s in shapes}
                self.state[parameter].update(made)
        return [[self.state[p][key] for p in params] for key in keys]

    def _exchange(self, params: list[Tensor]) -> _Exchange:
        """Of the matrices in these tensors, made once."""
        pieces = [self._pieces[p] for p in params]
        names = tuple(piece.name for of_tensor in pieces for piece in of_tensor)
        if names not in self._exchanges:
            chosen = set(names)
            matrices = [m for m in self._matrices if m.parameter in chosen]
            self._exchanges[names] = _Exchange(
                matrices, self._held, pieces, self._rank, self._dtype, self._process_group
            )
        return self._exchanges[names]


class _Exchange:
    """Orthogonalises matrices whose elements lie in flat tensors of many ranks.

    Two buffers hold parts in transit: those of this rank in matrices of other owners (`away`), and
    those of other ranks in its own matrices (`guests`). One collective brings the guests; the other
    takes them back, orthogonalised. Nothing waits for the device.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        held: Sequence[Held],
        pieces: Sequence[Sequence[Piece]],
        rank: int,
        dtype: torch.dtype,
        process_group: Any,
    ) -> None:
        """`pieces`: of each flat tensor that will be passed to `orthogonalise`."""
        self._dtype, self._process_group, num_ranks = dtype, process_group, len(held)
        parts = assign(matrices, held)
        self._moves = any(part.holder != part.owner for part in parts)
        self._is_collected = is_collected(matrices, parts)
        mine = [part for part in parts if part.holder == rank]
        here = [part for part in parts if part.owner == rank]
        self._away = _Transit([[p for p in mine if p.owner == r != rank] for r in range(num_ranks)])
        self._guests = _Transit(
            [[p for p in here if p.holder == r != rank] for r in range(num_ranks)]
        )
        place = {
            piece.name: (tensor, piece.start)
            for tensor, of_tensor in enumerate(pieces)
            for piece in of_tensor
            if piece.numel
        }
        # Where this rank's part of a matrix lies: tensor, first element
        self._places: dict[Part, tuple[int, int]] = {}
        for part in mine:
            matrix = matrices[part.matrix]
            tensor, start = place[matrix.parameter]
            first, _ = held[rank][matrix.parameter]
            self._places[part] = tensor, start + matrix.first + part.start - first
        of_matrix: dict[int, list[Part]] = {}
        for part in here:
            of_matrix.setdefault(part.matrix, []).append(part)
        self._stacks = [
            (matrices[stack[0]], [of_matrix[index] for index in stack])
            for stack in _stacks(matrices, of_matrix)
        ]

    def orthogonalise(self, updates: list[Tensor], steps: int, equal_rows: bool) -> None:
        """Replace the matrices in the flat `updates` by orthogonal ones, scaled. Collective."""
        device = updates[0].device
        mine = {
            part: updates[tensor][start : start + part.numel]
            for part, (tensor, start) in self._places.items()
        }
        away, away_parts = self._away.buffer(self._dtype, device)
        guests, guest_parts = self._guests.buffer(self._dtype, device)
        if self._moves and self._is_collected:
            _copy(away_parts.values(), [mine[part] for part in away_parts])
            self._send(guests, away, self._guests.sizes, self._away.sizes)
        here = mine | guest_parts
        known = here if self._is_collected else mine
        for matrix, stacked in self._stacks:
            stack = torch.empty(len(stacked), matrix.numel, dtype=self._dtype, device=device)
            inside = _views(stack, stacked)
            _copy(
                [v for p, v in inside.items() if p in known],
                [known[p] for p in inside if p in known],
            )
            shaped = stack.view(-1, matrix.rows, matrix.columns)
            done = orthogonal(shaped, steps)
            if equal_rows:
                done = with_equal_rows(done)
            done.mul_(matrix.scale)
            results = _views(done.view_as(stack), stacked)
            _copy([here[part] for part in results], results.values())
        if self._moves:
            self._send(away, guests, self._away.sizes, self._guests.sizes)
            _copy([mine[part] for part in away_parts], away_parts.values())

    def _send(
        self, received: Tensor, sent: Tensor, received_sizes: list[int], sent_sizes: list[int]
    ) -> None:
        torch.distributed.all_to_all_single(
            received, sent, received_sizes, sent_sizes, self._process_group
        )


class _Transit:
    """Parts on their way to or from each other rank."""

    def __init__(self, by_rank: Sequence[Sequence[Part]]) -> None:
        self._parts = list(itertools.chain(*by_rank))
        self.sizes = [sum(part.numel for part in parts) for parts in by_rank]  # elements

    def buffer(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, dict[Part, Tensor]]:
        """Memory for all parts, and the view of each."""
        whole = torch.empty(sum(self.sizes), dtype=dtype, device=device)
        views = torch.split(whole, [part.numel for part in self._parts])
        return whole, dict(zip(self._parts, views, strict=False))


def _stacks(matrices: Sequence[Matrix], indices: Iterable[int]) -> list[list[int]]:
    """Matrices of one shape together, as many as _STACK_ELEMENTS allow."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        by_shape.setdefault((matrices[index].rows, matrices[index].columns), []).append(index)
    found = []
    for (rows, columns), same in by_shape.items():
        most = max(1, _STACK_ELEMENTS // (rows * columns))
        found += [same[first : first + most] for first in range(0, len(same), most)]
    return found


def _views(stack: Tensor, stacked: Sequence[Sequence[Part]]) -> dict[Part, Tensor]:
    """The parts of matrices in a stack that has a row for each matrix."""
    return {
        part: row[part.start : part.end]
        for row, parts in zip(stack, stacked, strict=True)
        for part in parts
    }


def _copy(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    targets = list(targets)
    if targets:
        torch._foreach_copy_(targets, list(sources))

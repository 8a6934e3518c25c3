"""Sharded weights and moments: which elements of each parameter this rank holds, per ZeRO stage.

DeepSpeed flattens, pads and distributes parameters in a different way at each stage. Only this file
knows how; all others ask by a parameter's name.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.distributed.ranks import Ranks
from pretrain.distributed.rendezvous import host_name
from pretrain.engine.deepspeed_setup import (
    GatheredParameters,
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
)
from pretrain.engine.sharding import Sharding
from pretrain.engine.snapshot import MOMENTS, WEIGHT, Layout
from pretrain.optim.lamb import Piece


class ShardedState:
    """fp32 master weights and moments of a model under DeepSpeed, by parameter name.

    A key is `weight`, `exp_avg` or `exp_avg_sq`. `pieces`, `whole`, `check_copies` and
    `refresh_working_weights` are collective.
    """

    def __init__(
        self,
        engine: Any,
        optimizer: torch.optim.Optimizer,
        stage: int,
        parameters: dict[str, nn.Parameter],
        layout: Layout,
        ranks: Ranks,
        sharding: Sharding,
    ) -> None:
        """Wrap DeepSpeed's `engine` around `optimizer`; sets its steps and moments to 0."""
        self.parameters, self.layout = parameters, layout
        self._engine, self._optimizer, self._stage, self._ranks = engine, optimizer, stage, ranks
        self._sharding = sharding
        self._make_moments()

    def flat_tensors(self) -> list[Tensor]:
        """The tensors that the optimizer updates on this rank: whole parameters, or flat shards."""
        if self._stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _make_moments(self) -> None:
        """Set step 0 and zero moments now, not in the first step: there is state to save or load.

        This also works around DeepSpeed, which links moments to parameters after the first group's
        first step, when the second group has none yet.
        """
        is_fused = self._optimizer.defaults.get("fused")
        for flat, names in zip(self.flat_tensors(), self._names_of_flat_tensors(), strict=True):
            state = self._optimizer.state[flat]
            state["step"] = torch.zeros((), device=flat.device if is_fused else "cpu")
            for key in MOMENTS:
                if names[0] in self.layout.names(key):
                    state[key] = torch.zeros_like(flat, requires_grad=False)
        if self._stage in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _piece(self, key: str, name: str) -> tuple[int, Tensor]:
        """This rank's part of a master weight or moment: index of its first element, 1-D view."""
        parameter = self.parameters[name]
        if self._stage == 0:
            whole = parameter if key == WEIGHT else self._optimizer.state[parameter][key]
            return 0, whole.data.view(-1)
        if self._stage == 3:
            if key == WEIGHT:
                padded = safe_get_local_fp32_param(parameter).data
            else:
                padded = safe_get_local_optimizer_state(parameter, key)
            start = self._ranks.rank * padded.numel()
            return start, padded[: max(0, math.prod(self.layout.shapes[name]) - start)]
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return 0, torch.empty(0, device=self._ranks.device)
        piece = mapping.get_hp_fragment(None if key == WEIGHT else key)
        return mapping.lp_fragment_address.start, piece.data

    def pieces(self) -> dict[Tensor, list[Piece]]:
        """The pieces in each flat tensor, of the parameters of its own group.

        Found by the memory that holds a parameter's piece. Raises RuntimeError unless the ranks
        together hold every parameter once, or once per copy: otherwise the update would be wrong.
        """
        pieces: dict[Tensor, list[Piece]] = {flat: [] for flat in self.flat_tensors()}
        for flat, names in zip(pieces, self._names_of_flat_tensors(), strict=True):
            for name in names:
                view = self._piece(WEIGHT, name)[1]
                start = (view.data_ptr() - flat.data_ptr()) // flat.element_size()
                is_inside = view.numel() > 0 and 0 <= start <= flat.numel() - view.numel()
                pieces[flat].append(
                    Piece(name, start, view.numel()) if is_inside else Piece(name, 0, 0)
                )
        held = dict.fromkeys(self.parameters, 0.0)
        for piece in itertools.chain(*pieces.values()):
            held[piece.name] += piece.numel
        copies = self._ranks.world_size if self._stage == 0 else self._sharding.num_copies
        totals = self._ranks.sum(list(held.values()))
        for (name, shape), total in zip(self.layout.shapes.items(), totals, strict=True):
            if total != math.prod(shape) * copies:
                raise RuntimeError(
                    f"the ranks hold {total:.0f} of the {math.prod(shape) * copies} elements of "
                    f"{name}, and the update needs each once; install the version of DeepSpeed in "
                    "pyproject.toml"
                )
        return pieces

    def held(self) -> dict[str, tuple[int, int]]:
        """What this rank holds of each parameter: its first element, and how many follow."""
        return {
            name: (start, piece.numel())
            for name in self.parameters
            for start, piece in [self._piece(WEIGHT, name)]
        }

    def _names_of_flat_tensors(self) -> list[list[str]]:
        """The parameters of each flat tensor, in an order that all ranks share."""
        name_of = {id(parameter): name for name, parameter in self.parameters.items()}
        if self._stage == 0:
            return [[name_of[id(flat)]] for flat in self.flat_tensors()]
        optimizer = self._engine.optimizer
        of_flat = optimizer.fp16_groups if self._stage == 3 else optimizer.bit16_groups
        return [[name_of[id(parameter)] for parameter in group] for group in of_flat]

    def put(self, key: str, name: str, value: Tensor) -> None:
        """Copy this rank's part of a whole tensor."""
        start, piece = self._piece(key, name)
        piece.copy_(value.reshape(-1)[start : start + piece.numel()])

    def whole(self, key: str, name: str) -> Tensor:
        """A whole tensor on rank 0's device; on other ranks only its shape is valid.

        If one rank holds all of it, it is the live tensor: copy it before the next step.
        """
        shape = self.layout.shapes[name]
        start, piece = self._piece(key, name)
        if self._stage == 0 or self._ranks.world_size == 1:
            return piece.view(shape)
        whole = torch.zeros(math.prod(shape), dtype=torch.float32, device=self._ranks.device)
        whole[start : start + piece.numel()] = piece
        if 0 in self._sharding.ranks:  # the other copies are the same
            # a sum of bit patterns: one rank's, and zeros of the others
            torch.distributed.reduce(whole.view(torch.int32), dst=0, group=self._sharding.within)
        return whole.view(shape)

    def check_copies(self) -> None:
        """Compare the copies of the state that nodes hold with engine.shard=node, by checksums.

        Raises RuntimeError on every rank if they differ, naming one rank, its node and a tensor.
        """
        if self._sharding.num_copies == 1:
            return
        sums = {  # a flipped bit changes the sum of the words
            f"{key} of {name}": piece.view(torch.int32).sum()
            for key in (WEIGHT, *MOMENTS)
            for name in self.layout.names(key)
            if (piece := self._piece(key, name)[1]).numel() > 0
        }
        of_copies = self._sharding.of_copies(torch.stack([*sums.values()])).T.tolist()
        unlike = [
            (label, values)
            for label, values in zip(sums, of_copies, strict=True)
            if len({*values}) > 1
        ]
        if not self._ranks.any(bool(unlike)):
            return
        fault = (*unlike[0], len(unlike)) if unlike else None
        found = self._ranks.gather((host_name(), fault))
        raise RuntimeError(_unlike_copies(found, len(self._sharding.ranks)))

    def refresh_working_weights(self) -> None:
        """Copy the masters into the weights that the forward pass reads."""
        if self._stage in (1, 2):
            self._engine.optimizer.update_lp_params()
        elif self._stage == 3:
            for name, parameter in self.parameters.items():
                master = self.whole(WEIGHT, name)
                with GatheredParameters([parameter], modifier_rank=0):
                    if self._ranks.rank == 0:
                        parameter.data.copy_(master)


def _unlike_copies(
    found: Sequence[tuple[str, tuple[str, list[int], int] | None]], size: int
) -> str:
    """The message, from each rank's host and first unlike tensor; `size` ranks hold a copy."""
    place, (label, values, count) = next(
        (rank % size, fault) for rank, (_, fault) in enumerate(found) if fault is not None
    )
    usual, times = Counter(values).most_common(1)[0]
    odd, like = (
        next(copy * size + place for copy, value in enumerate(values) if (value == usual) is same)
        for same in (False, True)
    )
    which = f"{times} of {len(values)} copies agree" if times > 1 else "either may be wrong"
    host = found[odd][0]
    return (
        f"the nodes' copies of the state (engine.shard=node) differ: {label} (one of {count} "
        f"there) on rank {odd} ({host}) is not that on rank {like} ({found[like][0]}); {which}. "
        "This step is not saved; start again, and the run continues from the newest checkpoint. If "
        "it happens again, have the memory of these nodes tested, and start without the bad one "
        f"(sbatch --exclude={host})"
    )

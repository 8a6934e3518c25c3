"""Sharding, precision, clipping, the update, and its state: what of DeepSpeed is used lies here.

`pretrain/zero.py` replaces some of it; no other file knows DeepSpeed.

The loss is exact. A micro-batch contributes its sum of losses over the global batch's counts, times
the number of ranks, over which DeepSpeed averages: whatever the ranks, the micro-batches and the
ZeRO stage, the gradient is that of the mean over the global batch. One `step()` of DeepSpeed ends a
global batch (`managed_gradient_accumulation` is off), so any number of micro-batches does.

The state on the disk is consolidated: fp32 master weights and moments by parameter name, as
safetensors, written by rank 0. It fits any ZeRO stage and any number of ranks.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data_prep.configuration import SettingsError
from pretrain import consolidated
from pretrain.compiling import compile_parts, resolve_compile, uncompiled
from pretrain.consolidated import MOMENTS, WEIGHT, Snapshot
from pretrain.lamb import Lamb, Piece
from pretrain.optimizers import build_optimizer, parameter_groups
from pretrain.ranks import Ranks
from pretrain.settings import Compile, EngineSettings, OptimSettings, Precision

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it guesses, and says so on stdout
import deepspeed
import deepspeed.ops
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import groups as process_groups
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

from pretrain.zero import LeanZero

if TYPE_CHECKING:
    from pretrain.batches.loader import GlobalBatch
    from pretrain.batches.packing import PackedBatch
    from pretrain.model import BertForPreTraining

if not torch.cuda.is_available():
    deepspeed.ops.__compatible_ops__ = {}  # else it compiles C++ for an inference op (2 minutes)
deepspeed.utils.logger.setLevel("ERROR")
# torch has new names for collectives that DeepSpeed calls by the old ones
warnings.filterwarnings("ignore", category=FutureWarning, module="torch|deepspeed")

_GROUPS = ("decayed", "not decayed")  # in the order of `parameter_groups`
_LOSS_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class StepResult:
    """What one global batch did."""

    applied: bool  # False: a loss or gradient was not finite, and nothing has changed
    grad_norm: Tensor | float  # global, before clipping, unscaled; inf where not applied
    # (4,) float64 on the device, this rank's: losses of tokens and pairs, right guesses of both
    sums: Tensor
    loss_scale: float  # with which the next batch is scaled; 1 but in fp16


def resolve_precision(settings: EngineSettings, device: torch.device) -> Precision:
    """`auto` as what it stands for on this hardware; any other precision as it is.

    Raises SettingsError where the hardware does not have it: before a model is built.
    """
    precision = settings.precision
    if precision is Precision.auto:
        is_cuda = device.type == "cuda"
        has_bf16 = is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = Precision.bf16_autocast if has_bf16 else Precision.fp32
    if precision is Precision.fp16 and not get_accelerator().is_fp16_supported():
        raise SettingsError(
            "engine.precision=fp16 needs a GPU; set engine.precision=fp32 on this machine"
        )
    low = precision in (Precision.bf16, Precision.fp16)
    assert settings.zero_stage > 0 or not low, "settings.check refuses this"
    return precision


class Engine:
    """A model under DeepSpeed. All methods are collective: every rank calls them, in one order."""

    def __init__(
        self, model: BertForPreTraining, optim: OptimSettings, engine: EngineSettings, ranks: Ranks
    ) -> None:
        """Take over `model` (fp32) and make it train. Raises SettingsError on a wrong precision."""
        self.precision = resolve_precision(engine, ranks.device)
        self.ranks = ranks
        self._stage = engine.zero_stage
        # infinite and not absent: DeepSpeed at ZeRO 0 calls our clipping only where there is a bound
        self._max_grad_norm = math.inf if optim.max_grad_norm is None else optim.max_grad_norm
        self._model = model
        model.activation_checkpointing = engine.activation_checkpointing
        model.to(ranks.device)
        if resolve_compile(engine, ranks.device) is Compile.true:
            compile_parts(model, self.precision, ranks.device)
        groups = parameter_groups(model, optim.weight_decay)
        self._optimizer = build_optimizer(groups, optim)
        self._parameters = dict(model.named_parameters())  # the tied matrix once
        name_of = {parameter: name for name, parameter in self._parameters.items()}
        self._layout = consolidated.Layout(
            optimizer=optim.name.name,
            shapes={name: list(p.shape) for name, p in self._parameters.items()},
            groups={
                name_of[parameter]: label
                for label, group in zip(_GROUPS, groups, strict=True)
                for parameter in group["params"]
            },
        )
        low = self.precision in (Precision.bf16, Precision.fp16)
        initial = {n: p.detach().cpu().clone() for n, p in self._parameters.items()} if low else {}
        config = deepspeed_config(
            self.precision, self._stage, self._max_grad_norm, self._layout.num_parameters
        )
        self._engine = _initialize(model, self._optimizer, config, ranks, engine.timeout_minutes)
        self._is_finite = True
        if self._stage == 0:
            self._engine.clip_fp32_gradients = self._clip
            self._engine.enable_backward_allreduce = ranks.world_size > 1  # else it copies in vain
        elif isinstance(self._engine.optimizer, DeepSpeedZeroOptimizer):
            LeanZero.take_over(self._engine.optimizer)
        self._new_loss_scaler = self._loss_scaler()
        self._make_optimizer_state()
        for name, value in initial.items():  # DeepSpeed's masters have been through 16 bits
            self._put(WEIGHT, name, value)
        if isinstance(self._optimizer, Lamb):
            is_sharded = self._stage > 0 and ranks.world_size > 1
            self._optimizer.attach(
                self._pieces(), torch.distributed.all_reduce if is_sharded else None
            )

    @property
    def loss_scale(self) -> float:
        """Factor by which losses are multiplied before the backward pass: 1 but in fp16."""
        is_fp16 = self.precision is Precision.fp16
        return float(self._engine.optimizer.loss_scaler.cur_scale) if is_fp16 else 1.0

    @property
    def state_bytes(self) -> int:
        """What a snapshot writes, but for some kilobytes."""
        return self._layout.state_bytes

    def train_step(self, batch: GlobalBatch, learning_rate: float) -> StepResult:
        """Forward and backward of this rank's micro-batches, then one update by all ranks.

        Every rank brings the same number of micro-batches. A loss or gradient that is not finite on
        any rank skips the update on all. Besides the check for that, the host waits for nothing.
        """
        self._switch_to(training=True)
        sums = torch.zeros(4, dtype=torch.float64, device=self.ranks.device)
        for micro_batch, seed in zip(batch.micro_batches, batch.dropout_seeds, strict=True):
            torch.manual_seed(seed)  # noqa: TID251  dropout by position, so no state to be saved
            outputs = self._engine(micro_batch.to(self.ranks.device))
            mlm_loss, pair_loss = outputs[:2]
            part = mlm_loss / max(1, batch.num_masked) + pair_loss / batch.num_sequences
            # 1, or NaN for a loss that is not finite: its gradient might still be
            sound = 1 + 0 * part.detach()
            self._engine.backward(part * sound * self.ranks.world_size)
            sums += _as_sums(outputs)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._is_finite = True
        self._engine.step()
        applied = self._engine.was_step_applied() and self._is_finite
        norm = self._engine.get_global_grad_norm() if applied else float("inf")
        return StepResult(applied, norm, sums, self.loss_scale)

    def rehearse(
        self, micro_batches: Iterable[PackedBatch], activation_checkpointing: bool
    ) -> None:
        """All of a training step but its update: afterwards everything is as it was before.

        With activation checkpointing or without, whatever the engine's own steps have. Losses count nothing and the optimizer is held, so that weights, moments and optimizer step
        stay; the loss scaler, torch's generators and DeepSpeed's counters are put back.
        """
        optimizer, counters = self._optimizer, ("global_steps", "global_samples", "micro_steps")
        counted = {name: getattr(self._engine, name) for name in (*counters, "skipped_steps")}
        scaler, device = self._loss_scaler(), self.ranks.device
        update, optimizer.step = optimizer.step, lambda *_, **__: None  # type: ignore[assignment,method-assign]
        self._switch_to(training=True)
        own = self._model.activation_checkpointing
        self._model.activation_checkpointing = activation_checkpointing
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                for micro_batch in micro_batches:
                    mlm_loss, pair_loss = self._engine(micro_batch.to(device))[:2]
                    self._engine.backward(0.0 * (mlm_loss + pair_loss))
            self._engine.step()
        finally:
            optimizer.step = update  # type: ignore[method-assign]
            self._model.activation_checkpointing = own
        for name, value in counted.items():
            setattr(self._engine, name, value)
        self._set_loss_scaler(scaler)

    def close(self) -> None:
        """Give the memory back, for the engine of the next phase. No other call may follow."""
        self._engine.destroy()
        # what ZeRO 3 leaves tied up in hooks no collector sees; emptied, it holds nothing
        for optimizer in (self._engine.optimizer, self._optimizer):
            vars(optimizer).clear()
        for parameter in self._parameters.values():
            vars(parameter).clear()
            parameter.grad = None
            parameter.data = torch.empty(0, device=self.ranks.device)

    def trust_ratios(self) -> dict[str, float]:
        """LAMB's ratio of each parameter in the last update, the same on every rank; {} for Adam."""
        optimizer = self._optimizer
        return optimizer.trust_ratios() if isinstance(optimizer, Lamb) else {}

    def evaluate_step(self, micro_batch: PackedBatch) -> Tensor:
        """(4,) float64 sums as in StepResult, without dropout and without a gradient."""
        self._switch_to(training=False)
        with torch.no_grad():
            return _as_sums(self._engine(micro_batch.to(self.ranks.device)))

    def masked_logits(self, micro_batch: PackedBatch) -> Tensor:
        """(M, padded V) logits at the masked positions, without dropout; the same batch on all ranks.

        Taken on their way through the forward pass, the only one that ZeRO 3 has the weights for.
        """
        seen: list[Tensor] = []
        head = self._engine.module.mlm_head
        taking = head.register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            with uncompiled():
                self.evaluate_step(micro_batch)
        finally:
            taking.remove()
        return seen[0]

    def full_weights(self) -> dict[str, Tensor]:
        """The fp32 master weights by parameter name, on the CPU of rank 0; {} elsewhere."""
        return self._gather(WEIGHT, self._parameters)

    def new_snapshot(self) -> Snapshot | None:
        """Memory for `take`, on rank 0; None elsewhere. Raises RuntimeError where there is none."""
        if self.ranks.rank > 0:
            return None
        return Snapshot.allocate(self._layout, self.ranks.device)

    def take(self, snapshot: Snapshot | None) -> None:
        """Copy weights, moments, optimizer step and loss scaler as they are now into `snapshot`.

        It overwrites what was there. When this returns, training may go on.
        """
        for key in (WEIGHT, *MOMENTS):
            for name in self._parameters:
                whole = self._whole(key, name)
                if snapshot is not None:
                    snapshot.tensors[key][name].copy_(whole, non_blocking=True)
        if snapshot is None:
            return
        if self.ranks.device.type == "cuda":  # the copies wait in its queue until here
            torch.cuda.current_stream().synchronize()
        snapshot.optimizer_step = int(self._optimizer.state[self._flat_tensors()[0]]["step"])
        snapshot.loss_scaler = self._loss_scaler() or None

    def load(self, folder: Path, forget: Collection[str] = ()) -> None:
        """Continue from what a snapshot wrote, on any ZeRO stage, number of ranks and precision.

        But for what to `forget` of moments, optimizer_step and loss_scaler, which become those of a
        new engine. Every rank reads `folder`. Raises SettingsError unless optimizer, names, shapes and
        parameter groups are those of this run.
        """
        step, scaler = consolidated.read_small(folder, self._layout)
        for key, name, value in consolidated.read_tensors(folder):
            is_forgotten = key != WEIGHT and "moments" in forget
            self._put(key, name, torch.zeros_like(value) if is_forgotten else value)
        self._refresh_working_weights()
        for flat in self._flat_tensors():
            self._optimizer.state[flat]["step"].fill_(0 if "optimizer_step" in forget else step)
        self._set_loss_scaler(self._new_loss_scaler if "loss_scaler" in forget else scaler or {})

    def _loss_scaler(self) -> dict[str, Any]:
        """What fp16's loss scaler stands at; {} in other precisions."""
        if self.precision is not Precision.fp16:
            return {}
        return {field: getattr(self._engine.optimizer.loss_scaler, field) for field in _LOSS_SCALER}

    def _set_loss_scaler(self, values: Mapping[str, Any]) -> None:
        if self.precision is Precision.fp16:
            for field, value in values.items():
                setattr(self._engine.optimizer.loss_scaler, field, value)

    def _switch_to(self, training: bool) -> None:
        if self._engine.module.training != training:  # DeepSpeed's own flag stays True for ever
            self._engine.train(training)

    def _clip(self) -> None:
        """Clip at ZeRO 0, where DeepSpeed keeps no norm and would write NaN into the weights."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._engine._global_grad_norm = norm
        self._is_finite = bool(torch.isfinite(norm))
        if self._is_finite:
            parameters = self._parameters.values()
            torch.nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
        else:  # optimizers pass over parameters that have no gradient
            self._engine.zero_grad()

    def _flat_tensors(self) -> list[Tensor]:
        """What the optimizer really updates on this rank: whole parameters, or flat shards."""
        if self._stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _make_optimizer_state(self) -> None:
        """Step 0 and zero moments now and not in the first step: there is state to save or load.

        It also makes up for a fault of DeepSpeed, which links moments to parameters after the first
        group's first step, when the second group has none yet.
        """
        is_fused = self._optimizer.defaults.get("fused")
        for flat in self._flat_tensors():
            state = self._optimizer.state[flat]
            state["step"] = torch.zeros((), device=flat.device if is_fused else "cpu")
            for key in MOMENTS:
                state[key] = torch.zeros_like(flat, requires_grad=False)
        if self._stage in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _piece(self, key: str, name: str) -> tuple[int, Tensor]:
        """This rank's part of a master weight or moment: its first element's index, a 1-D view."""
        parameter = self._parameters[name]
        if self._stage == 0:
            whole = parameter if key == WEIGHT else self._optimizer.state[parameter][key]
            return 0, whole.data.view(-1)
        if self._stage == 3:
            if key == WEIGHT:
                padded = safe_get_local_fp32_param(parameter).data
            else:
                padded = safe_get_local_optimizer_state(parameter, key)
            start = self.ranks.rank * padded.numel()
            return start, padded[: max(0, math.prod(self._layout.shapes[name]) - start)]
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return 0, torch.empty(0, device=self.ranks.device)
        piece = mapping.get_hp_fragment(None if key == WEIGHT else key)
        return mapping.lp_fragment_address.start, piece.data

    def _pieces(self) -> dict[Tensor, list[Piece]]:
        """What each flat tensor holds, of the parameters of its own group alone.

        Found by the memory in which a parameter's piece lies. Raises RuntimeError unless the ranks
        together hold every parameter once: norms of its pieces would not be its own.
        """
        pieces: dict[Tensor, list[Piece]] = {flat: [] for flat in self._flat_tensors()}
        for flat, names in zip(pieces, self._names_of_flat_tensors(), strict=True):
            for name in names:
                view = self._piece(WEIGHT, name)[1]
                start = (view.data_ptr() - flat.data_ptr()) // flat.element_size()
                is_inside = view.numel() > 0 and 0 <= start <= flat.numel() - view.numel()
                pieces[flat].append(
                    Piece(name, start, view.numel()) if is_inside else Piece(name, 0, 0)
                )
        held = dict.fromkeys(self._parameters, 0.0)
        for piece in itertools.chain(*pieces.values()):
            held[piece.name] += piece.numel
        copies = self.ranks.world_size if self._stage == 0 else 1
        totals = self.ranks.sum(list(held.values()))
        for (name, shape), total in zip(self._layout.shapes.items(), totals, strict=True):
            if total != math.prod(shape) * copies:
                raise RuntimeError(
                    f"the ranks hold {total:.0f} of the {math.prod(shape) * copies} elements of "
                    f"{name}, and LAMB needs each once: this version of DeepSpeed shards in a way "
                    "that is not known; install the one in pyproject.toml"
                )
        return pieces

    def _names_of_flat_tensors(self) -> list[list[str]]:
        """The parameters of each flat tensor, in an order that all ranks share."""
        if self._stage == 0:
            name_of = {id(parameter): name for name, parameter in self._parameters.items()}
            return [[name_of[id(flat)]] for flat in self._flat_tensors()]
        if self._stage == 3:
            name_of = {id(parameter): name for name, parameter in self._parameters.items()}
            return [[name_of[id(p)] for p in group] for group in self._engine.optimizer.fp16_groups]
        groups = self._layout.groups
        return [[name for name in groups if groups[name] == label] for label in _GROUPS]

    def _put(self, key: str, name: str, value: Tensor) -> None:
        start, piece = self._piece(key, name)
        piece.copy_(value.reshape(-1)[start : start + piece.numel()])

    def _gather(self, key: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Whole tensors, {parameter: value}, on the CPU of rank 0; one at a time elsewhere."""
        gathered = {}
        for name in names:
            whole = self._whole(key, name)
            if self.ranks.rank == 0:
                gathered[name] = whole.to("cpu", copy=True)
        return gathered

    def _whole(self, key: str, name: str) -> Tensor:
        """A whole tensor on rank 0's device; elsewhere only its shape means something.

        Where one rank holds all of it, it is the live one: to be copied before the next step.
        """
        shape = self._layout.shapes[name]
        start, piece = self._piece(key, name)
        if self._stage == 0 or self.ranks.world_size == 1:
            return piece.view(shape)
        whole = torch.zeros(math.prod(shape), dtype=torch.float32, device=self.ranks.device)
        whole[start : start + piece.numel()] = piece
        # sums of bit patterns: one rank's, and zeros from the others
        torch.distributed.reduce(whole.view(torch.int32), dst=0)
        return whole.view(shape)

    def _refresh_working_weights(self) -> None:
        """Copy the masters into the weights that the forward pass reads."""
        if self._stage in (1, 2):
            self._engine.optimizer.update_lp_params()
        elif self._stage == 3:
            for name, parameter in self._parameters.items():
                master = self._gather(WEIGHT, [name])
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    if self.ranks.rank == 0:
                        parameter.data.copy_(master[name])


def _as_sums(outputs: Iterable[Tensor]) -> Tensor:
    return torch.stack([value.detach().double() for value in outputs])


def deepspeed_config(
    precision: Precision, stage: int, max_grad_norm: float, num_parameters: int
) -> dict[str, Any]:
    """The configuration of `deepspeed.initialize`: all that this project sets, and nothing else."""
    # ZeRO 2 is there to save memory: it reduces by eighths. DeepSpeed's default is 5e8
    bucket = -(-num_parameters // 8) if stage == 2 else num_parameters
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # for its own counters; batches come from outside
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            # else ZeRO 1 and 2 copy each gradient once more; ZeRO 3 has its own buffer
            "contiguous_gradients": stage == 3,
        },
        # it waits for the device before and after each micro-batch
        "timers": {"throughput": {"enabled": False}},
        "zero_allow_untested_optimizer": True,  # BertAdam is elementwise; LAMB is told its pieces
    }
    if precision is Precision.bf16:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    elif precision is Precision.bf16_autocast:
        # no module is safe: gradients are reduced in fp32, in which they were made
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        }
    elif precision is Precision.fp16:
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 1,  # halved at every overflow
            "min_loss_scale": 1,
        }
    return config


def _initialize(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: dict[str, Any],
    ranks: Ranks,
    timeout_minutes: float,
) -> Any:
    """deepspeed.initialize, on the process group that exists, and silent."""
    os.environ["LOCAL_RANK"] = str(ranks.device.index or 0)  # it takes its device from here
    timeout = timedelta(minutes=timeout_minutes)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        deepspeed.init_distributed(
            torch.distributed.get_backend(),
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timeout,
        )
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    # stages 0 to 2 use a group of DeepSpeed's own, which it makes without our time-out
    torch.distributed.distributed_c10d._set_pg_timeout(
        timeout, process_groups._get_data_parallel_group()
    )
    return engine

"""A model under DeepSpeed: forward, backward, clipping, the update, and its state on disk.

The loss is exact. A micro-batch contributes its sum of losses over the global batch's counts, times
the number of ranks, because DeepSpeed averages over them. So the gradient is that of the mean over
the global batch, for any ranks, micro-batches and ZeRO stage. One `step()` of DeepSpeed ends a
global batch (`managed_gradient_accumulation` is off), after any number of micro-batches.

The state on disk is consolidated: fp32 master weights and moments by parameter name, as
safetensors, written by rank 0. It fits any ZeRO stage and any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pretrain.config.settings import EngineSettings, OptimSettings, Precision
from pretrain.distributed.own_time import OwnTime
from pretrain.distributed.ranks import Ranks
from pretrain.engine import snapshot as consolidated
from pretrain.engine.deepspeed_setup import (
    deepspeed_config,
    resolve_precision,
    start_deepspeed,
)
from pretrain.engine.sharded_state import ShardedState
from pretrain.engine.sharding import sharding_of
from pretrain.engine.snapshot import MOMENTS, WEIGHT, Snapshot
from pretrain.engine.zero1 import LeanZero, cut
from pretrain.model.attention import use_fa3
from pretrain.model.compile import compile_parts, uncompiled, wants_compile
from pretrain.model.fp8 import use_fp8
from pretrain.optim.lamb import Lamb
from pretrain.optim.muon import Muon
from pretrain.optim.optimizers import build_optimizer, parameter_groups

if TYPE_CHECKING:
    from pretrain.data.packing import PackedBatch
    from pretrain.data.train_loader import GlobalBatch
    from pretrain.model.bert import BertForPreTraining

_POSITION_TABLE = "embeddings.position.weight"
_LOSS_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class StepResult:
    """The outcome of one global batch."""

    applied: bool  # False: a loss or gradient was not finite, and nothing changed
    grad_norm: Tensor | float  # global, before clipping, unscaled; inf where not applied
    # (4,) float64 on the device, this rank's: MLM loss, pair loss, right guesses of both
    sums: Tensor
    loss_scale: float  # of the next batch; 1 unless in fp16


class Engine:
    """A model under DeepSpeed. Every rank calls the methods, in the same order."""

    def __init__(
        self, model: BertForPreTraining, optim: OptimSettings, engine: EngineSettings, ranks: Ranks
    ) -> None:
        """Take over `model` (fp32).

        Raises SettingsError if the device lacks the precision, or the ranks are not spread over the
        nodes as engine.shard=node needs it.
        """
        self.precision = resolve_precision(engine, ranks.device)
        self.ranks = ranks
        self._sharding = sharding_of(engine.shard, ranks, engine.timeout_minutes)
        self.own_time = OwnTime(ranks.device)  # of forward and backward passes in training
        self._stage = engine.zero_stage
        # infinite, not absent: at ZeRO 0 DeepSpeed calls our clipping only if there is a bound
        self._max_grad_norm = math.inf if optim.max_grad_norm is None else optim.max_grad_norm
        self._model = model
        model.activation_checkpointing = engine.activation_checkpointing
        model.trim_last_layer = engine.trim_last_layer
        model.to(ranks.device)
        use_fa3(ranks.device, model.settings.attention_probs_dropout_prob)
        if engine.fp8:
            use_fp8(model, ranks.device)
        if wants_compile(engine, ranks.device):
            compile_parts(model, self.precision, ranks.device)
        groups = parameter_groups(model, optim.weight_decay, optim.name)
        self._optimizer = build_optimizer(groups, optim)
        parameters = dict(model.named_parameters())  # the tied matrix once
        name_of = {parameter: name for name, parameter in parameters.items()}
        self._layout = consolidated.Layout(
            optimizer=optim.label,
            shapes={name: list(p.shape) for name, p in parameters.items()},
            groups={
                name_of[parameter]: group["label"]
                for group in groups
                for parameter in group["params"]
            },
        )
        low = self.precision in (Precision.bf16, Precision.fp16)
        initial = {n: p.detach().cpu().clone() for n, p in parameters.items()} if low else {}
        config = deepspeed_config(
            self.precision, self._stage, self._max_grad_norm, self._layout.num_parameters
        )
        groups = self._optimizer.param_groups
        in_bf16 = _cast_weights(model) if self.precision is Precision.bf16_autocast else set()
        if self._stage in (1, 2):
            self._optimizer.param_groups, buckets = cut(
                groups, name_of, len(self._sharding.ranks), in_bf16
            )
        self._engine = start_deepspeed(
            model, self._optimizer, config, ranks, engine.timeout_minutes, self._sharding.within
        )
        self._is_finite = True
        if self._stage == 0:
            self._engine.clip_fp32_gradients = self._clip
            self._engine.enable_backward_allreduce = (
                ranks.world_size > 1
            )  # otherwise it copies in vain
        elif self._stage in (1, 2):
            LeanZero.take_over(
                self._engine.optimizer, self._stage, groups, buckets, model, self._sharding, in_bf16
            )
        self._new_loss_scaler = self._loss_scaler()
        self._state = ShardedState(
            self._engine, self._optimizer, self._stage, parameters, self._layout, ranks,
            self._sharding,
        )  # fmt: skip
        for name, value in initial.items():  # DeepSpeed made its masters from 16 bits
            self._state.put(WEIGHT, name, value)
        self._attach()

    @property
    def loss_scale(self) -> float:
        """Factor by which losses are multiplied before the backward pass; 1 unless in fp16."""
        is_fp16 = self.precision is Precision.fp16
        return float(self._engine.optimizer.loss_scaler.cur_scale) if is_fp16 else 1.0

    @property
    def state_bytes(self) -> int:
        """Size of a snapshot on disk, within some kilobytes."""
        return self._layout.state_bytes

    def train_step(self, batch: GlobalBatch, learning_rate: float) -> StepResult:
        """Forward and backward of this rank's micro-batches, then one update by all ranks.

        Every rank brings the same number of micro-batches. A loss or gradient that is not finite on
        any rank skips the update on all. The host waits only for that check. Raises ValueError if
        the batch's masked tokens are not those of all ranks.
        """
        if not batch.is_counted:
            raise ValueError("num_masked is of one rank: GlobalBatch.counted sums it")
        self._switch_to(training=True)
        with self.own_time:
            sums = self._sum_gradients(batch)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._is_finite = True
        self._engine.step()
        applied = self._engine.was_step_applied() and self._is_finite
        norm = self._engine.get_global_grad_norm() if applied else float("inf")
        return StepResult(applied, norm, sums, self.loss_scale)

    def _sum_gradients(self, batch: GlobalBatch) -> Tensor:
        """Forward and backward of this rank's micro-batches. (4,) float64 sums as in StepResult."""
        sums = torch.zeros(4, dtype=torch.float64, device=self.ranks.device)
        last = len(batch.micro_batches) - 1
        for number, (micro_batch, seed) in enumerate(
            zip(batch.micro_batches, batch.dropout_seeds, strict=True)
        ):
            torch.manual_seed(seed)  # noqa: TID251  dropout by position: no state to save
            outputs = self._engine(micro_batch.to(self.ranks.device))
            mlm_loss, pair_loss = outputs[:2]
            part = mlm_loss / max(1, batch.num_masked) + pair_loss / batch.num_sequences
            # NaN if the loss is not finite (its gradient might be), otherwise 1
            one_or_nan = 1 + 0 * part.detach()
            self._backward(part * one_or_nan * self.ranks.world_size, number == last)
            sums += _as_sums(outputs)
        return sums

    def rehearse(
        self, micro_batches: Sequence[PackedBatch], activation_checkpointing: bool
    ) -> None:
        """Do a training step without its update, and leave everything as it was.

        With `activation_checkpointing` in place of the model's own. Losses are multiplied by 0 and
        the optimizer's step is replaced, so weights, moments and step stay. The loss scaler,
        torch's generators and DeepSpeed's counters are restored.
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
                for number, micro_batch in enumerate(micro_batches, 1):
                    mlm_loss, pair_loss = self._engine(micro_batch.to(device))[:2]
                    self._backward(0.0 * (mlm_loss + pair_loss), number == len(micro_batches))
            self._engine.step()
        finally:
            optimizer.step = update  # type: ignore[method-assign]
            self._model.activation_checkpointing = own
        for name, value in counted.items():
            setattr(self._engine, name, value)
        self._set_loss_scaler(scaler)

    def wait_for_weights(self) -> None:
        """Wait for the gathers that the last step began, which the next forward pass needs."""
        if isinstance(self._engine.optimizer, LeanZero):
            self._engine.optimizer.wait_for_weights()

    def close(self) -> None:
        """Free memory and compiled code for the engine of the next phase. The last call."""
        torch.compiler.reset()
        self.wait_for_weights()
        self._engine.destroy()
        # ZeRO 3 leaves references in hooks that no collector sees: empty what they hold
        for optimizer in (self._engine.optimizer, self._optimizer):
            vars(optimizer).clear()
        for parameter in self._state.parameters.values():
            vars(parameter).clear()
            parameter.grad = None
            parameter.data = torch.empty(0, device=self.ranks.device)

    def trust_ratios(self) -> dict[str, float]:
        """LAMB's ratio of each parameter in the last update, the same on every rank; {} for
        Adam."""
        optimizer = self._optimizer
        return optimizer.trust_ratios() if isinstance(optimizer, Lamb) else {}

    def evaluate_step(self, micro_batch: PackedBatch) -> Tensor:
        """(4,) float64 sums as in StepResult, without dropout and without a gradient."""
        self._switch_to(training=False)
        with torch.no_grad():
            return _as_sums(self._engine(micro_batch.to(self.ranks.device)))

    def masked_logits(self, micro_batch: PackedBatch) -> Tensor:
        """(M, padded V) logits at the masked positions, without dropout. All ranks pass one batch.

        A hook takes them from the forward pass, the only one for which ZeRO 3 gathers the weights.
        """
        logits: list[Tensor] = []
        head = self._engine.module.mlm_head
        hook = head.register_forward_hook(lambda *call: logits.append(call[-1]))
        try:
            with uncompiled():
                self.evaluate_step(micro_batch)
        finally:
            hook.remove()
        return logits[0]

    def new_snapshot(self) -> Snapshot | None:
        """Memory for `take`, on rank 0; None elsewhere. Raises RuntimeError if there is too
        little."""
        if self.ranks.rank > 0:
            return None
        return Snapshot.allocate(self._layout, self.ranks.device)

    def take(self, snapshot: Snapshot | None) -> None:
        """Copy weights, moments, optimizer step and loss scaler into `snapshot`.

        When this returns, training may go on. Raises RuntimeError on every rank if the copies of
        the state that nodes hold differ.
        """
        self._state.check_copies()
        for key in (WEIGHT, *MOMENTS):
            for name in self._layout.names(key):
                whole = self._state.whole(key, name)
                if snapshot is not None:
                    snapshot.tensors[key][name].copy_(whole, non_blocking=True)
        if snapshot is None:
            return
        if self.ranks.device.type == "cuda":  # the copies are queued until here
            torch.cuda.current_stream().synchronize()
        snapshot.optimizer_step = int(self._optimizer.state[self._state.flat_tensors()[0]]["step"])
        snapshot.loss_scaler = self._loss_scaler() or None

    def load(self, folder: Path, forget: Collection[str] = (), tiles: int | None = None) -> None:
        """Continue from a snapshot of any ZeRO stage, number of ranks and precision.

        `forget` names which of moments, optimizer_step and loss_scaler are those of a new engine
        instead. The first `tiles` rows of the position table and of its moments are repeated over
        the rest; None: it stays. A rank reads from `folder` what it holds, and the ranks of a node
        share the pages. Raises SettingsError unless optimizer, names, shapes and parameter groups
        are those of this run.
        """
        step, scaler = consolidated.read_small(folder, self._layout)
        for key, name, value in consolidated.read_tensors(folder):
            if name == _POSITION_TABLE and tiles is not None:
                value = value[torch.arange(len(value)) % tiles]
            is_forgotten = key != WEIGHT and "moments" in forget
            self._state.put(key, name, torch.zeros_like(value) if is_forgotten else value)
        self._state.refresh_working_weights()
        for flat in self._state.flat_tensors():
            self._optimizer.state[flat]["step"].fill_(0 if "optimizer_step" in forget else step)
        self._set_loss_scaler(self._new_loss_scaler if "loss_scaler" in forget else scaler or {})

    def _backward(self, loss: Tensor, is_last: bool) -> None:
        """Add gradients; with the last micro-batch of a step their reduction begins."""
        self._engine.optimizer.is_last_micro_batch = is_last
        self._engine.backward(loss)

    def _attach(self) -> None:
        """Pass LAMB and Muon the pieces of parameters that this rank's tensors hold."""
        optimizer = self._optimizer
        if isinstance(optimizer, Lamb):
            is_sharded = self._stage > 0 and self.ranks.world_size > 1
            optimizer.attach(self._state.pieces(), self._sharding.sum if is_sharded else None)
        elif isinstance(optimizer, Muon):
            is_bf16 = self.precision in (Precision.bf16, Precision.bf16_autocast)
            has_fast_bf16 = is_bf16 and self.ranks.device.type == "cuda"
            of_copy, held = self._sharding.ranks, self.ranks.gather(self._state.held())
            optimizer.attach(
                self._state.pieces(),
                [held[rank] for rank in of_copy],
                of_copy.index(self.ranks.rank),
                torch.bfloat16 if has_fast_bf16 else torch.float32,
                self._sharding.within,
            )

    def _loss_scaler(self) -> dict[str, Any]:
        """State of fp16's loss scaler; {} in other precisions."""
        if self.precision is not Precision.fp16:
            return {}
        return {field: getattr(self._engine.optimizer.loss_scaler, field) for field in _LOSS_SCALER}

    def _set_loss_scaler(self, values: Mapping[str, Any]) -> None:
        if self.precision is Precision.fp16:
            for field, value in values.items():
                setattr(self._engine.optimizer.loss_scaler, field, value)

    def _switch_to(self, training: bool) -> None:
        if self._engine.module.training != training:  # DeepSpeed's own flag always stays True
            self._engine.train(training)

    def _clip(self) -> None:
        """Clip at ZeRO 0, where DeepSpeed has no norm and would write NaN into the weights."""
        gradients = [p.grad for p in self._state.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._engine._global_grad_norm = norm
        self._is_finite = bool(torch.isfinite(norm))
        if self._is_finite:
            parameters = self._state.parameters.values()
            torch.nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
        else:  # optimizers leave out parameters without a gradient
            self._engine.zero_grad()


def _cast_weights(model: nn.Module) -> set[Tensor]:
    """The weights that autocast casts in every micro-batch, but for the tied one."""
    return {module.weight for module in model.modules() if isinstance(module, nn.Linear)}


def _as_sums(outputs: Iterable[Tensor]) -> Tensor:
    return torch.stack([value.detach().double() for value in outputs])

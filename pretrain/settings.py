"""What a pretraining run is: typed settings, and every check between them, each with its cure.

The values live in conf/, with a comment on each line; here are their types, and nothing has a
default twice. Neither Hydra nor torch is imported: a wrong setting is refused within a second.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from data_prep.configuration import SettingsError
from data_prep.objectives import Pairing
from pretrain.batches.dealing import check_dealable
from pretrain.cluster import ClusterSettings


class Resume(enum.Enum):
    """What to do about checkpoints of an earlier start of the same run."""

    auto = "auto"  # continue from the newest whole one; start at step 0 where there is none
    must = "must"  # continue, or stop with an error where there is none
    never = "never"  # start at step 0; an error where the run folder already holds a checkpoint


class Precision(enum.Enum):
    auto = "auto"  # bf16_autocast on a GPU that has bfloat16, else fp32
    fp32 = "fp32"
    bf16 = "bf16"  # bfloat16 weights, fp32 masters and gradient accumulation; ZeRO 1 to 3
    bf16_autocast = "bf16_autocast"  # fp32 weights, bfloat16 matrix products; any ZeRO stage
    fp16 = "fp16"  # half-precision weights, fp32 masters, dynamic loss scale; ZeRO 1 to 3, GPU


class Compile(enum.Enum):
    """Whether the layers run as compiled code."""

    auto = "auto"  # true on a GPU that can, but for ZeRO 3; false on a CPU
    true = "true"
    false = "false"


class Masking(enum.Enum):
    static = "static"  # the masks that `data_prep.build` wrote: the same in every epoch
    dynamic = "dynamic"  # drawn anew in every epoch by the same rule


class OptimizerName(enum.Enum):
    adamw = "adamw"
    bert_adam = "bert_adam"  # the paper's: AdamW without bias correction
    lamb = "lamb"


class TrustRatio(enum.Enum):
    """Which tensors LAMB scales by |w| / |update|."""

    none = "none"  # no LAMB
    decayed = "decayed"  # those with a weight decay: not biases and LayerNorm
    all = "all"


class Carried(enum.Enum):
    kept = "kept"
    reset = "reset"


class OnFailure(enum.Enum):
    """What to do when a checkpoint cannot be written, as on a full disk."""

    stop = "stop"
    go_on = "go_on"  # log it, train on and try again with the next; the last one must succeed


class OnSpike(enum.Enum):
    """What to do when the loss jumps far above its own recent spread."""

    log = "log"  # with the examples, and go on
    rewind = "rewind"  # log, go back to the last checkpoint and pass over those batches


@dataclass
class RunSettings:
    name: str | None  # of the run's folder; None: <model>-<data>-<seq_len>
    dir: str  # where run folders lie
    init_from: str | None  # folder of the weights that it starts from; None: random weights
    seed: int
    resume: Resume


@dataclass
class ModelSettings:
    """Sizes and dropouts by Hugging Face's names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str  # gelu (exact) or gelu_new (tanh approximation, Google's code)
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    max_position_embeddings: int
    type_vocab_size: int
    initializer_range: float
    layer_norm_eps: float
    pad_vocab_size_multiple_of: int  # rows of the word embedding are padded up to a multiple


@dataclass
class DataSettings:
    dir: str  # data_dir of data_prep: the root of one prepared corpus
    seq_len: int  # which len<seq_len>/ of it
    pairs: Pairing  # of those shards: it decides the second loss and its head
    masking: Masking


@dataclass
class OptimSettings:
    name: OptimizerName
    global_batch: int  # sequences per optimizer step, all ranks together
    tokens_per_step: int | None  # as many sequences as fill so many tokens; None: global_batch
    learning_rate: float  # peak
    betas: list[float]
    eps: float  # beside the root, not below it
    weight_decay: float  # not on biases and LayerNorm
    max_grad_norm: float | None  # global norm to which gradients are clipped; None: not clipped
    bias_correction: bool  # of the moments
    grad_averaging: bool  # the first moment takes (1 - beta_1) of the gradient; false: all of it
    trust_ratio: TrustRatio

    @property
    def step_size(self) -> str:
        """What an optimizer step is made on, in words."""
        if self.tokens_per_step is None:
            return f"{self.global_batch:,} sequences"
        return f"{self.tokens_per_step:,} tokens, in whole sequences"

    def sequences_per_step(self, mean_length: float) -> float:
        """Of sequences of so many tokens on the average; with tokens_per_step about so many.

        The sequence that comes next does not fit: half a sequence's room is left.
        """
        if self.tokens_per_step is None:
            return self.global_batch
        return max(1.0, self.tokens_per_step / mean_length - 0.5)


@dataclass
class ScheduleSettings:
    total_steps: int  # optimizer updates; of no meaning where there is a budget
    budget_hours: float | None  # of training, over all starts; None: total_steps
    warmup_steps: int | None  # None: warmup_fraction of the whole
    warmup_fraction: float
    power: float  # of the decay to 0: 1 is linear, 0 constant
    decay_from_step_0: bool  # Google's: the decay line starts at step 0, not at the warm-up's end
    count_from_1: bool  # NVIDIA's: the first update is number 1, not 0
    start_step: int  # the place on the curve at which it begins
    stop_step: int | None  # and ends; None: total_steps

    @property
    def total(self) -> float:
        """Length of the whole: updates, or seconds where there is a budget."""
        return self.total_steps if self.budget_hours is None else 3600 * self.budget_hours

    @property
    def last_step(self) -> int | None:
        """Number of updates; None where it is the clock that ends them."""
        if self.budget_hours is not None:
            return None
        stop = self.total_steps if self.stop_step is None else self.stop_step
        return stop - self.start_step

    @property
    def warmup(self) -> float:
        """Length of the warm-up, in the unit of `total`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return self.warmup_fraction * self.total


@dataclass
class PhaseSettings:
    """A further phase: what it changes, and what it takes over besides the weights."""

    changes: dict[str, Any]  # {group: {name: value}}; all else is as in the first phase
    moments: Carried
    optimizer_step: Carried  # updates counted by the bias correction
    loss_scaler: Carried  # fp16's


@dataclass
class EngineSettings:
    zero_stage: int
    precision: Precision
    tokens_per_micro_batch: int  # most tokens in one rank's forward pass
    activation_checkpointing: (
        bool  # layers keep their input alone and run again in the backward pass
    )
    compile: Compile
    timeout_minutes: float  # a rank that makes no headway for so long ends the run


@dataclass
class EvalSettings:
    every_steps: int
    max_examples: int | None  # None: all held-out examples


@dataclass
class CheckpointSettings:
    every_steps: int
    keep: int  # how many of the newest stay
    keep_every: int | None  # steps; checkpoints at its multiples stay for good. None: none
    on_failure: OnFailure


@dataclass
class SurvivalSettings:
    rehearse: bool  # a full-size micro-batch before the first step: does it fit the memory?
    max_skipped_steps: int  # in a row, because a loss or gradient was not finite; fp16 apart
    min_loss_scale: float  # fp16: a loss scale that comes down to it stops the run
    on_spike: OnSpike
    spike_window: int  # how many records (monitor.every_steps) back the usual loss is taken from
    spike_spreads: float  # standard deviations above it from which a loss is a spike
    max_rewinds: int  # from one checkpoint; then the run stops


@dataclass
class MonitorSettings:
    every_steps: int
    batch_checksums: bool  # each record says which examples it is of, as one number
    peak_tflops: float | None  # of one device, at the run's precision; None: by the device's name
    sentences: list[str]  # each with one [MASK], filled by the model at every evaluation


@dataclass
class LogSettings:
    wandb: bool
    project: str
    entity: str | None
    artifact: bool  # send the exported model to wandb at the end
    timeout_s: float  # seconds for wandb's server to start the run, and to take the last figures


class Padding(enum.Enum):
    none = "none"  # sequences end to end: what this project does
    full = "full"  # every sequence to data.seq_len: what most published runs did


@dataclass
class PlanSettings:
    """What a plan assumes where the prepared data does not say it."""

    padding: Padding
    vocab_size: int
    # data.seq_len: mean tokens of a sequence, and of their squares; a length not there counts as full
    lengths: dict[int, list[float]]


@dataclass
class Settings:
    run: RunSettings
    model: ModelSettings
    data: DataSettings
    optim: OptimSettings
    schedule: ScheduleSettings
    engine: EngineSettings
    eval: EvalSettings
    checkpoint: CheckpointSettings
    survival: SurvivalSettings
    monitor: MonitorSettings
    log: LogSettings
    plan: PlanSettings
    cluster: ClusterSettings  # the hardware whose times are predicted; without a gpu: none are
    phases: list[PhaseSettings]  # after the first, which is all of the above


def check(settings: Settings, world_size: int) -> None:
    """Refuse what cannot work on `world_size` ranks. Raises SettingsError listing every reason."""
    wrong = [
        *_check_model(settings), *_check_numbers(settings), *_check_optimizer(settings.optim),
        *_check_engine(settings), *_check_survival(settings),
    ]  # fmt: skip
    try:
        check_dealable(
            settings.optim.global_batch,
            world_size,
            settings.engine.tokens_per_micro_batch,
            settings.data.seq_len,
            settings.optim.tokens_per_step,
        )
    except SettingsError as error:
        wrong.append(str(error))
    if wrong:
        raise SettingsError("\n".join(wrong))


def _check_model(settings: Settings) -> list[str]:
    wrong = []
    model, data = settings.model, settings.data
    heads = model.num_attention_heads
    if heads < 1 or model.hidden_size % heads:
        near = [h for h in range(1, model.hidden_size + 1) if model.hidden_size % h == 0]
        best = min(near, key=lambda h: abs(h - heads))
        wrong.append(
            f"model.hidden_size={model.hidden_size} is not a multiple of "
            f"model.num_attention_heads={heads}; set model.num_attention_heads={best}"
        )
    if model.hidden_act not in ("gelu", "gelu_new"):
        wrong.append(f"model.hidden_act={model.hidden_act}; it takes gelu or gelu_new")
    if data.seq_len > model.max_position_embeddings:
        wrong.append(
            f"data.seq_len={data.seq_len} is longer than model.max_position_embeddings="
            f"{model.max_position_embeddings}; set one of them so that it fits"
        )
    segments = 1 if data.pairs is Pairing.none else 2
    if model.type_vocab_size < segments:
        wrong.append(
            f"model.type_vocab_size={model.type_vocab_size}; data.pairs={data.pairs.name} needs "
            f"{segments} or more"
        )
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if not 0 <= getattr(model, name) < 1:
            wrong.append(f"model.{name}={getattr(model, name)} is outside [0, 1)")
    return wrong


def _check_numbers(settings: Settings) -> list[str]:
    wrong = []
    at_least_one = (
        "model.hidden_size", "model.num_hidden_layers", "model.intermediate_size",
        "model.pad_vocab_size_multiple_of", "data.seq_len", "optim.global_batch",
        "schedule.total_steps", "engine.tokens_per_micro_batch", "eval.every_steps",
        "checkpoint.every_steps", "checkpoint.keep", "monitor.every_steps",
        "survival.max_skipped_steps", "survival.min_loss_scale", "survival.spike_window",
        "survival.max_rewinds",
    )  # fmt: skip
    for key in at_least_one:
        if (value := _value(settings, key)) < 1:
            wrong.append(f"{key}={value}; it must be 1 or more")
    positive = (
        "optim.learning_rate", "optim.eps", "engine.timeout_minutes", "survival.spike_spreads",
        "log.timeout_s",
    )  # fmt: skip
    for key in positive:
        if (value := _value(settings, key)) <= 0:
            wrong.append(f"{key}={value}; it must be above 0")
    if settings.eval.max_examples is not None and settings.eval.max_examples < 1:
        wrong.append(
            f"eval.max_examples={settings.eval.max_examples}; it must be 1 or more, or null for all"
        )
    if settings.monitor.peak_tflops is not None and settings.monitor.peak_tflops <= 0:
        wrong.append(
            f"monitor.peak_tflops={settings.monitor.peak_tflops}; it must be above 0, or null for what "
            "is known of the device"
        )
    if settings.optim.max_grad_norm is not None and settings.optim.max_grad_norm <= 0:
        wrong.append(
            f"optim.max_grad_norm={settings.optim.max_grad_norm}; it must be above 0, or null for "
            "no clipping"
        )
    if len(settings.optim.betas) != 2 or not all(0 <= b < 1 for b in settings.optim.betas):
        wrong.append(f"optim.betas={settings.optim.betas}; it takes two numbers in [0, 1)")
    if not 0 <= settings.run.seed < 2**32:
        wrong.append(f"run.seed={settings.run.seed}; it takes 0 to {2**32 - 1}")
    wrong += _check_schedule(settings.schedule)
    name = settings.run.name
    if name is not None and (not name or "/" in name or name.startswith(".")):
        wrong.append(f"run.name={name!r} must be the name of one folder (run.dir is where it lies)")
    return wrong


def _check_schedule(schedule: ScheduleSettings) -> list[str]:
    wrong = []
    if schedule.power < 0:
        wrong.append(f"schedule.power={schedule.power}; it must be 0 (constant) or more")
    if schedule.budget_hours is None:
        stop = schedule.total_steps if schedule.stop_step is None else schedule.stop_step
        if not 0 <= schedule.start_step < stop <= max(1, schedule.total_steps):
            wrong.append(
                f"schedule.start_step={schedule.start_step} and schedule.stop_step={stop} must be "
                f"steps from 0 to schedule.total_steps={schedule.total_steps}, the first before "
                "the second; set 0 and null for the whole curve"
            )
        if not 0 <= schedule.warmup < max(1, schedule.total_steps):
            wrong.append(
                f"a warm-up of {schedule.warmup:g} steps must be shorter than "
                f"schedule.total_steps={schedule.total_steps}; set "
                f"schedule.warmup_steps={schedule.total_steps // 10}"
            )
        return wrong
    if schedule.budget_hours <= 0:
        wrong.append(
            f"schedule.budget_hours={schedule.budget_hours}; it must be above 0, or null for "
            "schedule.total_steps"
        )
    if schedule.start_step or schedule.stop_step is not None:
        wrong.append(
            "schedule.start_step and stop_step are steps, and schedule.budget_hours counts none; "
            "set 0 and null"
        )
    if schedule.warmup_steps is not None:
        wrong.append(
            f"schedule.warmup_steps={schedule.warmup_steps} with schedule.budget_hours: the clock "
            "counts no steps; set schedule.warmup_steps=null and schedule.warmup_fraction"
        )
    elif not 0 <= schedule.warmup_fraction < 1:
        wrong.append(f"schedule.warmup_fraction={schedule.warmup_fraction} is outside [0, 1)")
    return wrong


def _check_optimizer(optim: OptimSettings) -> list[str]:
    """What an optimizer's name and its parts say must be one and the same."""
    name, ratio = optim.name.name, optim.trust_ratio
    if optim.name is OptimizerName.lamb:
        if ratio is TrustRatio.none:
            return ["optim.trust_ratio=none with optim=lamb is Adam; set optim=adamw"]
        if ratio is TrustRatio.decayed and optim.weight_decay == 0:
            return [
                "optim.trust_ratio=decayed with optim.weight_decay=0 gives no tensor a ratio; set "
                "optim.trust_ratio=all"
            ]
        return []
    wrong = []
    if ratio is not TrustRatio.none or not optim.grad_averaging:
        wrong.append(
            f"optim.trust_ratio={ratio.name} and optim.grad_averaging={optim.grad_averaging} are "
            f"not {name}'s; set optim=lamb, or trust_ratio=none and grad_averaging=true"
        )
    if optim.bias_correction != (optim.name is OptimizerName.adamw):
        wrong.append(
            f"optim.bias_correction={optim.bias_correction} is not {name}'s; set optim=adamw for "
            "Adam with it and optim=bert_adam for Adam without"
        )
    return wrong


def _check_engine(settings: Settings) -> list[str]:
    engine = settings.engine
    if engine.zero_stage not in (0, 1, 2, 3):
        return [f"engine.zero_stage={engine.zero_stage}; it takes 0, 1, 2 or 3"]
    if engine.zero_stage == 0 and engine.precision in (Precision.bf16, Precision.fp16):
        return [
            f"engine.precision={engine.precision.name} with engine.zero_stage=0: DeepSpeed's "
            "optimizer for that pair makes a step on zero gradients at the start and scales "
            "wrongly; set engine.zero_stage=1 (one rank, too) or engine.precision=bf16_autocast"
        ]
    if engine.zero_stage == 3 and engine.compile is Compile.true:
        return [
            "engine.compile=true with engine.zero_stage=3: its hooks, which gather a layer's weights "
            "before it runs, cannot be compiled; set engine.zero_stage=2 or engine.compile=false"
        ]
    return []


def _check_survival(settings: Settings) -> list[str]:
    every = settings.checkpoint.keep_every
    if every is not None and (every < 1 or every % max(1, settings.checkpoint.every_steps)):
        return [
            f"checkpoint.keep_every={every} is no multiple of checkpoint.every_steps="
            f"{settings.checkpoint.every_steps}: no checkpoint, or few, would lie there; set "
            f"checkpoint.keep_every={10 * settings.checkpoint.every_steps}, or null"
        ]
    saves, records = settings.checkpoint.every_steps, settings.monitor.every_steps
    if settings.survival.on_spike is OnSpike.rewind and records >= 1 and saves % records:
        return [
            f"survival.on_spike=rewind looks for spikes at every monitor.every_steps={records} steps, "
            f"and checkpoint.every_steps={saves} is not a multiple of it, so that a checkpoint could "
            f"hold half of a spike; set checkpoint.every_steps={max(1, saves // records) * records}"
        ]
    return []


def _value(settings: Settings, key: str) -> float:
    group, name = key.split(".")
    value = getattr(getattr(settings, group), name)
    assert isinstance(value, int | float)
    return value

"""The typed settings of a pretraining run.

The values are in conf/, with a comment on each line; only their types are here, so that no setting
has two defaults. pretrain/config/checks.py checks which values go together.
"""

from __future__ import annotations

import enum
import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from data_prep.core.objectives import Pairing
from data_prep.core.settings import is_url


class Resume(enum.Enum):
    """What to do about checkpoints of an earlier start of the same run."""

    auto = "auto"  # continue from the newest whole one; start at step 0 if there is none
    must = "must"  # continue, or stop with an error if there is none
    never = "never"  # start at step 0; an error if the run folder already holds a checkpoint


class Device(enum.Enum):
    """What a rank computes on."""

    auto = "auto"  # a GPU if there is one that can be used, otherwise the CPU
    cuda = "cuda"  # a GPU, or an error that says why there is none
    cpu = "cpu"


class Shard(enum.Enum):
    """The ranks among which ZeRO 1 and 2 shard."""

    world = "world"  # all
    node = "node"  # those of a node; each node holds the whole state


class Precision(enum.Enum):
    auto = "auto"  # bf16_autocast on a GPU that has bfloat16, otherwise fp32
    fp32 = "fp32"
    bf16 = "bf16"  # bfloat16 weights, fp32 masters and gradient accumulation; ZeRO 1 to 3
    bf16_autocast = "bf16_autocast"  # fp32 weights, bfloat16 matrix products; any ZeRO stage
    fp16 = "fp16"  # half-precision weights, fp32 masters, dynamic loss scale; ZeRO 1 to 3, GPU


class Compile(enum.Enum):
    """Whether the layers run as compiled code."""

    auto = "auto"  # true on a GPU that supports it, except with ZeRO 3; false on a CPU
    true = "true"
    false = "false"


AUTO = "auto"  # model.initializer_range


class PositionInit(enum.Enum):
    """How the position table begins."""

    normal = "normal"  # as all other embeddings: the published way
    sinusoidal = "sinusoidal"  # Vaswani et al. 2017, section 3.5, at the spread of the others


class MaskMode(enum.Enum):
    """Where the training masks come from; the setting `data.masking`."""

    static = "static"  # the masks that `data_prep.build` wrote: the same in every epoch
    dynamic = "dynamic"  # drawn again in every epoch, by the MaskingRule of the shards


class OptimizerName(enum.Enum):
    adamw = "adamw"
    bert_adam = "bert_adam"  # the paper's: AdamW without bias correction
    lamb = "lamb"
    muon = "muon"  # for the layers' matrices; AdamW for all others
    plugin = "plugin"  # of another package: optim.plugin


class TrustRatio(enum.Enum):
    """Which tensors LAMB scales by |w| / |update|."""

    none = "none"  # not LAMB
    decayed = "decayed"  # those with a weight decay: not biases and LayerNorm
    all = "all"


class DecayShape(enum.Enum):
    """The rate from the peak to 0, over the share s of the decay that is done."""

    power = "power"  # (1 - s) ** schedule.power
    one_minus_sqrt = "one_minus_sqrt"  # 1 - sqrt(s)


class Carried(enum.Enum):
    kept = "kept"
    reset = "reset"


class Positions(enum.Enum):
    """How a longer phase begins with the rows of the position table that no phase has trained."""

    kept = "kept"  # their initial weights, as in the published recipes
    # copies of the trained ones, end to end (Longformer: Beltagy et al. 2020, section 5)
    tiled = "tiled"


class OnFailure(enum.Enum):
    """What to do when a checkpoint cannot be written, as on a full disk."""

    stop = "stop"
    go_on = "go_on"  # log it, go on and save at the next interval; the last save must succeed


class OnSpike(enum.Enum):
    """What to do when the loss jumps far above its own recent spread."""

    log = "log"  # log it with the examples, and go on
    rewind = "rewind"  # log it, go back to the last checkpoint and skip those batches


@dataclass
class RunSettings:
    name: str | None  # of the run's folder; None: <model>-<data>-<seq_len>
    dir: str  # the parent of the run folders
    init_from: str | None  # folder of the initial weights; None: random weights
    seed: int
    resume: Resume
    extend: bool  # continue with changed settings (pretrain/checkpoint/extension.py)
    stop_after: int | None  # updates of this start, then a checkpoint and the end; None: all


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
    initializer_range: int | float | str  # auto: of the width; `load` makes it a number
    layer_norm_eps: float
    pad_vocab_size_multiple_of: int  # the word embedding is padded up to a multiple of these rows
    position_init: PositionInit = PositionInit.normal

    @property
    def initializer_std(self) -> float:
        """Standard deviation of the initial matrices and embeddings.

        auto is the 0.02 of BERT-base, 768 wide, at any width: matrix products keep their scale if
        it goes with 1 / sqrt(width). SmallInit (Nguyen and Salazar, arXiv 1910.05895), which
        GPT-NeoX and LTG-BERT use, is sqrt(2 / (5 * width)): the same rule, 14 % larger.
        """
        if self.initializer_range == AUTO:
            return round(0.02 * math.sqrt(768 / self.hidden_size), 5)
        return float(self.initializer_range)


@dataclass
class DataSettings:
    dir: str  # data_dir of data_prep: the root of one prepared corpus, or its URL
    seq_len: int  # which len<seq_len>/ of it
    pairs: Pairing  # of those shards: it decides the second loss and its head
    masking: MaskMode
    mixture: dict[str, float] | None = None  # weight of each source; None: as the text is
    mixture_temperature: float | None = None  # instead: exponent to the sources' sizes
    mask_rate: float | None = None  # share of tokens that dynamic masks take; None: the shards'
    mask_rate_end: float | None = None  # where it ends, linearly over the schedule; None: it stays
    stage: str | None = None  # local folder of the copy of a URL; None: one in $TMPDIR
    stage_quota_gb: float | None = None  # most that data.stage may hold; None: the free space

    @property
    def is_remote(self) -> bool:
        """Whether data.dir is a URL, whose shards are staged to this machine."""
        return is_url(self.dir)

    @property
    def stage_folder(self) -> Path:
        """Where the copies of URLs are on this machine."""
        return Path(self.stage or Path(tempfile.gettempdir(), f"bert-stage-{os.geteuid()}"))

    @property
    def folder(self) -> Path:
        """The corpus on this machine: data.dir, or the copy of a URL."""
        if not self.is_remote:
            return Path(self.dir)
        url = self.dir.rstrip("/")
        digest = xxhash.xxh3_64_hexdigest(url.encode())
        return self.stage_folder / f"{url.rpartition('/')[2]}-{digest}"

    @property
    def largest_mask_rate(self) -> float | None:
        """The largest share of tokens masked; None: that of the shards."""
        return max((r for r in (self.mask_rate, self.mask_rate_end) if r is not None), default=None)

    @property
    def is_mixed(self) -> bool:
        """Whether a mixture sets the share of each source."""
        return self.mixture is not None or self.mixture_temperature is not None


MUON_SETTINGS = ("momentum", "matrix_rate", "newton_schulz_steps")


@dataclass
class OptimSettings:
    name: OptimizerName
    global_batch: int  # sequences per optimizer step, all ranks together
    tokens_per_step: int | None  # in place of global_batch: as many sequences as fill these
    learning_rate: float  # peak
    betas: list[float]
    eps: float  # added to the root, not under it
    weight_decay: float  # not on biases and LayerNorm
    max_grad_norm: float | None  # global norm to which gradients are clipped; None: not clipped
    bias_correction: bool  # of the moments
    grad_averaging: bool  # the first moment adds (1 - beta_1) of the gradient; false: all of it
    trust_ratio: TrustRatio
    # MUON_SETTINGS: None for the other optimizers
    momentum: float | None = None
    matrix_rate: float | None = None  # the matrices' learning rate over that of the others
    newton_schulz_steps: int | None = None
    equal_rows: bool = False  # Muon's: the rows of an update have one norm
    plugin: str | None = None  # the name that another package gives its optimizer
    options: dict[str, Any] | None = None  # that optimizer's own

    @property
    def label(self) -> str:
        """The optimizer's name, also of one of another package."""
        return self.name.name if self.plugin is None else self.plugin

    @property
    def step_size(self) -> str:
        """The size of an optimizer step, in words."""
        if self.tokens_per_step is None:
            return f"{self.global_batch:,} sequences"
        return f"{self.tokens_per_step:,} tokens, in whole sequences"

    def sequences_per_step(self, mean_length: float) -> float:
        """Sequences of this mean length per optimizer step; an estimate with tokens_per_step.

        The next sequence does not fit: on average room for half a sequence is left.
        """
        if self.tokens_per_step is None:
            return self.global_batch
        return max(1.0, self.tokens_per_step / mean_length - 0.5)


@dataclass
class ScheduleSettings:
    total_steps: int  # optimizer updates; ignored with budget_hours
    budget_hours: float | None  # of training, over all starts; None: total_steps
    warmup_steps: int | None  # None: warmup_fraction of the whole
    warmup_fraction: float
    power: float  # of the decay to 0: 1 is linear, 0 constant
    decay_from_step_0: bool  # Google's: the decay line starts at step 0, not at the warm-up's end
    count_from_1: bool  # NVIDIA's: the first update is number 1, not 0
    start_step: int  # where on the curve the run begins
    stop_step: int | None  # where it ends; None: total_steps
    decay_fraction: float | None = None  # of the whole, at its end; None: all after the warm-up
    decay_shape: DecayShape = DecayShape.power

    @property
    def total(self) -> float:
        """Length of the whole: updates, or seconds with budget_hours."""
        return self.total_steps if self.budget_hours is None else 3600 * self.budget_hours

    @property
    def last_step(self) -> int | None:
        """Number of updates; None with budget_hours."""
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

    @property
    def decay(self) -> float:
        """Length of the decay, in the unit of `total`; of steps a whole number."""
        if self.decay_fraction is None:
            return self.total - (0 if self.decay_from_step_0 else self.warmup)
        length = self.decay_fraction * self.total
        return length if self.budget_hours is not None else max(1, round(length))

    @property
    def undecayed_steps(self) -> int | None:
        """Updates before the first of a decay at the end; None: no such decay, or by the clock."""
        if self.decay_fraction is None or self.last_step is None:
            return None
        before = self.total_steps - int(self.decay) - self.start_step - self.count_from_1
        return min(max(0, before), self.last_step)


@dataclass
class PhaseSettings:
    """A further phase: its changes, and what it takes over in addition to the weights."""

    changes: dict[str, Any]  # {group: {name: value}}; the rest is as in the first phase
    moments: Carried
    optimizer_step: Carried  # updates counted by the bias correction
    loss_scaler: Carried  # fp16's
    positions: Positions = Positions.kept


@dataclass
class EngineSettings:
    zero_stage: int
    precision: Precision
    tokens_per_micro_batch: int  # most tokens in one rank's forward pass
    activation_checkpointing: bool  # layers keep only their input and run again backward
    compile: Compile
    timeout_minutes: float  # a rank that makes no progress for this long ends the run
    device: Device
    trim_last_layer: bool = False  # it computes only the positions that the heads read
    bind_to_gpu: bool = True  # each rank runs on the CPUs next to its GPU
    compile_cache: str | None = None  # folder of compiled code; None: the user's
    shard: Shard = Shard.world
    fp8: bool = False  # matrix products of the layers, by torchao


@dataclass
class EvalSettings:
    every_steps: int
    max_examples: int | None  # None: all held-out examples


@dataclass
class CheckpointSettings:
    every_steps: int
    keep: int  # how many of the newest stay
    keep_every: int | None  # steps; checkpoints at its multiples are never deleted. None: none
    on_failure: OnFailure
    mirror: str | None = None  # URL; each checkpoint is copied there. None: none is


@dataclass
class SurvivalSettings:
    rehearse: bool  # a full-size micro-batch before the first step: does it fit the memory?
    max_skipped_steps: int  # in a row, because of a loss or gradient that was not finite; not fp16
    min_loss_scale: float  # fp16: the run stops when its loss scale comes down to this
    on_spike: OnSpike
    spike_window: int  # records (one per monitor.every_steps) that give the usual loss
    spike_spreads: float  # a loss this many standard deviations above it is a spike
    max_rewinds: int  # from one checkpoint; then the run stops


@dataclass
class MonitorSettings:
    every_steps: int
    batch_checksums: bool  # each record has a checksum of its examples
    peak_tflops: float | None  # of one device, at the run's precision; None: by the device's name
    sentences: list[str]  # each with one [MASK], which the model fills at every evaluation


EVERY_RANK = "all"  # profile.ranks


@dataclass
class ProfileSettings:
    """The steps that torch's profiler records into the run folder."""

    steps: list[int] | None  # the first and the last, counted over all phases; None: none
    ranks: Any  # the ranks that record, as in [0, 8], or EVERY_RANK

    def has(self, rank: int) -> bool:
        """Whether this rank records."""
        return self.ranks == EVERY_RANK or rank in self.ranks


@dataclass
class LogSettings:
    wandb: bool  # as "wandb" in trackers
    project: str
    entity: str | None
    artifact: bool  # send the exported model to wandb at the end
    timeout_s: float  # for a server to start the run, and to take the last metrics
    trackers: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The trackers that the run logs to."""
        return [*dict.fromkeys(["wandb"] * self.wandb + self.trackers)]


@dataclass
class ExportSettings:
    push_to: str | None  # OWNER/NAME of the hub's repository for the finished run; None: none
    private: bool  # whether a new repository is
    timeout_s: float  # for the upload


class Padding(enum.Enum):
    none = "none"  # sequences end to end, as this project packs them
    full = "full"  # every sequence padded to data.seq_len, as in most published runs


@dataclass
class PlanSettings:
    """What a plan assumes until there is prepared data."""

    padding: Padding
    vocab_size: int
    # data.seq_len: mean of a sequence's tokens, and of their squares; other lengths count as full
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
    profile: ProfileSettings
    log: LogSettings
    export: ExportSettings
    plan: PlanSettings
    cluster: ClusterSettings  # the hardware whose times are predicted; gpu=None: none are
    phases: list[PhaseSettings]  # those after the first; the first is all of the above


@dataclass
class ClusterSettings:
    """Equal nodes of GPUs; a machine without GPUs is one node whose one "GPU" is all its cores."""

    gpu: str | None  # None: no hardware is named, and nothing else is read
    is_cpu: bool
    has_bf16: bool  # bfloat16, which engine.precision=auto uses if there is hardware for it
    nodes: int
    gpus_per_node: int
    memory_gib: float  # per GPU
    reserved_gib: float  # of it, for the driver, the collectives and gaps between tensors
    peak_tflops: dict[str, float]  # of matrix products: fp32, half (bfloat16 and float16), others
    gemm_share: dict[str, float]  # of that peak, reached by matrix products of BERT's sizes
    bandwidth_gb_s: float  # of a GPU's memory
    bandwidth_share: float  # of it, reached
    link_gb_s: float  # between the GPUs of a node, each way, as reached by an all-reduce
    link_latency_us: float
    network_gb_s: float  # a GPU's part of its node's network, each way
    network_share: float  # of it, reached by an all-reduce
    network_latency_us: float
    step_ms: float  # fixed cost per step
    update_ns: float  # host time per parameter and step
    call_us: float  # host time per operator call, forward or backward
    sequence_us: float  # host time per sequence and layer for attention, forward and backward
    usd_per_gpu_hour: float
    watts_per_gpu: float  # with its part of the node

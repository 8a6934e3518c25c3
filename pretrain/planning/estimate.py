"""A run's forecast on named hardware, phase by phase.

Everything is of training alone: evaluations, checkpoints and restarts come on top.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from data_prep.core.config import SettingsError
from pretrain.config.phases import Phase, phases_of
from pretrain.config.settings import (
    ClusterSettings,
    Compile,
    EngineSettings,
    ModelSettings,
    Precision,
    Settings,
    Shard,
)
from pretrain.model import flops as flops_module
from pretrain.optim.matrices import matrix_elements
from pretrain.planning import memory, muon, step_time
from pretrain.planning.arithmetic import LengthStats, PhasePlan, corpus_of, plan
from pretrain.planning.memory import GIB, Memory
from pretrain.planning.peak_share import PeakShare, peak_share

HOUR = 3600
_WITH_FP8 = (Precision.bf16, Precision.bf16_autocast)


@dataclass(frozen=True)
class Resharded:
    """A phase with the other engine.shard."""

    shard: Shard
    step: step_time.Step
    memory: Memory


@dataclass(frozen=True)
class PhaseForecast:
    """One phase: its arithmetic, and its cost if a cluster is named."""

    number: int
    seq_len: int
    budget: int  # most tokens of a micro-batch
    data: str
    plan: PhasePlan
    flops: float  # of the phase, or of one step if the clock ends the phase
    memory: Memory | None = None
    other_memory: Memory | None = None  # with activation checkpointing switched the other way
    step: step_time.Step | None = None
    resharded: Resharded | None = None  # None as well on one node, and at ZeRO 0 and 3
    in_fp8: step_time.Step | None = None  # None as well where it is true or not possible
    peak_share: PeakShare | None = None  # None as well on a CPU

    @property
    def steps(self) -> int | None:
        """Updates; None if the clock ends the phase and a step's time is unknown."""
        if self.plan.total_steps is not None:
            return self.plan.total_steps
        assert self.plan.budget_hours is not None
        return None if self.step is None else int(self.plan.budget_hours * HOUR / self.step.total)

    @property
    def hours(self) -> float | None:
        """Hours of training."""
        if self.plan.budget_hours is not None:
            return self.plan.budget_hours
        assert self.steps is not None
        return None if self.step is None else self.steps * self.step.total / HOUR

    @property
    def factor(self) -> int:
        """Multiplier of the plan's counts: if the clock ends the phase, they are of one step."""
        return 1 if self.plan.total_steps is not None else self.steps or 1

    @property
    def sequences(self) -> int:
        """Sequences of the phase."""
        return self.plan.sequences * self.factor

    @property
    def passes(self) -> dict[str, float] | None:
        """Passes over each source of a mixture."""
        passes = self.plan.passes
        return passes and {name: n * self.factor for name, n in passes.items()}

    @property
    def tokens(self) -> int:
        """Tokens of the phase."""
        return self.plan.tokens * self.factor

    def per_second(self, count: float) -> float:
        """The rate of something of which the plan counts `count`."""
        assert self.step is not None
        return count / (self.plan.total_steps or 1) / self.step.total


@dataclass(frozen=True)
class Forecast:
    """A whole run; pretrain.planning.table prints it."""

    cluster: ClusterSettings | None
    engine: EngineSettings  # the first phase's, precision and compilation resolved
    arithmetic: str  # of matrix products: a key of cluster.peak_tflops
    attends_per_sequence: bool  # attention is one call per sequence, not one for all
    phases: list[PhaseForecast]
    budgets: dict[str, dict[int, int]]  # with or without recomputation: ZeRO stage -> most tokens

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return self.phases[0].plan.parameters

    @property
    def ranks(self) -> int:
        """Ranks of the run."""
        return self.phases[0].plan.world_size

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return self.engine.activation_checkpointing

    @property
    def fits(self) -> bool:
        """Whether every phase fits the memory; True if no hardware is named."""
        cluster = self.cluster
        return cluster is None or all(
            phase.memory is None or phase.memory.total <= GIB * cluster.memory_gib
            for phase in self.phases
        )

    @property
    def hours(self) -> float | None:
        """Hours of the whole run."""
        hours = [phase.hours for phase in self.phases]
        return None if None in hours else sum(h for h in hours if h is not None)

    @property
    def total(self) -> dict[str, float | None]:
        """Hours, GPU-hours, USD and kWh of the whole run; None if unknown."""
        cluster, hours = self.cluster, self.hours
        if cluster is None or hours is None:
            return {"hours": hours, "gpu_hours": None, "usd": None, "kwh": None}
        gpu_hours = hours * self.ranks
        return {
            "hours": hours,
            "gpu_hours": gpu_hours,
            "usd": gpu_hours * cluster.usd_per_gpu_hour,
            "kwh": gpu_hours * cluster.watts_per_gpu / 1000,
        }


def forecast(settings: Settings, world_size: int | None = None, has_data: bool = True) -> Forecast:
    """The forecast of a run on `world_size` ranks, or on all GPUs of its cluster if that is None.

    Without `has_data` no shards are looked for, and the `plan` settings are assumed. Measures this
    machine if that is the cluster. Raises SettingsError on a precision that the hardware lacks.
    """
    cluster = None if settings.cluster.gpu is None else settings.cluster
    phases = phases_of(settings)
    corpora = [corpus_of(phase.settings, has_data) for phase in phases]
    vocab_size = corpora[0].vocab_size
    if cluster is not None:
        cluster = measured(cluster, settings.model, vocab_size)
    if world_size is None:
        world_size = 1 if cluster is None else cluster.nodes * cluster.gpus_per_node
    engine = _resolved(settings.engine, cluster)
    arithmetic = step_time.our_program(engine, settings.optim.name, 1, False).arithmetic
    count = flops_module.parameters(settings.model, vocab_size, settings.data.pairs)
    found = [
        _phase(phase, corpus, vocab_size, count, world_size, engine, cluster)
        for phase, corpus in zip(phases, corpora, strict=True)
    ]
    budgets: dict[str, dict[int, int]] = {}
    if cluster is not None:
        longest = max(phase.settings.data.seq_len for phase in phases)
        masked_share = max(memory.most_masked_share(phase.settings.data) for phase in phases)
        is_low = engine.precision in (Precision.bf16, Precision.fp16)
        num_of_muon = matrix_elements(settings.model, settings.optim.name)
        for how, recomputes in (("without", False), ("with", True)):
            budgets[how] = {
                stage: memory.largest_budget(
                    settings.model, vocab_size, count,
                    dataclasses.replace(engine, zero_stage=stage), longest, cluster, world_size,
                    recomputes, masked_share, num_of_muon,
                )
                for stage in range(4)
                if stage > 0 or not is_low  # pretrain.config.checks refuses it
            }  # fmt: skip
    by_sequence = step_time.attends_per_sequence(settings.model, engine.precision, cluster)
    return Forecast(cluster, engine, arithmetic, by_sequence, found, budgets)


def _phase(
    phase: Phase,
    corpus: LengthStats,
    vocab_size: int,
    num_parameters: int,
    world_size: int,
    run_engine: EngineSettings,
    cluster: ClusterSettings | None,
) -> PhaseForecast:
    """`run_engine`: the run's engine settings with precision and compilation resolved."""
    own, recomputes = phase.settings, run_engine.activation_checkpointing
    seq_len = own.data.seq_len
    outline = plan(own, corpus, num_parameters, world_size, phase.number)
    found = PhaseForecast(
        number=phase.number,
        seq_len=seq_len,
        budget=own.engine.tokens_per_micro_batch,
        data=corpus.source,
        plan=outline,
        flops=outline.sequences
        * flops_module.flops(
            own.model, vocab_size, corpus.lengths, trims=run_engine.trim_last_layer
        ),
    )
    if cluster is None:
        return found
    engine = dataclasses.replace(
        own.engine, precision=run_engine.precision, compile=run_engine.compile
    )
    costs = _Costs(
        dataclasses.replace(own, engine=engine), corpus.lengths, vocab_size, num_parameters, cluster
    )
    sequences = outline.sequences_a_rank * world_size
    nodes = -(-world_size // cluster.gpus_per_node)

    def share(sequences: float, nodes: int) -> float:
        return costs.share_of_peak(sequences, min(world_size, nodes * cluster.gpus_per_node))

    return dataclasses.replace(
        found,
        memory=costs.memory(world_size, recomputes),
        other_memory=costs.memory(world_size, not recomputes),
        step=costs.step(sequences, world_size),
        resharded=costs.resharded(sequences, world_size, recomputes),
        in_fp8=costs.in_fp8(sequences, world_size),
        peak_share=None if cluster.is_cpu else peak_share(
            share, sequences, corpus.lengths.mean, world_size, nodes
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class _Costs:
    """What a phase costs a rank, for any batch and any number of ranks."""

    settings: Settings  # precision and compilation resolved
    lengths: flops_module.Lengths
    vocab_size: int
    num_parameters: int
    cluster: ClusterSettings

    def step(self, sequences: float, ranks: int) -> step_time.Step:
        """A step of so many sequences, of all ranks."""
        model, optim, engine = self.settings.model, self.settings.optim, self.settings.engine
        tokens_per_rank = sequences * self.lengths.mean / ranks
        micro_steps = max(1, -int(-tokens_per_rank // engine.tokens_per_micro_batch))
        program = step_time.our_program(
            engine, optim.name, micro_steps, engine.activation_checkpointing,
            step_time.attends_per_sequence(model, engine.precision, self.cluster),
            step_time.embedded_share(model, self.num_parameters),
        )  # fmt: skip
        step = step_time.step(
            model, self.vocab_size, self.num_parameters, self.lengths, self.cluster, program,
            sequences / ranks, micro_steps, ranks,
        )  # fmt: skip
        return muon.with_muon(step, model, optim, engine, self.cluster, ranks)

    def resharded(self, sequences: float, ranks: int, recomputes: bool) -> Resharded | None:
        """The same with the other engine.shard, where there is a difference."""
        engine = self.settings.engine
        if engine.zero_stage not in (1, 2) or not 1 < self.cluster.gpus_per_node < ranks:
            return None
        shard = Shard.world if engine.shard is Shard.node else Shard.node
        other = dataclasses.replace(engine, shard=shard)
        settings = dataclasses.replace(self.settings, engine=other)
        costs = dataclasses.replace(self, settings=settings)
        return Resharded(shard, costs.step(sequences, ranks), costs.memory(ranks, recomputes))

    def in_fp8(self, sequences: float, ranks: int) -> step_time.Step | None:
        """The same with engine.fp8=true, where the GPU and the other settings allow it."""
        engine = self.settings.engine
        is_possible = self.cluster.peak_tflops.get("fp8") and engine.zero_stage in (1, 2)
        if engine.fp8 or not is_possible or engine.precision not in _WITH_FP8:
            return None
        settings = dataclasses.replace(self.settings, engine=dataclasses.replace(engine, fp8=True))
        return dataclasses.replace(self, settings=settings).step(sequences, ranks)

    def share_of_peak(self, sequences: float, ranks: int) -> float:
        """The model's FLOP/s in such a step over the peak of all ranks."""
        engine, optim = self.settings.engine, self.settings.optim
        kind = step_time.our_program(engine, optim.name, 1, False).arithmetic
        flops = sequences * flops_module.flops(self.settings.model, self.vocab_size, self.lengths)
        peak = 1e12 * self.cluster.peak_tflops[kind] * ranks
        return flops / self.step(sequences, ranks).total / peak

    def memory(self, ranks: int, recomputes: bool) -> Memory:
        """Memory of a full micro-batch."""
        own = self.settings
        return memory.memory(
            own.model, self.vocab_size, self.num_parameters, own.engine, own.data.seq_len,
            self.cluster, ranks, recomputes,
            masked_share=memory.most_masked_share(own.data),
            num_of_muon=matrix_elements(own.model, own.optim.name),
        )  # fmt: skip


def _resolved(engine: EngineSettings, cluster: ClusterSettings | None) -> EngineSettings:
    """What `auto` stands for on this hardware, if it has all that compilation needs."""
    precision, compiled = _precision(engine, cluster), engine.compile
    if engine.fp8 and cluster is not None and not cluster.peak_tflops.get("fp8"):
        raise SettingsError(f"{cluster.gpu} has no FP8 (peak_tflops.fp8); set engine.fp8=false")
    if compiled is Compile.auto and cluster is not None:
        is_compiled = not cluster.is_cpu and engine.zero_stage < 3
        compiled = Compile.true if is_compiled else Compile.false
    return dataclasses.replace(engine, precision=precision, compile=compiled)


def _precision(engine: EngineSettings, cluster: ClusterSettings | None) -> Precision:
    if engine.precision is Precision.auto:
        has_bf16 = cluster is not None and cluster.has_bf16
        return Precision.bf16_autocast if has_bf16 else Precision.fp32
    if cluster is None:
        return engine.precision
    if not cluster.peak_tflops.get("half"):
        if engine.precision is not Precision.fp32:
            raise SettingsError(
                f"engine.precision={engine.precision.name} is not planned for {cluster.gpu}; set "
                "engine.precision=fp32"
            )
    elif not cluster.has_bf16 and engine.precision in (Precision.bf16, Precision.bf16_autocast):
        raise SettingsError(
            f"{cluster.gpu} has no bfloat16; set engine.precision=fp16 or engine.precision=fp32"
        )
    return engine.precision


def measured(cluster: ClusterSettings, model: ModelSettings, vocab_size: int) -> ClusterSettings:
    """`cluster`, with its rates measured here if it leaves them open (conf/cluster/local.yaml)."""
    if any(cluster.peak_tflops.values()):
        return cluster
    from pretrain.planning.calibrate import measure

    return measure(cluster, model, vocab_size)

"""A run's plan on named hardware, phase by phase, as a table, as JSON, and beside what really came.

Every figure is of training alone: evaluations, checkpoints and restarts come on top.
"""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.core.config import SettingsError
from data_prep.core.files import whole_or_absent, write_json
from pretrain.config.phases import phases_of
from pretrain.config.settings import (
    ClusterSettings,
    Compile,
    EngineSettings,
    ModelSettings,
    Precision,
    Settings,
)
from pretrain.model import flops as flops_module
from pretrain.planning import memory, step_time
from pretrain.planning.arithmetic import PhasePlan, corpus_of, plan
from pretrain.planning.memory import GIB, Memory

HOUR = 3600
WIDTH = 98  # columns of the table
_CHECKPOINTING = "activation_checkpointing"  # of later versions of the engine


@dataclass(frozen=True)
class PhaseForecast:
    """One phase: its arithmetic, and what it costs where a cluster is named."""

    number: int
    seq_len: int
    budget: int  # most tokens of a micro-batch
    data: str
    plan: PhasePlan
    flops: float  # of the phase, or of a step where the clock ends it
    memory: Memory | None
    other_memory: Memory | None  # with recomputation instead of without, or the other way round
    step: step_time.Step | None

    @property
    def steps(self) -> int | None:
        """Updates; where the clock ends the phase, those that it lasts for, if a step's time is known."""
        if self.plan.total_steps is not None:
            return self.plan.total_steps
        assert self.plan.budget_hours is not None
        return None if self.step is None else int(self.plan.budget_hours * HOUR / self.step.total)

    @property
    def hours(self) -> float | None:
        """Of training."""
        if self.plan.budget_hours is not None:
            return self.plan.budget_hours
        assert self.steps is not None
        return None if self.step is None else self.steps * self.step.total / HOUR

    @property
    def factor(self) -> int:
        """Times that the plan's counts come: where the clock ends a phase they are of one step."""
        return 1 if self.plan.total_steps is not None else self.steps or 1


@dataclass(frozen=True)
class Forecast:
    """A whole run."""

    settings: Settings
    cluster: ClusterSettings | None
    engine: EngineSettings  # the first phase's, precision resolved
    phases: list[PhaseForecast]
    recomputes: bool
    budgets: dict[str, dict[int, int]]  # {without, with recomputation}: stage -> largest budget

    @property
    def ranks(self) -> int:
        """Of the run."""
        return self.phases[0].plan.world_size

    @property
    def fits(self) -> bool:
        """Whether every phase fits the memory; True where no hardware is named."""
        cluster = self.cluster
        return cluster is None or all(
            phase.memory is None or phase.memory.total <= GIB * cluster.memory_gib
            for phase in self.phases
        )

    @property
    def hours(self) -> float | None:
        """Of the whole run."""
        hours = [phase.hours for phase in self.phases]
        return None if None in hours else sum(h for h in hours if h is not None)

    @property
    def _arithmetic(self) -> str:
        return step_time.our_program(self.engine, self.settings.optim.name, 1, False).arithmetic

    def as_dict(self) -> dict[str, Any]:
        """For machines: plain numbers, seconds and bytes."""
        cluster, hours = self.cluster, self.hours
        totals: dict[str, Any] = {"hours": hours, "gpu_hours": None, "usd": None, "kwh": None}
        if cluster is not None and hours is not None:
            gpu_hours = hours * self.ranks
            totals |= {
                "gpu_hours": gpu_hours,
                "usd": gpu_hours * cluster.usd_per_gpu_hour,
                "kwh": gpu_hours * cluster.watts_per_gpu / 1000,
            }
        return {
            "parameters": self.phases[0].plan.parameters,
            "ranks": self.ranks,
            "precision": self.engine.precision.name,
            "zero_stage": self.engine.zero_stage,
            "activation_checkpointing": self.recomputes,
            "cluster": None if cluster is None else dataclasses.asdict(cluster),
            "phases": [
                {
                    "number": phase.number,
                    "seq_len": phase.seq_len,
                    "data": phase.data,
                    **dataclasses.asdict(phase.plan),
                    "steps": phase.steps,
                    "flops": phase.flops,
                    "hours": phase.hours,
                    "memory_bytes": phase.memory and dataclasses.asdict(phase.memory),
                    "step_s": phase.step
                    and {**dataclasses.asdict(phase.step), "total": phase.step.total},
                }
                for phase in self.phases
            ],
            "total": totals,
            "fits": self.fits,
            "largest_tokens_per_micro_batch": {
                how: {str(stage): most for stage, most in stages.items()}
                for how, stages in self.budgets.items()
            },
            "proposal": self.proposal(),
            "assumptions": self.assumptions(),
        }

    def lines(self) -> list[str]:
        """The table for people, at most 100 columns."""
        lines = [self._head(), "", *self._table(), *self._memory_table(), *self._notes()]
        return [line.rstrip() for line in lines]

    def short_lines(self) -> list[str]:
        """What a run says at its start; the whole table lies in its folder."""
        lines = [self._head()]
        for phase in self.phases:
            predicted = ""
            if phase.step is not None and phase.hours is not None:
                predicted = f", {1e3 * phase.step.total:,.4g} ms a step, {_time(phase.hours)} hours"
            name = f"phase {phase.number}: " if len(self.phases) > 1 else ""
            lines.append(f"{name}{phase.plan.line()}{predicted}")
        if not self.fits:
            lines.append(self.proposal())
        return lines

    def proposal(self) -> str:
        """Which token budget and ZeRO stage to take, and why; empty where no hardware is named."""
        if self.cluster is None:
            return ""
        stage, how = self.engine.zero_stage, "with" if self.recomputes else "without"
        needed = max(self._tokens_a_rank(phase) for phase in self.phases)
        longest = max(phase.seq_len for phase in self.phases)
        most = self.budgets[how].get(stage, 0)
        if self.fits:
            best, now = min(most, needed), self.engine.tokens_per_micro_batch
            fewer, many = self._micro(best), self._micro(now)
            if fewer >= many:
                return "It fits as typed."
            return (
                f"It fits; so does engine.tokens_per_micro_batch={best}: {fewer} "
                f"micro-batch{'es' * (fewer > 1)} a step in place of {many}."
            )
        wanted = min(needed, self.engine.tokens_per_micro_batch)
        if longest <= wanted <= most:
            return f"Does not fit. Set engine.tokens_per_micro_batch={most}, which fits."
        # recomputation is proposed where the engine has a setting for it
        ways = list(self.budgets) if hasattr(self.engine, _CHECKPOINTING) else [how]
        found = [(w, s, m) for w in ways for s, m in self.budgets[w].items() if s >= stage]
        enough = [(w, s, m) for w, s, m in found if m >= wanted]
        way, other, budget = enough[0] if enough else max(found, key=lambda way: way[2])
        if budget < longest:
            return (
                "Does not fit at any stage, not with one sequence: take a smaller model, or GPUs of "
                "more memory, or more of them."
            )
        changes = [f"engine.zero_stage={other}"] if other != stage else []
        if way != how:
            changes.append(f"engine.{_CHECKPOINTING}={str(way == 'with').lower()}")
        if budget < self.engine.tokens_per_micro_batch:  # all of which the rehearsal tries
            changes.append(f"engine.tokens_per_micro_batch={budget}")
        less = f", or engine.tokens_per_micro_batch={most}" if most >= longest else ""
        return f"Does not fit. Set {' '.join(changes)}, which fits{less}."

    def assumptions(self) -> list[str]:
        """What the figures rest on, from conf/cluster and from the program."""
        said = [f"Phase {phase.number}: {phase.data}." for phase in self.phases]
        cluster = self.cluster
        if cluster is None:
            return said
        kind = self._arithmetic
        said += [
            f"Matrix products: {cluster.gemm_share[kind]:.0%} of {cluster.peak_tflops[kind]:,.4g} "
            f"TFLOP/s; memory: {cluster.bandwidth_share:.0%} of {cluster.bandwidth_gb_s:,.4g} GB/s.",
            f"Links {cluster.link_gb_s:g} GB/s a GPU; network {cluster.network_share:.0%} of "
            f"{cluster.network_gb_s:g} GB/s a GPU; nothing is hidden behind computing.",
            f"{cluster.usd_per_gpu_hour:g} USD and {cluster.watts_per_gpu:g} W a GPU. Training alone: "
            "evaluation, checkpoints and restarts come on top.",
        ]
        if self._arithmetic == "fp32" or not cluster.has_bf16:
            said.append(
                f"Attention is one call a sequence: {cluster.sequence_us:.3g} us of the host in each "
                "layer."
            )
        return said

    def _tokens_a_rank(self, phase: PhaseForecast) -> int:
        """Of a step, with a little room for the deal, in whole sequences."""
        tokens = 1.05 * phase.plan.fill * phase.plan.micro_steps * phase.budget
        return -int(-tokens // phase.seq_len) * phase.seq_len

    def _micro(self, budget: int) -> int:
        first = self.phases[0]
        tokens = first.plan.fill * first.plan.micro_steps * first.budget
        return max(1, -int(-tokens // budget))

    def _head(self) -> str:
        cluster, parameters = self.cluster, self.phases[0].plan.parameters
        where = "" if cluster is None else f" of {cluster.gpu}"
        if cluster is not None and self.ranks > cluster.gpus_per_node:
            nodes = -(-self.ranks // cluster.gpus_per_node)
            where = f": {nodes} nodes of {cluster.gpus_per_node} {cluster.gpu}"
        return (
            f"{parameters / 1e6:,.1f} M parameters, {self.ranks:,} rank(s){where}, "
            f"{self.engine.precision.name}, ZeRO {self.engine.zero_stage}"
            f"{', compiled' if self.engine.compile is Compile.true else ''}"
        )

    def _table(self) -> list[str]:
        phases, several = self.phases, len(self.phases) > 1
        total = self.as_dict()["total"]

        def row(name: str, cells: list[str], whole: str = "") -> str:
            return f"  {name:<34}" + "".join(f"{c:>17}" for c in [*cells, *([whole] * several)])

        def of(give: Any, whole: str = "") -> tuple[list[str], str]:
            return [give(phase) for phase in phases], whole

        counted = [p for p in phases if p.steps is not None]
        known = len(counted) == len(phases)
        rows: list[tuple[str, tuple[list[str], str]]] = [
            ("sequences of up to", of(lambda p: f"{p.seq_len} tokens")),
            ("steps", of(
                lambda p: "-" if p.steps is None else f"{p.steps:,}",
                f"{sum(p.steps or 0 for p in phases):,}" if known else "",
            )),
            ("sequences", of(
                lambda p: f"{p.plan.sequences * p.factor:,}",
                f"{sum(p.plan.sequences * p.factor for p in phases):,}",
            )),
            ("tokens, M", of(
                lambda p: f"{p.plan.tokens * p.factor / 1e6:,.1f}",
                f"{sum(p.plan.tokens * p.factor for p in phases) / 1e6:,.1f}",
            )),
            ("epochs over the data", of(
                lambda p: "no data" if p.plan.epochs is None else f"{p.plan.epochs * p.factor:,.2f}"
            )),
            ("exaFLOP", of(
                lambda p: f"{p.flops * p.factor / 1e18:,.4g}",
                f"{sum(p.flops * p.factor for p in phases) / 1e18:,.4g}",
            )),
            ("sequences a rank and step", of(lambda p: f"{p.plan.sequences_a_rank:,.4g}")),
            ("micro-batches a rank and step", of(lambda p: f"{p.plan.micro_steps:,}")),
            ("their token budget, filled", of(lambda p: f"{p.plan.fill:.0%}")),
        ]  # fmt: skip
        if self.cluster is None:
            return [row(name, *cells) for name, cells in rows]
        rows.append(("a step, ms", of(lambda p: f"{1e3 * p.step.total:,.4g}")))
        for part, name in (
            ("products", "matrix products"), ("memory", "other work on activations"),
            ("waiting", "waiting for the host"), ("update", "update"),
            ("communication", "communication"), ("fixed", "fixed"),
        ):  # fmt: skip
            cells = [f"{1e3 * getattr(p.step, part):,.4g}" for p in phases]
            rows.append((f"  {name}", (cells, "")))
        peak = 1e12 * self.cluster.peak_tflops[self._arithmetic]
        rows += [
            ("sequences/s", of(lambda p: f"{self._per_s(p, p.plan.sequences):,.0f}")),
            ("tokens/s", of(lambda p: f"{self._per_s(p, p.plan.tokens):,.0f}")),
            ("model FLOP/s, of the peak", of(
                lambda p: f"{self._per_s(p, p.flops) / self.ranks / peak:.0%}"
            )),
            ("hours", of(lambda p: _time(p.hours), _time(total["hours"]))),
        ]  # fmt: skip
        lines = [row(name, *cells) for name, cells in rows]
        return [
            *lines,
            "",
            f"  {total['hours'] / 24:,.3g} days, {_round(total['gpu_hours'])} GPU-hours, "
            f"{_round(total['usd'])} USD, {_round(total['kwh'])} kWh",
        ]

    def _per_s(self, phase: PhaseForecast, count: float) -> float:
        assert phase.step is not None
        return count / (phase.plan.total_steps or 1) / phase.step.total

    def _memory_table(self) -> list[str]:
        if self.cluster is None:
            return []
        how = "with" if self.recomputes else "without"
        lines = ["", f"  memory of a GPU, GiB of {self.cluster.memory_gib:g}"]
        for part in dataclasses.fields(Memory):
            cells = [getattr(phase.memory, part.name) / GIB for phase in self.phases]
            lines.append(f"    {part.name:<32}" + "".join(f"{cell:>17,.2f}" for cell in cells))
        for name, which in (("total", "memory"), ("", "other_memory")):
            other = "without" if self.recomputes else "with"
            label = name or f"total {other} recomputation"
            cells = [getattr(phase, which).total / GIB for phase in self.phases]
            lines.append(f"    {label:<32}" + "".join(f"{cell:>17,.2f}" for cell in cells))
        lines += ["", "  largest engine.tokens_per_micro_batch that fits, by ZeRO stage"]
        stages = self.budgets[how]
        lines.append(f"    {'':<32}" + "".join(f"{f'ZeRO {stage}':>12}" for stage in stages))
        for name, found in self.budgets.items():
            label = f"{name} recomputation"
            lines.append(f"    {label:<32}" + "".join(f"{most:>12,}" for most in found.values()))
        return lines

    def _notes(self) -> list[str]:
        notes = [self.proposal()] if self.proposal() else []
        wrapped = (
            textwrap.wrap(note, WIDTH, initial_indent="  ", subsequent_indent="    ")
            for note in [*notes, *self.assumptions()]
        )
        return ["", *itertools.chain.from_iterable(wrapped)]


def forecast(settings: Settings, world_size: int | None = None) -> Forecast:
    """The forecast of a run on `world_size` ranks; None: on all GPUs of its cluster.

    Measures this machine where that is the cluster. Raises SettingsError on a precision that the
    hardware lacks.
    """
    cluster = None if settings.cluster.gpu is None else settings.cluster
    phases = phases_of(settings)
    corpora = [corpus_of(phase.settings) for phase in phases]
    vocab_size, pairs = corpora[0].vocab_size, settings.data.pairs
    count = flops_module.parameters(settings.model, vocab_size, pairs)
    if cluster is not None:
        cluster = measured(cluster, settings.model, vocab_size)
    if world_size is None:
        world_size = 1 if cluster is None else cluster.nodes * cluster.gpus_per_node
    engine = dataclasses.replace(settings.engine, precision=_precision(settings.engine, cluster))
    recomputes = bool(getattr(engine, _CHECKPOINTING, False))
    found = []
    for phase, corpus in zip(phases, corpora, strict=True):
        own = phase.settings
        mine = dataclasses.replace(own.engine, precision=engine.precision)
        outline = plan(own, corpus, count, world_size, phase.number)
        held, other, step = None, None, None
        if cluster is not None:
            held, other = (
                memory.memory(
                    own.model, vocab_size, count, mine, own.data.seq_len, cluster, world_size, how
                )
                for how in (recomputes, not recomputes)
            )
            program = step_time.our_program(
                mine, own.optim.name, outline.micro_steps, recomputes, cluster.has_bf16
            )
            step = step_time.step(
                own.model, vocab_size, count, corpus.lengths, cluster, program,
                outline.sequences_a_rank, outline.micro_steps, world_size,
            )  # fmt: skip
        flops = outline.sequences * flops_module.flops(own.model, vocab_size, corpus.lengths)
        found.append(
            PhaseForecast(
                phase.number,
                own.data.seq_len,
                own.engine.tokens_per_micro_batch,
                corpus.source,
                outline,
                flops,
                held,
                other,
                step,
            )
        )
    budgets: dict[str, dict[int, int]] = {}
    if cluster is not None:
        longest = max(phase.settings.data.seq_len for phase in phases)
        is_low = engine.precision in (Precision.bf16, Precision.fp16)
        for recomputing in (False, True):
            budgets["with" if recomputing else "without"] = {
                stage: memory.largest_budget(
                    settings.model, vocab_size, count,
                    dataclasses.replace(engine, zero_stage=stage), longest, cluster, world_size,
                    recomputing,
                )
                for stage in range(4)
                if stage > 0 or not is_low  # settings_check.check refuses it
            }  # fmt: skip
    return Forecast(settings, cluster, engine, found, recomputes, budgets)


def write(folder: Path, found: Forecast) -> None:
    """Keep the plan in a run's folder: plan.json and plan.txt."""
    write_json(folder / "plan.json", orjson.loads(orjson.dumps(found.as_dict())))
    with whole_or_absent(folder / "plan.txt") as temporary:
        temporary.write_text("\n".join(found.lines()) + "\n")


def _precision(engine: EngineSettings, cluster: ClusterSettings | None) -> Precision:
    if engine.precision is Precision.auto:
        has_bf16 = cluster is not None and cluster.has_bf16
        return Precision.bf16_autocast if has_bf16 else Precision.fp32
    if cluster is not None and not cluster.peak_tflops.get("half"):
        if engine.precision is not Precision.fp32:
            raise SettingsError(
                f"engine.precision={engine.precision.name} is not planned for {cluster.gpu}; set "
                "engine.precision=fp32"
            )
    elif (
        cluster is not None
        and not cluster.has_bf16
        and engine.precision in (Precision.bf16, Precision.bf16_autocast)
    ):
        raise SettingsError(f"{cluster.gpu} has no bfloat16; set engine.precision=fp16 or fp32")
    return engine.precision


def _round(value: float) -> str:
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _time(hours: float | None) -> str:
    return "-" if hours is None else _round(hours)


def measured(cluster: ClusterSettings, model: ModelSettings, vocab_size: int) -> ClusterSettings:
    """`cluster` as it is, or, where its rates are left open (conf/cluster/local.yaml), measured here."""
    if any(cluster.peak_tflops.values()):
        return cluster
    from pretrain.planning.calibrate import measure

    return measure(cluster, model, vocab_size)

"""A forecast as a table for people, as lines for the log, and as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import operator
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from data_prep.core.files import whole_or_absent, write_json
from pretrain.config.settings import ClusterSettings, Compile, EngineSettings, Precision, Shard
from pretrain.planning.estimate import Forecast, PhaseForecast
from pretrain.planning.memory import GIB, Memory
from pretrain.planning.peak_share import GOAL

WIDTH = 98  # columns of the notes
# Repeating a text is worth less with every pass, and past some 40 nothing (Muennighoff et al.,
# "Scaling Data-Constrained Language Models", 2023)
MOST_PASSES = 40
WORTH_NAMING = 0.98  # of a step's time: below, another engine.shard or FP8 is named

_STEP_PARTS = {
    "products": "matrix products",
    "memory": "other work on activations",
    "waiting": "waiting for the host",
    "update": "update",
    "communication": "communication",
    "fixed": "fixed",
}


def write(folder: Path, forecast: Forecast) -> None:
    """Write the plan to a run's folder: plan.json and plan.txt."""
    write_json(folder / "plan.json", orjson.loads(orjson.dumps(as_dict(forecast))))
    with whole_or_absent(folder / "plan.txt") as temporary:
        temporary.write_text("\n".join(lines(forecast)) + "\n")


def as_dict(forecast: Forecast) -> dict[str, Any]:
    """The plan for machines: plain numbers, seconds and bytes."""
    cluster = forecast.cluster
    return {
        "parameters": forecast.parameters,
        "ranks": forecast.ranks,
        "precision": forecast.engine.precision.name,
        "zero_stage": forecast.engine.zero_stage,
        "activation_checkpointing": forecast.recomputes,
        "cluster": None if cluster is None else dataclasses.asdict(cluster),
        "phases": [_phase_as_dict(phase) for phase in forecast.phases],
        "total": forecast.total,
        "fits": forecast.fits,
        "largest_tokens_per_micro_batch": {
            how: {str(stage): most for stage, most in stages.items()}
            for how, stages in forecast.budgets.items()
        },
        "proposal": proposal(forecast),
        **({"low_shares": low} if (low := low_shares(forecast)) else {}),
        **({"faster_shards": other} if (other := faster_shards(forecast)) else {}),
        **({"faster_in_fp8": fp8} if (fp8 := faster_in_fp8(forecast)) else {}),
        "assumptions": assumptions(forecast),
    }


def lines(forecast: Forecast) -> list[str]:
    """The table for people, at most 100 columns wide."""
    parts = [[head(forecast), ""], table(forecast), memory_table(forecast), notes(forecast)]
    return [line.rstrip() for line in itertools.chain.from_iterable(parts)]


def short_lines(forecast: Forecast) -> list[str]:
    """What a run prints at its start; the whole table is in its folder."""
    found = [head(forecast)]
    for phase in forecast.phases:
        predicted = ""
        if phase.step is not None and phase.hours is not None:
            predicted = (
                f", {1e3 * phase.step.total:,.4g} ms per step, {_rounded(phase.hours)} hours"
            )
        if phase.peak_share is not None:
            predicted += f", {phase.peak_share.now:.0%} of the peak"
        name = f"phase {phase.number}: " if len(forecast.phases) > 1 else ""
        found.append(f"{name}{phase.plan.line()}{predicted}")
    found += [*filter(None, map(repetition, forecast.phases)), *low_shares(forecast)]
    if not forecast.fits:
        found.append(proposal(forecast))
    return found


def proposal(forecast: Forecast) -> str:
    """Which token budget and ZeRO stage to set, and why; empty if no hardware is named."""
    if forecast.cluster is None:
        return ""
    engine, how = forecast.engine, "with" if forecast.recomputes else "without"
    stage, now = engine.zero_stage, engine.tokens_per_micro_batch
    needed = max(_tokens_per_rank(phase) for phase in forecast.phases)
    longest = max(phase.seq_len for phase in forecast.phases)
    most = forecast.budgets[how].get(stage, 0)
    if forecast.fits:
        best = min(most, needed)
        fewer, many = _micro_batches(forecast, best), _micro_batches(forecast, now)
        if fewer >= many:
            return "It fits as typed."
        return (
            f"It fits; so does engine.tokens_per_micro_batch={best}: {fewer} "
            f"micro-batch{'es' * (fewer > 1)} per step instead of {many}."
        )
    wanted = min(needed, now)
    if longest <= wanted <= most:
        return f"Does not fit. Set engine.tokens_per_micro_batch={most}, which fits."
    found = [
        (way, other, budget)
        for way, stages in forecast.budgets.items()
        for other, budget in stages.items()
        if other >= stage
    ]
    enough = [candidate for candidate in found if candidate[2] >= wanted]
    way, other, budget = enough[0] if enough else max(found, key=lambda candidate: candidate[2])
    if budget < longest:
        more = "GPUs with more memory, or more GPUs"
        if forecast.cluster.is_cpu:
            more = "or a machine with more memory"
        return (
            f"Does not fit at any ZeRO stage, not even one sequence: take a smaller model, {more}."
        )
    changes = [f"engine.zero_stage={other}"] if other != stage else []
    if way != how:
        changes.append(f"engine.activation_checkpointing={str(way == 'with').lower()}")
    if budget < now:  # the memory probe tries a full micro-batch
        changes.append(f"engine.tokens_per_micro_batch={budget}")
    less = f", or engine.tokens_per_micro_batch={most}" if most >= longest else ""
    return f"Does not fit. Set {' '.join(changes)}, which fits{less}."


def assumptions(forecast: Forecast) -> list[str]:
    """What the numbers rest on, from conf/cluster and from the program."""
    found = [f"Phase {phase.number}: {phase.data}." for phase in forecast.phases]
    found += [*filter(None, map(repetition, forecast.phases))]
    cluster, kind = forecast.cluster, forecast.arithmetic
    if cluster is None:
        return found
    unit = "rank" if cluster.is_cpu else "GPU"
    price = f"{cluster.usd_per_gpu_hour:g} USD and " if _has_price(cluster) else ""
    found += [
        f"Matrix products: {cluster.gemm_share[kind]:.0%} of {cluster.peak_tflops[kind]:,.4g} "
        f"TFLOP/s; memory: {cluster.bandwidth_share:.0%} of {cluster.bandwidth_gb_s:,.4g} GB/s.",
        f"Links {cluster.link_gb_s:g} GB/s per {unit}; network {cluster.network_share:.0%} of "
        f"{cluster.network_gb_s:g} GB/s per {unit}; what computing hides is left out.",
        f"{price}{cluster.watts_per_gpu:g} W per {unit}. Training alone: evaluation, checkpoints "
        "and restarts come on top.",
    ]
    if forecast.attends_per_sequence:
        found.append(
            f"Attention is one call per sequence: {cluster.sequence_us:.3g} us of host time in "
            "each layer."
        )
    return found


def head(forecast: Forecast) -> str:
    """Model, ranks, hardware, precision and ZeRO stage in one line."""
    cluster, engine = forecast.cluster, forecast.engine
    where = "" if cluster is None else f" of {cluster.gpu}"
    if cluster is not None and forecast.ranks > cluster.gpus_per_node:
        nodes = -(-forecast.ranks // cluster.gpus_per_node)
        where = f": {nodes} nodes of {cluster.gpus_per_node} {cluster.gpu}"
    return (
        f"{forecast.parameters / 1e6:,.1f} M parameters, {forecast.ranks:,} rank(s){where}, "
        f"{engine.precision.name}{' with FP8' * engine.fp8}, ZeRO {engine.zero_stage}"
        f"{' within each node' if engine.shard is Shard.node else ''}"
        f"{', compiled' if engine.compile is Compile.true else ''}"
    )


def table(forecast: Forecast) -> list[str]:
    """A column per phase, and one for all if there are several; then what it costs."""
    phases = forecast.phases
    has_steps = all(phase.steps is not None for phase in phases)

    def total(count: Callable[[PhaseForecast], float]) -> float:
        return sum(map(count, phases))

    rows: list[tuple[str, Callable[[Any], str], str]] = [
        ("sequences of up to", lambda p: f"{p.seq_len} tokens", ""),
        ("steps", lambda p: "-" if p.steps is None else f"{p.steps:,}",
         f"{total(lambda p: p.steps or 0):,}" if has_steps else ""),
        ("sequences", lambda p: f"{p.sequences:,}", f"{total(lambda p: p.sequences):,}"),
        ("tokens, M", lambda p: f"{p.tokens / 1e6:,.1f}",
         f"{total(lambda p: p.tokens) / 1e6:,.1f}"),
        ("epochs over the data",
         lambda p: "no data" if p.plan.epochs is None else f"{p.plan.epochs * p.factor:,.2f}", ""),
        *(
            (f"  {name}", lambda p, name=name: _passes(p, name), "")
            for name in dict.fromkeys(n for p in phases for n in p.passes or {})
        ),
        ("exaFLOP", lambda p: f"{p.flops * p.factor / 1e18:,.4g}",
         f"{total(lambda p: p.flops * p.factor) / 1e18:,.4g}"),
        ("sequences per rank and step", lambda p: f"{p.plan.sequences_a_rank:,.4g}", ""),
        ("micro-batches per rank and step", lambda p: f"{p.plan.micro_steps:,}", ""),
        ("token budget filled", lambda p: f"{p.plan.fill:.0%}", ""),
    ]  # fmt: skip
    if forecast.cluster is not None:
        peak = 1e12 * forecast.cluster.peak_tflops[forecast.arithmetic] * forecast.ranks
        rows += [
            ("step, ms", lambda p: f"{1e3 * p.step.total:,.4g}", ""),
            *((f"  {name}", lambda p, part=part: f"{1e3 * getattr(p.step, part):,.4g}", "")
              for part, name in _STEP_PARTS.items()),
            ("sequences/s", lambda p: f"{p.per_second(p.plan.sequences):,.0f}", ""),
            ("tokens/s", lambda p: f"{p.per_second(p.plan.tokens):,.0f}", ""),
            ("model FLOP/s, share of peak", lambda p: f"{p.per_second(p.flops) / peak:.0%}", ""),
            ("hours", lambda p: _rounded(p.hours), _rounded(forecast.hours)),
        ]  # fmt: skip
    found = [
        f"  {name:<34}"
        + "".join(f"{cell:>17}" for cell in [*map(of, phases), *([whole] if phases[1:] else [])])
        for name, of, whole in rows
    ]
    if forecast.hours is not None and forecast.cluster is not None:
        gpu_hours, usd, kwh = (
            _rounded(forecast.total[name]) for name in ("gpu_hours", "usd", "kwh")
        )
        costs = [f"{forecast.hours / 24:,.3g} days"]
        if not forecast.cluster.is_cpu:
            costs.append(f"{gpu_hours} GPU-hours")
        if _has_price(forecast.cluster):
            costs.append(f"{usd} USD")
        found += ["", f"  {', '.join([*costs, f'{kwh} kWh'])}"]
    return found


def memory_table(forecast: Forecast) -> list[str]:
    """Memory by part, a column per phase, and the largest token budgets; empty without hardware."""
    if forecast.cluster is None:
        return []

    def row(name: str, cells: list[str], width: int = 17) -> str:
        return f"    {name:<32}" + "".join(f"{cell:>{width}}" for cell in cells)

    def gib(name: str, path: str) -> str:
        part = operator.attrgetter(path)
        return row(name, [f"{part(phase) / GIB:,.2f}" for phase in forecast.phases])

    other = "without" if forecast.recomputes else "with"
    stages = next(iter(forecast.budgets.values()))
    return [
        "",
        f"  memory per {'rank' if forecast.cluster.is_cpu else 'GPU'}, GiB of "
        f"{forecast.cluster.memory_gib:,.4g}",
        *(gib(part.name, f"memory.{part.name}") for part in dataclasses.fields(Memory)),
        gib("total", "memory.total"),
        gib(f"total {other} recomputation", "other_memory.total"),
        "",
        "  largest engine.tokens_per_micro_batch that fits, by ZeRO stage",
        row("", [f"ZeRO {stage}" for stage in stages], width=12),
        *(row(f"{name} recomputation", [f"{most:,}" for most in budgets.values()], width=12)
          for name, budgets in forecast.budgets.items()),
    ]  # fmt: skip


def notes(forecast: Forecast) -> list[str]:
    """The proposal and the assumptions, wrapped."""
    texts = [
        *filter(None, [proposal(forecast)]), *low_shares(forecast), *faster_shards(forecast),
        *faster_in_fp8(forecast), *assumptions(forecast),
    ]  # fmt: skip
    wrapped = (
        textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ") for text in texts
    )
    return ["", *itertools.chain.from_iterable(wrapped)]


def low_shares(forecast: Forecast) -> list[str]:
    """For each phase far below the peak: why, and the batch or the nodes that raise it."""
    return [
        f"Phase {phase.number}: {round(phase.plan.sequences_a_rank * forecast.ranks):,} sequences "
        f"on {forecast.ranks:,} rank(s) are {_mean_tokens(phase):,.0f} tokens per rank and step, "
        f"planned at {phase.peak_share.now:.0%} of the peak. {_cure(phase, forecast.engine)}"
        for phase in forecast.phases
        if phase.peak_share is not None and phase.peak_share.is_low
    ]


def faster_shards(forecast: Forecast) -> list[str]:
    """For each phase that the other engine.shard makes faster, and which fits: how much faster."""
    found, cluster = [], forecast.cluster
    for phase in forecast.phases:
        now, other = phase.step, phase.resharded
        if cluster is None or now is None or other is None or phase.memory is None:
            continue
        fits = other.memory.total <= GIB * cluster.memory_gib
        if fits and other.step.total < WORTH_NAMING * now.total:
            found.append(
                f"Phase {phase.number}: engine.shard={other.shard.name} is planned at "
                f"{1e3 * other.step.total:,.4g} ms per step instead of {1e3 * now.total:,.4g}, and "
                f"takes {other.memory.total / GIB:,.1f} GiB per GPU instead of "
                f"{phase.memory.total / GIB:,.1f}."
            )
    return found


def faster_in_fp8(forecast: Forecast) -> list[str]:
    """For each phase that engine.fp8 makes faster: how much."""
    return [
        f"Phase {phase.number}: engine.fp8=true is planned at {1e3 * phase.in_fp8.total:,.4g} ms "
        f"per step instead of {1e3 * phase.step.total:,.4g}; the loss changes (docs/internals.md)."
        for phase in forecast.phases
        if phase.step is not None
        and phase.in_fp8 is not None
        and phase.in_fp8.total < WORTH_NAMING * phase.step.total
    ]


def _cure(phase: PhaseForecast, engine: EngineSettings) -> str:
    share, plan = phase.peak_share, phase.plan
    assert share is not None
    batch = f"optim.global_batch={share.times * plan.sequences // (plan.total_steps or 1)}"
    if plan.tokens_per_step is not None:
        batch = f"optim.tokens_per_step={share.times * plan.tokens_per_step}"
    fewer = "" if share.nodes is None else f", or {share.nodes} node(s)"
    most = ""
    if share.most < GOAL:
        most = f" No batch reaches more than {share.most:.0%}"
        is_autocast = engine.precision is Precision.bf16_autocast
        most += "; engine=bf16 moves less memory." if is_autocast else "."
    return f"{share.goal:.0%} takes {batch}, with a learning rate for that batch{fewer}.{most}"


def _mean_tokens(phase: PhaseForecast) -> float:
    """Tokens per rank and step."""
    return phase.plan.fill * phase.plan.micro_steps * phase.budget


def repetition(phase: PhaseForecast) -> str:
    """A warning if the mixture repeats a source too often to learn more from it; or ""."""
    often = {name: n for name, n in (phase.passes or {}).items() if n > MOST_PASSES}
    if not often:
        return ""
    named = ", ".join(f"{name} {n:,.0f} times" for name, n in often.items())
    return (
        f"Warning: phase {phase.number} goes through {named}; past about {MOST_PASSES} passes a "
        "model learns next to nothing from a text: lower its weight in data.mixture, or train for "
        "fewer steps."
    )


def _passes(phase: PhaseForecast, source: str) -> str:
    passes = phase.passes or {}
    return f"{passes[source]:,.2f}" if source in passes else "-"


def _phase_as_dict(phase: PhaseForecast) -> dict[str, Any]:
    step = phase.step
    return {
        "number": phase.number,
        "seq_len": phase.seq_len,
        "data": phase.data,
        **{n: v for n, v in dataclasses.asdict(phase.plan).items() if (n, v) != ("passes", None)},
        "steps": phase.steps,
        "flops": phase.flops,
        "hours": phase.hours,
        "memory_bytes": phase.memory and dataclasses.asdict(phase.memory),
        "step_s": step and {**dataclasses.asdict(step), "total": step.total},
    }


def _tokens_per_rank(phase: PhaseForecast) -> int:
    """Tokens of a step, with some room for uneven ranks, in whole sequences."""
    return -int(-1.05 * _mean_tokens(phase) // phase.seq_len) * phase.seq_len


def _micro_batches(forecast: Forecast, budget: int) -> int:
    return max(1, -int(-_mean_tokens(forecast.phases[0]) // budget))


def _has_price(cluster: ClusterSettings) -> bool:
    return not cluster.is_cpu or cluster.usd_per_gpu_hour > 0


def _rounded(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"

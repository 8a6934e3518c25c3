"""What a run was planned to take, next to what it took."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.core.config import SettingsError
from data_prep.core.files import read_json
from pretrain.config.phases import phases_of
from pretrain.config.settings import Settings
from pretrain.data.shuffle import order_seed
from pretrain.planning.arithmetic import corpus_of, tokens_between


@dataclass(frozen=True)
class Compared:
    """One quantity of a run, planned and actual."""

    name: str
    planned: float | None  # None: the plan named no hardware
    real: float
    form: str

    @property
    def cells(self) -> tuple[str, str, str]:
        """Planned, actual, and the relative error of the plan."""
        planned = "-" if self.planned is None else self.form.format(self.planned)
        is_off = self.planned and self.planned != self.real and self.real
        error = f"{self.planned / self.real - 1:+.1%}" if is_off and self.planned else ""
        return planned, self.form.format(self.real), error


def compare(run_folder: Path, settings: Settings) -> list[Compared]:
    """plan.json against metrics.jsonl and the last checkpoint; [] if there is none yet.

    The last phase's steps, tokens and epochs are counted, without skipped batches; a phase before
    it ended after its steps. Times are of training alone, as in the plan.
    """
    plan, checkpoints = run_folder / "plan.json", run_folder.glob("checkpoints/step-*")
    newest = max(checkpoints, default=None)
    if newest is None or not plan.exists():
        return []
    state = read_json(newest / "state.json")
    if "skipped_steps" not in state:  # an earlier version counted batches
        return []
    planned, phases = read_json(plan)["phases"][: state["phase"]], phases_of(settings)
    real = [_as_planned(phase) for phase in planned[:-1]]
    if real:  # a budget of hours plans no steps
        real[-1]["steps"] = state["first_step"] - sum(phase["steps"] for phase in real[:-1])
    real.append(_counted(phases[len(real)].settings, state["phase"], state))
    times = _step_times(run_folder / "metrics.jsonl", real)
    rows = []
    for number, (before, after) in enumerate(zip(planned, real, strict=True)):
        name = f"phase {number + 1}: " if len(phases) > 1 else ""
        if before["total_steps"] is not None:
            rows += [
                Compared(f"{name}steps", before["total_steps"], after["steps"], "{:,.0f}"),
                Compared(
                    f"{name}tokens, M", before["tokens"] / 1e6, after["tokens"] / 1e6, "{:,.3f}"
                ),
                Compared(f"{name}epochs", before["epochs"], after["epochs"], "{:,.4f}"),
            ]
        step_s, hours = times[number]
        predicted = before["step_s"] and 1e3 * before["step_s"]["total"]
        if step_s is not None:
            rows += [
                Compared(f"{name}step, ms", predicted, 1e3 * step_s, "{:,.4g}"),
                Compared(f"{name}hours", before["hours"], hours, "{:,.4g}"),
            ]
    return rows


def plan_and_outcome(run_folder: Path, settings: Settings) -> list[str]:
    """What `compare` finds, as a table."""
    lines = [f"  {'plan and actual':<26}{'planned':>16}{'actual':>16}"]
    for row in compare(run_folder, settings):
        planned, real, error = row.cells
        off = f"   plan {error}" if error else ""
        lines.append(f"  {row.name:<26}{planned:>16}{real:>16}{off}")
    return lines


def _as_planned(phase: dict[str, Any]) -> dict[str, float]:
    return {"steps": phase["steps"], "tokens": phase["tokens"], "epochs": phase["epochs"]}


def _counted(settings: Settings, number: int, state: dict[str, Any]) -> dict[str, float]:
    """What the last phase consumed, from the state of its last checkpoint."""
    corpus, seed = corpus_of(settings), order_seed(settings.run.seed, number)
    skipped = [(first, min(end, state["position"])) for first, end in state["skipped"]]
    sequences = state["position"] - sum(end - first for first, end in skipped)
    tokens = tokens_between(corpus, 0, state["position"], seed) - sum(
        tokens_between(corpus, first, end, seed) for first, end in skipped
    )
    if corpus.rows is None:
        raise SettingsError(f"the run's data is gone: {corpus.source}")
    steps = state["step"] - state["first_step"]
    return {"steps": steps, "tokens": tokens, "epochs": sequences / corpus.rows}


def _step_times(path: Path, real: list[dict[str, float]]) -> list[tuple[float | None, float]]:
    """Seconds per step and hours of each phase, from every record's sequences per second."""
    seconds, counted = [0.0] * len(real), [0] * len(real)
    ends = list(itertools.accumulate(phase["steps"] for phase in real))
    last = last_sequences = 0
    for line in path.read_bytes().splitlines():
        metrics = orjson.loads(line)
        if (rate := metrics.get("perf/sequences_per_second")) is not None:
            step, sequences = metrics["step"], metrics["data/sequences"]
            number = min(bisect.bisect_left(ends, step), len(ends) - 1)
            seconds[number] += (sequences - last_sequences) / rate
            counted[number] += step - last
            last, last_sequences = step, sequences
    return [(s / n if n else None, s / 3600) for s, n in zip(seconds, counted, strict=True)]

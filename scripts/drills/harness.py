"""The small run that the drill injects faults into, and the checks that all faults share."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pretrain.config.settings import Settings
from pretrain.verification.launcher import RUN, Launched, launch
from pretrain.verification.run_watcher import WatchedRun, until

T = TypeVar("T")

STEPS, EVERY, RANKS, BATCH = 40, 10, 2, 16  # EVERY: steps from one checkpoint to the next
KILLED_AT = 17  # or a step later
LIMIT_S = 240.0  # for any single wait
HANG_MINUTES = 0.6  # must be longer than a start on a busy machine

# Where scripts.drills.faulty_rank acts: global batches, by the positions of their first examples
NAN_BATCH = 17 * BATCH
FULL_BATCHES = (18 * BATCH, 29 * BATCH)  # large writes fail from the first to the second
SLOW_BATCH = 15 * BATCH  # from here on


@dataclass(frozen=True)
class Seen:
    """When and how a fault was noticed."""

    after_s: float | None
    how: str


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    fault: str
    seen: Seen
    steps_lost: int | None = None
    new_step_s: float | None = None
    weights: str = ""
    failures: tuple[str, ...] = ()  # expectations that did not hold


class Run(WatchedRun):
    """One of the drill's runs; each start of it is the same command."""

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        super().__init__(folder)
        self.overrides = [*overrides, f"run.dir={folder.parent}", f"run.name={folder.name}"]
        self.output = folder.with_suffix(".output")
        self.injected = folder.with_suffix(".injected")  # made by faulty_rank at the fault

    def start(
        self, fault: str | None = None, environment: Mapping[str, str] | None = None
    ) -> Launched:
        """Start the command, with one of faulty_rank's faults if one is named."""
        program = RUN if fault is None else ("-m", "scripts.drills.faulty_rank", fault)
        environment = {**(environment or {}), "DRILL_INJECTED": str(self.injected)}
        return launch(self.overrides, RANKS, self.output, program, environment)

    def until(self, condition: Callable[[], T], ranks: Launched, what: str) -> T:
        """The value of `condition`, once it is true. Raises RunFailedError."""
        return until(condition, ranks, LIMIT_S, what)

    def reach(self, step: int, ranks: Launched) -> None:
        """Wait for this step, and for the first checkpoint."""
        first = self.checkpoint(EVERY)
        self.until(lambda: self.step >= step and first.exists(), ranks, f"step {step}")

    def printed(self, words: str) -> str:
        """The last printed line with these words, or an empty one."""
        if not self.output.exists():
            return ""
        lines = self.output.read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if words in line), "")


class Drill:
    """The folder, the settings and the undisturbed run, which the faults share."""

    def __init__(self, folder: Path, overrides: Sequence[str], settings: Settings) -> None:
        self.folder, self.overrides, self.settings = folder, overrides, settings

    def run(self, name: str, *more: str) -> Run:
        return Run(self.folder / name, [*self.overrides, *more])

    def undisturbed(self) -> Outcome:
        """Make the run that the others are compared with."""
        run, began = self.run("undisturbed"), time.time()
        with run.start() as ranks:
            run.until(lambda: run.step, ranks, "the first step")
            first_s = time.time() - began
            statuses = ranks.wait(LIMIT_S)
        self.reference = run.checksums(STEPS)
        holds = statuses == [0] * RANKS and self.reference
        failures = () if holds else (f"the ranks ended with statuses {statuses}",)
        return Outcome("none", Seen(None, ""), new_step_s=first_s, failures=failures)

    @cached_property
    def _killed(self) -> tuple[Path, Seen]:
        """The folder of a run with two checkpoints, all ranks of which were killed."""
        run, second = self.run("killed"), 2 * EVERY
        with run.start() as ranks:
            run.reach(KILLED_AT + EVERY, ranks)
            run.until(run.checkpoint(second).exists, ranks, f"the checkpoint of step {second}")
            began = time.time()
            ranks.send(signal.SIGKILL)
            ranks.wait(LIMIT_S)
        return run.folder, Seen(time.time() - began, "all ranks end")

    def killed(self, name: str) -> tuple[Run, Seen]:
        """A copy of the killed run, from which several faults continue."""
        folder, seen = self._killed
        run = self.run(name)
        shutil.copytree(folder, run.folder)
        return run, seen

    def continued(
        self,
        run: Run,
        seen: Seen | None = None,
        failures: Sequence[str] = (),
        *,
        lost: int | None = None,
        passed_over: Path | None = None,
    ) -> Outcome:
        """Type the same command again, let the run end, and judge it.

        If `lost` is given, exactly that many steps must be lost. If the fault was not `seen` yet,
        this start must name the checkpoint `passed_over` and not use it.
        """
        failures = list(failures)
        reached, count, began = run.step, len(run.events("resumed")), time.time()
        with run.start() as ranks:
            if passed_over is not None:
                line = f"checkpoint {passed_over} is broken and passed over"
                printed = run.until(lambda: run.printed(line), ranks, f"{line!r} to be printed")
                how = f"passed over: {printed.partition('over: ')[2]}"
                seen = Seen(time.time() - began, how)
            resumed = run.until(lambda: run.events("resumed")[count:], ranks, "the run to resume")
            step = resumed[0]["step"]
            run.until(lambda: run.step > step, ranks, "the first new step")
            first_s = time.time() - began
            statuses = ranks.wait(LIMIT_S)
        assert seen is not None
        if run.checkpoint(step) == passed_over:
            failures.append(f"it continued from {passed_over}")
        if lost is not None and reached - step != lost:
            failures.append(f"it continued from step {step}, having reached {reached}")
        return self.judged(run, seen, statuses, failures, reached - step, first_s)

    def judged(
        self,
        run: Run,
        seen: Seen,
        statuses: Sequence[int | None],
        failures: Sequence[str] = (),
        steps_lost: int | None = 0,
        new_step_s: float | None = None,
    ) -> Outcome:
        """Judge a run that has ended by its statuses, its metrics and its last checkpoint."""
        failures = list(failures)
        if list(statuses) != [0] * RANKS:
            failures.append(f"the last start ended with statuses {statuses}")
        if (steps := list(run.metrics())) != list(range(1, STEPS + 1)):
            failures.append(f"metrics.jsonl holds the steps {steps}")
        weights = "equal" if run.checksums(STEPS) == self.reference else "NOT EQUAL"
        if weights != "equal":
            failures.append("the last checkpoint is not that of the undisturbed run")
        return Outcome(run.folder.name, seen, steps_lost, new_step_s, weights, tuple(failures))

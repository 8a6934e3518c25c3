"""The small run that the drill injects faults into."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pretrain.config.settings import Settings
from pretrain.verification.launcher import RUN, Launched, launch
from pretrain.verification.run_watcher import WatchedRun, until

STEPS, EVERY, RANKS, BATCH = 40, 10, 2, 16

KILLED_AT = 17  # or a step later

LIMIT_S = 240.0  # for anything that is waited for

HANG_MINUTES = 0.6  # of which a start, too, takes a part: on a busy machine most

# where scripts.drills.faulty_rank acts: global batches, by the positions of their first examples
NAN_BATCH = 17 * BATCH

FULL_BATCHES = (18 * BATCH, 29 * BATCH)  # nothing large is written from the first to the second

SLOW_BATCH = 15 * BATCH  # and on


@dataclass(frozen=True)
class Seen:
    """When and how a fault showed."""

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
    wrong: tuple[str, ...] = ()  # what did not hold


class Run(WatchedRun):
    """One of the drill's runs; each start of it is the same command."""

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        super().__init__(folder)
        self.overrides = [*overrides, f"run.dir={folder.parent}", f"run.name={folder.name}"]
        self.output = folder.with_suffix(".output")
        self.injected = folder.with_suffix(".injected")  # made by drill_rank

    def start(
        self, fault: str | None = None, environment: Mapping[str, str] | None = None
    ) -> Launched:
        """The command, with one of drill_rank's faults in it where one is named."""
        program = RUN if fault is None else ("-m", "scripts.drills.faulty_rank", fault)
        environment = {**(environment or {}), "DRILL_INJECTED": str(self.injected)}
        return launch(self.overrides, RANKS, self.output, program, environment)

    def reach(self, step: int, ranks: Launched) -> None:
        """Wait until this step is made, and the first checkpoint there."""
        until(
            lambda: self.step >= step and self.checkpoint(EVERY).exists(),
            ranks, LIMIT_S, f"step {step}",
        )  # fmt: skip

    def said(self, words: str) -> str | None:
        """The last printed line that has these words; None where there is none."""
        if not self.output.exists():
            return None
        lines = self.output.read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if words in line), None)


class Drill:
    """What the faults share: the folder, the settings, the undisturbed run."""

    def __init__(self, folder: Path, overrides: Sequence[str], settings: Settings) -> None:
        self.folder, self.overrides, self.settings = folder, overrides, settings

    def run(self, name: str, *more: str) -> Run:
        return Run(self.folder / name, [*self.overrides, *more])

    def undisturbed(self) -> Outcome:
        """The run that the others are measured by."""
        run, began = self.run("undisturbed"), time.time()
        with run.start() as ranks:
            until(lambda: run.step, ranks, LIMIT_S, "the first step")
            first_s = time.time() - began
            statuses = ranks.wait(LIMIT_S)
        self.reference = run.checksums(STEPS)
        wrong = [] if statuses == [0] * RANKS and self.reference else [f"statuses {statuses}"]
        return Outcome("none", Seen(None, ""), None, first_s, "", tuple(wrong))

    @cached_property
    def _killed(self) -> tuple[Path, Seen]:
        """The folder of a run with two checkpoints, all ranks of which were killed."""
        run, second = self.run("killed"), 2 * EVERY
        with run.start() as ranks:
            run.reach(KILLED_AT + EVERY, ranks)
            until(run.checkpoint(second).exists, ranks, LIMIT_S, f"the checkpoint of step {second}")
            began = time.time()
            ranks.send(signal.SIGKILL)
            ranks.wait(LIMIT_S)
        return run.folder, Seen(time.time() - began, "all ranks end")

    def killed(self, name: str) -> tuple[Run, Seen]:
        """A killed run under this name: several faults begin where it stands."""
        folder, seen = self._killed
        run = self.run(name)
        shutil.copytree(folder, run.folder)
        return run, seen

    def goes_on(
        self,
        run: Run,
        seen: Seen | None = None,
        wrong: Sequence[str] = (),
        *,
        lost: int | None = None,
        passed_over: Path | None = None,
    ) -> Outcome:
        """The same command again, and to the end.

        Just `lost` steps may be lost, where that is given. Instead of having been `seen`, a fault
        may show now: the checkpoint `passed_over` is one that this start has to name and not to use.
        """
        reached, count, began = run.step, len(run.events("resumed")), time.time()
        with run.start() as ranks:
            if passed_over is not None:
                line = f"checkpoint {passed_over} is broken and passed over"
                until(lambda: run.said(line), ranks, LIMIT_S, f"{line!r} to be said")
                how = str(run.said(line)).partition("over: ")[2]
                seen = Seen(time.time() - began, f"passed over: {how}")
            start = until(lambda: run.events("resumed")[count:], ranks, LIMIT_S, "the run to go on")
            step = start[0]["step"]
            until(lambda: run.step > step, ranks, LIMIT_S, "the first new step")
            first_s = time.time() - began
            statuses = ranks.wait(LIMIT_S)
        assert seen is not None
        wrong = list(wrong)
        if run.checkpoint(step) == passed_over:
            wrong.append(f"it went on from {passed_over}")
        if lost is not None and reached - step != lost:
            wrong.append(f"it went on from step {step}, having reached {reached}")
        return self.judged(run, seen, statuses, wrong, reached - step, first_s)

    def judged(
        self,
        run: Run,
        seen: Seen,
        statuses: Sequence[int | None],
        wrong: Sequence[str] = (),
        steps_lost: int | None = 0,
        new_step_s: float | None = None,
    ) -> Outcome:
        """A run that has come to its end: its statuses, figures and last checkpoint."""
        wrong = list(wrong)
        if list(statuses) != [0] * RANKS:
            wrong.append(f"the last start ended with statuses {statuses}")
        if (steps := list(run.metrics())) != list(range(1, STEPS + 1)):
            wrong.append(f"metrics.jsonl holds the steps {steps}")
        weights = "equal" if run.checksums(STEPS) == self.reference else "NOT EQUAL"
        if weights != "equal":
            wrong.append("the last checkpoint is not that of the undisturbed run")
        name = run.folder.name
        return Outcome(name, seen, steps_lost, new_step_s, weights, tuple(wrong))

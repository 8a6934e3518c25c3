"""Copies of a run that repeat some of its steps without touching the run itself.

A copy has the run's settings, except for those that change no number. It begins at one of the
run's checkpoints, whose files it shares by hard links: each side may remove them safely.
"""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.core.command import as_typed
from data_prep.core.config import SettingsError, as_dict, as_overrides
from data_prep.core.files import link_or_copy
from pretrain.checkpoint.files import find_fault, read_state
from pretrain.checkpoint.progress import Progress, resume_point
from pretrain.config.phases import Phase
from pretrain.config.settings import Device, OnFailure, OnSpike, Resume, Settings
from pretrain.run_folder.jsonl import readable_lines
from pretrain.verification.launcher import launch
from pretrain.verification.run_watcher import ENDING_S, RunFailedError, WatchedRun, until

CHECKSUM = "data/batch"
NEVER = 10**9  # steps
SLOWER = 4  # how many times longer a copy's step may take than the run's, if a clock ends the phase

Records = dict[int, dict[str, Any]]  # training records by step


@dataclass(frozen=True)
class ReplayStart:
    """Where the copies begin."""

    step: int
    phase: Phase  # of the steps to repeat
    checkpoint: Path | None  # a copy of the run's own; None: step 0, with newly drawn weights


@dataclass
class Copy(WatchedRun):
    """One copy, which can be trained and killed."""

    settings: Settings
    num_ranks: int
    starts: list[Records] = field(default_factory=list)  # what each start has recorded
    was_killed: list[bool] = field(default_factory=list)  # per start; False: it had ended before

    @classmethod
    def make(cls, folder: Path, settings: Settings, num_ranks: int, origin: ReplayStart) -> Copy:
        """A new copy in `folder`, with the checkpoint that it begins at."""
        (folder / "checkpoints").mkdir(parents=True)
        if (begin := origin.checkpoint) is not None:
            shutil.copytree(begin, folder / "checkpoints" / begin.name, copy_function=link_or_copy)
        return cls(folder, settings, num_ranks)

    def train(self, last: int, save_at: int | None = None, victim: int | None = None) -> None:
        """One start, up to the record of step `last` and the checkpoint of step `save_at`.

        Then SIGKILL to rank `victim`, or to all ranks if that is None. Raises SettingsError with
        the run's own message if it refuses to start, RunFailedError if it fails.
        """
        metrics, output = self.folder / "metrics.jsonl", self.folder / f"output-{len(self.starts)}"

        def is_done() -> bool:
            is_saved = save_at is None or self.checkpoint(save_at).exists()
            return is_saved and self.step >= last

        with launch(self._typed(save_at or NEVER), self.num_ranks, output) as launched:
            try:
                until(is_done, launched, math.inf, f"step {last:,}")
            except RunFailedError:
                name = as_typed("pretrain.run: ")
                _, refused, why = output.read_text(errors="replace").rpartition(name)
                if 2 in launched.statuses and refused:
                    raise SettingsError(why.strip()) from None
                raise
            launched.send(signal.SIGKILL, None if victim is None else [victim])
            launched.wait(ENDING_S)
        self.was_killed.append(-signal.SIGKILL in launched.statuses)
        records = [line for line in readable_lines(metrics) if CHECKSUM in line]
        self.starts.append({record["step"]: record for record in records})
        # out of the way: the next start would keep some of them
        metrics.rename(self.folder / f"metrics-{len(self.starts) - 1}.jsonl")

    def forget_after(self, step: int) -> None:
        """Remove checkpoints of later steps, as if the kill had come in time."""
        for path in self._checkpoints():
            if _step_of(path) > step:
                shutil.rmtree(path)

    def _typed(self, save_every: int) -> list[str]:
        """The run's settings as overrides, with those changed that decide no number."""
        settings = deepcopy(self.settings)
        for phase in settings.phases:
            for group in ("eval", "checkpoint", "monitor"):
                phase.changes.pop(group, None)
        settings.run.dir, settings.run.name = str(self.folder.parent), self.folder.name
        settings.run.resume = Resume.must if any(self._checkpoints()) else Resume.auto
        settings.run.extend, settings.run.stop_after = False, None
        settings.monitor.every_steps, settings.monitor.batch_checksums = 1, True
        settings.eval.every_steps, settings.eval.max_examples = NEVER, 1
        settings.checkpoint.every_steps, settings.checkpoint.keep = save_every, NEVER
        settings.checkpoint.keep_every = None
        settings.checkpoint.on_failure = OnFailure.stop
        settings.survival.rehearse, settings.survival.on_spike = False, OnSpike.log
        settings.log.wandb, settings.log.trackers, settings.export.push_to = False, [], None
        settings.checkpoint.mirror = None
        settings.engine.device = Device.auto
        return ["+model=base", *as_overrides(as_dict(settings))]

    def _checkpoints(self) -> Iterator[Path]:
        return (self.folder / "checkpoints").glob("step-*")


def find_origin(
    run: Path, phases: Sequence[Phase], steps: int, scratch: Path
) -> tuple[ReplayStart, str]:
    """The newest whole checkpoint with `steps` left in its phase, and a text that names it.

    Without one, step 0. Raises SettingsError if the first phase is shorter than that.
    """
    passed = []
    for path in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        try:
            state = read_state(path)
            left = steps_left(phases, state)
            if left < steps:
                passed.append(f"{path.name} has {left:,} steps left in its phase")
                continue
            ours = scratch / path.name
            shutil.copytree(path, ours, copy_function=link_or_copy)
            fault = find_fault(ours)
        except (OSError, ValueError) as error:  # also a checkpoint that the run removes right now
            fault = str(error)
        if fault is None:
            because = f" ({'; '.join(passed)})" if passed else ""
            start = ReplayStart(_step_of(path), resume_point(phases, state).phase, ours)
            return start, f"{path}{because}"
        shutil.rmtree(scratch / path.name, ignore_errors=True)
        passed.append(f"{path.name} is broken: {fault}")
    left = steps_left(phases, None)
    if left < steps:
        raise SettingsError(
            f"{run} has no {steps} steps to repeat: it makes {left:,} from step 0 on"
            f"{''.join(f'; {reason}' for reason in passed)}; set steps={left}"
        )
    because = "; ".join(passed) or "there is no checkpoint yet"
    return ReplayStart(0, phases[0], None), f"step 0 ({because})"


def steps_left(phases: Sequence[Phase], state: Progress | None) -> int:
    """Updates from a checkpoint's `state` to the end of its phase; estimated if a clock ends it."""
    place = resume_point(phases, state)
    schedule = place.phase.settings.schedule
    if state is None or place.is_beginning:
        return NEVER if schedule.last_step is None else schedule.last_step
    done = state.step - state.first_step
    if schedule.last_step is not None:
        return max(0, schedule.last_step - done)
    step_s = state.elapsed_s / max(1, done)
    return max(0, int((schedule.total - state.elapsed_s) / max(SLOWER * step_s, 1e-9)))


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))

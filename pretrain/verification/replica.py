"""Copies of a run that make some of its steps again, without a touch on the run itself.

A copy has the run's settings but for those that decide no number, and begins at one of its checkpoints,
whose files it shares by hard links: what the run removes meanwhile stays for the copy, and what the copy
removes stays for the run.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.core.config import SettingsError, as_dict, as_overrides
from data_prep.core.files import read_json
from pretrain.checkpoint.files import MANIFEST_FILE, STATE_FILE, find_fault
from pretrain.checkpoint.progress import resume_point
from pretrain.config.phases import Phase
from pretrain.config.settings import OnFailure, OnSpike, Resume, Settings
from pretrain.run_folder.jsonl import json_lines
from pretrain.verification.launcher import POLL_S, launch

CHECKSUM = "data/batch"
NEVER = 10**9  # steps
ENDING_S = 60.0  # for a killed start's processes to be gone, or a failed one's to say why
SLOWER = 4  # a copy's step may take so many times as long as the run's own, where a clock ends it

Records = dict[int, dict[str, Any]]  # by step: the figures of its record


class NotTrainedError(RuntimeError):
    """A copy ended before it was where it should come."""


@dataclass(frozen=True)
class ReplayStart:
    """Where the copies begin."""

    step: int
    phase: Phase  # that the steps are made in
    checkpoint: Path | None  # a copy of the run's own; None: step 0, with newly drawn weights


@dataclass
class Copy:
    """One copy: started, watched and killed."""

    folder: Path
    settings: Settings
    num_ranks: int
    starts: list[Records] = field(default_factory=list)  # what each start has recorded
    was_killed: list[bool] = field(default_factory=list)  # each start, or had it ended before

    @classmethod
    def make(cls, folder: Path, settings: Settings, num_ranks: int, origin: ReplayStart) -> Copy:
        """A new one in `folder`, with the checkpoint that it begins at."""
        (folder / "checkpoints").mkdir(parents=True)
        if (begin := origin.checkpoint) is not None:
            shutil.copytree(begin, folder / "checkpoints" / begin.name, copy_function=_link)
        return cls(folder, settings, num_ranks)

    def train(self, until: int, save_at: int | None = None, victim: int | None = None) -> None:
        """One start: up to the record of step `until` and the checkpoint of step `save_at`.

        Then SIGKILL to one rank or, where no `victim` is named, to all. Raises SettingsError with
        the run's own words where it refuses to start, NotTrainedError where it fails.
        """
        metrics, output = self.folder / "metrics.jsonl", self.folder / f"output-{len(self.starts)}"
        with launch(self._typed(save_at or NEVER), self.num_ranks, output) as launched:
            while not self._has_come(until, save_at):
                if not launched.is_running or any(launched.statuses):
                    statuses = launched.wait(2 * ENDING_S, grace_s=ENDING_S)
                    if self._has_come(until, save_at):
                        break
                    self._give_up(until, statuses, output)
                time.sleep(POLL_S / 2)
            launched.send(signal.SIGKILL, None if victim is None else [victim])
            launched.wait(ENDING_S)
        self.was_killed.append(-signal.SIGKILL in launched.statuses)
        self.starts.append(_records(metrics))
        # out of the way, for the next start would keep some of them
        metrics.rename(self.folder / f"metrics-{len(self.starts) - 1}.jsonl")

    def forget_after(self, step: int) -> None:
        """Remove checkpoints of later steps: a kill that came late came in time."""
        for path in self._checkpoints():
            if _step_of(path) > step:
                shutil.rmtree(path)

    def checksums(self, step: int) -> dict[str, str]:
        """Of the files of the checkpoint of `step`, by its manifest."""
        files = read_json(self._checkpoint(step) / MANIFEST_FILE)["files"]
        return {name: facts["checksum"] for name, facts in files.items()}

    def _has_come(self, until: int, save_at: int | None) -> bool:
        if save_at is not None and not self._checkpoint(save_at).exists():
            return False
        return max(_records(self.folder / "metrics.jsonl"), default=-1) >= until

    def _typed(self, save_every: int) -> list[str]:
        """The run's settings but for what decides no number, as they are typed."""
        settings = deepcopy(self.settings)
        for phase in settings.phases:
            for group in ("eval", "checkpoint", "monitor"):
                phase.changes.pop(group, None)
        settings.run.dir, settings.run.name = str(self.folder.parent), self.folder.name
        settings.run.resume = Resume.must if any(self._checkpoints()) else Resume.auto
        settings.monitor.every_steps, settings.monitor.batch_checksums = 1, True
        settings.eval.every_steps, settings.eval.max_examples = NEVER, 1
        settings.checkpoint.every_steps, settings.checkpoint.keep = save_every, NEVER
        settings.checkpoint.keep_every = None
        settings.checkpoint.on_failure = OnFailure.stop
        settings.survival.rehearse, settings.survival.on_spike = False, OnSpike.log
        settings.log.wandb = False
        return ["+model=base", *as_overrides(as_dict(settings))]

    def _checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:08d}"

    def _checkpoints(self) -> Iterator[Path]:
        return (self.folder / "checkpoints").glob("step-*")

    def _give_up(self, until: int, statuses: Sequence[int | None], output: Path) -> None:
        said = output.read_text(errors="replace").strip()
        _, is_refusal, refusal = said.rpartition("pretrain.run: ")
        if 2 in statuses and is_refusal:
            raise SettingsError(refusal)
        raise NotTrainedError(
            f"the copy {self.folder} ended before step {until:,}, its {self.num_ranks} ranks with "
            f"the statuses {', '.join(map(str, statuses))}; the last lines of {output}:\n"
            + "\n".join(f"  {line}" for line in said.splitlines()[-8:])
        )


def find_origin(
    run: Path, phases: Sequence[Phase], steps: int, scratch: Path
) -> tuple[ReplayStart, str]:
    """The newest whole checkpoint with so many steps before its phase ends; which, in words.

    Step 0, without one, where there is none. Raises SettingsError where the first phase is shorter.
    """
    passed = []
    for path in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        try:
            state = read_json(path / STATE_FILE)
            left = steps_left(phases, state)
            if left < steps:
                passed.append(f"{path.name} has {left:,} steps left in its phase")
                continue
            ours = scratch / path.name
            shutil.copytree(path, ours, copy_function=_link)
            fault = find_fault(ours)
        except (OSError, ValueError) as error:  # also one that the run removes just now
            fault = str(error)
        if fault is None:
            because = f" ({'; '.join(passed)})" if passed else ""
            return ReplayStart(
                _step_of(path), resume_point(phases, state).phase, ours
            ), f"{path}{because}"
        shutil.rmtree(scratch / path.name, ignore_errors=True)
        passed.append(f"{path.name} is broken: {fault}")
    left = steps_left(phases, None)
    if left < steps:
        raise SettingsError(
            f"{run} has no {steps} steps that could be made again: it makes {left:,} from step 0 on"
            f"{''.join(f'; {reason}' for reason in passed)}; set steps={left}"
        )
    because = "; ".join(passed) or "there is no checkpoint yet"
    return ReplayStart(0, phases[0], None), f"step 0 ({because})"


def steps_left(phases: Sequence[Phase], state: dict[str, Any] | None) -> int:
    """Updates from a checkpoint's `state` on to the end of its phase; where a clock ends it, a guess."""
    place = resume_point(phases, state)
    schedule = place.phase.settings.schedule
    if state is None or place.is_beginning:
        return NEVER if schedule.last_step is None else schedule.last_step
    done = int(state["step"] - state["first_step"])
    if schedule.last_step is not None:
        return max(0, schedule.last_step - done)
    step_s = state["elapsed_s"] / max(1, done)
    return max(0, int((schedule.total - state["elapsed_s"]) / max(SLOWER * step_s, 1e-9)))


def _records(metrics: Path) -> Records:
    """The records of training steps; none where the file is not there yet."""
    return {line["step"]: line for line in json_lines(metrics) if CHECKSUM in line}


def _link(source: str, target: str) -> None:
    """The same file under a second name; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))

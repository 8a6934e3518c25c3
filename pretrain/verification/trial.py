"""The replays of a run, on how many ranks, and the verdict."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.core.config import SettingsError
from data_prep.core.files import remove_folder
from pretrain.config.load import settings_of
from pretrain.config.phases import check_phases, phases_of
from pretrain.config.settings import Settings
from pretrain.run_folder.jsonl import readable_lines
from pretrain.verification.comparison import (
    LOSS_TOLERANCE,
    ReplayMismatch,
    first_changed_file,
    mismatch_reasons,
)
from pretrain.verification.replica import CHECKSUM, Copy, ReplayStart, find_origin
from pretrain.verification.run_watcher import RunFailedError

FEWEST_STEPS = 3


def verify_run(
    run: Path,
    steps: int = 8,
    ranks: int | None = None,
    other_ranks: int | None = None,
    keep: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> tuple[bool, str]:
    """Whether the run's continuation is exact, and the verdict in words.

    `say` gets a line of progress. The copies stay in <run>/verify if something differs or fails, or
    with `keep`. Raises SettingsError if the run has no `steps` steps to repeat or this machine
    cannot run that many ranks, RunFailedError if a copy fails.
    """
    settings = settings_of(run)
    num_ranks, num_others, why = _rank_counts(run, settings, ranks, other_ranks)
    scratch = run / "verify" / time.strftime("%Y%m%d-%H%M%S")
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise SettingsError(f"{scratch}, for the copies, cannot be created: {error}") from error
    must_stay = keep
    try:
        origin, which = find_origin(run, phases_of(settings), steps, scratch)
        say(f"from      {which}")
        say(f"ranks     {why}")
        trial = Replay(settings, origin, origin.step + steps, num_ranks, scratch, say)
        holds, verdict = trial.judge(num_others)
        must_stay = must_stay or not holds
    except RunFailedError:
        must_stay = True
        raise
    finally:
        if not must_stay:
            remove_folder(scratch)
            with contextlib.suppress(OSError):
                scratch.parent.rmdir()  # if no other verification left its copies
    return holds, f"{verdict} The copies are in {scratch}." if must_stay else verdict


@dataclass(frozen=True)
class Replay:
    """The steps after `origin` up to `last`, made by copies of the run."""

    settings: Settings  # the run's
    origin: ReplayStart
    last: int
    num_ranks: int
    scratch: Path
    say: Callable[[str], object]

    def judge(self, num_others: int) -> tuple[bool, str]:
        """Train all copies, the third on `num_others` ranks (0: none), until one differs."""
        straight = self._straight("straight", self.num_ranks, save=True)
        killed = self._killed()
        holds, seen = self._compare_killed(straight, killed)
        if not holds or not num_others:
            unseen = "" if num_others else " Another number of ranks was not tried."
            return holds, f"{'Holds' if holds else 'Does not hold'}: {seen}.{unseen}"
        other = self._straight("other", num_others, save=False)
        holds, seen_there = self._compare_other(straight, other)
        if not holds:
            return False, f"Does not hold: {seen_there}. Apart from that: {seen}."
        return True, f"Holds: {seen}; {seen_there}."

    def _straight(self, name: str, num_ranks: int, save: bool) -> Copy:
        self.say(
            f"{name:8}  steps {self.origin.step + 1:,} to {self.last:,} on {_ranks(num_ranks)}"
        )
        copy = self._copy(name, num_ranks)
        copy.train(self.last, save_at=self.last if save else None)
        return copy

    def _killed(self) -> Copy:
        """Killed twice: all ranks after a checkpoint, then one rank before the next."""
        first, steps = self.origin.step, self.last - self.origin.step
        saved, again = first + max(1, steps // 3), first + max(2, 2 * steps // 3)
        victim = self.num_ranks - 1
        copy = self._copy("killed", self.num_ranks)
        self.say(
            f"killed    to step {saved + 1:,}, a checkpoint at {saved:,}; SIGKILL to all ranks"
        )
        copy.train(saved + 1, save_at=saved)
        copy.forget_after(saved)
        self.say(
            f"          from {saved:,} to step {again:,}, no checkpoint; SIGKILL to rank {victim}"
        )
        copy.train(again, victim=victim)
        copy.forget_after(saved)
        self.say(f"          from {saved:,} to step {self.last:,}")
        copy.train(self.last, save_at=self.last)
        return copy

    def _copy(self, name: str, num_ranks: int) -> Copy:
        return Copy.make(self.scratch / name, self.settings, num_ranks, self.origin)

    def _compare_killed(self, straight: Copy, killed: Copy) -> tuple[bool, str]:
        by_clock = self.origin.phase.settings.schedule.budget_hours is not None
        difference = self._first_difference(straight, killed, losses=not by_clock)
        if difference is None and not by_clock:
            difference = first_changed_file(straight, killed, self.last)
        num_steps, first = self.last - self.origin.step, self.origin.step
        num_kills = sum(killed.was_killed[:-1])  # the last start is always killed at its end
        seen = (
            f"{num_steps} steps from step {first:,} on, on {_ranks(self.num_ranks)}, killed "
            f"{_times(num_kills)} and started again"
        )
        if difference is not None:
            return False, f"{seen}: {difference}"
        if by_clock:
            same = (
                "batches (losses cannot be: with schedule.budget_hours the rate follows the clock)"
            )
        else:
            same = "batches, losses, weights and moments, bit for bit"
        return True, f"{seen}, gave the same {same}"

    def _compare_other(self, straight: Copy, other: Copy) -> tuple[bool, str]:
        seen = f"on {_ranks(other.num_ranks)} instead of {self.num_ranks}"
        difference = self._first_difference(straight, other, losses=False)
        if difference is not None:
            return False, f"{seen} {difference}"
        quantity, reasons, largest = "train/loss", mismatch_reasons(self.origin.phase.settings), 0.0
        for step in range(self.origin.step + 1, self.last + 1):
            expected, found = (copy.starts[0][step][quantity] for copy in (straight, other))
            largest = max(largest, abs(expected - found))
            if largest > LOSS_TOLERANCE and not reasons:
                difference = ReplayMismatch(f"after step {step:,}", quantity, expected, found)
                return False, f"{seen} {difference}: more than {LOSS_TOLERANCE:g} apart"
        if largest == 0:
            return True, f"{seen} the same batches, and losses bit for bit"
        why = f" ({'; '.join(reasons)})" if reasons else ""
        return True, f"{seen} the same batches, and losses within {largest:.0e}{why}"

    def _first_difference(self, straight: Copy, other: Copy, losses: bool) -> ReplayMismatch | None:
        """By step, then by start, and examples before metrics."""
        [expected] = straight.starts
        for step in range(self.origin.step + 1, self.last + 1):
            made = [(n, start[step]) for n, start in enumerate(other.starts, 1) if step in start]
            if step not in expected or not made:
                lacking = other if step in expected else straight
                raise RunFailedError(f"{lacking.folder} has no record of step {step:,}")
            metrics = sorted(
                name for name in expected[step] if name.startswith(("optim/", "train/"))
            )
            for number, record in made:
                for quantity in (CHECKSUM, *(metrics if losses else ())):
                    if record[quantity] != expected[step][quantity]:
                        start = f", in start {number}," if len(other.starts) > 1 else ""
                        where = f"after step {step:,}{start}"
                        return ReplayMismatch(
                            where, quantity, expected[step][quantity], record[quantity]
                        )
        return None


def _rank_counts(
    run: Path, settings: Settings, ranks: int | None, other_ranks: int | None
) -> tuple[int, int, str]:
    """Ranks of the first two copies, ranks of the third (0: none), and the reason."""
    import torch

    num_gpus = torch.cuda.device_count()
    most = num_gpus or len(os.sched_getaffinity(0))
    device = "GPU" if num_gpus else "core"
    for name, typed in (("ranks", ranks), ("other_ranks", other_ranks)):
        if typed:
            check_phases(settings, typed)
        if typed and num_gpus and typed > num_gpus:
            raise SettingsError(
                f"{name}={typed}, and this machine has {num_gpus} GPUs; set {name}={num_gpus}"
            )

    def first_possible(counts: Sequence[int]) -> int:
        return next((n for n in counts if 1 <= n <= most and _fits(settings, n)), 0)

    if ranks is not None:
        why = f"{ranks}, as typed"
    else:
        before = _ranks_of_last_start(run)
        ranks = first_possible(range(min(before, most), 0, -1))
        why = f"{ranks}, as in its last start"
        if ranks < before:
            why = f"{ranks}: its last start had {before}, this machine has {most} {device}s"
    if other_ranks is None:
        other_ranks = first_possible([ranks // 2, 2 * ranks])
        why += (
            f"; then {other_ranks}" if other_ranks else f"; no other number fits {most} {device}s"
        )
    return ranks, other_ranks, why


def _fits(settings: Settings, num_ranks: int) -> bool:
    try:
        check_phases(settings, num_ranks)
    except SettingsError:
        return False
    return True


def _ranks_of_last_start(run: Path) -> int:
    """By events.jsonl; 1 if there is no start in it."""
    counts = [
        event["ranks"]
        for event in readable_lines(run / "events.jsonl")
        if event["event"] in ("started", "resumed", "rewound")
    ]
    return int(counts[-1]) if counts else 1


def _ranks(count: int) -> str:
    return f"{count} rank{'s' if count > 1 else ''}"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")

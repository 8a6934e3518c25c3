"""Changes to a run that continues: run.extend=true.

A change is of one phase. What a phase that has begun has trained on stays; a phase that is over
does not change, and one that has not begun may change in everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import msgspec

from data_prep.core.config import SettingsError
from pretrain.checkpoint.progress import Progress
from pretrain.config.settings import ScheduleSettings
from pretrain.optim.schedules import is_over, learning_rate

# What the phase in training may change; eval, checkpoint, monitor and the ZeRO stage are free
MAY_CHANGE = (
    *(f"schedule.{field.name}" for field in fields(ScheduleSettings)),
    "optim.learning_rate", "optim.global_batch", "optim.tokens_per_step", "optim.weight_decay",
    "optim.betas", "optim.eps", "optim.max_grad_norm", "engine.tokens_per_micro_batch",
    "data.mixture", "data.mixture_temperature", "data.mask_rate", "data.mask_rate_end",
)  # fmt: skip
# What decides where a batch ends
_BATCH = (
    "optim.global_batch", "optim.tokens_per_step", "engine.tokens_per_micro_batch",
    "data.mixture", "data.mixture_temperature",
)  # fmt: skip
_OF_PHASES = (
    "optim.", "schedule.", "data.seq_len", "data.masking", "data.mask_rate", "data.mixture",
    "data (training shards",
)  # fmt: skip
_POINTS = 6  # of a curve


class Change(msgspec.Struct, frozen=True):
    """A setting that differs. Its values are plain; a phase that is new or gone has None there."""

    phase: int  # 0: of the whole run
    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        of_phase = f" of phase {self.phase}" if self.phase > 1 else ""
        return f"{self.name}{of_phase}: {self.before} then, {self.now} now"


@dataclass(frozen=True)
class Extension:
    """Changes that were allowed, and the rates before and after them."""

    changes: list[Change]
    curves: list[str]  # for the screen
    put_aside: str | None = None  # the folder of the checkpoints that were decayed

    def lines(self, step: int) -> list[str]:
        """What to print before training."""
        found = [f"extended after step {step:,}:", *(f"  {c}" for c in self.changes), *self.curves]
        if self.put_aside is not None:
            found.append(
                f"  the learning rate fell after step {step:,}; the later checkpoints are now in "
                f"{self.put_aside}"
            )
        return found


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """In what two identities differ, those of the whole run first."""
    found = list(_differing(0, _of_run(before), _of_run(now)))
    old, new = _of_phases(before), _of_phases(now)
    for number, both in enumerate(zip(old, new, strict=False), start=1):
        found += _differing(number, *both)
    common = min(len(old), len(new))
    for number in range(common + 1, max(len(old), len(new)) + 1):
        was, is_now = (
            of["phases"][number - 2] if number - 2 < len(of["phases"]) else None
            for of in (before, now)
        )
        found.append(Change(number, "phase", was, is_now))
    return found


def extended(before: dict[str, Any], now: dict[str, Any], progress: Progress) -> Extension:
    """The change from one identity to another after `progress`.

    Raises SettingsError naming every change that a run that continues cannot make.
    """
    found = changes(before, now)
    if wrong := [*_refused(found, progress)] or [*_refused_end(found, now, progress)]:
        raise SettingsError("\n".join(wrong))
    return Extension(found, [*_curves(before, now, progress)])


def before_decay(before: dict[str, Any], now: dict[str, Any], progress: Progress) -> int | None:
    """The step from which another schedule goes on, if the rate of the old one has begun to decay.

    That is the last one before the decay (schedule.decay_fraction), whose weights are those of a
    run that had the new end from the start. None: from where the run is.
    """
    found = [c for c in changes(before, now) if c.phase == progress.phase]
    step = progress.last_before_decay(_schedule(before, progress.phase))
    if step is None or not any(c.name.startswith("schedule.") for c in found):
        return None
    return step if step < progress.step else None


def _of_run(identity: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in identity.items()
        if name != "phases" and not name.startswith(_OF_PHASES) and " of phase " not in name
    }


def _of_phases(identity: dict[str, Any]) -> list[dict[str, Any]]:
    """What each phase depends on: the first one's with the changes of its own."""
    first = {name: value for name, value in identity.items() if name.startswith(_OF_PHASES)}
    found = []
    for number, own in enumerate([{"changes": {}}, *identity["phases"]], start=1):
        changed = {
            f"{group}.{name}": value
            for group, values in own["changes"].items()
            for name, value in values.items()
        }
        whole = {**first, **changed, **{k: v for k, v in own.items() if k != "changes"}}
        mine = f" of phase {number}"
        whole["data (training shards)"] = identity.get(
            f"data (training shards{mine})" if number > 1 else "data (training shards)"
        )
        if (budget := identity.get(f"engine.tokens_per_micro_batch{mine}")) is not None:
            whole["engine.tokens_per_micro_batch"] = budget
        found.append({name: value for name, value in whole.items() if " of phase " not in name})
    return found


def _differing(phase: int, before: dict[str, Any], now: dict[str, Any]) -> Iterator[Change]:
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            yield Change(phase, name, before.get(name), now.get(name))


def _refused(found: Sequence[Change], progress: Progress) -> Iterator[str]:
    """A line for each change that is not possible after `progress`."""
    for change in found:
        if change.phase > progress.phase:
            continue
        if change.phase and change.phase < progress.phase:
            yield (
                f"{change}; phase {change.phase} is over, and run.extend=true changes later ones "
                "only: leave it, and type what changes in phases=[...]"
            )
        elif change.name == "phase":
            yield f"{change}; phase {change.phase} has begun, and must stay in phases=[...]"
        elif change.name not in MAY_CHANGE:
            yield (
                f"{change}; run.extend=true cannot change it: start another run from the weights, "
                "with run.init_from= this checkpoint and a new run.name"
            )
    ahead = max((end for _, end in progress.skipped), default=0)
    batch = [c for c in found if c.phase == progress.phase and c.name in _BATCH]
    if batch and ahead > progress.position:
        yield (
            f"{batch[0]}; after a loss spike the examples up to {ahead - 1} of the stream are "
            f"passed over in whole batches, and {progress.position} are taken: continue with the "
            "batch as it was until a checkpoint after them"
        )


def _refused_end(found: Sequence[Change], now: dict[str, Any], progress: Progress) -> Iterator[str]:
    """Why the new schedule cannot follow what is trained."""
    if not found:
        return
    schedule, done = _schedule(now, progress.phase), progress.step - progress.first_step
    last, is_last = schedule.last_step, progress.phase == len(now["phases"]) + 1
    if last is not None and (last < done or (last == done and is_last)):
        of_phase = f" of phase {progress.phase}" if progress.phase > 1 else ""
        yield (
            f"schedule.total_steps={schedule.total_steps}{of_phase} ends after {last:,} steps, and "
            f"{done:,} are made: set more"
        )
    elif last is None and is_last and is_over(done, schedule, progress.elapsed_s):
        yield (
            f"schedule.budget_hours={schedule.budget_hours} ends before the "
            f"{progress.elapsed_s / 3600:.3g} hours that are trained: set more"
        )


def _schedule(identity: dict[str, Any], phase: int) -> ScheduleSettings:
    values = _of_phases(identity)[phase - 1]
    of_schedule = {
        name.removeprefix("schedule."): value
        for name, value in values.items()
        if name.startswith("schedule.")
    }
    return msgspec.convert(of_schedule, ScheduleSettings)


def _curves(before: dict[str, Any], now: dict[str, Any], progress: Progress) -> Iterator[str]:
    """The rates that were to come and those that come, in the phases that remain."""
    old, new = _of_phases(before), _of_phases(now)
    for number in range(progress.phase, len(new) + 1):
        name = f"learning rate of phase {number}" if len(new) > 1 else "learning rate"
        is_current = number == progress.phase
        done = progress.step - progress.first_step if is_current else 0
        elapsed_s = progress.elapsed_s if is_current else 0.0
        for how, identity, phases in (("before", before, old), ("now", now, new)):
            if number <= len(phases):
                peak = phases[number - 1]["optim.learning_rate"]
                curve = _curve(_schedule(identity, number), peak, done, elapsed_s)
                yield f"  {name}, {how + ':':<8}{curve}"


def _curve(schedule: ScheduleSettings, peak: float, done: int, elapsed_s: float) -> str:
    """Rates of the updates to come at a few points from `done` to the last one."""
    if is_over(done, schedule, elapsed_s):
        return "over"
    if schedule.last_step is None:
        hours = (schedule.total - elapsed_s) / 3600
        seconds = [elapsed_s + 3600 * hours * i / (_POINTS - 1) for i in range(_POINTS)]
        points = [(f"{s / 3600:.3g} h", learning_rate(done, schedule, peak, s)) for s in seconds]
    else:
        last = schedule.last_step - 1 - done
        steps = sorted({done + last * i // (_POINTS - 1) for i in range(_POINTS)})
        points = [(f"step {s + 1:,}", learning_rate(s, schedule, peak)) for s in steps]
    return ", ".join(f"{where} {rate:.3g}" for where, rate in points)

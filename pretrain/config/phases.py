"""The phases of a run, one after the other in one run folder.

The first phase is the settings themselves; each entry of `phases` is the settings with its changes.
A phase always begins like a restart: it continues from the checkpoint at the end of the previous
phase, in the same process or in a new one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.core.config import SettingsError, updated
from pretrain.config.checks import check
from pretrain.config.settings import Carried, PhaseSettings, Positions, Settings

# What a phase may change; the rest belongs to the whole run
_GROUPS = ("data", "optim", "schedule", "eval", "checkpoint", "monitor", "engine")
_CARRIED = ("moments", "optimizer_step", "loss_scaler")
_FIXED = (
    "data.dir",
    "data.stage",
    "data.stage_quota_gb",
    "data.pairs",
    "optim.name",
    "optim.plugin",
    "engine.zero_stage",
    "engine.shard",
    "engine.precision",
    "engine.fp8",
    "engine.compile",
    "checkpoint.mirror",
)


@dataclass(frozen=True)
class Phase:
    """One of a run's phases."""

    number: int  # from 1
    settings: Settings  # the run's, with this phase's changes
    policy: PhaseSettings | None = None  # None: the first
    length_before: int = 0  # data.seq_len of the previous phase

    @property
    def forgets(self) -> tuple[str, ...]:
        """The names in _CARRIED that are reset rather than taken from the previous phase."""
        return tuple(n for n in _CARRIED if getattr(self.policy, n, None) is Carried.reset)

    @property
    def tiles(self) -> int | None:
        """How many rows of the position table are copied over the rest of it; None: none are."""
        is_tiled = self.policy is not None and self.policy.positions is Positions.tiled
        return self.length_before if is_tiled else None

    def facts(self) -> dict[str, Any]:
        """The phase's changes and what it takes over, for the event."""
        assert self.policy is not None, "the first phase changes nothing"
        changes = {
            f"{group}.{name}": value
            for group, changed in self.policy.changes.items()
            for name, value in changed.items()
        }
        names = (*_CARRIED, "positions")
        return {**{n: getattr(self.policy, n).name for n in names}, **changes}


def phases_of(settings: Settings) -> list[Phase]:
    """All phases, the first included. Raises SettingsError if a change is not allowed."""
    phases = [Phase(1, settings)]
    for number, further in enumerate(settings.phases, start=2):
        for group, changed in further.changes.items():
            names = changed if isinstance(changed, dict) else {"": None}
            for name in names:
                if group not in _GROUPS or f"{group}.{name}" in _FIXED or not name:
                    raise SettingsError(
                        f"phase {number} changes {group}.{name}; a phase may change "
                        f"{', '.join(_GROUPS)}, but not {', '.join(_FIXED)}"
                    )
        try:
            changed_settings = updated(settings, further.changes)
        except SettingsError as error:
            raise SettingsError(f"phase {number}: {error}") from error
        before = phases[-1].settings.data.seq_len
        phases.append(Phase(number, changed_settings, further, before))
    return phases


def check_phases(settings: Settings, world_size: int) -> None:
    """Check every phase as `config.checks.check` does. Raises SettingsError naming the phase."""
    check(settings, world_size)
    phases = phases_of(settings)
    for phase in phases[1:]:
        try:
            check(phase.settings, world_size)
        except SettingsError as error:
            raise SettingsError(
                f"phase {phase.number}: {error}; what phases=[...] sets is changed there, and "
                "phases=[] runs only the first phase"
            ) from error
        if phase.tiles is not None and phase.settings.data.seq_len <= phase.tiles:
            raise SettingsError(
                f"phase {phase.number}: positions=tiled fills the rows that the previous phase did "
                f"not train, but with data.seq_len={phase.settings.data.seq_len} after "
                f"{phase.tiles} there are none; set positions=kept there, or phases=[] for the "
                "first phase alone"
            )
    _check_profiled_steps(phases)


def _check_profiled_steps(phases: Sequence[Phase]) -> None:
    """Raise SettingsError unless one phase has all steps of profile.steps."""
    if (steps := phases[0].settings.profile.steps) is None:
        return
    spans: list[tuple[int, float]] = [(1, 0)]
    for phase in phases:
        first, length = int(spans[-1][1]) + 1, phase.settings.schedule.last_step
        spans.append((first, math.inf if length is None else first + length - 1))
        if length is None:  # a budget of hours has any number of steps
            break
    spans = spans[1:]
    if any(first <= steps[0] and steps[1] <= last for first, last in spans):
        return
    listed = ", then ".join(
        f"{first} to {last}" if last < math.inf else f"from {first} on" for first, last in spans
    )
    proposed = min(4, spans[0][1])
    raise SettingsError(
        f"profile.steps={steps} are not steps of one phase of this run, which has steps {listed}; "
        f"set profile.steps=[1,{proposed}] or others of them"
    )

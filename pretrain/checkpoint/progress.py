"""How far a run is, and where it resumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pretrain.config.phases import Phase
from pretrain.optim.schedules import is_over


@dataclass(frozen=True)
class ResumePoint:
    """Where in a run a checkpoint lies, or where a run begins."""

    phase: Phase
    is_beginning: bool  # of the phase; the checkpoint is the last one of the phase before

    @property
    def forgets(self) -> tuple[str, ...]:
        """What of the checkpoint does not come over."""
        return self.phase.forgets if self.is_beginning else ()

    @property
    def tiles(self) -> int | None:
        """Of the checkpoint's position table, as in Phase."""
        return self.phase.tiles if self.is_beginning else None


def resume_point(phases: Sequence[Phase], state: dict[str, Any] | None) -> ResumePoint:
    """Where the run is that continues from a checkpoint's `state`; None: at its very beginning."""
    if state is None:
        return ResumePoint(phases[0], is_beginning=True)
    phase = phases[state["phase"] - 1]
    done = is_over(state["step"] - state["first_step"], phase.settings.schedule, state["elapsed_s"])
    if done and phase.number < len(phases):
        return ResumePoint(phases[phase.number], is_beginning=True)
    return ResumePoint(phase, is_beginning=False)


@dataclass
class Progress:
    """What the loop advances, and a checkpoint holds."""

    step: int = 0  # optimizer updates made
    position: int = 0  # examples taken from the stream; skipped updates took theirs, too
    elapsed_s: float = 0.0  # of training, where schedule.budget_hours asks for it
    phase: int = 1  # of the run; all but `step`, `sequences` and `tokens` is counted in it
    first_step: int = 0  # updates made before the phase
    sequences: int = 0  # trained on in updates that were made, over all phases
    tokens: int = 0
    skipped_steps: int = 0  # batches of the phase that made no update
    skipped: list[list[int]] = field(default_factory=list)  # [first, end) of examples passed over
    recent_losses: list[float] = field(default_factory=list)  # of the last records, oldest first

    @classmethod
    def at(cls, place: ResumePoint, state: dict[str, Any]) -> Progress:
        """Where training goes on from a checkpoint's `state`, which lies at `place`."""
        if place.is_beginning:
            through = {name: state[name] for name in ("step", "sequences", "tokens")}
            return cls(**through, phase=place.phase.number, first_step=state["step"])
        return cls(**{name: state[name] for name in cls.__dataclass_fields__})

"""How far a run is, and where it resumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.core.records import Record
from pretrain.config.phases import Phase
from pretrain.config.settings import ScheduleSettings
from pretrain.optim.schedules import is_over


@dataclass(frozen=True)
class ResumePoint:
    """The point of a run at which a checkpoint was written, or the beginning."""

    phase: Phase
    is_beginning: bool  # of the phase; the checkpoint is the last one of the phase before

    @property
    def forgets(self) -> tuple[str, ...]:
        """What is not taken over from the checkpoint."""
        return self.phase.forgets if self.is_beginning else ()

    @property
    def tiles(self) -> int | None:
        """Rows of the checkpoint's position table to repeat, as in Phase."""
        return self.phase.tiles if self.is_beginning else None


class Progress(Record):
    """What the loop advances, and a checkpoint holds."""

    step: int  # optimizer updates made
    position: int  # examples taken from the stream; skipped updates took theirs, too
    elapsed_s: float  # of training, where schedule.budget_hours asks for it
    phase: int  # of the run; all but `step`, `sequences` and `tokens` is counted in it
    first_step: int  # updates made before the phase
    sequences: int  # trained on in updates that were made, over all phases
    tokens: int
    skipped_steps: int  # batches of the phase that made no update
    skipped: list[list[int]]  # [first, end) of examples passed over
    recent_losses: list[float]  # of the last records, oldest first

    @classmethod
    def begin(cls, phase: int = 1, step: int = 0, sequences: int = 0, tokens: int = 0) -> Progress:
        """The progress of a run that begins this phase after `step` updates."""
        return cls(
            step=step,
            position=0,
            elapsed_s=0.0,
            phase=phase,
            first_step=step,
            sequences=sequences,
            tokens=tokens,
            skipped_steps=0,
            skipped=[],
            recent_losses=[],
        )

    @classmethod
    def at(cls, point: ResumePoint, saved: Progress) -> Progress:
        """The progress from which training goes on at `point`, where `saved` was written."""
        if point.is_beginning:
            return cls.begin(point.phase.number, saved.step, saved.sequences, saved.tokens)
        return cls(**{name: getattr(saved, name) for name in cls.__struct_fields__})

    def last_before_decay(self, schedule: ScheduleSettings) -> int | None:
        """The run's step before a decay at the end of this phase; None: there is no such decay."""
        steps = schedule.undecayed_steps
        return None if steps is None else self.first_step + steps


class CheckpointState(Progress):
    """state.json of a checkpoint."""

    identity: dict[str, Any]  # of the run, see identity.py


def resume_point(phases: Sequence[Phase], saved: Progress | None) -> ResumePoint:
    """Where the run continues from a checkpoint's progress; None: at its very beginning."""
    if saved is None:
        return ResumePoint(phases[0], is_beginning=True)
    phase = phases[saved.phase - 1]
    done = is_over(saved.step - saved.first_step, phase.settings.schedule, saved.elapsed_s)
    if done and phase.number < len(phases):
        return ResumePoint(phases[phase.number], is_beginning=True)
    return ResumePoint(phase, is_beginning=False)

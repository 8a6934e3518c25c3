"""Where two replays of a run differ."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.settings import Precision, Settings
from pretrain.verification.replica import Copy

LOSS_TOLERANCE = 1e-4  # nats, between numbers of ranks, in fp32 without dropout


@dataclass(frozen=True)
class ReplayMismatch:
    """The first value that differs between two copies."""

    where: str
    quantity: str
    straight: object
    other: object

    def __str__(self) -> str:
        return f"{self.where} {self.quantity} is {self.other}, straight it is {self.straight}"


def first_changed_file(straight: Copy, other: Copy, step: int) -> ReplayMismatch | None:
    """The first file that differs between the checkpoints of `step`: weights, moments, state."""
    expected, found = straight.checksums(step), other.checksums(step)
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            quantity = f"the checksum of {name}"
            where = f"with equal losses, in the checkpoint of step {step:,}"
            return ReplayMismatch(where, quantity, expected.get(name), found.get(name))
    return None


def mismatch_reasons(settings: Settings) -> list[str]:
    """Why another number of ranks changes the losses, besides the order of fp32 sums."""
    reasons = []
    if settings.schedule.budget_hours is not None:
        reasons.append("the rate follows the clock")
    if settings.model.hidden_dropout_prob or settings.model.attention_probs_dropout_prob:
        reasons.append("dropout is drawn by micro-batch, which depends on the number of ranks")
    if settings.engine.precision is not Precision.fp32:
        reasons.append(f"{settings.engine.precision.name} rounds by micro-batch")
    return reasons

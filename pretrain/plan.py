"""The arithmetic of a run before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pretrain.settings import Settings


@dataclass(frozen=True)
class Plan:
    """What a phase will consume, or, without a last step, one of its steps; nothing is padded."""

    total_steps: int | None  # None: a budget of hours
    budget_hours: float | None
    sequences: int
    tokens: int
    epochs: float
    micro_steps: int  # a rank and step
    parameters: int
    world_size: int

    def lines(self) -> list[str]:
        """The plan as a person reads it."""
        whole = f"{self.budget_hours} hours of training; a step"
        if self.total_steps is not None:
            whole = f"{self.total_steps:,} steps"
        return [
            f"{self.parameters / 1e6:.1f} M parameters, {self.world_size} rank(s)",
            f"{whole}, {self.sequences:,} sequences, "
            f"{self.tokens / 1e6:,.1f} M tokens, {self.epochs:.2f} epochs over the data, "
            f"{self.micro_steps} micro-step(s) a step",
        ]


def plan(settings: Settings, manifest: dict[str, Any], parameters: int, world_size: int) -> Plan:
    """The plan of `settings` over the shards that `manifest` (len<seq_len>/manifest.json) names."""
    train = manifest["splits"]["train"]
    mean_length = train["tokens"] / train["rows"]
    last_step, n = settings.schedule.last_step, settings.optim.global_batch
    steps = 1 if last_step is None else last_step
    return Plan(
        total_steps=last_step,
        budget_hours=settings.schedule.budget_hours,
        sequences=steps * n,
        tokens=round(steps * n * mean_length),
        epochs=steps * n / train["rows"],
        micro_steps=micro_steps(settings, manifest, world_size),
        parameters=parameters,
        world_size=world_size,
    )


def micro_steps(settings: Settings, manifest: dict[str, Any], world_size: int) -> int:
    """Micro-batches of a rank in a step, at mean lengths."""
    train = manifest["splits"]["train"]
    tokens_a_rank = settings.optim.global_batch * train["tokens"] / train["rows"] / world_size
    return max(1, -int(-tokens_a_rank // settings.engine.tokens_per_micro_batch))

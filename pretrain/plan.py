"""The arithmetic of a run before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pretrain.settings import Settings


@dataclass(frozen=True)
class Plan:
    """What a run of `total_steps` will consume. Tokens are real ones: nothing is padded."""

    total_steps: int
    sequences: int
    tokens: int
    epochs: float
    micro_steps: int  # at mean lengths, a rank and step
    parameters: int
    world_size: int

    def lines(self) -> list[str]:
        """The plan as a person reads it."""
        return [
            f"{self.parameters / 1e6:.1f} M parameters, {self.world_size} rank(s)",
            f"{self.total_steps:,} steps, {self.sequences:,} sequences, "
            f"{self.tokens / 1e6:,.1f} M tokens, {self.epochs:.2f} epochs over the data, "
            f"{self.micro_steps} micro-step(s) a step",
        ]


def plan(settings: Settings, manifest: dict[str, Any], parameters: int, world_size: int) -> Plan:
    """The plan of `settings` over the shards that `manifest` (len<seq_len>/manifest.json) names."""
    train = manifest["splits"]["train"]
    mean_length = train["tokens"] / train["rows"]
    steps, n = settings.schedule.total_steps, settings.optim.global_batch
    tokens_a_rank = n * mean_length / world_size
    return Plan(
        total_steps=steps,
        sequences=steps * n,
        tokens=round(steps * n * mean_length),
        epochs=steps * n / train["rows"],
        micro_steps=max(1, -int(-tokens_a_rank // settings.engine.tokens_per_micro_batch)),
        parameters=parameters,
        world_size=world_size,
    )

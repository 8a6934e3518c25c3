"""The share of tokens that dynamic masks take: that of the shards, or a setting of the run.

It falls (or rises) linearly over the schedule: more masks teach more per step early, fewer leave
more context late (Ankner et al. 2023, arXiv 2305.15096). The share of a batch is a pure function of
its place in the stream of examples, so it depends on no rank, restart or skipped update.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from data_prep.examples.masking import MaskingRule
from data_prep.stores.shard_records import ShardsManifest
from pretrain.config.settings import DataSettings, Settings


def training_rule(data: DataSettings, manifest: ShardsManifest) -> MaskingRule:
    """The rule of the training masks, at the largest share of tokens that they take.

    With data.mask_rate the share alone counts: the shards' max_predictions is of theirs.
    """
    rule = MaskingRule.from_manifest(manifest, data.folder / "vocab" / "vocab.txt")
    if data.largest_mask_rate is None:
        return rule
    return dataclasses.replace(rule, rate=data.largest_mask_rate, max_predictions=None)


@dataclass(frozen=True)
class MaskRate:
    """A line from `start` to `end` over the schedule, counted in examples."""

    start: float
    end: float
    first: float  # examples of the schedule before the phase's first
    total: float  # examples of the whole schedule

    @classmethod
    def of(cls, settings: Settings, mean_length: float) -> MaskRate | None:
        """That of a phase; None: the share of the shards. `mean_length`: tokens per example."""
        data, schedule = settings.data, settings.schedule
        if data.mask_rate is None:
            return None
        end = data.mask_rate if data.mask_rate_end is None else data.mask_rate_end
        batch = settings.optim.sequences_per_step(mean_length)
        return cls(data.mask_rate, end, schedule.start_step * batch, schedule.total_steps * batch)

    def at(self, position: float) -> float:
        """The share in a batch whose first example is at `position` of the phase's stream."""
        done = min(1.0, (self.first + position) / self.total)
        return self.start + done * (self.end - self.start)

    def mean(self, examples: float) -> float:
        """The mean share in the phase's first `examples`."""
        return (self.at(0) + self.at(examples)) / 2

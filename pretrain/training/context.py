"""What all phases of a run share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.stores.shard_records import ShardsManifest
from pretrain.checkpoint.extension import Extension
from pretrain.checkpoint.files import newest_whole, read_state
from pretrain.checkpoint.mirror import Mirror
from pretrain.checkpoint.progress import ResumePoint, resume_point
from pretrain.config.phases import Phase
from pretrain.distributed.ranks import Ranks
from pretrain.distributed.signals import StopRequest
from pretrain.distributed.watchdog import Watchdog
from pretrain.huggingface import init_from
from pretrain.trackers.feed import Feed


@dataclass(frozen=True)
class RunContext:
    """A run's folder, phases and processes."""

    folder: Path
    phases: Sequence[Phase]
    manifests: Sequence[ShardsManifest]  # of each phase's data
    identity: dict[str, Any]
    origin: init_from.InitWeights | None  # of the first phase's weights; None: random
    ranks: Ranks
    stop: StopRequest
    watchdog: Watchdog
    first_step: int  # updates made before this start
    extension: Extension | None  # that this start begins with
    mirror: Mirror | None = None  # rank 0's
    lasting: list[Feed] = field(default_factory=list)  # sinks that go on into the next phase

    def is_enough(self, step: int) -> bool:
        """Whether run.stop_after ends this start after `step` updates."""
        most = self.phases[0].settings.run.stop_after
        return most is not None and step >= self.first_step + most

    def why_stopped(self, step: int) -> dict[str, Any]:
        """The fields of the event `stopped` after `step` updates."""
        facts: dict[str, Any] = {"step": step, "signal": self.stop.signal_name}
        if self.is_enough(step):
            facts["stop_after"] = self.phases[0].settings.run.stop_after
        return facts

    def resume_point(self, checkpoint: Path | None) -> ResumePoint:
        """Where the run continues from `checkpoint`; None: the beginning of the first phase."""
        state = None if checkpoint is None else read_state(checkpoint)
        return resume_point(self.phases, state)

    def newest_checkpoint(self) -> Path:
        """The newest whole checkpoint. Collective. Raises RuntimeError if there is none."""
        self.watchdog.begin("looking for a checkpoint")
        newest = self.ranks.broadcast(newest_whole(self.folder) if self.ranks.rank == 0 else None)
        if newest is None:
            raise RuntimeError(f"{self.folder} has no whole checkpoint to continue from")
        return newest

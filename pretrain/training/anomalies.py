"""Reactions to gradients that are not finite, and to a loss that jumps.

Every rank sees both from metrics that all ranks share, so they need not agree on anything.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pretrain.checkpoint.saver import NotSavedError
from pretrain.config.settings import OnSpike, Precision, Settings
from pretrain.data.train_loader import GlobalBatch, TrainLoader, taken
from pretrain.training.diverged import DivergedError

if TYPE_CHECKING:
    from pathlib import Path

    from pretrain.checkpoint.progress import Progress
    from pretrain.checkpoint.saver import Saver
    from pretrain.metrics.monitor import Monitor

# Least spread, as a share of the loss: a loss that hardly moves has almost none
LEAST_SPREAD = 0.01
# Standard deviations per median distance from the median, for a normal distribution
_DEVIATIONS = 1.4826


class Rewind(Exception):
    """The loss jumped: the run goes back to its last checkpoint and leaves out some batches."""

    def __init__(self, skipped: list[list[int]]) -> None:
        super().__init__()
        self.skipped = skipped  # all ranges to leave out from now on, the new one last


class Guard:
    """Watches the steps and losses from a start or a checkpoint on."""

    def __init__(
        self,
        settings: Settings,
        run_folder: Path,
        loader: TrainLoader,
        monitor: Monitor,
        saver: Saver,
    ) -> None:
        self._survival = settings.survival
        self._precision = settings.engine.precision
        self._folder = run_folder
        self._loader, self._monitor, self._saver = loader, monitor, saver
        self._skips, self._skips_after, self._first_skipped = 0, -1, 0

    def skipped(self, progress: Progress, batch: GlobalBatch, loss_scale: float) -> None:
        """Log that `batch` made no update, because its loss or a gradient was not finite.

        In fp16 that is an overflow, by which the loss scale finds its size, and it has its own
        floor. Raises DivergedError if no later batch will help.
        """
        if self._skips_after != progress.step:
            self._skips, self._skips_after = 0, progress.step
            self._first_skipped = batch.position
        self._skips += 1
        progress.skipped_steps += 1
        position = batch.position
        if self._precision is Precision.fp16:
            self._monitor.event(
                "overflow", after=progress.step, position=position, loss_scale=loss_scale
            )
            if loss_scale <= (floor := self._survival.min_loss_scale):
                raise DivergedError(
                    f"after step {progress.step} the loss scale of fp16 has fallen to "
                    f"{loss_scale:g}, survival.min_loss_scale={floor:g}: {self._skips} overflows "
                    f"in a row, the last at example {position} of the stream. {self._cure()}"
                )
            return
        self._monitor.event(
            "skipped_step",
            after=progress.step,
            position=position,
            examples=self._loader.example_ids(position, batch.end).tolist(),
        )
        if self._skips >= self._survival.max_skipped_steps:
            raise DivergedError(
                f"{self._skips} updates in a row after step {progress.step} were skipped "
                f"(survival.max_skipped_steps), because their losses or gradients were not finite: "
                f"examples {self._first_skipped} to {batch.end - 1} of the stream, whose numbers "
                f"are in {self._folder / 'events.jsonl'}. {self._cure()}"
            )

    def watch_loss(self, progress: Progress, loss: float, first_position: int) -> None:
        """Log a jump of the mean loss of the examples from `first_position` to the progress's
        position.

        With survival.on_spike=rewind a jump raises Rewind.
        """
        recent, survival = progress.recent_losses, self._survival
        limit = spike_limit(recent, survival.spike_window, survival.spike_spreads)
        if loss > limit:
            self._monitor.event(
                "spike",
                step=progress.step,
                loss=loss,
                limit=limit,
                positions=[first_position, progress.position],
                examples=self._examples(first_position, progress),
            )
            if survival.on_spike is OnSpike.rewind:
                raise Rewind([*progress.skipped, [first_position, progress.position]])
        progress.recent_losses = [*recent, loss][-survival.spike_window :]

    def watch_evaluation(self, step: int, loss: float) -> None:
        """Raise DivergedError if the held-out loss is not finite: no checkpoint must follow."""
        if not math.isfinite(loss):
            raise DivergedError(
                f"the held-out loss after step {step} is {loss}: the last updates made weights "
                f"that are no numbers, or far too large. {self._cure()}"
            )

    def _examples(self, first: int, progress: Progress) -> list[int]:
        """Numbers of the examples trained on from position `first` of the stream on."""
        numbers: list[int] = []
        for begin, end in taken(first, progress.position, progress.skipped):
            numbers += self._loader.example_ids(begin, end).tolist()
        return numbers

    def _cure(self) -> str:
        with contextlib.suppress(NotSavedError):  # the last good one may still be written
            self._saver.settle()
        names = sorted(path.name for path in (self._folder / "checkpoints").glob("step-*"))
        last = f"The last good checkpoint is {names[-1]}. " if names else ""
        others = {
            Precision.fp32: "",
            Precision.fp16: " or with engine.precision=bf16_autocast",
        }
        other = others.get(self._precision, " or with engine.precision=fp32")
        where = "continues from the checkpoint" if names else "starts again"
        return (
            f"{last}Start under another run.name with a lower optim.learning_rate{other}; the same "
            f"command {where}, with the same batches"
        )


def spike_limit(recent: Sequence[float], window: int, spreads: float) -> float:
    """The loss above which the next one is a spike; infinite until `window` losses are known.

    From the median and the median distance to it, which one earlier spike hardly moves.
    """
    if len(recent) < window:
        return math.inf
    middle = statistics.median(recent)
    distance = statistics.median(abs(loss - middle) for loss in recent)
    return middle + spreads * max(_DEVIATIONS * distance, LEAST_SPREAD * middle)


def rewound(stored: Progress, rewind: Rewind, max_rewinds: int) -> Progress:
    """The stored progress, with the batches to leave out.

    Raises DivergedError if the loss jumped more than `max_rewinds` times since.
    """
    since = len(rewind.skipped) - len(stored.skipped)
    if since > max_rewinds:
        raise DivergedError(
            f"the loss jumped {since} times since step {stored.step}, each time after other "
            f"batches were left out (survival.max_rewinds={max_rewinds}): the batches are not the "
            "cause. Start under another run.name with a lower optim.learning_rate"
        )
    stored.skipped = rewind.skipped
    return stored

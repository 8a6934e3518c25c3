"""What the batch script that started a run is told, so that it knows whether to requeue the job."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.model.fill_mask import Guesses

VARIABLE = "BERT_JOB_FILE"  # set by slurm/job.inc
SAID = {"checkpoint": "saved", "stopped": "stopped"}  # by event

logger = logging.getLogger(__name__)


class BatchJob:
    """A sink that keeps the last such word in a file: since this start a checkpoint was written, or
    the run was told to end, with all saved. Without either event there is no file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, step: int, figures: Mapping[str, float | str]) -> None:
        """Figures are not for the script."""

    def guesses(self, step: int, filled: dict[str, Guesses]) -> None:
        """Nor are guesses."""

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        if kind in SAID:
            try:
                self._path.write_text(SAID[kind])
            except OSError as error:  # a full disk: the run goes on
                logger.warning("%s cannot be written: %s", self._path, error)

    def close(self) -> None:
        """The file stays: the script reads it when all tasks have ended."""

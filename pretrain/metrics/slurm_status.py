"""Tells the batch script that started a run whether to requeue the job."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pretrain.metrics.monitor import Sink

VARIABLE = "BERT_JOB_FILE"  # set by slurm/job.inc
WORDS = {"checkpoint": "saved", "stopped": "stopped"}  # by event

logger = logging.getLogger(__name__)


class BatchJob(Sink):
    """Keeps the last of two words in a file: "saved" since a checkpoint was written, "stopped" once
    the run was told to end and saved everything. Without either event there is no file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        if kind in WORDS and "stop_after" not in facts:  # that stop was asked for: no requeue
            try:
                self._path.write_text(WORDS[kind])
            except OSError as error:  # a full disk: the run goes on
                logger.warning("%s cannot be written: %s", self._path, error)

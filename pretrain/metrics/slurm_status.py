"""Tells the batch script that started a run whether to requeue the job."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from data_prep.core.files import whole_or_absent
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
                with whole_or_absent(self._path) as temporary:  # else the word before stays
                    temporary.write_text(WORDS[kind])
            except OSError as error:  # a full disk: the run goes on
                logger.warning("%s cannot be written: %s", self._path, error)


def is_told_of_stop() -> bool:
    """Whether the batch script can read that the run has stopped; True without such a script.

    Otherwise the process must fail: the script takes status 0 alone for a finished run.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return True
    with contextlib.suppress(OSError):
        return Path(path).read_text() == WORDS["stopped"]
    return False

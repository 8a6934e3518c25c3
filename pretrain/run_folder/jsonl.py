"""JSON-lines files of a run: appended, read, cut."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from data_prep.core.files import whole_or_absent

logger = logging.getLogger(__name__)


def append_event(run_folder: Path, kind: str, facts: dict[str, Any]) -> None:
    """One line in events.jsonl of what happens before there is a monitor."""
    events = Lines(run_folder / "events.jsonl")
    events.write(event_line(kind, facts))
    events.close()


class Lines:
    """Appends to a file. What a full disk does not take is kept, and written once it does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        # a killed process may have left half a line, which then ends here
        self._pending = b"" if _ends_in_a_line(path) else b"\n"

    def write(self, line: bytes) -> None:
        self._pending += line
        try:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) or 0 :]
        except OSError as error:
            logger.warning("%s: %d bytes wait (%s)", self._path, len(self._pending), error)

    def close(self) -> None:
        self.write(b"")
        if self._pending:
            logger.error("%s lacks %d bytes: %r", self._path, len(self._pending), self._pending)
        self._file.close()


def _ends_in_a_line(path: Path) -> bool:
    """Whether the next line can be appended to a file; True for an empty one."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() in (b"", b"\n")


def readable_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines, but one that a killed process did not finish; [] without it."""
    lines = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            lines.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return lines


def json_line(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def event_line(kind: str, facts: dict[str, Any]) -> bytes:
    return json_line({"time": now(), "event": kind, **facts})


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def keep_steps_up_to(metrics: Path, step: int) -> dict[str, Any] | None:
    """Drop the records of later steps; the last of them, or None where there is none."""
    kept, last = [], None
    for line in metrics.read_bytes().splitlines(keepends=True):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:  # the line that a killed process did not finish
            continue
        if record["step"] <= step:
            kept.append(line)
        else:
            last = record
    with whole_or_absent(metrics) as temporary:
        temporary.write_bytes(b"".join(kept))
    return last


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file that is being written: without one that is half there."""
    if path.exists():
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(orjson.JSONDecodeError):
                yield orjson.loads(line)

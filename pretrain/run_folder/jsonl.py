"""JSON-lines files of a run: appended, read, cut."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from data_prep.core.config import SettingsError
from data_prep.core.files import check_bounded, whole_or_absent

MOST_BYTES = 4 << 30  # five million records
MOST_LINE_BYTES = 16 << 20
_CURE = "get the file again"

logger = logging.getLogger(__name__)


def append_event(run_folder: Path, kind: str, facts: dict[str, Any]) -> None:
    """Append one line to events.jsonl, before there is a monitor."""
    events = Lines(run_folder / "events.jsonl")
    events.write(event_line(kind, facts))
    events.close()


class Lines:
    """Appends to a file. Keeps what a full disk refuses, and writes it once there is room."""

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
    """The objects of a JSON-lines file, without a half-written line; [] if there is no file.

    Raises SettingsError if it is no regular file, is too large, or has a line of another kind.
    """
    return [line for _, line in _parsed(path)] if os.path.lexists(path) else []


def _parsed(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line as it is, and parsed; passes over one that a killed process did not finish."""
    check_bounded(path, MOST_BYTES, follow_links=False)
    with path.open("rb") as file:
        while line := file.readline(MOST_LINE_BYTES + 1):
            if len(line) > MOST_LINE_BYTES:
                raise SettingsError(f"{path} has a line of over {MOST_LINE_BYTES:,} bytes; {_CURE}")
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if not isinstance(value, dict):
                raise SettingsError(f"{path} has a line that is no object; {_CURE}")
            yield line, value


def json_line(value: dict[str, Any]) -> bytes:
    """One line of a JSON-lines file."""
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def event_line(kind: str, facts: dict[str, Any]) -> bytes:
    """One line of events.jsonl."""
    return json_line({"time": now(), "event": kind, **facts})


def now() -> str:
    """The time in UTC, as in the files: 2026-01-31T12:00:00.000+00:00."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def keep_steps_up_to(metrics: Path, step: int) -> dict[str, Any] | None:
    """Drop the records of later steps; return the last of them, or None if there is none."""
    kept, last = [], None
    for line, record in _parsed(metrics):
        if record["step"] <= step:
            kept.append(line)
        else:
            last = record
    with whole_or_absent(metrics) as temporary:
        temporary.write_bytes(b"".join(kept))
    return last

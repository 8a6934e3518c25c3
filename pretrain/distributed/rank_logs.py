"""Output of the ranks: rank 0 prints on the terminal, every rank logs to its own file."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


class LenientStream:
    """A text stream that drops what a full disk refuses: a log is not worth a run of days."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _unless_full():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _unless_full():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _unless_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


class RankOutput:
    """Where one rank's output goes. Made by `rank_output`."""

    def __init__(self, rank: int) -> None:
        """Redirect stdout and stderr of ranks other than 0 to a temporary file until `log_to`."""
        self._rank = rank
        self._terminal = os.dup(2)
        self._early = None if rank == 0 else tempfile.TemporaryFile()
        if self._early is not None:
            self._redirect_to(self._early.fileno())

    def log_to(self, path: Path) -> None:
        """Log to `path` from now on; ranks other than 0 also redirect stdout and stderr there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
        handlers: list[logging.Handler] = [logging.StreamHandler(file)]
        if self._early is None:
            to_terminal = logging.StreamHandler()
            to_terminal.setLevel(logging.WARNING)
            handlers.append(to_terminal)
        else:
            sys.stdout.flush()
            sys.stderr.flush()
            self._early.seek(0)
            file.write(self._early.read().decode(errors="replace"))
            file.flush()
            self._redirect_to(file.fileno())
        logging.basicConfig(
            level=logging.INFO,
            format=f"%(asctime)s rank {self._rank} %(levelname)s %(name)s: %(message)s",
            handlers=handlers,
            force=True,
        )

    def print_to_terminal(self, text: str) -> None:
        """Print a line on the terminal, from any rank."""
        os.write(self._terminal, f"rank {self._rank}: {text}\n".encode())

    @staticmethod
    def _redirect_to(descriptor: int) -> None:
        # by file descriptor, so that output of C++ libraries is redirected, too
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)


@contextlib.contextmanager
def rank_output(rank: int) -> Iterator[RankOutput]:
    """Keep ranks other than 0 off the terminal, except for an exception that ends them."""
    output = RankOutput(rank)
    try:
        yield output
    except Exception:
        if rank > 0:
            output.print_to_terminal(f"ended by an exception:\n{traceback.format_exc()}")
        raise

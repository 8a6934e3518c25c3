"""Who speaks: rank 0 on the terminal, every rank in its own log file."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path


class Voice:
    """Where one rank's output goes. Made by `speak_on_rank_0`."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._terminal = os.dup(2)  # ranks other than 0 turn their own away
        self._early = None if rank == 0 else tempfile.TemporaryFile()
        if self._early is not None:
            self._turn_output_to(self._early.fileno())

    def log_to(self, path: Path) -> None:
        """From here on log to `path`; ranks other than 0 write all they would print there, too."""
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
            self._turn_output_to(file.fileno())
        logging.basicConfig(
            level=logging.INFO,
            format=f"%(asctime)s rank {self._rank} %(levelname)s %(name)s: %(message)s",
            handlers=handlers,
            force=True,
        )

    def tell(self, text: str) -> None:
        """Show a line on the terminal, from any rank: what must be said where rank 0 cannot."""
        os.write(self._terminal, f"rank {self._rank}: {text}\n".encode())

    @staticmethod
    def _turn_output_to(descriptor: int) -> None:
        # by file descriptor, so that libraries in C++ are caught as well
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)


@contextlib.contextmanager
def speak_on_rank_0(rank: int) -> Iterator[Voice]:
    """Silence ranks other than 0 on the terminal; what ends them by an exception is still shown."""
    voice = Voice(rank)
    try:
        yield voice
    except Exception:
        if rank > 0:
            voice.tell(f"ended by an exception:\n{traceback.format_exc()}")
        raise

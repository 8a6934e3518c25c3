"""What every command does with an output that is closed and with a folder it may not use."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
CLOSED_OUTPUT = 141  # the status of other programs then: 128 and the number of SIGPIPE


def status_of(main: Callable[[], int | None]) -> int:
    """The exit status of `main` (None is 0); in two cases instead of a traceback.

    141 if the reader of stdout or stderr has closed it, as in `| head`. 2, with one line, if the
    system refuses a file or folder.
    """
    try:
        try:
            return main() or 0
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        closed = [number for number in (1, 2) if _has_no_reader(number)]
        if not closed:
            raise
        for number in closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        return CLOSED_OUTPUT
    except OSError as error:
        if error.errno not in _REFUSED or error.filename is None:
            raise
        spec = sys.modules["__main__"].__spec__
        sys.stderr.write(
            f"{spec.name if spec else sys.argv[0]}: {error.filename}: {error.strerror}; it belongs "
            "to another user or is read-only: choose another folder, or have its owner let you\n"
        )
        return 2


def _has_no_reader(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))

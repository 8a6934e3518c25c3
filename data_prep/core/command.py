"""What every command does with a closed output, with a folder it may not use, and on Ctrl-C."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable

_FOREIGN = (
    "it belongs to another user or is read-only: choose another folder, or have its owner let you"
)
_NO_FOLDER = "a file is where a folder must be: choose another folder, or move the file away"
_CURES = {
    errno.EACCES: _FOREIGN,
    errno.EPERM: _FOREIGN,
    errno.EROFS: _FOREIGN,
    errno.EBUSY: "it is a mount point or in use: choose another folder",
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EISDIR: "name a file, not a folder or a device",
    errno.ELOOP: "its links lead to each other: choose another folder, or mend the link",
    errno.ENAMETOOLONG: "choose a shorter path",
}
CLOSED_OUTPUT = 141  # the status of other programs then: 128 and the number of SIGPIPE
INTERRUPTED = 130  # the same for SIGINT, which Ctrl-C sends


def status_of(main: Callable[[], int | None]) -> int:
    """The exit status of `main` (None is 0); in three cases instead of a traceback.

    141 if the reader of stdout or stderr has closed it, as in `| head`. 130, with one line, on
    Ctrl-C. 2, with one line, if the system refuses a file or folder.
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
    except KeyboardInterrupt:
        sys.stderr.write(f"{_name()}: interrupted\n")
        return INTERRUPTED
    except OSError as error:
        if (text := refusal(error)) is None:
            raise
        sys.stderr.write(f"{_name()}: {text}\n")
        return 2


def refusal(error: BaseException) -> str | None:
    """What the system refuses about a file or folder, and the cure; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _CURES or error.filename is None:
        return None
    return f"{error.filename}: {error.strerror}; {_CURES[error.errno]}"


def _name() -> str:
    """The command as it is typed after `python -m`."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else sys.argv[0]


def _has_no_reader(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))

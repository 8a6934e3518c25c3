"""What every command does with a closed output, with a folder it may not use, and on Ctrl-C; how
messages name commands."""

from __future__ import annotations

import errno
import os
import re
import select
import sys
from collections.abc import Callable
from pathlib import Path

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
# The console commands: how the names of their modules begin, and the module of no word
DOORS = {
    "bert-data": ("data_prep.", None),
    "bert-pretrain": ("pretrain.", "pretrain.run"),
    "bert-finetune": ("scripts.finetune_", None),
    "bert-predict": ("scripts.predict.", "scripts.predict"),
}
CONSOLE = "BERT_CONSOLE"  # set in the processes that a console command starts
_ROOT = Path(__file__).parents[2]
# python -m pretrain.export, or pretrain.export alone, which is no part of a longer name or path
_COMMAND = re.compile(
    r"(?:\bpython -m |(?<![\w./-])(?<!-m ))((?:data_prep|pretrain|scripts)\.[a-z_]+)(?!\w|[./]\w)"
)


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


def as_typed(text: str) -> str:
    """`text`, its commands named as this process's own was typed.

    Where a console command started this process, `python -m pretrain.export` and `pretrain.export`
    become `bert-pretrain export`. What is started by another program's -m stays.
    """
    return _COMMAND.sub(_at_console, text) if os.environ.get(CONSOLE) else text


def _at_console(found: re.Match[str]) -> str:
    module = found[1]
    for door, (start, default) in DOORS.items():
        if module == default:
            return door
        if module.startswith(start) and (_ROOT / f"{module.replace('.', '/')}.py").is_file():
            return f"{door} {module.removeprefix(start)}"
    return found[0]


def refusal(error: BaseException) -> str | None:
    """What the system refuses about a file or folder, and the cure; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _CURES or error.filename is None:
        return None
    return f"{error.filename}: {error.strerror}; {_CURES[error.errno]}"


def _name() -> str:
    """The command as it is typed, without `python -m`."""
    spec = sys.modules["__main__"].__spec__
    return as_typed(spec.name if spec else sys.argv[0])


def _has_no_reader(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))

"""Native stacks of this process: where a hang is in C++, below what Python knows.

They are taken by a debugger that the system has; nothing is installed for it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from typing import IO

# those of elfutils are there in a second; gdb first reads the symbols of all of torch
_TOOLS = {
    "eu-stack": ("-p",),
    "gdb": (
        *("-batch", "-nx", "-iex", "set debuginfod enabled off", "-iex", "set auto-load no"),
        *("-ex", "thread apply all backtrace 30", "-p"),
    ),
}
# A debugger stops each thread by a SIGSTOP. One that is killed in between leaves such a signal
# behind, so the process is told to go on once the debugger has surely ended (--foreground: timeout
# waits for it). Another process does so: this one stands still.
_IN_TIME = """
timeout --foreground --signal=KILL "$@"
status=$?
kill -CONT $PPID
exit $status
"""
_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(-1)  # prctl(2): else Yama lets no child look


def write_native_stacks(file: IO[str], limit_s: float) -> None:
    """Write the native stacks of all threads, or why there are none. Takes `limit_s` at most.

    All threads stand still meanwhile, so it is for a process that is about to end.
    """
    tool = next(filter(shutil.which, _TOOLS), None)
    if tool is None:
        file.write(f"no native stacks: install one of {', '.join(_TOOLS)} to have them\n")
        file.flush()
        return
    ctypes.CDLL(None).prctl(_SET_PTRACER, _ANY, 0, 0, 0)
    file.write(f"native stacks by {tool}:\n")
    file.flush()
    words = ["sh", "-c", _IN_TIME, "sh", f"{limit_s:g}", tool, *_TOOLS[tool], str(os.getpid())]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        file.write(f"no native stacks: {error}\n")
    else:
        if done.returncode:
            file.write(f"{tool} ended with status {done.returncode} within {limit_s:g} s\n")
    file.flush()

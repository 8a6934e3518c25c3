"""Runs one task in its own process."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import time
from pathlib import Path

from data_prep.core.files import place, write_json
from data_prep.executors.tasks import (
    Task,
    TaskEntry,
    is_finished,
    log_path,
    record_path,
    sizes,
)


def run_one(task: Task, entry: TaskEntry, log_dir: Path) -> None:
    """Run one task in this process and write its record; its output goes to its log.

    An exception is raised again: the failed record has the reason, the log the traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent stops this process
    gc.freeze()  # never collect imported objects: saves a tenth of collect's time
    if is_finished(log_dir, entry):  # by another process, meanwhile
        return
    finished, running, failed = (
        record_path(log_dir, kind, entry.name) for kind in ("finished", "running", "failed")
    )
    began, processor_time = time.time(), time.process_time()
    who = {"host": os.uname().nodename, "place": place(), "pid": os.getpid()}
    write_json(running, {**who, "started": began})
    finished.unlink(missing_ok=True)  # before any of its files changes
    failed.unlink(missing_ok=True)
    log = log_path(log_dir, entry.name)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    try:
        counts = task(entry.item)
    except BaseException as error:
        write_json(failed, {"reason": f"{type(error).__name__}: {error}"})
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        running.unlink(missing_ok=True)
    if os.fstat(1).st_size == 0:
        log.unlink(missing_ok=True)
    ended = time.time()
    record = {
        "fingerprint": entry.fingerprint,
        "counts": counts,
        "sizes": sizes(entry.outputs),
        "seconds": ended - began,
        "cpu_seconds": time.process_time() - processor_time,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "ended": ended,
    }
    write_json(finished, record)

"""Runs each task in a fresh local process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import connection, forkserver, resource_tracker, util
from multiprocessing.context import ForkServerProcess

from data_prep.executors.tasks import TaskPlan, failed_reason, importable, progress, record_path
from data_prep.executors.worker import run_one

_MOST_TMPDIR = 107 - len("/pymp-12345678/listener-12345678")  # bytes


def run_processes(plan: TaskPlan, todo: Sequence[int], num_workers: int) -> dict[int, str]:
    """Run the tasks of `todo`; return the reason of each failure, by index."""
    waiting = list(reversed(todo))
    # Never fork this process: the caller may have threads or a GPU. The fork server imports the
    # task's module once, and pandas, which pyarrow would otherwise import in every task when it
    # converts its first list.
    task, module = importable(plan.task)
    _keep_socket_paths_short()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "pandas", module])
    resource_tracker.ensure_running()  # now, since it unblocks SIGINT when it starts
    with _without_ctrl_c():
        forkserver.ensure_running()
    running: dict[int, tuple[int, ForkServerProcess]] = {}
    failed: dict[int, str] = {}
    with _CtrlC() as ctrl_c, contextlib.ExitStack() as stack:
        bar = stack.enter_context(progress(plan, todo))
        stack.callback(_stop, plan, running)
        while waiting or running:
            while waiting and len(running) < num_workers:
                index = waiting.pop()
                given = (task, plan.entries[index], plan.log_dir)
                process = context.Process(target=run_one, args=given)
                with ctrl_c.held(), _without_main_module():
                    process.start()
                    running[process.sentinel] = (index, process)
            for sentinel in connection.wait(list(running)):
                assert isinstance(sentinel, int)
                index, process = running.pop(sentinel)
                process.join()
                if process.exitcode != 0:
                    failed[index] = _reason(plan, index, process.exitcode)
                process.close()
                bar.update()
    return failed


class _CtrlC:
    """SIGINT while tasks run: the first one raises KeyboardInterrupt, others do nothing.

    So every task that was started is known and stopped. In `held` the first one waits: blocking it
    in this thread alone would not do, since another thread, such as that of a progress bar, takes
    it and Python raises here all the same. Another handler than Python's own is left in its place.
    """

    def __init__(self) -> None:
        self._is_held = self._is_seen = False

    def __enter__(self) -> _CtrlC:
        self._before = signal.getsignal(signal.SIGINT)
        self._is_ours = (
            threading.current_thread() is threading.main_thread()
            and self._before is signal.default_int_handler
        )
        if self._is_ours:
            signal.signal(signal.SIGINT, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            signal.signal(signal.SIGINT, self._before)

    def _received(self, *_: object) -> None:
        if not self._is_seen:
            self._is_seen = True
            if not self._is_held:
                raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raise KeyboardInterrupt at the end of this context, not inside it."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._is_seen:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Block SIGINT in processes that are started in this context, for good.

    It is this process that stops them. The fork server would ignore the signal only once it has
    imported what it preloads.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _keep_socket_paths_short() -> None:
    """Put multiprocessing's sockets into /tmp if those in TMPDIR would have too long a path.

    The kernel takes 107 bytes; some clusters have long names of jobs and users in TMPDIR.
    """
    if len(os.fsencode(tempfile.gettempdir())) > _MOST_TMPDIR:
        usual, tempfile.tempdir = tempfile.tempdir, "/tmp"
        try:
            util.get_temp_dir()  # made once, with a mode of 0700, and kept
        finally:
            tempfile.tempdir = usual


def _stop(plan: TaskPlan, running: dict[int, tuple[int, ForkServerProcess]]) -> None:
    """End the running tasks when the parent is interrupted."""
    for _, process in running.values():
        process.terminate()
    for index, process in running.values():
        process.join()
        record_path(plan.log_dir, "running", plan.entries[index].name).unlink(missing_ok=True)


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Keep multiprocessing from running the main program's file again in the new process.

    That of a training run would import torch for nothing.
    """
    main = sys.modules["__main__"]
    spec, file = main.__spec__, main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def _reason(plan: TaskPlan, index: int, exitcode: int | None) -> str:
    """Why a task failed, from its record or its exit status."""
    if reason := failed_reason(plan, index):
        return reason
    reason = f"exit status {exitcode}"
    if exitcode is not None and exitcode < 0:
        signal_name = signal.Signals(-exitcode).name
        memory = ", perhaps out of memory: try a smaller num_workers"
        reason = f"ended by {signal_name}{memory if signal_name == 'SIGKILL' else ''}"
    return reason

"""torch's profiler around the steps of profile.steps: their traces and a summary in the run folder.

Before the first of these steps and after the last, nothing is recorded and no device waited for.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import orjson
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from data_prep.core.files import whole_or_absent, write_json
from pretrain.config.settings import ProfileSettings
from pretrain.distributed.ranks import Ranks
from pretrain.distributed.watchdog import Watchdog
from pretrain.metrics import trace
from pretrain.metrics.monitor import Monitor
from pretrain.metrics.trace import ProfileSummary, RankProfile

_ALLOCATIONS = 200_000  # kept for the memory snapshot

logger = logging.getLogger(__name__)


class StepProfiler:
    """Records the steps of profile.steps in this context. Every rank calls the methods alike.

    The context also ends a profile whose last steps are not made, because the run stops.
    """

    def __init__(
        self,
        settings: ProfileSettings,
        run_folder: Path,
        ranks: Ranks,
        monitor: Monitor,
        watchdog: Watchdog,
        wait_for_collectives: Callable[[], None],
    ) -> None:
        """`wait_for_collectives` waits for those that a step leaves under way."""
        self._wait_for_collectives = wait_for_collectives
        self._steps, self._is_recorded = settings.steps, settings.has(ranks.rank)
        self._run_folder, self._ranks = run_folder, ranks
        self._monitor, self._watchdog = monitor, watchdog
        self._made: list[int] = []  # steps of the profile, while there is one
        self._profile: profile | None = None
        self._step: record_function | None = None

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave_step()
        if error is None and self._made:
            self._finish()
        elif self._profile is not None:
            with contextlib.suppress(RuntimeError):  # of the device, which has its own message
                self._profile.stop()
                self._forget_allocations()

    def begin_step(self, step: int) -> None:
        """Note that update number `step` is to be made now; again, if it was skipped."""
        if self._steps is None or not self._steps[0] <= step <= self._steps[1]:
            return
        if not self._made:
            self._start()
        self._made.append(step)
        if self._profile is not None:
            self._leave_step()
            self._step = record_function(f"{trace.STEP}{step}")
            self._step.__enter__()  # type: ignore[no-untyped-call]

    def end_step(self, step: int) -> None:
        """Note that update number `step` was made."""
        if not self._made:
            return
        self._leave_step()
        if self._steps is not None and step >= self._steps[1]:
            self._finish()

    def _leave_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def _start(self) -> None:
        if self._ranks.rank == 0:  # the others write only after steps that rank 0 takes part in
            shutil.rmtree(self._run_folder / trace.FOLDER, ignore_errors=True)
        if not self._is_recorded:
            return
        # its marks for other tracers, which it prints as if they were errors
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        activities = [ProfilerActivity.CPU]
        if self._ranks.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize()  # what earlier steps have queued is not of these
            torch.cuda.memory._record_memory_history(max_entries=_ALLOCATIONS, stacks="python")
        self._profile = profile(activities=activities, record_shapes=True)
        self._profile.start()

    def _finish(self) -> None:
        """Write the traces, and on rank 0 the summary and an event. Collective."""
        self._watchdog.begin("writing the profile", self._made[-1])
        own = None
        # gloo's threads note the end of a collective in the profile, where it still has to be
        self._wait_for_collectives()
        if self._profile is not None:
            self._profile.stop()  # waits for the device
            try:
                own = self._write(self._profile)
            except (OSError, ValueError, RuntimeError) as error:
                logger.warning("no profile of rank %s: %s", self._ranks.rank, error)
            self._forget_allocations()
        found = [profile for profile in self._ranks.gather(own) if profile is not None]
        summary = ProfileSummary(min(self._made), max(self._made), found)
        self._profile, self._made = None, []
        if self._ranks.rank > 0:
            return
        try:
            write_json(trace.summary_path(self._run_folder), summary)
        except OSError as error:
            logger.warning("no summary of the profile: %s", error)
        folder = str(self._run_folder / trace.FOLDER)
        first, last = summary.first_step, summary.last_step
        text = "; ".join(trace.lines(summary)) or "nothing was recorded, see the ranks' logs"
        self._monitor.event("profile", step=last, first_step=first, folder=folder, text=text)

    def _forget_allocations(self) -> None:
        if self._ranks.device.type == "cuda":
            torch.cuda.memory._record_memory_history(enabled=None)

    def _write(self, recorded: profile) -> RankProfile:
        """Write this rank's trace, and on a GPU its memory snapshot."""
        rank, is_cuda = self._ranks.rank, self._ranks.device.type == "cuda"
        if is_cuda:
            with whole_or_absent(trace.memory_path(self._run_folder, rank)) as temporary:
                torch.cuda.memory._dump_snapshot(str(temporary))  # type: ignore[no-untyped-call]
        with whole_or_absent(trace.trace_path(self._run_folder, rank)) as temporary:
            recorded.export_chrome_trace(str(temporary))
            text = temporary.read_bytes()
            temporary.write_bytes(gzip.compress(text, compresslevel=6))
        own = trace.profile_of(orjson.loads(text)["traceEvents"], rank)
        if is_cuda and own.counted != "kernels":
            logger.warning(
                "the trace of rank %s has no kernels: the driver may keep them from users "
                "(NVreg_RestrictProfilingToAdminUsers=0 lets them); operators are counted instead",
                rank,
            )
        return own

"""The terminal: progress bar, metrics and events."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from pretrain.metrics.monitor import Sink
from pretrain.metrics.names import METRICS

# if too wide, cut off on the right
BAR = "{n_fmt}/{total_fmt}{postfix} |{bar}| ETA {remaining}"
BAR_WITHOUT_END = "{n_fmt}{postfix} |{bar}| {elapsed}"
LINE_EVERY_S = 10.0  # at least this long between two lines of progress in a batch job's log
SHOWN_EVENTS = (
    "resumed", "rewound", "phase", "stopped", "skipped_step", "overflow", "spike",
    "checkpoint_failed", "profile", "straggler", "gpu_error",
)  # fmt: skip


class Screen(Sink):
    """A progress bar on a terminal; in a batch job plain lines, at most one in ten seconds."""

    def __init__(self, first_step: int, total_steps: int | None) -> None:
        """`total_steps` is None if the clock ends the run."""
        from tqdm import tqdm

        self._total_steps, self._first_step, self._started = total_steps, first_step, time.time()
        self._is_terminal = sys.stderr.isatty()
        self._last_line = 0.0
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            bar_format=BAR_WITHOUT_END if total_steps is None else BAR,
            disable=not self._is_terminal,
        )

    def record(self, step: int, metrics: Mapping[str, float | str]) -> None:
        text = " ".join(
            metric.console.format(metrics[name])
            for name, metric in METRICS.items()
            if metric.console and name in metrics
        )
        is_evaluation = any(name.startswith("eval/") for name in metrics)
        if self._is_terminal:
            if is_evaluation:
                self._bar.write(f"step {step:,}  {text}", file=sys.stderr)
            else:
                self._bar.set_postfix_str(text, refresh=False)
                self._bar.update(step - self._bar.n)
            return
        is_due = time.time() - self._last_line >= LINE_EVERY_S or step == self._total_steps
        if is_due or is_evaluation:
            self._last_line = time.time()
            total = "" if self._total_steps is None else f"/{self._total_steps:,}"
            print(f"step {step:,}{total}  {text}{self._eta(step)}", file=sys.stderr)

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        if kind in SHOWN_EVENTS:
            short = {k: f"{len(v)} of them" if k == "examples" else v for k, v in facts.items()}
            text = " ".join(f"{name}={value}" for name, value in short.items())
            self._bar.write(f"{kind.replace('_', ' ')}: {text}", file=sys.stderr)

    def close(self) -> None:
        self._bar.close()

    def _eta(self, step: int) -> str:
        if self._total_steps is None:
            return ""
        step_s = (time.time() - self._started) / max(1, step - self._first_step)
        left = datetime.timedelta(seconds=round(step_s * (self._total_steps - step)))
        return f"  ETA {left}"


class CompileLines:
    """Lines of how many shapes are compiled: at most one in ten seconds, and one at the end."""

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        """`now`: seconds since any moment."""
        self._total, self._now = total, now
        self._began = self._last = now()

    def __len__(self) -> int:
        return self._total

    def show(self, done: int) -> None:
        """Print a line if it is due."""
        now = self._now()
        if done == self._total or now - self._last >= LINE_EVERY_S:
            self._last = now
            passed = datetime.timedelta(seconds=round(now - self._began))
            print(f"compiled {done} of {self._total} shapes in {passed}", file=sys.stderr)

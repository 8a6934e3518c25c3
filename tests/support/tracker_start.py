"""A start of a run as its trackers see it: metrics of the steps FIRST + 1 to LAST, in FOLDER.

python tracker_start.py FOLDER FIRST LAST TIMEOUT_S ENDING [TRACKER ...]

With the ending "hold" it waits to be killed. Without a tracker it is wandb alone, and there are no
guesses, whose table the stand-in for wandb's server does not know.
"""

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pretrain.config.settings import LogSettings
from pretrain.metrics.monitor import JsonLines, Monitor
from pretrain.trackers.choose import start_trackers
from pretrain.trackers.tracker import TrackedRun

CONFIG = {"optim": {"learning_rate": 0.1}}
GUESSES = {"a [MASK] | <b>x</b>.": [("cat", 0.5), ("dog", 0.25)]}


def tracked_run(folder: Path, trackers: Sequence[str], timeout_s: float = 20) -> TrackedRun:
    """A run that logs to these trackers."""
    log = LogSettings(
        wandb=False, project="p", entity=None, artifact=False, timeout_s=timeout_s,
        trackers=list(trackers),
    )  # fmt: skip
    return TrackedRun(folder, "x", log, CONFIG)


def record_steps(
    monitor: Monitor, first_step: int, last_step: int, has_guesses: bool = True
) -> float:
    """Record every step, and every tenth also an evaluation; the longest time of one, in s."""
    longest = 0.0
    for step in range(first_step + 1, last_step + 1):
        began = time.perf_counter()
        monitor.record(step, {"train/loss": 1 / step})
        if step % 10 == 0:
            monitor.record(step, {"eval/loss": 2 / step, "data/batch": f"sum {step}"})
            if has_guesses:
                monitor.guesses(step, GUESSES)
        longest = max(longest, time.perf_counter() - began)
    return longest


def start(
    folder: Path, first_step: int, last_step: int, timeout_s: float, ending: str,
    trackers: Sequence[str],
) -> None:  # fmt: skip
    feeds = start_trackers(tracked_run(folder, trackers, timeout_s), first_step)
    monitor = Monitor([JsonLines(folder, first_step)], feeds)
    longest = record_steps(monitor, first_step, last_step, has_guesses=trackers != ["wandb"])
    print(f"longest {longest:.3f}", flush=True)
    if ending == "hold":
        sys.stdin.read()
    monitor.close()
    for feed in feeds:
        feed.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    start(
        Path(sys.argv[1]), *map(int, sys.argv[2:4]), float(sys.argv[4]), sys.argv[5],
        sys.argv[6:] or ["wandb"],
    )  # fmt: skip

"""A start of a run as wandb sees it: metrics of the steps FIRST + 1 to LAST, in FOLDER.

python wandb_start.py FOLDER FIRST LAST TIMEOUT_S ENDING

With the ending "hold" it waits to be killed.
"""

import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pretrain.config.settings import LogSettings
from pretrain.metrics.monitor import JsonLines, Monitor
from pretrain.metrics.wandb_sink import Wandb


def start(folder: Path, first_step: int, last_step: int, timeout_s: float, ending: str) -> None:
    settings = LogSettings(
        wandb=True, project="p", entity=None, artifact=False, timeout_s=timeout_s
    )
    sink = Wandb(folder, "x", settings, {"optim": {"learning_rate": 0.1}}, first_step)
    monitor = Monitor([JsonLines(folder, first_step)], [sink])
    longest = 0.0
    for step in range(first_step + 1, last_step + 1):
        began = time.perf_counter()
        monitor.record(step, {"train/loss": 1 / step})
        if step % 10 == 0:
            monitor.record(step, {"eval/loss": 2 / step})
        longest = max(longest, time.perf_counter() - began)
    print(f"longest {longest:.3f}", flush=True)
    if ending == "hold":
        sys.stdin.read()
    monitor.close()
    sink.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    start(Path(sys.argv[1]), *map(int, sys.argv[2:4]), float(sys.argv[4]), sys.argv[5])

"""One training in a process of its own, timed by the processor on a CPU.

    python -m scripts.bench.parts.child ours|transformers THREADS OVERRIDES...

The overrides are those of `pretrain.run`. The run's folder gets metrics.jsonl, whose
perf/training_seconds are of the processor where the run is on a CPU: other work on the machine
counts less. Evaluations and checkpoints are not in them. `transformers` trains the stock model on
padded batches; see scripts.pretrain_with_transformers.
"""

from __future__ import annotations

import sys
import time

import torch

from pretrain.config.load import folder_of_run, load
from pretrain.distributed.device import cuda_is_usable
from pretrain.run import main as pretrain
from pretrain.training import log_window
from scripts import pretrain_with_transformers


def main(which: str, threads: str, *overrides: str) -> int:
    """Train; the exit status."""
    torch.set_num_threads(int(threads))
    if not cuda_is_usable():
        log_window.clock = pretrain_with_transformers.clock = time.process_time
    if which == "ours":
        return pretrain(overrides)
    settings, _ = load(overrides, 1)
    folder, steps = folder_of_run(settings), settings.schedule.last_step
    assert steps is not None, "the benchmark counts steps"
    folder.mkdir(parents=True)
    pretrain_with_transformers.train(settings, folder, steps)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

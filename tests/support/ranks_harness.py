"""Run a function on N ranks (gloo, CPU), forked from this process, which has imported everything.

A job takes a fraction of a second in place of the ten that importing torch and DeepSpeed takes.
"""

import gc
import importlib
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from pretrain.distributed.ranks import Ranks

# Imported once and not in every rank: DeepSpeed through our engine, which keeps it quiet, and what
# DeepSpeed itself imports late (inductor, by way of Muon; experts, by way of its configuration).
for module in (
    "pretrain.engine.engine",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.module_inject.auto_ep_layer",
):
    importlib.import_module(module)
torch.set_num_threads(1)


def run_ranks(
    function: Callable[..., Any], world_size: int, timeout_s: float = 60, **arguments: Any
) -> list[Any]:
    """`function(ranks, **arguments)` on every rank; what each returned, by rank.

    Raises RuntimeError with a rank's own traceback, or naming the ranks that did not end in time.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = range(world_size)
        processes = [
            context.Process(
                target=_rank, args=(function, rank, world_size, folder, arguments), daemon=True
            )
            for rank in ranks
        ]
        for process in processes:
            process.start()
        _wait(processes, timeout_s)
        late = [rank for rank in ranks if processes[rank].is_alive()]
        for process in processes:
            process.kill()
            process.join()
        outcomes = [_outcome(folder / str(rank), processes[rank]) for rank in ranks]
    failures = [outcome["failure"] for outcome in outcomes if "failure" in outcome]
    if late and not any("Traceback" in failure for failure in failures):
        raise RuntimeError(f"ranks {late} of {world_size} had not ended after {timeout_s} s")
    if failures:
        raise RuntimeError("\n".join(failures))
    return [outcome["result"] for outcome in outcomes]


def _wait(processes: list[BaseProcess], timeout_s: float) -> None:
    """Until all have ended, or one has failed and the others had time to say why, or the limit."""
    limit, first_failure = time.monotonic() + timeout_s, None
    while any(p.is_alive() for p in processes) and time.monotonic() < limit:
        if first_failure is None and any(p.exitcode for p in processes):
            first_failure = time.monotonic()
            limit = min(limit, first_failure + 2)
        multiprocessing.connection.wait([p.sentinel for p in processes if p.is_alive()], 0.05)


def _outcome(path: Path, process: BaseProcess) -> dict[str, Any]:
    if not path.exists():
        return {"failure": f"{path.name}: exit code {process.exitcode}, no result"}
    outcome: dict[str, Any] = pickle.loads(path.read_bytes())
    return outcome


def _rank(
    function: Callable[..., Any], rank: int, world_size: int, folder: Path, arguments: dict[str,
    Any],
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed collects garbage often: not over all that the parent holds
    try:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size,
            timeout=timedelta(seconds=60),
        )  # fmt: skip
        ranks = Ranks(rank, world_size, torch.device("cpu"))
        outcome = {"result": function(ranks, **arguments)}
    except BaseException:  # noqa: BLE001  whatever it was, the parent tells it
        outcome = {"failure": f"rank {rank}: {traceback.format_exc()}"}
    (folder / f"{rank}.part").write_bytes(pickle.dumps(outcome))
    os.rename(folder / f"{rank}.part", folder / str(rank))
    os._exit(0 if "result" in outcome else 1)  # without the parent's exit handlers

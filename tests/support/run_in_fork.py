"""Runs of `pretrain.run` in forked processes: what takes seconds to import is imported once.

Each child is a rank of its own, as a launcher would start it; a hook can kill it at a given moment.
"""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

torch.set_num_threads(1)  # before any fork: a thread pool does not survive it

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401  pulls in inductor: seconds

import pretrain.reporting.plots  # noqa: E402, F401  pulls in matplotlib
import pretrain.training.phase  # noqa: E402, F401
from pretrain import run  # noqa: E402

Hook = Callable[[int], None]
# Arguments of a run that takes a second per few steps
TINY = (
    "+model=tiny", "model.hidden_size=32", "model.intermediate_size=64", "optim.global_batch=8",
    "engine.tokens_per_micro_batch=512", "monitor.every_steps=1", "run.name=x",
)  # fmt: skip


def finished_run(argv: Sequence[str], cwd: Path, ranks: int = 1, hook: Hook | None = None) -> str:
    """What `pretrain_run` prints; AssertionError unless every rank ends with 0."""
    statuses, output = pretrain_run(argv, cwd, ranks=ranks, hook=hook)
    assert statuses == [0] * ranks, output
    return output


def pretrain_run(
    argv: Sequence[str], cwd: Path, *, ranks: int = 1, hook: Hook | None = None
) -> tuple[list[int], str]:
    """`python -m pretrain.run ARGV` on so many ranks: exit statuses and all they printed.

    A negative status is a signal's number. Once one rank fails, the others are ended as a launcher
    does. `hook(rank)` runs first in each child.
    """
    output, port = cwd / "output.txt", _free_port()
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_child, args=(argv, cwd, output, rank, ranks, port, hook))
        for rank in range(ranks)
    ]
    output.write_bytes(b"")
    for child in children:
        child.start()
    for child in children:
        child.join(240)
        if child.exitcode != 0:
            for other in children:
                other.terminate()
                other.join(2)
                other.kill()
    for child in children:
        child.join()
    statuses = [99 if child.exitcode is None else child.exitcode for child in children]
    return statuses, output.read_text(errors="replace")


def _child(
    argv: Sequence[str], cwd: Path, output: Path, rank: int, ranks: int, port: int,
    hook: Hook | None,
) -> None:  # fmt: skip
    os.chdir(cwd)
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False, buffering=1)
    if ranks > 1:
        given = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in given.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    status = 1
    try:
        if hook is not None:
            hook(rank)
        status = run.main(argv)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

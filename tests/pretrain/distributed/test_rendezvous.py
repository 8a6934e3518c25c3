"""Missing ranks, and ranks that share a GPU, are named before the first collective."""

import dataclasses
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks_harness import run_ranks
from run_in_fork import _free_port

from data_prep.core.config import SettingsError
from pretrain.distributed import ranks as ranks_module
from pretrain.distributed import rendezvous
from pretrain.distributed.ranks import Ranks
from pretrain.distributed.rendezvous import RankInfo, check_devices, check_in

A100, H100 = "NVIDIA A100-SXM4-80GB, 79 GiB", "NVIDIA H100 80GB HBM3, 79 GiB"


def info(
    rank: int, host: str = "node1", device: str = A100, unit: str | None = None, fault: str = ""
) -> RankInfo:
    unit = f"gpu-{rank}" if unit is None else unit
    return RankInfo(rank, host, 100 + rank, device, unit, fault)


def start(rank: int, port: int, folder: Path, limit_s: float, variables: dict[str, str]) -> None:
    """What a rank of three says when it is started, into a file of its own."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), **variables,
    )  # fmt: skip
    try:
        ranks = ranks_module.start(timeout_minutes=limit_s / 60)
        ranks.barrier()  # rank 0 holds what the others still need to join
        said = "it has started"
    except (RuntimeError, ValueError) as error:  # a SettingsError is a ValueError
        said = f"{type(error).__name__}: {error}"
    (folder / str(rank)).write_text(said)
    os._exit(0)


def started(these: Sequence[int], folder: Path, limit_s: float = 1, **variables: str) -> list[str]:
    """What these ranks of three say, the others of which never come."""
    context, port = multiprocessing.get_context("fork"), _free_port()
    processes = [
        context.Process(target=start, args=(rank, port, folder, limit_s, variables))
        for rank in these
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [(folder / str(rank)).read_text() for rank in these]


@pytest.mark.distributed
@pytest.mark.parametrize("is_in_a_step", [False, True])
def test_whom_rank_0_waits_for_is_printed_long_before_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, is_in_a_step: bool
) -> None:
    monkeypatch.setattr(rendezvous, "_PATIENCE", timedelta(seconds=0.1))
    monkeypatch.setattr(rendezvous.os, "environ", {} if is_in_a_step else {"RANK": "0"})
    own = RankInfo(0, "node1", 1, "a CPU", "")
    store = torch.distributed.HashStore()
    with pytest.raises(SettingsError, match="rank 1 of 2 did not check in"):
        check_in(store, own, 2, timedelta(seconds=0.5))
    line = (
        "pretrain.run: waiting for rank 1 of 2, up to 0.00833333 minutes (engine.timeout_minutes)"
    )
    hint = (
        "; this is task 0 of 2 of a Slurm step; in an interactive shell: srun -n1, or unset "
        "SLURM_PROCID"
    )
    assert capfd.readouterr().err == f"{line}{hint if is_in_a_step else ''}\n"


@pytest.mark.distributed
def test_a_rank_that_does_not_come_is_named_on_every_rank_that_has(tmp_path: Path) -> None:
    said = started([0, 1], tmp_path)
    for text in said:
        assert re.match(
            r"SettingsError: rank 2 of 3 did not check in with rank 0 on \S+ within 0.01\d* "
            r"minutes \(engine.timeout_minutes\); look at their output",
            text,
        ), text


@pytest.mark.distributed
def test_nodes_from_which_nobody_has_come_are_named(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho {os.uname().nodename} node7 node8\n")
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    said = started([0], tmp_path, PATH=path, SLURM_STEP_NODELIST="any", SLURMD_NODENAME="")
    assert "ranks 1, 2 of 3 did not check in" in said[0]
    assert "no rank came from node7, node8: look at these nodes" in said[0]


@pytest.mark.distributed
def test_without_rank_0_the_others_log_which_ranks_are_missing(tmp_path: Path) -> None:
    (said,) = started([1], tmp_path)
    assert re.match(r"RuntimeError: rank 1 on \S+ does not reach rank 0 at 127.0.0.1:\d+", said)


@pytest.mark.distributed
def test_when_all_have_come_they_start(tmp_path: Path) -> None:
    assert started([0, 1, 2], tmp_path, limit_s=60) == ["it has started"] * 3


def check_in_with(ranks: Ranks, change: Callable[[RankInfo], RankInfo]) -> str:
    store = torch.distributed.distributed_c10d._get_default_store()
    try:
        check_in(store, change(info(ranks.rank)), ranks.world_size, timedelta(seconds=30))
    except (RuntimeError, ValueError) as error:  # a SettingsError is a ValueError
        return f"{type(error).__name__}: {error}"
    return "all are here"


def test_ranks_meet_in_the_newest_start_of_a_store_that_holds_one_before(monkeypatch) -> None:
    """torchrun's store, after the ranks of one node alone were counted as restarted."""
    store, looked = torch.distributed.HashStore(), threading.Event()

    def look(seconds: float) -> None:
        looked.set()
        time.sleep(seconds)

    clock = SimpleNamespace(sleep=look, monotonic=time.monotonic)
    monkeypatch.setattr(rendezvous, "time", clock)
    starts = []
    with ThreadPoolExecutor() as pool:
        for _ in range(2):
            looked.clear()
            arguments = 2, timedelta(seconds=30)
            other = pool.submit(check_in, store, info(1), *arguments)
            assert looked.wait(30)  # rank 1 has found the start before, or none
            starts.append((check_in(store, info(0), *arguments), other.result()))
    starts[0][0].set("of the first start", "")
    starts[1][0].set("of the second start", "")
    assert starts[1][1].check(["of the second start"])
    assert not starts[1][1].check(["of the first start"])


def all_on_one_gpu(info: RankInfo) -> RankInfo:
    return dataclasses.replace(info, unit="gpu-0" if info.rank < 2 else info.unit)


@pytest.mark.distributed
def test_two_ranks_on_one_gpu_are_named_on_every_rank() -> None:
    said = run_ranks(check_in_with, 3, change=all_on_one_gpu)
    expected = "SettingsError: rank 0 on node1 and rank 1 on node1 have the same GPU (gpu-0)"
    assert all(text.startswith(expected) for text in said), said


@pytest.mark.distributed
def test_ranks_with_a_gpu_each_begin() -> None:
    assert run_ranks(check_in_with, 3, change=lambda info: info) == ["all are here"] * 3


def test_gpus_of_another_kind_are_one_sentence_however_many_they_are() -> None:
    infos = [info(rank, f"node{rank // 8}", H100 if rank >= 24 else A100) for rank in range(32)]
    (fault,) = check_devices(infos)
    assert fault.startswith(
        f"8 of 32 ranks, the first of them rank 24 on node3, have {H100}, "
        f"rank 0 on node0 has {A100}; "
    )


def test_ranks_may_share_a_cpu() -> None:
    infos: list[Any] = [info(rank, device="a CPU", unit="") for rank in range(4)]
    assert check_devices(infos) == []

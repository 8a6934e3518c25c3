"""Two ranks that step together by barriers: one is stopped, killed or hangs elsewhere."""

import functools
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from killing import at_step
from ranks_harness import run_ranks
from run_in_fork import TINY, pretrain_run
from torch.distributed.flight_recorder.components.loader import read_dump

from pretrain.distributed.flight_recorder import describe, record_collectives
from pretrain.distributed.rank_logs import RankOutput
from pretrain.distributed.ranks import Ranks
from pretrain.distributed.watchdog import (
    Activity,
    Heartbeat,
    Watchdog,
    _beats_in,
    _line_of,
    beat_seconds,
    remove_heartbeats,
)

pytestmark = pytest.mark.distributed

LIMIT_S = 3.0


def work(
    ranks: Ranks, folder: Path, trouble: Callable[[int], None], silent_rank: int,
    limit_s: float = LIMIT_S, per_node: int = 8,
) -> None:  # fmt: skip
    """Five steps; in the fourth one rank gets into trouble while it reads."""
    log = folder / "logs" / f"rank-{ranks.rank}.log"
    RankOutput(0).log_to(log)
    told = (folder / f"told-{ranks.rank}").write_text
    with Watchdog(
        folder, log, ranks.rank, ranks.world_size, limit_s, lambda line: told(line) and None,
        ranks.rank % per_node,
    ) as watchdog:  # fmt: skip
        for step in range(5):
            watchdog.begin("reading", step)
            if step == 3 and ranks.rank == silent_rank:
                trouble(os.getpid())
            watchdog.begin("a barrier", step)
            ranks.barrier()


def hang(pid: int) -> None:
    threading.Event().wait()


def stop(pid: int, number: int = signal.SIGSTOP) -> None:
    os.kill(pid, number)


def logs(folder: Path, trouble: Callable[[int], None], silent_rank: int = 1) -> list[str]:
    """What two ranks wrote; both had to end in time, or were ended after the other."""
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"exit code|had not ended"):
        run_ranks(work, 2, folder=folder, trouble=trouble, silent_rank=silent_rank, timeout_s=60)
    assert time.monotonic() - started < 30
    return [(folder / f"logs/rank-{rank}.log").read_text() for rank in range(2)]


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two ranks of which rank 1 hung."""
    folder = tmp_path_factory.mktemp("hung")
    logs(folder, hang)
    return folder


def test_a_rank_that_hangs_ends_both_with_their_stacks_and_is_named_by_both(hung: Path) -> None:
    waiting, hanging = ((hung / f"logs/rank-{rank}.log").read_text() for rank in range(2))
    for log in (waiting, hanging):
        assert "no progress for" in log
        assert "rank 0 in a barrier after step 3: waiting for rank 1, which is still in" in log
        assert "reading after step 3" in log
        assert "most recent call first" in log
        assert "native stacks" in log
    assert "in barrier" in waiting
    assert "in hang" in hanging


def test_every_rank_dumps_its_collectives_and_the_report_names_them(hung: Path) -> None:
    log = (hung / "logs/rank-0.log").read_text()
    assert re.search(
        r"; on the device rank 0 in all_reduce (\d+) of default_pg \(Long\[\]\); "
        r"rank 1 in no collective, the last was all_reduce \d+ of default_pg",
        log,
    ), log
    dumps = sorted((hung / "collectives").iterdir())
    assert [dump.name for dump in dumps] == ["rank_00000", "rank_00001"]
    of_rank_0, of_rank_1 = (read_dump("rank_", str(dump))["entries"] for dump in dumps)
    assert len(of_rank_0) == len(of_rank_1) + 1, "rank 1 is not in the last one"


def test_a_run_that_ends_in_order_dumps_nothing(tmp_path: Path) -> None:
    run_ranks(end_in_order, 2, folder=tmp_path)
    assert not (tmp_path / "collectives").exists()


def test_a_collective_of_nccl_is_described_by_kind_number_group_and_size() -> None:
    def entry(number: int, state: str, retired: bool = False) -> dict[str, Any]:
        return {
            "record_id": number, "collective_seq_id": number, "state": state, "retired": retired,
            "profiling_name": "nccl:_reduce_scatter_base", "process_group": ["0", "default_pg"],
            "input_dtypes": ["Float"], "input_sizes": [[1344]],
        }  # fmt: skip

    name = "_reduce_scatter_base 2 of default_pg (Float[1344])"
    ended, started, queued = entry(1, "completed"), entry(2, "started"), entry(3, "scheduled")
    assert describe({"entries": [queued, started, ended]}) == f"in {name}, and 1 queued after it"
    assert describe({"entries": [entry(2, "scheduled", retired=True)]}) == (
        f"in no collective, the last was {name}"
    )
    assert describe({}) == "in no collective"


@pytest.mark.parametrize("name", ["TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"])
def test_collectives_are_recorded_unless_a_variable_says_otherwise(monkeypatch, name) -> None:
    for each in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "7")
    record_collectives()
    assert os.environ[name] == "7"
    monkeypatch.delenv(name)
    record_collectives()
    assert os.environ.pop("TORCH_FR_BUFFER_SIZE") == "2000"


def test_a_stopped_rank_is_named_and_the_other_ends_with_its_stacks(tmp_path: Path) -> None:
    log, _ = logs(tmp_path, stop)
    assert "rank 0 in a barrier after step 3: waiting for rank 1, which sends no heartbeat" in log
    assert "(stopped, dead or disconnected; last heartbeat in " in log
    assert "in barrier" in log


@pytest.mark.slow
def test_if_rank_0_is_silent_another_one_prints_to_the_terminal(tmp_path: Path) -> None:
    logs(tmp_path, stop, silent_rank=0)
    assert "waiting for rank 0, which sends no heartbeat" in (tmp_path / "told-1").read_text()


def rank_1_gives_up_first(ranks: Ranks, folder: Path) -> None:
    work(ranks, folder, stop, silent_rank=2, limit_s=LIMIT_S * (1 if ranks.rank == 1 else 2))


@pytest.mark.slow
def test_the_first_rank_to_give_up_prints_to_the_terminal_and_the_others_log(tmp_path) -> None:
    with pytest.raises(RuntimeError, match=r"exit code|had not ended"):
        run_ranks(rank_1_gives_up_first, 3, folder=tmp_path)
    told = "waiting for rank 2, which sends no heartbeat"
    assert told in (tmp_path / "told-1").read_text()
    later = (tmp_path / "logs/rank-0.log").read_text()
    assert told in later
    assert "CRITICAL" not in later


@pytest.mark.slow
def test_a_later_start_prints_its_error_even_if_an_earlier_one_did(tmp_path: Path) -> None:
    for _ in range(2):
        (tmp_path / "told-1").unlink(missing_ok=True)
        remove_heartbeats(tmp_path)
        logs(tmp_path, stop, silent_rank=0)
        assert (tmp_path / "told-1").exists()


def test_a_killed_rank_is_named_as_soon_as_the_connection_breaks(tmp_path: Path) -> None:
    log, _ = logs(tmp_path, functools.partial(stop, number=signal.SIGKILL))
    waiting = "rank 0 in a barrier after step 3: waiting for rank 1"
    assert f"this rank ends with an error; {waiting}" in log
    assert "ranks.barrier()" in log, "its stack, too"


def end_in_order(ranks: Ranks, folder: Path) -> None:
    work(ranks, folder, hang, silent_rank=-1)


def test_a_run_that_ends_in_order_leaves_no_beats(tmp_path: Path) -> None:
    run_ranks(end_in_order, 2, folder=tmp_path)
    assert list((tmp_path / "heartbeats").iterdir()) == []


@pytest.mark.slow
def test_a_run_with_a_stopped_rank_ends_by_itself(sample_dir: Path, tmp_path: Path) -> None:
    own = [f"data.dir={sample_dir}", "eval.max_examples=8", "engine.timeout_minutes=0.5"]
    stopped = at_step(3, signal.SIGSTOP, of_rank=1)
    statuses, output = pretrain_run([*TINY, *own], tmp_path, ranks=2, hook=stopped)
    assert statuses == [1, -signal.SIGKILL], output
    assert "rank 0 in the training step after step 2: waiting for rank 1" in output
    assert "train_step" in (tmp_path / "runs/x/logs/rank-00000.log").read_text()


def test_a_thousand_ranks_write_few_heartbeats_and_each_still_some_in_the_limit() -> None:
    limit_s = 0.8 * 60 * 30
    assert beat_seconds(limit_s, 8) == 5
    assert 1024 / beat_seconds(limit_s, 1024) < 50
    assert beat_seconds(10, 1024) < 1


def beat_as_on_nodes(ranks: Ranks, folder: Path, local_ranks: list[int]) -> Any:
    """What each rank reads of all, the files that there are, and what it renamed."""
    renamed: list[Any] = []
    log, number = folder / f"rank-{ranks.rank}.log", ranks.rank
    with (
        pytest.MonkeyPatch.context() as patched,
        Watchdog(folder, log, number, 4, 60.0, print, local_ranks[number]) as watchdog,
    ):
        for name in ("replace", "rename"):
            patched.setattr(os, name, lambda *paths: renamed.append(paths))
        for step in range(3):
            watchdog.begin(f"reading as rank {number}", step)
            watchdog._beat()
        ranks.barrier()
        read = {rank: beat.place.text for rank, beat in watchdog._read_all().items()}
        files = sorted(path.name for path in (folder / "heartbeats").iterdir())
        ranks.barrier()
    return read, files, renamed


@pytest.mark.parametrize(
    ("local_ranks", "files"),
    [
        ([0, 1, 0, 1], ["node-00000.jsonl", "node-00002.jsonl"]),
        # dealt to the nodes in turn, as srun --distribution=cyclic does
        ([0, 0, 1, 1], ["node-00000.jsonl", "node-00001.jsonl", "node-00002.jsonl"]),
    ],
)
def test_the_ranks_of_a_node_share_a_file_and_rename_nothing(tmp_path, local_ranks, files) -> None:
    found = run_ranks(beat_as_on_nodes, 4, folder=tmp_path, local_ranks=local_ranks)
    everyones = {rank: f"reading as rank {rank} after step 2" for rank in range(4)}
    assert found == [(everyones, files, [])] * 4
    assert list((tmp_path / "heartbeats").iterdir()) == []


def test_a_heartbeat_fills_its_line_whatever_its_texts_are() -> None:
    beat = Heartbeat(3, 9, Activity(7, "\0" * 5000), False, "p" * 5000, "\n" * 5000)
    line = _line_of(beat)
    assert len(line) == 4096
    assert line.index(b"\n") == 4095
    assert orjson.loads(line)["place"] == {"number": 7, "text": "\0" * 100}


def test_a_line_that_is_half_written_costs_no_other(tmp_path: Path) -> None:
    beat = Heartbeat(3, 9, Activity(7, "reading"), False, "process 1 on n", "")
    path = tmp_path / "node-00000.jsonl"
    path.write_bytes(bytes(4096) + _line_of(beat) + b'{"rank":4,'.ljust(4095) + b"\n")
    assert _beats_in(path) == [beat]

"""Two ranks that step together by barriers: one is stopped, killed or hangs elsewhere."""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import at_step
from ranks_harness import run_ranks
from run_in_fork import TINY, pretrain_run

from pretrain.distributed.rank_logs import RankOutput
from pretrain.distributed.ranks import Ranks
from pretrain.distributed.watchdog import Watchdog, remove_heartbeats

pytestmark = pytest.mark.distributed

LIMIT_S = 3.0


def work(
    ranks: Ranks, folder: Path, trouble: Callable[[int], None], silent_rank: int,
    limit_s: float = LIMIT_S,
) -> None:  # fmt: skip
    """Five steps; in the fourth one rank gets into trouble while it reads."""
    log = folder / "logs" / f"rank-{ranks.rank}.log"
    RankOutput(0).log_to(log)
    told = (folder / f"told-{ranks.rank}").write_text
    with Watchdog(
        folder, log, ranks.rank, ranks.world_size, limit_s, lambda line: told(line) and None
    ) as watchdog:
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


def test_a_rank_that_hangs_ends_both_with_their_stacks_and_is_named_by_both(tmp_path: Path) -> None:
    for log in logs(tmp_path, hang):
        assert "no progress for" in log
        assert "rank 0 in a barrier after step 3: waiting for rank 1, which is still in" in log
        assert "reading after step 3" in log
        assert "most recent call first" in log
    waiting, hanging = ((tmp_path / f"logs/rank-{rank}.log").read_text() for rank in range(2))
    assert "in barrier" in waiting
    assert "in hang" in hanging


def test_a_stopped_rank_is_named_and_the_other_ends_with_its_stacks(tmp_path: Path) -> None:
    log, _ = logs(tmp_path, stop)
    assert "rank 0 in a barrier after step 3: waiting for rank 1, which sends no heartbeat" in log
    assert "(stopped, dead or disconnected; last heartbeat in " in log
    assert "in barrier" in log


def test_if_rank_0_is_silent_another_one_prints_to_the_terminal(tmp_path: Path) -> None:
    logs(tmp_path, stop, silent_rank=0)
    assert "waiting for rank 0, which sends no heartbeat" in (tmp_path / "told-1").read_text()


def rank_1_gives_up_first(ranks: Ranks, folder: Path) -> None:
    work(ranks, folder, stop, silent_rank=2, limit_s=LIMIT_S * (1 if ranks.rank == 1 else 2))


def test_the_first_rank_to_give_up_prints_to_the_terminal_and_the_others_log(tmp_path) -> None:
    with pytest.raises(RuntimeError, match=r"exit code|had not ended"):
        run_ranks(rank_1_gives_up_first, 3, folder=tmp_path)
    told = "waiting for rank 2, which sends no heartbeat"
    assert told in (tmp_path / "told-1").read_text()
    later = (tmp_path / "logs/rank-0.log").read_text()
    assert told in later
    assert "CRITICAL" not in later


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

"""Ranks as processes: their variables, their ends, and that none is left behind."""

import signal
import time
from pathlib import Path

from pretrain.verification.launcher import Launched, launch

SAY = "import os; print(os.environ.get('RANK'), os.environ.get('WORLD_SIZE'), flush=True)"
WAIT = "import signal; print('waits', flush=True); signal.pause()"


def start(code: str, num_ranks: int, output: Path) -> Launched:
    return launch([code], num_ranks, output, program=["-c"])


def wait_for(text: str, count: int, launched: Launched) -> None:
    end = time.monotonic() + 30
    while launched.output.read_text().count(text) < count:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_rank_knows_its_number_and_the_number_of_all(tmp_path: Path) -> None:
    with start(SAY, 3, tmp_path / "output") as launched:
        assert launched.wait(30) == [0, 0, 0]
    assert sorted(launched.output.read_text().split("\n")[:-1]) == ["0 3", "1 3", "2 3"]


def test_a_single_rank_starts_as_bare_python_does(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "5")
    say = f"{SAY}; print(os.environ.get('SLURM_PROCID'))"
    with start(say, 1, tmp_path / "output") as launched:
        assert launched.wait(30) == [0]
    assert launched.output.read_text() == "None None\nNone\n"


def test_when_one_rank_fails_the_others_are_ended(tmp_path: Path) -> None:
    fail = f"import os, sys; sys.exit(3) if os.environ['RANK'] == '1' else None; {WAIT}"
    with start(fail, 2, tmp_path / "output") as launched:
        assert launched.wait(30) == [-signal.SIGKILL, 3]


def test_a_signal_goes_to_the_ranks_that_are_named(tmp_path: Path) -> None:
    with start(WAIT, 2, tmp_path / "output") as launched:
        wait_for("waits", 2, launched)
        launched.send(signal.SIGTERM, ranks=[1])
        launched.processes[1].wait(30)
        assert launched.statuses == [None, -signal.SIGTERM]


def test_no_process_outlives_the_context(tmp_path: Path) -> None:
    with start(WAIT, 2, tmp_path / "output") as launched:
        wait_for("waits", 2, launched)
    assert launched.statuses == [-signal.SIGKILL] * 2

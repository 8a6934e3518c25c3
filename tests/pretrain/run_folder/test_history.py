"""What the files of a run's folder tell of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from made_history import BEGAN, MadeRun, killed_and_stopped

from data_prep.core.config import SettingsError
from data_prep.core.files import place, write_json
from pretrain import runs
from pretrain.run_folder.history import History, State


def test_every_stretch_lists_what_it_made_lost_and_how_it_ended(tmp_path: Path) -> None:
    run = History.read(killed_and_stopped(tmp_path / "x").folder)
    told = [
        (s.kind, s.ranks, s.first_step, s.last_step, s.lost_steps, s.end) for s in run.stretches
    ]
    assert told == [
        ("started", 2, 0, 50, 10, "died"),
        ("resumed", 4, 40, 70, 0, "stopped"),
        ("resumed", 4, 70, 100, 0, "finished"),
    ]
    assert run.state is State.finished


def test_times_are_from_the_first_step_to_the_last_sign_of_life(tmp_path: Path) -> None:
    run = History.read(killed_and_stopped(tmp_path / "x").folder)
    assert run.stretches[0].began == BEGAN
    assert run.wall_s == 170
    assert run.running_s == 50 + 30 + 30
    assert [s.counted_until.second for s in run.stretches] == [40, 50, 50]


def test_a_run_that_went_back_before_a_spike_goes_on_in_another_stretch(tmp_path: Path) -> None:
    made = MadeRun(tmp_path / "x")
    made.event(0, "started", step=0, ranks=1)
    made.record(10, 10, train__loss=5.0)
    made.event(20, "spike", step=20, loss=50.0)
    made.event(21, "lost", after=10, up_to=20, until=(BEGAN.isoformat()[:-6] + "+00:00"))
    made.event(21, "rewound", step=10, ranks=1)
    made.record(30, 20, train__loss=5.0)
    run = History.read(made.folder)
    assert [(s.kind, s.lost_steps, s.end) for s in run.stretches] == [
        ("started", 10, "rewound"),
        ("rewound", 0, "died"),
    ]


def test_a_last_phase_finishes_the_run_and_an_earlier_one_does_not(tmp_path: Path) -> None:
    made = MadeRun(tmp_path / "x", "recipe=nvidia_lamb")
    made.event(0, "started", step=0, ranks=1)
    made.record(10, 100, train__loss=5.0)
    made.event(11, "finished", phase=1, step=100)
    assert History.read(made.folder).state is State.died
    made.event(12, "resumed", step=100, ranks=1)
    made.event(20, "finished", phase=2, step=1663)
    run = History.read(made.folder)
    assert run.state is State.finished
    assert [s.end for s in run.stretches] == ["phase finished", "finished"]
    assert run.total_steps == 100 + 1563


@pytest.mark.parametrize(
    ("owner", "state"),
    [
        ({"place": place(), "pid": os.getpid()}, State.running),
        ({"place": place(), "pid": 2**22 + 1}, State.died),
        ({"host": os.uname().nodename, "place": "another container", "pid": 2**22}, State.running),
    ],
)
def test_a_run_runs_while_its_owner_lives(tmp_path: Path, owner: dict, state: State) -> None:
    made = MadeRun(tmp_path / "x")
    made.event(0, "started", step=0, ranks=1)
    made.record(10, 10, train__loss=5.0)
    write_json(made.folder / "owner.json", owner)
    assert History.read(made.folder).state is state


def test_an_owner_elsewhere_without_a_heartbeat_for_long_is_dead(tmp_path: Path) -> None:
    made = MadeRun(tmp_path / "x")
    made.event(0, "started", step=0, ranks=1)
    write_json(made.folder / "owner.json", {"place": "elsewhere", "pid": 1})
    long_ago = time.time() - 3600
    os.utime(made.folder / "owner.json", (long_ago, long_ago))
    assert History.read(made.folder).state is State.died


def test_a_line_that_a_kill_left_half_is_no_error(tmp_path: Path) -> None:
    made = killed_and_stopped(tmp_path / "x")
    with (made.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 101, "tr')
    run = History.read(made.folder)
    assert run.step == 100


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"config.yaml is missing; run= takes the folder"):
        History.read(tmp_path)


def test_a_run_of_a_version_without_times_is_refused(tmp_path: Path) -> None:
    made = MadeRun(tmp_path / "x")
    (made.folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    with pytest.raises(SettingsError, match=r"required field time.*use the version of this"):
        History.read(made.folder)


def test_a_run_before_its_first_step_is_empty(tmp_path: Path) -> None:
    run = History.read(MadeRun(tmp_path / "x").folder)
    assert (run.state, run.step, run.wall_s) == (State.empty, 0, 0)


def test_all_runs_are_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    killed_and_stopped(tmp_path / "done")
    MadeRun(tmp_path / "new")
    running = MadeRun(tmp_path / "now")
    running.event(0, "started", step=0, ranks=1)
    running.record(30, 25, train__mlm_loss=6.5, train__nsp_loss=0.5, perf__tokens_per_second=1234.0)
    write_json(running.folder / "owner.json", {"place": place(), "pid": os.getpid()})
    assert runs.main([f"dir={tmp_path}"]) == 0
    head, done, new, now = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["run", "state", "step", "of", "starts"]
    assert done.split() == [
        "done", "finished", "100", "100", "3", "4.000", "–", "4.250", "2,000", "59%", "–"
    ]  # fmt: skip
    assert new.split()[:4] == ["new", "empty", "0", "100"]
    assert now.split() == [
        "now", "running", "25", "100", "1", "6.500", "0.500", "–", "1,234", "–", "0:01:30"
    ]  # fmt: skip


def test_a_run_that_cannot_be_read_hides_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_and_stopped(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.yaml").write_text("model: 3\n")
    assert runs.main([f"dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "bad   unreadable" in out
    assert "good  finished" in out


def test_a_folder_without_runs_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.main([f"dir={tmp_path}"]) == 2
    assert "holds no run" in capsys.readouterr().err

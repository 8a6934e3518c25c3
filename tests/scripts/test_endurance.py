"""The long run laid over itself: its plan, its comparison, its picture, and a short one for real."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from scripts import endurance
from scripts.endurance import DEFAULTS, Panel, Part, compare, draw, plan

STEPS = 10
MET = [
    {"kind": "kill one", "step": 3, "ranks": 2},
    {"kind": "change", "step": 4, "ranks": 2},
    {"kind": "kill all", "step": 5, "ranks": 1},
    {"kind": "change", "step": 6, "ranks": 1},
]


def part(folder: Path, losses: dict[int, float]) -> Part:
    folder.mkdir()
    lines = [
        json.dumps({"step": step, "train/loss": losses.get(step, 1.0), "perf/x": id(folder)})
        for step in range(1, STEPS + 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    return Part(folder, [], STEPS)


def test_the_same_seed_draws_the_same_kills() -> None:
    assert plan(DEFAULTS) == plan(DEFAULTS)
    assert plan(DEFAULTS) != plan({**DEFAULTS, "seed": 2})


def test_kills_of_one_rank_and_of_all_take_turns() -> None:
    kills = [end.kind for end in plan(DEFAULTS).ends if end.kind != "change"]
    assert kills == ["kill one", "kill all"] * 5


def test_the_middle_of_the_run_has_another_number_of_ranks() -> None:
    planned = plan(DEFAULTS)
    for number, end in enumerate(planned.ends):
        assert planned.ranks_after(number) == (1 if 800 < end.step <= 1200 else 2), end
    assert planned.ranks_after(len(planned.ends)) == 2


def test_where_the_number_of_ranks_is_the_same_nothing_changes() -> None:
    assert plan({**DEFAULTS, "other_ranks": 2}).changes == 0


def test_equal_figures_hold(tmp_path: Path) -> None:
    result = compare(part(tmp_path / "a", {}), part(tmp_path / "b", {}), MET)
    assert (result["holds"], result["first_difference"]) == (True, None)


def test_a_difference_before_the_ranks_change_does_not_hold(tmp_path: Path) -> None:
    result = compare(part(tmp_path / "a", {}), part(tmp_path / "b", {4: 1.0 + 2**-52}), MET)
    assert (result["holds"], result["first_difference"]) == (False, 4)


def test_beyond_the_change_differences_are_stated(tmp_path: Path) -> None:
    result = compare(part(tmp_path / "a", {}), part(tmp_path / "b", {5: 1.5, 9: 0.75}), MET)
    assert (result["holds"], result["equal_steps"]) == (True, 8)
    assert result["largest_differences"] == {"train/loss": 0.5}


def test_the_picture_names_both_runs_the_kills_and_the_other_ranks(tmp_path: Path) -> None:
    shown = [Panel("train/loss", "loss", 1.2, "by guessing"), Panel("train/loss", "again", None)]
    figure = draw(part(tmp_path / "a", {}), part(tmp_path / "b", {}), MET, shown, "a title")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "straight", "through kills", "SIGKILL to one rank", "SIGKILL to all ranks", "on 1 rank",
    ]  # fmt: skip
    figure.savefig(buffer := io.BytesIO())
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_without_a_folder_nothing_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert endurance.main(["steps=10"]) == 2
    assert "add out=FOLDER" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_through_kills_and_a_change_of_ranks_is_that_without(
    sample_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [
        f"data.dir={sample_dir}", "steps=30", "kills=2", f"out={tmp_path}", "optim.global_batch=8",
        "model.hidden_size=64", "model.intermediate_size=128", "model.hidden_dropout_prob=0",
        "eval.every_steps=10", "eval.max_examples=64", "checkpoint.every_steps=5",
    ]  # fmt: skip
    assert endurance.main(typed) == 0, capsys.readouterr()
    result = json.loads((tmp_path / "endurance.json").read_bytes())
    assert [end["kind"] for end in result["ends"]].count("change") == 2
    assert result["first_difference"] is None or result["first_difference"] > 12
    assert result["largest_differences"]["train/loss"] < 1e-4
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")
    assert endurance.main(typed) == 0  # all is done already

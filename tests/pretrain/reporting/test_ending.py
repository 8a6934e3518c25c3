"""The end of a run: the picture of its loss, the sparkline, and the commands that follow."""

import io
import shlex
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from made_history import MadeRun, killed_and_stopped

from data_prep.core.command import CONSOLE
from pretrain.reporting.ending import BLOCKS, PLAIN, ending, levels_for, next_commands, sparkline
from pretrain.reporting.plots import COLOURS
from pretrain.run_folder.history import History

PAGE = Path(__file__).resolve().parents[3] / "pretrain/reporting/report.html"


def test_a_sparkline_falls_with_the_values() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 8) == BLOCKS[::-1]


def test_a_sparkline_is_no_wider_than_its_columns_and_shows_means() -> None:
    assert sparkline([0.0, 2.0, 9.0, 7.0, 3.0, 5.0], 3) == "▁█▄"
    assert len(sparkline([float(n) for n in range(1000)], 48)) == 48


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0, 3.0]])
def test_equal_values_are_a_level_line(values: list[float]) -> None:
    assert sparkline(values, 48) == BLOCKS[0] * len(values)


@pytest.mark.parametrize(
    ("encoding", "levels"), [("utf-8", BLOCKS), ("ascii", PLAIN), ("latin-1", PLAIN), (None, PLAIN)]
)
def test_a_terminal_without_the_blocks_gets_ascii(encoding: str | None, levels: str) -> None:
    assert levels_for(encoding) == levels


def test_a_run_ends_with_its_loss_and_three_commands_in_eighty_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    killed_and_stopped(Path("runs/demo"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    lines = ending(Path("runs/demo"))
    assert "  training MLM loss  8.50 #*++=-::,. 4.00" in lines
    assert [line for line in lines if len(line) > 80 or not line.isascii()] == []
    assert [line.split()[2] for line in lines if "python" in line] == [
        "pretrain.report", "scripts.predict", "scripts.finetune_classification",
    ]  # fmt: skip


def test_after_a_console_command_the_next_ones_are_console_commands(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # the checkout may hold the sample
    monkeypatch.setenv(CONSOLE, "1")
    commands = next_commands(History.read(MadeRun(tmp_path / "x").folder))
    assert [command.split("=")[0] for command in commands] == [
        "bert-pretrain report run", "bert-predict model", "bert-finetune classification +task",
    ]  # fmt: skip


def test_after_the_sample_the_next_text_is_ones_own(tmp_path: Path) -> None:
    (tmp_path / "data/documents/sample").mkdir(parents=True)
    run = MadeRun(tmp_path / "a run", f"data.dir={tmp_path / 'data'}")
    commands = next_commands(History.read(run.folder))
    assert "data_prep.collect +source=books" in commands[-1]
    assert f"run={run.folder}" in shlex.split(commands[0])


def test_the_picture_is_a_drawing_of_its_own_in_the_page_s_colours(tmp_path: Path) -> None:
    made = killed_and_stopped(tmp_path / "x")
    ending(made.folder)
    drawn = (made.folder / "loss.svg").read_text()
    assert {"MLM loss", "training", "held-out"} <= {*ET.fromstring(drawn).itertext()}
    assert "var(" not in drawn
    assert not [placeholder for placeholder in COLOURS if placeholder in drawn]
    light = PAGE.read_text().split("@media")[0]
    assert all(f"{variable}: {colour}" in light for variable, colour in COLOURS.values())


def test_a_picture_that_cannot_be_written_is_named_in_a_line(tmp_path: Path) -> None:
    made = killed_and_stopped(tmp_path / "x")
    (made.folder / "loss.svg").mkdir()
    [line] = ending(made.folder)
    assert "no picture of the loss" in line
    assert "loss.svg" in line


def test_a_run_without_records_has_the_commands_alone(tmp_path: Path) -> None:
    made = MadeRun(tmp_path / "x")
    assert ending(made.folder)[:2] == ["", "  next"]
    assert not (made.folder / "loss.svg").exists()

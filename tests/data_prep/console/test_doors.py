"""The console commands find the module that was meant, and say which there are."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from data_prep.console import doors
from data_prep.core.command import CONSOLE, as_typed
from data_prep.core.entry import commands

PROJECT = Path(__file__).resolve().parents[3]


class Started(Exception):
    """In place of the module that would replace this process."""


@pytest.fixture
def type_(monkeypatch: pytest.MonkeyPatch):
    """Types a command: the words after `python` of what it starts, or its exit status."""

    def start(program: str, words: list[str]) -> None:
        raise Started(words[1:])

    def type_(name: str, *words: str):
        monkeypatch.setattr(os, "execv", start)
        monkeypatch.setattr(sys, "argv", [f"bert-{name}", *words])
        try:
            return getattr(doors, name)()
        except Started as started:
            return started.args[0]

    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setenv(CONSOLE, "")
    return type_


@pytest.mark.parametrize(
    ("typed", "module", "left"),
    [
        ("data collect +source=books data_dir=x", "data_prep.collect", 2),
        ("data status --help", "data_prep.status", 1),
        ("pretrain +model=base run.name=x", "pretrain.run", 2),
        ("pretrain", "pretrain.run", 0),
        ("pretrain --cfg +model=tiny", "pretrain.run", 2),
        ("pretrain --config-dir mine +model=tiny", "pretrain.run", 3),
        ("pretrain @runs/x.yaml", "pretrain.run", 1),
        ("pretrain run --help", "pretrain.run", 1),
        ("pretrain plan +model=large", "pretrain.plan", 1),
        ("finetune qa +task=squad", "scripts.finetune_qa", 1),
        ("predict model=x plan", "scripts.predict", 2),
    ],
)
def test_a_command_starts_its_module_with_what_was_typed(type_, typed, module, left) -> None:
    words = typed.split()
    assert type_(*words) == ["-m", module, *words[len(words) - left :]]


def test_a_file_in_the_current_folder_takes_no_package_s_place(type_) -> None:
    type_("pretrain", "+model=tiny")
    assert os.environ["PYTHONSAFEPATH"] == "1"


@pytest.mark.parametrize("name", ["data", "pretrain", "finetune", "predict"])
def test_the_version_is_that_of_the_distribution(type_, capsys, name) -> None:
    assert type_(name, "--version") == 0
    assert capsys.readouterr().out == f"bert-pretraining {version('bert-pretraining')}\n"


def test_every_command_of_the_packages_has_a_door() -> None:
    reached = [*doors.DATA.words().values(), *doors.PRETRAIN.words().values(), "scripts.predict"]
    assert set(reached) == {
        name
        for name in commands()
        if name.split(".")[0] in ("data_prep", "pretrain") or name == "scripts.predict"
    }


@pytest.mark.parametrize("name", ["data", "pretrain", "finetune"])
def test_help_lists_the_commands_with_what_they_do(type_, capsys, name) -> None:
    assert type_(name, "--help") == 0
    shown = capsys.readouterr().out
    door = getattr(doors, name.upper())
    assert [word for word in door.words() if f"\n  {word} " not in shown] == (
        ["run"] if door.default else []
    )


def test_a_slip_in_a_command_is_one_line_with_what_was_meant(type_, capsys) -> None:
    assert type_("pretrain", "exprt") == 2
    refused = capsys.readouterr().err
    assert refused.startswith("bert-pretrain: there is no 'exprt'; did you mean bert-pretrain expo")
    assert refused.count("\n") == 1


def test_a_word_like_no_command_is_answered_with_those_there_are(type_, capsys) -> None:
    assert type_("finetune", "xyz") == 2
    refused = capsys.readouterr().err
    assert refused == (
        "bert-finetune: there is no 'xyz'; there are classification, qa, table, tagging\n"
    )


def test_a_door_without_a_default_needs_a_word(type_, capsys) -> None:
    assert type_("data") == 2
    assert "collect" in capsys.readouterr().out


def test_the_doors_are_the_commands_that_pip_installs() -> None:
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert declared == {
        door.name: f"data_prep.console.doors:{door.name.removeprefix('bert-')}"
        for door in (doors.DATA, doors.PRETRAIN, doors.FINETUNE, doors.PREDICT)
    }


@pytest.mark.parametrize("door", [doors.DATA, doors.PRETRAIN, doors.FINETUNE, doors.PREDICT])
def test_at_a_console_command_messages_name_console_commands(type_, door) -> None:
    type_(door.name.removeprefix("bert-"), "--version")
    for word, module in door.words().items():
        typed = door.name if module == door.default else f"{door.name} {word}"
        assert as_typed(f"run python -m {module} x=1: {module}.") == f"run {typed} x=1: {typed}."


@pytest.mark.parametrize(
    "text",
    [
        "torchrun --nproc-per-node 8 -m pretrain.run +model=base",
        "python -m scripts.drill",  # has no console command
        "conf/data_prep.yaml, runs/pretrain.run, pretrain.trackers.tracker.Tracker",
    ],
)
def test_what_no_console_command_starts_keeps_its_name(monkeypatch, text) -> None:
    monkeypatch.setenv(CONSOLE, "1")
    assert as_typed(text) == text


def test_without_a_console_command_messages_name_modules(monkeypatch) -> None:
    monkeypatch.delenv(CONSOLE, raising=False)
    assert as_typed("python -m pretrain.run") == "python -m pretrain.run"


def test_the_help_of_a_command_and_its_refusals_name_the_console_command(
    type_, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))

    def ran(*words: str) -> str:
        arguments = [sys.executable, *type_(*words)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert "    bert-pretrain +model=" in ran("pretrain", "run", "--help")
    assert " bert-pretrain +model=tiny recipe=demo " in ran("pretrain", "run", "--help")
    assert "run bert-data vocab" in ran("data", "encode", f"data_dir={tmp_path}")
    assert ran("pretrain", "+mdel=x").startswith("bert-pretrain: ")
    assert ran("pretrain", "push", "x=1").startswith("bert-pretrain push: ")

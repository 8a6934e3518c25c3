"""The console commands find the module that was meant, and say which there are."""

import os
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from data_prep.console import doors
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


def test_a_door_without_a_default_needs_a_word(type_, capsys) -> None:
    assert type_("data") == 2
    assert "collect" in capsys.readouterr().out


def test_the_doors_are_the_commands_that_pip_installs() -> None:
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert declared == {
        door.name: f"data_prep.console.doors:{door.name.removeprefix('bert-')}"
        for door in (doors.DATA, doors.PRETRAIN, doors.FINETUNE, doors.PREDICT)
    }

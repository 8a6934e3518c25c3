"""The `name=value` arguments of the small commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.core.config import SettingsError
from pretrain import export, report, verify
from pretrain.config.arguments import parse_arguments


def command(run: Path, steps: int | None = None, rate: float = 0.5, keep: bool = False) -> None:
    pass


def test_values_have_the_types_of_the_parameters() -> None:
    words = ["run=a=b", "steps=3", "rate=1e-3", "keep=true"]
    assert parse_arguments(command, words) == {
        "run": Path("a=b"), "steps": 3, "rate": 1e-3, "keep": True
    }  # fmt: skip


def test_two_underscores_stand_for_a_dot() -> None:
    def dotted(data__dir: Path, data__seq_len: int | None = None) -> None:
        pass

    assert parse_arguments(dotted, ["data.dir=a_b"]) == {"data__dir": Path("a_b")}
    with pytest.raises(SettingsError, match=r"it takes data\.dir=PATH data\.seq_len=N"):
        parse_arguments(dotted, ["data__dir=x"])
    with pytest.raises(SettingsError, match=r"data\.dir is missing; add data\.dir=PATH"):
        parse_arguments(dotted, ["data.seq_len=3"])


def test_the_last_value_of_a_name_counts() -> None:
    assert parse_arguments(command, ["run=a", "run=b"]) == {"run": Path("b")}


@pytest.mark.parametrize("word", ["runs=x", "run", "run="])
def test_an_unknown_argument_is_refused_with_those_that_are_known(word: str) -> None:
    known = "run=PATH steps=N rate=X keep=true|false"
    message = f"^'{word}' is not an argument of this command; it takes {known}$".replace("|", r"\|")
    with pytest.raises(SettingsError, match=message):
        parse_arguments(command, [word])


@pytest.mark.parametrize(
    ("word", "message"),
    [("steps=two", "steps=two: steps takes N"), ("keep=yes", r"keep takes true\|false")],
)
def test_a_value_of_another_type_is_refused(word: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_arguments(command, ["run=a", word])


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^run is missing; add run=PATH$"):
        parse_arguments(command, ["steps=3"])


@pytest.mark.parametrize(
    ("module", "typed", "message"),
    [
        (export, "", "run is missing; add run=PATH"),
        (export, "runs/x", "'runs/x' is not an argument"),
        (export, "run=runs/x steps=3", "'steps=3' is not an argument"),
        (verify, "run=x step=3", "'step=3' is not an argument of this command; it takes run=PATH"),
        (verify, "run=x steps=2", "steps=2: steps takes 3 or more"),
        (verify, "run=x ranks=two", "ranks=two: ranks takes N"),
        (verify, "run=x keep=maybe", "keep=maybe: keep takes true|false"),
        *((module, "run=nowhere", "nowhere/config.yaml is missing; run= takes the folder of a run")
          for module in (export, report, verify)),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_message_and_status_2(
    module, typed, message, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert module.main(typed.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{module.__name__}: {message}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())

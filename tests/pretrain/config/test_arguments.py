"""The `name=value` arguments of the small commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.core.config import SettingsError
from pretrain import export, report, runs, verify
from pretrain.config.arguments import parse_arguments


def command(run: Path, steps: int | None = None, rate: float = 0.5, keep: bool = False) -> None:
    pass


def test_values_have_the_types_of_the_parameters() -> None:
    words = ["run=a=b", "steps=3", "rate=1e-3", "keep=true"]
    assert parse_arguments(command, words) == {
        "run": Path("a=b"), "steps": 3, "rate": 1e-3, "keep": True
    }  # fmt: skip


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


@pytest.mark.parametrize("module", [export, report, runs, verify])
def test_help_shows_how_to_type_the_command(
    module: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert module.main(["--help"]) == 0  # type: ignore[attr-defined]
    assert f"python -m {module.__name__} " in capsys.readouterr().out  # type: ignore[attr-defined]

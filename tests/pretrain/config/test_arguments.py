from __future__ import annotations

import pytest

from data_prep.core.config import SettingsError
from pretrain import export, report, runs
from pretrain.config.arguments import named_words

KNOWN = {"run": "FOLDER", "steps": "N", "target": "FILE"}


def test_words_are_taken_by_name_and_the_last_of_one_name_holds() -> None:
    words = named_words(["run=a", "target=b=c", "run=d"], KNOWN, needed=["run"])
    assert words == {"run": "d", "target": "b=c"}


@pytest.mark.parametrize("word", ["runs=x", "run", "run="])
def test_a_word_that_is_none_is_named_beside_those_that_are(word: str) -> None:
    message = f"'{word}' is no argument; there are run=FOLDER, steps=N and target=FILE;"
    with pytest.raises(SettingsError, match=message):
        named_words([word], KNOWN)


def test_one_that_is_missing_is_named() -> None:
    with pytest.raises(SettingsError, match="no run is named; add run=FOLDER, as in run=runs/x"):
        named_words(["steps=3"], KNOWN, needed=["run"])


@pytest.mark.parametrize("command", [export, report, runs])
def test_help_shows_how_to_type_it(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0  # type: ignore[attr-defined]
    assert f"python -m {command.__name__} " in capsys.readouterr().out  # type: ignore[attr-defined]

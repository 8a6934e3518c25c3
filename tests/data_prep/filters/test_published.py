"""datatrove's rules as ours: verdicts, languages without blanks, the extra that is missing."""

import sys

import pytest

from data_prep.core.config import SettingsError
from data_prep.filters import published
from data_prep.filters.rules import Changes, Dropped

PROSE = (
    "The river had risen in the night and by noon it stood at the second step of the mill. Nobody "
    "in the village could remember such a flood, and those who had boats went from house to house "
    "with bread and candles. Toward evening the wind turned, the clouds broke over the hills, and "
    "a cold light lay on the fields that had become a lake."
)


@pytest.mark.parametrize(
    ("rule", "text", "reason"),
    [
        (published.gopher_quality, "Too short.", "short doc"),
        (published.gopher_quality, "# " + PROSE.replace(" ", " # "), "too many hashes"),
        (published.gopher_quality, PROSE.replace(" ", " 1914 "), "below alpha threshold"),
        (published.gopher_repetition, f"{PROSE}\n" * 3, "dup line frac"),
        (published.gopher_repetition, f"{PROSE} " * 2, "duplicated 5 n grams"),
        (published.fineweb_quality, PROSE.replace(" ", "\n"), "line punct ratio"),
    ],
)
def test_a_document_is_dropped_by_its_rule_and_prose_passes(rule, text: str, reason: str) -> None:
    assert rule()(text, "en", []) == Dropped(reason)
    assert rule()(PROSE, "en", []) == PROSE


def test_stop_words_are_wanted_of_english_alone() -> None:
    text = " ".join(f"wort{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(60))
    assert published.gopher_quality()(text, "en", []) == Dropped("enough stop words")
    assert published.gopher_quality()(text, "de", []) == text


def test_text_without_blanks_passes_and_is_counted() -> None:
    changes: Changes = []
    assert published.gopher_quality()("他来到北京。", "zh", changes) == "他来到北京。"
    assert changes == [("not judged: no blanks between words", "他来到北京。")]


def test_a_missing_extra_is_named_with_its_command(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datatrove.utils.word_tokenizers", None)
    with pytest.raises(SettingsError, match=r"pip install 'bert-pretraining\[filters\]'"):
        published.require()

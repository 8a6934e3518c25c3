"""Vocabularies of scripts with many characters, or without capitals; and the advice they give."""

from typing import Any

import numpy as np
import pytest

from data_prep.core.records import TextForm
from data_prep.tokenizer.training import train_vocab
from data_prep.tokenizer.vocab_file import SPECIAL_TOKENS, check_casing
from data_prep.tokenizer.wordpiece import Encoder

# Hangul syllables, which stand inside words; Han characters, which are words
SCRIPTS = pytest.mark.parametrize("first", [0xAC00, 0x4E00], ids=["hangul", "han"])


def lines_of(first: int, characters: int = 1200, length: int = 8) -> list[str]:
    """Lines of `characters` distinct characters, each of them twice and the first ones often."""
    rng = np.random.default_rng(0)
    once = rng.permutation(characters)
    often = rng.zipf(1.3, 20 * characters) % 50
    codes = np.concatenate([once, once, often])[: len(once) * 20 // length * length]
    return ["".join(chr(first + code) for code in line) for line in codes.reshape(-1, length)]


def unknown_share(lines: list[str], tokens: list[str]) -> float:
    ids, _ = Encoder(tokens, TextForm(False)).encode(lines)
    return float((ids == tokens.index(SPECIAL_TOKENS["unk"])).mean())


def largest(lines: list[str], lowercase: bool = False, **rules: Any) -> list[str]:
    """A vocabulary of the size that the refusal of a larger one names."""
    with pytest.raises(ValueError, match="set vocab_size=") as refused:
        train_vocab(lambda: [lines], 100_000, TextForm(lowercase), **rules)
    size = int(str(refused.value).rsplit("=", 1)[1])
    return train_vocab(lambda: [lines], size, TextForm(lowercase), **rules)


@SCRIPTS
def test_the_size_that_a_refusal_names_has_room_for_every_character(first: int) -> None:
    lines = lines_of(first)
    assert unknown_share(lines, largest(lines, coverage=1.0)) == 0


def test_an_alphabet_grows_beyond_1000_until_it_covers_the_share_asked_for() -> None:
    lines = lines_of(0x4E00)
    whole = len("".join(lines))
    for coverage in (0.985, 0.99):
        tokens = set(largest(lines, coverage=coverage))
        known = sum(character in tokens for character in "".join(lines))
        assert coverage * whole <= known < coverage * whole + 2
    few = largest(lines, coverage=0.0)
    assert sum(len(token) == 1 for token in few) == 1000


def test_a_cased_vocabulary_of_a_script_without_capitals_is_accepted() -> None:
    check_casing([*SPECIAL_TOKENS.values(), *"กขคงจฉชซ", "##ก", "tv"], lowercase=False)


def test_letters_all_small_are_refused_as_cased_in_latin_greek_and_cyrillic() -> None:
    for letters in ("abcdef", "αβγδεζ", "абвгде"):
        with pytest.raises(ValueError, match="set lowercase=true"):
            check_casing([*SPECIAL_TOKENS.values(), *letters], lowercase=False)


def test_accents_are_entries_where_they_are_kept() -> None:
    lines = ["schön größe würde"] * 20
    kept = train_vocab(lambda: [lines], 41, TextForm(True, False))
    assert {"schön", "größe", "würde"} <= set(kept)
    stripped = train_vocab(lambda: [lines], 40, TextForm(True))
    assert "##o" in stripped
    assert "##ö" not in stripped


def test_too_little_text_for_any_vocabulary_is_told_what_helps() -> None:
    with pytest.raises(ValueError, match=r"have, 41; .* set vocab_file to a released vocabulary"):
        train_vocab(lambda: [["schön größe würde"] * 20], 300, TextForm(True, False))

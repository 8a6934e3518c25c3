"""Trains a WordPiece vocabulary or adds words to one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers
from tokenizers.trainers import WordPieceTrainer

from data_prep.core.config import SettingsError
from data_prep.core.records import Normalization, TextForm
from data_prep.tokenizer.vocab_file import LONGEST_WORD, SPECIAL_TOKENS
from data_prep.tokenizer.wordpiece import UNICODE_FORMS, make_normalizer, make_tokenizer

# As in Hugging Face's trainer: the count of a character or a pair that becomes an entry, and the
# characters of the alphabet, of which a script such as Chinese needs more.
LEAST_COUNT = 2
ALPHABET = 1000
COVERAGE = 0.9995  # of the text, by the alphabet
FEWEST_ENTRIES = 256  # the least vocab_size
NUM_CODE_POINTS = 0x110000


def add_words(tokens: Sequence[str], path: Path, form: TextForm) -> list[str]:
    """Entries for the words of the file at `path`, one per line, that `tokens` lacks, in its order.

    Words are normalised like text; blank lines are skipped. Raises ValueError, with the line, for a
    word whose entry would never be used because it is cut before WordPiece: with a blank or
    punctuation inside, of CJK characters, or of more than 100 characters.
    """
    known, new = set(tokens), dict[str, None]()
    rules = make_tokenizer(tokens, form)
    text = path.read_text(encoding="utf-8-sig")  # with \n at the end of every line
    for line, word in enumerate(text.split("\n"), start=1):
        normal = rules.normalizer.normalize_str(word).strip()
        parts = [part for part, _ in rules.pre_tokenizer.pre_tokenize_str(normal)]
        if not normal or normal in known:
            continue
        is_cut = len(parts) > 1
        if is_cut or len(normal) > LONGEST_WORD:
            why = f"is cut to {' '.join(parts)}" if is_cut else f"has {len(normal)} characters"
            raise ValueError(
                f"{path}, line {line}: {word!r} {why} before its pieces are looked up, so it would "
                f"never be found whole; remove it or give its parts (words of up to {LONGEST_WORD} "
                "letters)"
            )
        new[normal] = None
    return list(new)


def train_vocab(
    batches: Callable[[], Iterable[list[str]]],
    vocab_size: int,
    form: TextForm,
    coverage: float = COVERAGE,
) -> list[str]:
    """Train exactly `vocab_size` entries: the special tokens, the characters, then the merges.

    `batches` is called several times and yields the same paragraphs each time, in batches. The same
    text gives the same entries in the same order, for any number of threads and any batches. The
    alphabet has the 1,000 most frequent characters, and more until it covers the share `coverage`
    of the text; its forms fill at most half of the vocabulary, unless the text has too few merges
    for the other half. Raises SettingsError if the text is too small for this many entries.
    """
    counts = _count_characters(batches(), form)
    room = (vocab_size - len(SPECIAL_TOKENS)) // 2
    while True:
        alphabet, is_whole = _alphabet(counts, room, coverage)
        tokens = _train(batches(), vocab_size, alphabet, form)
        missing = vocab_size - len(tokens)
        if not missing or is_whole:
            break
        room += missing
    if missing:
        cure = f"set vocab_size={len(tokens)}"
        if len(tokens) < FEWEST_ENTRIES:
            cure = f"set vocab_file to a released vocabulary ({FEWEST_ENTRIES} are the least)"
        raise SettingsError(
            f"vocab_size={vocab_size} asks for more entries than the documents have, "
            f"{len(tokens)}; collect more text or {cure}"
        )
    return tokens


def _train(
    batches: Iterable[list[str]], vocab_size: int, alphabet: dict[str, int], form: TextForm
) -> list[str]:
    """The entries of a vocabulary with this alphabet: `vocab_size`, or as many as there are."""
    characters = sorted(alphabet)
    inner = [character for character in characters if alphabet[character] == 2]
    # The trainer numbers "##" forms in the order of a hash map and breaks ties by these numbers,
    # which gives another vocabulary in every run. As special tokens they have fixed ids.
    fixed = [*SPECIAL_TOKENS.values(), *characters, *(f"##{character}" for character in inner)]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=LEAST_COUNT,
        show_progress=False,
        special_tokens=fixed,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
    )
    special = list(SPECIAL_TOKENS.values())
    tokenizer = make_tokenizer(special, form)
    tokenizer.train_from_iterator(batches, trainer)
    numbers: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(numbers, key=numbers.__getitem__)
    assert tokens[: len(fixed)] == fixed, "the trainer renumbered the entries fixed beforehand"
    return tokens


@dataclass(frozen=True)
class _Characters:
    """The characters of a text after normalisation, the most frequent first (then by code)."""

    counts: dict[str, int]
    forms: dict[str, int]  # 2 if a character also stands inside words, as ##c


def _count_characters(batches: Iterable[list[str]], form: TextForm) -> _Characters:
    normalizer = make_normalizer(form)
    raw_counts = np.zeros(NUM_CODE_POINTS, np.int64)
    for batch in batches:
        text = "\n".join(batch)
        if form.normalization is not Normalization.none:  # it joins characters
            text = UNICODE_FORMS[form.normalization]().normalize_str(text)
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        raw_counts += np.bincount(codes, minlength=NUM_CODE_POINTS)
    counts: dict[str, int] = {}
    # The other rules change a character by itself, so the distinct ones suffice: 100 times as fast
    for code in np.flatnonzero(raw_counts):
        for character in normalizer.normalize_str(chr(code)):
            if not character.isspace():
                counts[character] = counts.get(character, 0) + int(raw_counts[code])
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    forms = {character: 1 + _stands_inside_words(character, normalizer) for character in ordered}
    return _Characters(ordered, forms)


def _alphabet(text: _Characters, room: int, coverage: float) -> tuple[dict[str, int], bool]:
    """The characters that become entries, with their forms; and whether none is left out for room.

    A word with another character becomes [UNK].
    """
    chosen: dict[str, int] = {}
    covered, wanted = 0, coverage * sum(text.counts.values())
    for character, count in text.counts.items():
        if count < LEAST_COUNT or (len(chosen) >= ALPHABET and covered >= wanted):
            break
        if text.forms[character] > room:
            return chosen, False
        room -= text.forms[character]
        covered += count
        chosen[character] = text.forms[character]
    return chosen, True


def _stands_inside_words(character: str, normalizer: Any) -> bool:
    """False for punctuation and CJK characters: each is a word of its own, without a "##" form."""
    text = normalizer.normalize_str(f"a{character}a")
    return len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)) == 1

"""Trains a WordPiece vocabulary, or adds words to one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import normalizers, pre_tokenizers
from tokenizers.trainers import WordPieceTrainer

from data_prep.tokenizer.vocab_file import SPECIAL_TOKENS
from data_prep.tokenizer.wordpiece import LONGEST_WORD, make_tokenizer

MOST_CHARACTERS = 1000  # of a trained vocabulary's alphabet, as in Hugging Face's trainer

LEAST_COUNT = 2  # of a character or a pair that becomes an entry; the same

NUM_CODE_POINTS = 0x110000


def add_words(tokens: Sequence[str], path: Path, lowercase: bool) -> list[str]:
    """Entries for the words of the file at `path`, one a line, that `tokens` lacks, in its order.

    Words are lower-cased and lose their accents as text does; blank lines are passed over. Raises
    ValueError naming the line where a word would be cut before WordPiece sees it, so that its entry
    would never be used: one with a blank or punctuation inside, a CJK word, one over 100 characters.
    """
    known, new = set(tokens), dict[str, None]()
    rules = make_tokenizer(tokens, lowercase)
    for line, word in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        normal = rules.normalizer.normalize_str(word).strip()
        parts = [part for part, _ in rules.pre_tokenizer.pre_tokenize_str(normal)]
        if not normal or normal in known:
            continue
        if len(parts) > 1 or len(normal) > LONGEST_WORD:
            why = (
                f"is cut to {' '.join(parts)}"
                if len(parts) > 1
                else f"has {len(normal)} characters"
            )
            raise ValueError(
                f"{path}, line {line}: {word!r} {why} before its pieces are looked up, and would never "
                f"be found whole; take it out, or give its parts (words of up to {LONGEST_WORD} letters)"
            )
        new[normal] = None
    return list(new)


def train_vocab(
    batches: Callable[[], Iterable[list[str]]], vocab_size: int, lowercase: bool
) -> list[str]:
    """Train exactly `vocab_size` entries: the special tokens, the characters, then the merges.

    `batches` is called twice and yields the same paragraphs each time, many at once. The same
    text gives the same entries in the same order, whatever the number of threads and however it
    is batched. Raises ValueError where the text is too small for so many entries.
    """
    characters, inner = _alphabet(batches(), vocab_size, lowercase)
    # The trainer numbers "##" forms in the order of a hash map, and its ties follow these numbers:
    # another vocabulary every run. Named as special tokens they have their ids before it begins.
    fixed = [*SPECIAL_TOKENS.values(), *characters, *(f"##{character}" for character in inner)]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=LEAST_COUNT,
        show_progress=False,
        special_tokens=fixed,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
    )
    tokenizer = make_tokenizer(list(SPECIAL_TOKENS.values()), lowercase)
    tokenizer.train_from_iterator(batches(), trainer)
    numbers: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(numbers, key=numbers.__getitem__)
    assert tokens[: len(fixed)] == fixed, "the trainer renumbered the entries fixed beforehand"
    if len(tokens) != vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} asks for more entries than the documents give, {len(tokens)}; "
            f"collect more text or set vocab_size={len(tokens)}"
        )
    return tokens


def _alphabet(
    batches: Iterable[list[str]], vocab_size: int, lowercase: bool
) -> tuple[list[str], list[str]]:
    """The characters that become entries, in code-point order, and those also found inside a word.

    The most frequent are taken, of equal counts the lower code points: at most 1,000, and their
    forms fill at most half the vocabulary. Words with another character become [UNK].
    """
    raw_counts = np.zeros(NUM_CODE_POINTS, np.int64)
    for batch in batches:
        codes = np.frombuffer("".join(batch).encode("utf-32-le"), np.uint32)
        raw_counts += np.bincount(codes, minlength=NUM_CODE_POINTS)
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    counts: dict[str, int] = {}
    # Normalising works character by character, so distinct ones are enough: 100 times as fast
    for code in np.flatnonzero(raw_counts):
        for character in normalizer.normalize_str(chr(code)):
            if not character.isspace():
                counts[character] = counts.get(character, 0) + int(raw_counts[code])
    frequent = sorted(
        (character for character, count in counts.items() if count >= LEAST_COUNT),
        key=lambda character: (-counts[character], character),
    )
    room = (vocab_size - len(SPECIAL_TOKENS)) // 2
    chosen: list[str] = []
    inner: list[str] = []
    for character in frequent[:MOST_CHARACTERS]:
        forms = 2 if (is_inner := _stands_inside_words(character, normalizer)) else 1
        if len(chosen) + len(inner) + forms > room:
            break
        chosen.append(character)
        if is_inner:
            inner.append(character)
    return sorted(chosen), sorted(inner)


def _stands_inside_words(character: str, normalizer: Any) -> bool:
    """False for punctuation and CJK characters, which are words of their own: no "##" form."""
    text = normalizer.normalize_str(f"a{character}a")
    return len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)) == 1

"""Reads and checks a vocabulary file."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from data_prep.core.config import SettingsError
from data_prep.core.files import read_bounded
from data_prep.core.printable import printable
from data_prep.core.records import Normalization

SPECIAL_TOKENS = {
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
}


TURKISH_I = (("İ", "i"), ("I", "ı"))  # replaced before the rule of other languages, I to i
LONGEST_WORD = 100  # characters; the default of Hugging Face's WordPiece

# A released vocabulary of 250 languages has 500,000 entries in 10 MB of JSON
MOST_BYTES = 64 << 20
MOST_ENTRIES = 1 << 22
MOST_CHARACTERS = 1000  # of an entry


class _Model(msgspec.Struct):
    """The model of a tokenizer.json of WordPiece; other fields are not read."""

    vocab: dict[str, int]
    continuing_subword_prefix: Literal["##"]
    type: Literal["WordPiece"] = "WordPiece"
    unk_token: Literal["[UNK]"] = "[UNK]"
    max_input_chars_per_word: Literal[100] = 100  # LONGEST_WORD


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _Bert(msgspec.Struct, tag="BertNormalizer", tag_field="type"):
    lowercase: bool
    clean_text: bool = True
    handle_chinese_chars: bool = True
    strip_accents: bool | None = None


class _Nfc(msgspec.Struct, tag="NFC", tag_field="type"):
    pass


class _Nfkc(msgspec.Struct, tag="NFKC", tag_field="type"):
    pass


class _Pattern(msgspec.Struct):
    text: str = msgspec.field(name="String")


class _Replace(msgspec.Struct, tag="Replace", tag_field="type"):
    pattern: _Pattern
    content: str


class _Sequence(msgspec.Struct, tag="Sequence", tag_field="type"):
    normalizers: list[_Bert | _Nfc | _Nfkc | _Replace]


class _PreTokenizer(msgspec.Struct):
    type: Literal["BertPreTokenizer"]


class _Tokenizer(msgspec.Struct):
    """A tokenizer.json; rules that are not followed here are refused."""

    model: _Model
    added_tokens: list[_AddedToken]
    normalizer: _Bert | _Sequence
    pre_tokenizer: _PreTokenizer

    @property
    def rules(self) -> dict[str, Any]:
        """What the normalizer states of a TextForm; strip_accents may be None.

        Raises ValueError if it is none that `make_normalizer` makes.
        """
        found = self.normalizer
        before = list(found.normalizers) if isinstance(found, _Sequence) else [found]
        bert = before.pop() if before else None
        normalization = Normalization.none
        if before and isinstance(before[0], _Nfc | _Nfkc):
            is_nfc = isinstance(before.pop(0), _Nfc)
            normalization = Normalization.nfc if is_nfc else Normalization.nfkc
        replaced = [(r.pattern.text, r.content) for r in before if isinstance(r, _Replace)]
        turkish_i = len(replaced) == len(before) == 2 and tuple(replaced) == TURKISH_I
        if not isinstance(bert, _Bert) or (before and not turkish_i):
            raise ValueError("other steps than NFC or NFKC and then BertNormalizer")
        return {
            "lowercase": bert.lowercase,
            "strip_accents": bert.strip_accents,
            "normalization": normalization,
            "clean_text": bert.clean_text,
            "tokenize_chinese_chars": bert.handle_chinese_chars,
            "turkish_i": turkish_i,
        }


def read_vocab(path: Path) -> list[str]:
    """The entries of a vocab.txt (UTF-8, LF, one per line) or a WordPiece tokenizer.json, by id.

    The id is the line number, from 0; a tokenizer.json includes added entries. A line ends with LF
    alone: U+2028 and other blanks are entries like any other, though no text is ever cut to them.
    Raises SettingsError, with the line and the cure, for anything that would give wrong ids (an
    empty file, a byte order mark, CR, an empty line, a duplicate, a missing special token, a
    tokenizer.json with other rules than BERT's) and for a file, an entry or a number of entries
    that is beyond the bounds above.
    """
    tokens = _json_entries(path) if path.suffix == ".json" else _text_entries(path)
    _check_entries(path, tokens)
    return tokens


def _text_entries(path: Path) -> list[str]:
    """The lines of a vocab.txt."""
    raw = read_bounded(path, MOST_BYTES)
    if not raw:
        raise SettingsError(f"{path} is empty; a vocabulary has one entry per line")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise SettingsError(
            f"{path}, line 1, begins with a byte order mark, which would be part of the entry; "
            f"remove its first three bytes"
        )
    if b"\r" in raw:
        line = raw[: raw.index(b"\r")].count(b"\n") + 1
        raise SettingsError(f"{path}, line {line}, ends in CR; convert the line ends to LF")
    _check_number(path, raw.count(b"\n"))
    try:
        return raw.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SettingsError(
            f"{path}, line {line}, is not UTF-8; convert the file to UTF-8"
        ) from error


def _json_entries(path: Path) -> list[str]:
    """The entries of a tokenizer.json in the order of their ids, which must have no gap."""
    tokenizer = read_tokenizer(path)
    added = {token.content: token.id for token in tokenizer.added_tokens}
    numbers = {**tokenizer.model.vocab, **added}
    _check_number(path, len(numbers))
    tokens = sorted(numbers, key=numbers.__getitem__)
    if gap := next((i for i, token in enumerate(tokens) if numbers[token] != i), None):
        raise SettingsError(f"{path} has no entry, or two, with id {gap}; get the file again")
    return tokens


def read_tokenizer(path: Path) -> _Tokenizer:
    """A tokenizer.json. Raises SettingsError for one with other rules than BERT's."""
    try:
        tokenizer = msgspec.json.decode(read_bounded(path, MOST_BYTES), type=_Tokenizer)
        _ = tokenizer.rules
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"{path} is no tokenizer of kind WordPiece with BERT's rules "
            f"({printable(str(error))}); take a BERT's tokenizer"
        ) from error
    return tokenizer


def _check_number(path: Path, entries: int) -> None:
    if entries > MOST_ENTRIES:
        raise SettingsError(
            f"{path} has {entries:,} entries, and {MOST_ENTRIES:,} are the most; is this a "
            "vocabulary?"
        )


def _check_entries(path: Path, tokens: Sequence[str]) -> None:
    """Refuse empty entries, duplicates and missing special tokens."""
    first_line: dict[str, int] = {}
    for line, token in enumerate(tokens, start=1):
        if len(token) > MOST_CHARACTERS:
            raise SettingsError(
                f"{path}, line {line}, has {len(token):,} characters, and {MOST_CHARACTERS:,} are "
                "the most of an entry; is this a vocabulary?"
            )
        if not token:
            raise SettingsError(
                f"{path}, line {line}, is empty; remove it if it is the last one or nothing was "
                "trained with this file, otherwise keep its id by a name such as "
                f"{_free_name(line, tokens)}"
            )
        if token in first_line:
            raise SettingsError(
                f"{path}, line {line}, repeats {token!r} of line {first_line[token]}; an entry has "
                f"one id: rename the second, such as to {_free_name(line, tokens)}"
            )
        first_line[token] = line
    missing = [token for token in SPECIAL_TOKENS.values() if token not in first_line]
    if missing:
        raise SettingsError(
            f"{path} lacks {', '.join(missing)}; BERT needs {', '.join(SPECIAL_TOKENS.values())}, "
            f"each on a line of its own: add them or take the vocabulary of a BERT model"
        )


def _free_name(line: int, tokens: Sequence[str]) -> str:
    """A name for an entry without use, which the vocabulary does not have."""
    taken = set(tokens)
    return next(name for n in itertools.count(line) if (name := f"[unused{n}]") not in taken)


def check_casing(tokens: Sequence[str], lowercase: bool) -> None:
    """Raise SettingsError if the casing of a vocabulary is not `lowercase`.

    A lower-casing tokenizer never makes an entry with a capital; a cased one finds no entry for a
    word with a capital if there is none. Both would train a model on [UNK].
    """
    special = set(SPECIAL_TOKENS.values())
    capitals = sum(token not in special and token != token.lower() for token in tokens)
    share = capitals / len(tokens)
    if lowercase and share > 0.01:
        raise SettingsError(
            f"{capitals:,} of {len(tokens):,} vocabulary entries ({share:.0%}) have capitals and "
            f"would never be used with lowercase=true: a cased vocabulary; set lowercase=false"
        )
    with_case = sum(token not in special and token.lower() != token.upper() for token in tokens)
    # Thai and Chinese have no case; their vocabularies have some Latin letters
    if not lowercase and not capitals and with_case > len(tokens) / 4:
        raise SettingsError(
            f"none of {len(tokens):,} vocabulary entries has a capital, so that every capitalised "
            f"word would be unknown: an uncased vocabulary; set lowercase=true"
        )


def special_ids(tokens: Sequence[str]) -> dict[str, int]:
    """The ids of pad, unk, cls, sep and mask in a vocabulary."""
    return {name: tokens.index(token) for name, token in SPECIAL_TOKENS.items()}

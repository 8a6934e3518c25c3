"""Reads and checks a vocabulary file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.core.files import read_json

SPECIAL_TOKENS = {
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
}


def read_vocab(path: Path) -> list[str]:
    """The entries of a vocab.txt (UTF-8, LF, one per line) or a WordPiece tokenizer.json, by id.

    The id is the line number, from 0; a tokenizer.json includes added entries. Raises ValueError,
    with the line and the cure, for anything that would give wrong ids: an empty file, a byte order
    mark, CR, a blank line, blanks round an entry, a duplicate, a missing special token.
    """
    tokens = _json_entries(path) if path.suffix == ".json" else _text_entries(path)
    _check_entries(path, tokens)
    return tokens


def _text_entries(path: Path) -> list[str]:
    """The lines of a vocab.txt."""
    raw = path.read_bytes()
    if not raw:
        raise ValueError(f"{path} is empty; a vocabulary has one entry per line")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise ValueError(
            f"{path}, line 1, begins with a byte order mark, which would be part of the entry; "
            f"remove its first three bytes"
        )
    if b"\r" in raw:
        line = raw[: raw.index(b"\r")].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}, ends in CR; convert the line ends to LF")
    try:
        return raw.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8; convert the file to UTF-8") from error


def _json_entries(path: Path) -> list[str]:
    """The entries of a tokenizer.json in the order of their ids, which must have no gap."""
    tokenizer = read_json(path)
    model = tokenizer.get("model") or {}
    if model.get("type", "WordPiece") != "WordPiece" or "continuing_subword_prefix" not in model:
        raise ValueError(
            f"{path} is of kind {model.get('type')}; BERT's is WordPiece: take a BERT's tokenizer"
        )
    numbers = {**model["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    tokens = sorted(numbers, key=numbers.__getitem__)
    if gap := next((i for i, token in enumerate(tokens) if numbers[token] != i), None):
        raise ValueError(f"{path} has no entry, or two, with id {gap}; get the file again")
    return tokens


def _check_entries(path: Path, tokens: Sequence[str]) -> None:
    """Refuse blank entries, duplicates and missing special tokens."""
    first_line: dict[str, int] = {}
    for line, token in enumerate(tokens, start=1):
        if not token or token != token.strip():
            raise ValueError(
                f"{path}, line {line}, {token!r}, is blank or has blanks at an end; remove the "
                f"line if nothing was trained with this file, otherwise get the file again"
            )
        if token in first_line:
            raise ValueError(
                f"{path}, line {line}, repeats {token!r} of line {first_line[token]}; an entry has "
                f"one id: rename the second, such as to [unused{line}]"
            )
        first_line[token] = line
    missing = [token for token in SPECIAL_TOKENS.values() if token not in first_line]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; BERT needs {', '.join(SPECIAL_TOKENS.values())}, "
            f"each on a line of its own: add them or take the vocabulary of a BERT model"
        )


def check_casing(tokens: Sequence[str], lowercase: bool) -> None:
    """Raise ValueError if the casing of a vocabulary is not `lowercase`.

    A lower-casing tokenizer never makes an entry with a capital; a cased one finds no entry for a
    word with a capital if there is none. Both would train a model on [UNK].
    """
    special = set(SPECIAL_TOKENS.values())
    capitals = sum(token not in special and token != token.lower() for token in tokens)
    share = capitals / len(tokens)
    if lowercase and share > 0.01:
        raise ValueError(
            f"{capitals:,} of {len(tokens):,} vocabulary entries ({share:.0%}) have capitals and "
            f"would never be used with lowercase=true: a cased vocabulary; set lowercase=false"
        )
    if not lowercase and not capitals:
        raise ValueError(
            f"none of {len(tokens):,} vocabulary entries has a capital, so that every capitalised "
            f"word would be unknown: an uncased vocabulary; set lowercase=true"
        )


def special_ids(tokens: Sequence[str]) -> dict[str, int]:
    """The ids of pad, unk, cls, sep and mask in a vocabulary."""
    return {name: tokens.index(token) for name, token in SPECIAL_TOKENS.items()}

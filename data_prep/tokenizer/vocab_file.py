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
    """The entries of a vocab.txt: one a line, UTF-8, line ends LF, the line number is the id.

    Or of a tokenizer.json of the WordPiece kind, entries added to it later included. Raises ValueError
    naming the line and the cure on anything that would give a wrong id: an empty file, a byte order
    mark, CR, a blank line or blanks round an entry, a duplicate, a missing special token.
    """
    if path.suffix == ".json":
        tokens = _json_entries(path)
        _check_entries(path, tokens)
        return tokens
    raw = path.read_bytes()
    if not raw:
        raise ValueError(f"{path} is empty; a vocabulary has one entry a line")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise ValueError(
            f"{path}, line 1, begins with a byte order mark, which would be part of the entry; "
            f"remove its first three bytes"
        )
    if b"\r" in raw:
        line = raw[: raw.index(b"\r")].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}, ends in CR; convert the line ends to LF")
    try:
        tokens = raw.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8; convert the file to UTF-8") from error
    _check_entries(path, tokens)
    return tokens


def _json_entries(path: Path) -> list[str]:
    """The entries of a tokenizer.json by their ids, which must have no gap."""
    tokenizer = read_json(path)
    model = tokenizer.get("model") or {}
    if model.get("type", "WordPiece") != "WordPiece" or "continuing_subword_prefix" not in model:
        raise ValueError(
            f"{path} is of kind {model.get('type')}; BERT's is WordPiece: take the tokenizer of a BERT"
        )
    numbers = {**model["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    tokens = sorted(numbers, key=numbers.__getitem__)
    if gap := next((i for i, token in enumerate(tokens) if numbers[token] != i), None):
        raise ValueError(f"{path} has no entry, or two, with id {gap}; get the file again")
    return tokens


def _check_entries(path: Path, tokens: Sequence[str]) -> None:
    """Refuse blank entries, duplicates and the lack of a special token."""
    first_line: dict[str, int] = {}
    for line, token in enumerate(tokens, start=1):
        if not token or token != token.strip():
            raise ValueError(
                f"{path}, line {line}, {token!r}, is blank or has blanks at an end; take the line "
                f"out if nothing was trained with this file, else get the file again"
            )
        if token in first_line:
            raise ValueError(
                f"{path}, line {line}, repeats {token!r} of line {first_line[token]}; an entry has "
                f"one id: give the second another name, such as [unused{line}]"
            )
        first_line[token] = line
    missing = [token for token in SPECIAL_TOKENS.values() if token not in first_line]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; BERT needs {', '.join(SPECIAL_TOKENS.values())}, "
            f"each on a line of its own: add them or take the vocabulary of a BERT model"
        )


def check_casing(tokens: Sequence[str], lowercase: bool) -> None:
    """Raise ValueError where a vocabulary is of the other casing than `lowercase` says.

    A tokenizer that lower-cases never makes an entry with a capital; one that does not finds no
    entry for a word with a capital if there are none. Both would train a model on [UNK]s.
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

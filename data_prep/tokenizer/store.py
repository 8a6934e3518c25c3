"""The vocabulary as a store: its manifest, and its reader, which checks the file against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from data_prep.core.config import SettingsError
from data_prep.core.files import checksum
from data_prep.core.records import (
    Checksum,
    Count,
    Record,
    Share,
    TextForm,
    VocabSize,
    check_special_ids,
    read_manifest,
)
from data_prep.tokenizer.vocab_file import read_vocab


class VocabSettings(TextForm, kw_only=True):
    """Everything that determines the bytes of the vocabulary."""

    tokenizers: str  # version of the library
    duplicates: dict[str, dict[str, Any]]  # of these documents, as data_prep.dedup.left_out
    vocab_file: str | None  # checksum of a released one; None: trained
    vocab_size: int | None  # None: as released
    documents: dict[str, str] | None = None  # checksum of each part it was trained on
    add_words: str | None = None  # checksum of the file
    alphabet_coverage: float | None = None  # of a trained one; None: COVERAGE
    language: str | None = None  # the code of its profile; None: en
    language_exponent: float | None = None  # None: languages as they are in the text


class LanguageShare(Record):
    """Shares of a language in the characters, over all languages."""

    corpus: Share
    sample: Share  # that the vocabulary was trained on


class VocabManifest(TextForm, kw_only=True):
    """vocab/manifest.json, written when the tokenizer's files are there."""

    schema_version: Literal[1]
    vocab_size: VocabSize
    special_ids: dict[str, int]  # of pad, unk, cls, sep, mask
    checksum: Checksum  # of vocab.txt
    settings: VocabSettings
    added_words: list[str]
    parts: Count  # of the documents; settings.documents has those it was trained on
    languages: dict[str, LanguageShare] | None = None  # with settings.language_exponent

    def __post_init__(self) -> None:
        check_special_ids(self.special_ids, self.vocab_size)


def read_vocab_store(data_dir: Path) -> tuple[list[str], VocabManifest]:
    """The entries of data_dir/vocab and its manifest.

    Raises SettingsError, with the cure, if it is missing, of another version or changed since.
    """
    folder = data_dir / "vocab"
    path = folder / "manifest.json"
    command = f"python -m data_prep.vocab data_dir={data_dir} (with vocab_size= and language=)"
    manifest = read_manifest(path, VocabManifest, command)
    vocab_path = folder / "vocab.txt"
    if not vocab_path.is_file() or checksum(vocab_path) != manifest.checksum:
        raise SettingsError(
            f"{vocab_path} is not the file that {path} describes: it was changed or removed since; "
            f"delete {folder} and run {command}"
        )
    return read_vocab(vocab_path), manifest

"""The manifest of the token store: its parts, and what decided their ids."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from data_prep.core.records import (
    Checksum,
    Count,
    IdType,
    Record,
    TextForm,
    VocabSize,
    check_file_name,
    check_special_ids,
    read_manifest,
)

SCHEMA_VERSION: Final = 1
SPLITS = ("train", "heldout")


class TokenPartEntry(Record):
    """One file of the store in its manifest."""

    name: str
    documents: Count
    sentences: Count
    tokens: Count
    unknown_tokens: Count  # [UNK]
    checksum: Checksum
    # (L,) uint32, base64 in JSON: documents in each of the manifest's languages. A terabyte of a
    # hundred languages has six million such numbers, too many to be written out.
    documents_of: bytes = b""

    def __post_init__(self) -> None:
        check_file_name(self.name)
        if len(self.documents_of) % 4:
            raise ValueError(f"{self.name}: documents_of is not of whole numbers")
        total = np.frombuffer(self.documents_of, "<u4").sum(dtype=np.int64)
        if self.documents_of and total != self.documents:
            raise ValueError(
                f"{self.name}: {total:,} documents in its languages, {self.documents:,} in all"
            )

    @property
    def source(self) -> str:
        """Where its documents come from: books of books-00003.arrow."""
        return self.name.rpartition("-")[0]


class WrittenPart(TokenPartEntry, kw_only=True):
    """What a task leaves of a file that it wrote."""

    languages: dict[str, Count] = msgspec.field(default_factory=dict)  # documents in each


def manifest_entries(
    written: Mapping[str, Sequence[WrittenPart]],
) -> tuple[list[str], dict[str, list[TokenPartEntry]]]:
    """The languages of the manifest, sorted, and its entries by split."""
    languages = sorted({code for parts in written.values() for p in parts for code in p.languages})
    names = [name for name in TokenPartEntry.__struct_fields__ if name != "documents_of"]
    splits = {
        split: [
            TokenPartEntry(
                **{name: getattr(part, name) for name in names},
                documents_of=np.array(
                    [part.languages.get(code, 0) for code in languages], "<u4"
                ).tobytes(),
            )
            for part in parts
        ]
        for split, parts in written.items()
    }
    return languages, splits


class SentenceSettings(Record):
    """How paragraphs of another language than English were cut into sentences."""

    language: str
    splitter: str
    version: str  # of the splitter


class WordSettings(Record):
    """How sentences were segmented into words."""

    segmenters: dict[str, str]  # by language; of another one words are by "##"
    versions: dict[str, str]  # of their packages


class EncodeSettings(TextForm, kw_only=True):
    """What decides the ids, and the documents that were encoded."""

    vocab_checksum: str
    heldout_fraction: float
    nupunkt: str  # versions of the libraries
    tokenizers: str
    schema_version: int
    documents: dict[str, str]  # checksum of each part, by "source/name"
    duplicates: dict[str, Any]  # of these parts, as `data_prep.dedup.left_out`
    sentences: SentenceSettings | None = None  # None: English, by nupunkt
    words: WordSettings | None = None  # None: not stored
    languages: bool = False  # stored for each document, since the corpus has many


class TokensManifest(Record):
    """tokens/manifest.json, written when all parts are there."""

    schema_version: Literal[1]
    dtype: IdType  # of the ids
    vocab_checksum: Checksum
    vocab_size: VocabSize
    lowercase: bool
    special_ids: dict[str, int]  # of pad, unk, cls, sep, mask
    settings: EncodeSettings
    splits: dict[str, list[TokenPartEntry]]
    dropped: dict[str, Count]  # documents and sentences by reason
    languages: list[str] = msgspec.field(default_factory=list)  # of the documents, sorted

    def __post_init__(self) -> None:
        check_special_ids(self.special_ids, self.vocab_size)
        if set(self.splits) != set(SPLITS):
            raise ValueError(f"splits are not {' and '.join(SPLITS)}")
        for entry in itertools.chain.from_iterable(self.splits.values()):
            if (counted := len(entry.documents_of) // 4) != len(self.languages):
                raise ValueError(
                    f"{entry.name} counts documents in {counted} languages, and there are "
                    f"{len(self.languages)}"
                )


def read_tokens_manifest(data_dir: Path) -> TokensManifest:
    """Read data_dir/tokens/manifest.json. Raises ValueError as `read_manifest` does."""
    command = f"python -m data_prep.encode data_dir={data_dir} (with language=)"
    return read_manifest(data_dir / "tokens" / "manifest.json", TokensManifest, command)

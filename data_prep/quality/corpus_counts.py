"""Counts of a token store: made part by part, summed by encode, and judged by build and audit.

Each task of encode counts the parts that it writes, into tokens/logs/counts/<part>.msgpack; a part
without such a record, as of an earlier version, is counted when the store is. Repeated sentences
can only be found across all parts: sentences are compared by a hash of their ids. Of a large store
these are a sample: all whose hash is a multiple of a power of two. All splits and parts choose the
same hashes, so a sentence is compared with all its copies or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.core.records import Checksum, Count, Record, read_packed, write_packed
from data_prep.quality.corpus import made_from
from data_prep.quality.counts import content_hashes
from data_prep.quality.languages import LanguageCounts, LanguageMetrics
from data_prep.stores.token_records import SPLITS, TokenPartEntry, TokensManifest
from data_prep.stores.tokens import TokenPart, check_part

MOST_HASHES = 1 << 24  # sentences compared, 0.2 GB
# Characters of a sentence that few corpora exceed on average: tasks, which do not know the number
# of all sentences, choose too many rather than too few
SENTENCE_CHARACTERS = 200
SIZES = 32  # powers of two of a document's length in tokens


class PartCounts(Record):
    """The counts of one part of one split."""

    checksum: Checksum  # of the part
    one_in: Count  # the sentences with a hash that is a multiple of it are compared
    documents: Count
    sentences: Count
    tokens: Count
    unknown: Count
    one_sentence: Count
    sizes: list[Count]  # SIZES: documents of 2^i to 2^(i+1) - 1 tokens
    documents_of: dict[str, Count]  # by source
    tokens_of: dict[str, Count]
    hashes: bytes  # (S,) uint64 of the compared sentences
    lengths: bytes  # (S,) uint32, their tokens

    def __post_init__(self) -> None:
        if len(self.hashes) != 2 * len(self.lengths) or len(self.hashes) % 8:
            raise ValueError("hashes and lengths are not of the same sentences")
        if len(self.sizes) != SIZES or not self.one_in:
            raise ValueError(f"sizes are not {SIZES}, or one_in is 0")

    def compared(self, one_in: int) -> NDArray[Any]:
        """(S,) records `hash` and `length` of the sentences whose hash is a multiple of it."""
        hashes = np.frombuffer(self.hashes, "<u8")
        chosen = hashes % np.uint64(one_in) == 0
        found = np.empty(chosen.sum(), _SENTENCE)
        found["hash"] = hashes[chosen]
        found["length"] = np.frombuffer(self.lengths, "<u4")[chosen]
        return found


class TaskCounts(Record):
    """tokens/logs/counts/<part>.msgpack: the counts of one part of each split, and by language."""

    splits: dict[str, PartCounts]
    languages: dict[str, LanguageCounts] = msgspec.field(default_factory=dict)


_SENTENCE = np.dtype([("hash", "<u8"), ("length", "<u4")])


def choose_one_in(sentences: int) -> int:
    """The power of two with which at most MOST_HASHES of so many sentences are compared."""
    one_in = 1
    while sentences > one_in * MOST_HASHES:
        one_in *= 2
    return one_in


def write_counts(
    folder: Path,
    entries: Mapping[str, TokenPartEntry],
    like: Any,
    one_in: int,
    languages: dict[str, LanguageCounts],
) -> None:
    """Count the part of each split that a task has written below `folder`, data_dir/tokens.

    `like` has the vocab_size and special_ids of the store; `languages` counts what the parts hold
    together.
    """
    splits = {
        split: _count_part(folder / split, entry, like, one_in) for split, entry in entries.items()
    }
    (name,) = {entry.name for entry in entries.values()}
    write_packed(_record_path(folder, name), TaskCounts(splits, languages))


def count_corpus(folder: Path, manifest: TokensManifest, num_threads: int) -> dict[str, Any]:
    """The content of counts.json for a token store: counts of each split, and shares of them.

    `manifest` is that of `folder`, which need not have it yet. Parts without counts are counted,
    `num_threads` at the same time. Raises ValueError naming a part that cannot be read.
    """
    entries: dict[str, dict[str, TokenPartEntry]] = {}
    for split in SPLITS:
        for entry in manifest.splits[split]:
            entries.setdefault(entry.name, {})[split] = entry
    one_in = choose_one_in(sum(part.sentences for of in entries.values() for part in of.values()))
    totals = {split: _Totals() for split in SPLITS}
    languages: dict[str, LanguageCounts] = {}
    has_languages = True
    with ThreadPoolExecutor(num_threads) as pool:
        count = partial(_counts_of, folder, manifest, one_in)
        for counts in pool.map(count, entries.values()):
            for split, of_split in counts.splits.items():
                totals[split].add(of_split, one_in)
            for name, of_language in counts.languages.items():
                languages[name] = languages.get(name, LanguageCounts()) + of_language
            has_documents = any(of_split.documents for of_split in counts.splits.values())
            has_languages &= bool(counts.languages) or not has_documents
    _remove_others(folder, entries)
    sampled = max(total.one_in for total in totals.values())
    sentences = {split: _Sentences(totals[split].compared, sampled) for split in SPLITS}
    by_tokens = sorted(languages.items(), key=lambda item: (-item[1].tokens, item[0]))
    return {
        "made_from": made_from(manifest),
        "splits": {split: totals[split].summed(sentences[split]) for split in SPLITS},
        "heldout_in_train_share": sentences["heldout"].share_met_in(sentences["train"]),
        # Of parts of an earlier version the text is not known
        "languages": {name: LanguageMetrics.of(n) for name, n in by_tokens if has_languages},
    }


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    """Remove the counts of parts that are no longer there."""
    kept = {_record_path(folder, name) for name in names}
    for path in (folder / "logs" / "counts").glob("*.msgpack"):
        if path not in kept:
            path.unlink(missing_ok=True)


def _record_path(folder: Path, name: str) -> Path:
    """The counts of the parts of this name, of both splits."""
    return folder / "logs" / "counts" / f"{Path(name).stem}.msgpack"


def _counts_of(
    folder: Path, manifest: TokensManifest, one_in: int, entries: Mapping[str, TokenPartEntry]
) -> TaskCounts:
    """The counts of the parts of one name, by split: as recorded, or made now."""
    (name,) = {entry.name for entry in entries.values()}
    record = read_packed(_record_path(folder, name), TaskCounts)
    found = {split: counts.checksum for split, counts in record.splits.items()} if record else {}
    if record and found == {split: entry.checksum for split, entry in entries.items()}:
        return record
    return TaskCounts(
        {
            split: _count_part(folder / split, entry, manifest, one_in)
            for split, entry in entries.items()
        }
    )


def _count_part(folder: Path, entry: TokenPartEntry, like: Any, one_in: int) -> PartCounts:
    """Counts of one part of the split in `folder`."""
    part = TokenPart.open(path := folder / entry.name)
    check_part(path, part, like.vocab_size)
    tokens_D = np.diff(part.sentence_offsets[part.document_offsets])
    names = pc.replace_substring_regex(part.documents, "/.*", "").dictionary_encode()
    sources, source_D = names.dictionary.to_pylist(), names.indices.to_numpy()
    documents = np.bincount(source_D, minlength=len(sources))
    tokens = np.bincount(source_D, tokens_D, minlength=len(sources))  # float64, exact below 2^53
    hashes_S = content_hashes(part.ids, part.sentence_offsets)
    is_compared = hashes_S % np.uint64(one_in) == 0
    return PartCounts(
        checksum=entry.checksum,
        one_in=one_in,
        documents=part.num_documents,
        sentences=part.num_sentences,
        tokens=part.num_tokens,
        unknown=int(np.count_nonzero(part.ids == like.special_ids["unk"])),
        one_sentence=int((np.diff(part.document_offsets) == 1).sum()),
        sizes=np.bincount(np.log2(tokens_D).astype(np.int64), minlength=SIZES).tolist(),
        documents_of=dict(zip(sources, documents.tolist(), strict=True)),
        tokens_of=dict(zip(sources, tokens.astype(np.int64).tolist(), strict=True)),
        hashes=hashes_S[is_compared].astype("<u8").tobytes(),
        lengths=np.diff(part.sentence_offsets)[is_compared].astype("<u4").tobytes(),
    )


SUMMED = ("documents", "sentences", "tokens", "unknown", "one_sentence")


@dataclass
class _Totals:
    """Sums over the parts of one split."""

    counts: Counter[str] = field(default_factory=Counter)  # SUMMED
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SIZES, np.int64))
    documents_of: Counter[str] = field(default_factory=Counter)
    tokens_of: Counter[str] = field(default_factory=Counter)
    compared: list[NDArray[Any]] = field(default_factory=list)
    one_in: int = 1  # the largest of the parts

    def add(self, part: PartCounts, one_in: int) -> None:
        self.counts.update({name: getattr(part, name) for name in SUMMED})
        self.sizes += np.array(part.sizes, np.int64)
        self.documents_of.update(part.documents_of)
        self.tokens_of.update(part.tokens_of)
        self.one_in = max(self.one_in, one_in, part.one_in)
        self.compared.append(part.compared(self.one_in))

    def summed(self, sentences: _Sentences) -> dict[str, Any]:
        """The content of counts.json for this split."""
        total, is_repeated = self.counts, sentences.is_repeated
        return {
            "documents": total["documents"],
            "sentences": total["sentences"],
            "tokens": total["tokens"],
            "unknown_share": total["unknown"] / max(total["tokens"], 1),
            "documents_of_source": dict(sorted(self.documents_of.items())),
            "tokens_of_source": dict(sorted(self.tokens_of.items())),
            "document_tokens_log2_counts": self.sizes.tolist(),
            "one_sentence_share": total["one_sentence"] / max(total["documents"], 1),
            "repeated_sentences_share": float(is_repeated.mean()) if len(is_repeated) else 0.0,
            "repeated_tokens_share": sentences.share_of_tokens(is_repeated),
        }


class _Sentences:
    """The compared sentences of a split, sorted by hash."""

    def __init__(self, parts: Iterable[NDArray[Any]], one_in: int) -> None:
        compared = np.concatenate([np.empty(0, _SENTENCE), *parts])
        compared = compared[compared["hash"] % np.uint64(one_in) == 0]
        order = np.argsort(compared["hash"])  # need not be stable: copies have the same length
        self.hashes, self.lengths = compared["hash"][order], compared["length"][order]
        self.is_repeated = np.diff(self.hashes, prepend=~self.hashes[:1]) == 0

    def share_of_tokens(self, chosen: NDArray[np.bool_]) -> float:
        """Share of all tokens that are in the chosen sentences."""
        return float(self.lengths[chosen].sum() / max(self.lengths.sum(), 1))

    def share_met_in(self, other: _Sentences) -> float:
        """Share of the tokens that are in a sentence which `other` has, too."""
        found = (np.searchsorted(other.hashes, self.hashes, side) for side in ("left", "right"))
        return self.share_of_tokens(np.not_equal(*found))

"""Counts of a finished token store: made once, by encode, and judged by build and audit.

Documents, sentences and tokens are counted part by part. Repeated sentences can only be found
across all parts: sentences are compared by a hash of their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.quality.corpus import made_from
from data_prep.stores.tokens import SPLITS, TokenPart, TokensManifest, check_part

MOST_HASHES = 1 << 24  # sentences compared; of a larger store a sample, all copies of each
SIZES = 32  # powers of two of a document's length in tokens

SUMMED = ("documents", "sentences", "tokens", "unknown", "one_sentence")


def count_corpus(folder: Path, manifest: TokensManifest, num_threads: int) -> dict[str, Any]:
    """The content of counts.json for a token store: counts of each split, and shares of them.

    `manifest` is that of `folder`, which need not have it yet. `num_threads` parts are read at the
    same time. Raises ValueError naming a part that cannot be read.
    """
    total = sum(part.sentences for parts in manifest.splits.values() for part in parts)
    one_in = 1
    while total > one_in * MOST_HASHES:
        one_in *= 2
    counted = {}
    with ThreadPoolExecutor(num_threads) as pool:
        for split in SPLITS:
            paths = [folder / split / part.name for part in manifest.splits[split]]
            count = partial(_count_part, manifest, one_in)
            counted[split] = list(pool.map(count, paths))
    sentences = {split: _Sentences(parts) for split, parts in counted.items()}
    return {
        "made_from": made_from(manifest),
        "splits": {split: _of_split(counted[split], sentences[split]) for split in SPLITS},
        "heldout_in_train_share": sentences["heldout"].share_met_in(sentences["train"]),
    }


@dataclass(frozen=True)
class _PartCounts:
    counts: dict[str, int]  # SUMMED
    sizes: NDArray[np.int64]  # (SIZES,) documents of 2^i to 2^(i+1) - 1 tokens
    documents_of: dict[str, int]  # source: documents
    tokens_of: dict[str, int]  # source: tokens
    hashes: NDArray[np.uint64]  # (S,) of the compared sentences
    lengths: NDArray[np.int32]  # (S,) their tokens


def _count_part(manifest: TokensManifest, one_in: int, path: Path) -> _PartCounts:
    """Counts of one part, and the sentences whose hash is a multiple of `one_in`.

    All splits and parts choose the same hashes: a sentence is compared with all its copies or not
    at all.
    """
    part = TokenPart.open(path)
    check_part(path, part, manifest.vocab_size)
    tokens_D = np.diff(part.sentence_offsets[part.document_offsets])
    names = pc.replace_substring_regex(part.documents, "/.*", "").dictionary_encode()
    sources, source_D = names.dictionary.to_pylist(), names.indices.to_numpy()
    documents = np.bincount(source_D, minlength=len(sources))
    tokens = np.bincount(source_D, tokens_D, minlength=len(sources))  # float64, exact below 2^53
    hashes_S = _hashes(part.ids, part.sentence_offsets)
    is_compared = hashes_S % np.uint64(one_in) == 0
    return _PartCounts(
        counts={
            "documents": part.num_documents,
            "sentences": part.num_sentences,
            "tokens": part.num_tokens,
            "unknown": int(np.count_nonzero(part.ids == manifest.special_ids["unk"])),
            "one_sentence": int((np.diff(part.document_offsets) == 1).sum()),
        },
        sizes=np.bincount(np.log2(tokens_D).astype(np.int64), minlength=SIZES),
        documents_of=dict(zip(sources, documents.tolist(), strict=True)),
        tokens_of=dict(zip(sources, tokens.astype(np.int64).tolist(), strict=True)),
        hashes=hashes_S[is_compared],
        lengths=np.diff(part.sentence_offsets)[is_compared],
    )


class _Sentences:
    """The compared sentences of a split, sorted by hash."""

    def __init__(self, parts: Sequence[_PartCounts]) -> None:
        hashes = np.concatenate([np.empty(0, np.uint64), *(part.hashes for part in parts)])
        lengths = np.concatenate([np.empty(0, np.int32), *(part.lengths for part in parts)])
        order = np.argsort(hashes)  # need not be stable: copies have the same length
        self.hashes, self.lengths = hashes[order], lengths[order]
        self.is_repeated = np.diff(self.hashes, prepend=~self.hashes[:1]) == 0

    def share_of_tokens(self, chosen: NDArray[np.bool_]) -> float:
        """Share of all tokens that are in the chosen sentences."""
        return float(self.lengths[chosen].sum() / max(self.lengths.sum(), 1))

    def share_met_in(self, other: _Sentences) -> float:
        """Share of the tokens that are in a sentence which `other` has, too."""
        found = (np.searchsorted(other.hashes, self.hashes, side) for side in ("left", "right"))
        return self.share_of_tokens(np.not_equal(*found))


def _of_split(parts: Sequence[_PartCounts], sentences: _Sentences) -> dict[str, Any]:
    total = {name: sum(part.counts[name] for part in parts) for name in SUMMED}
    sizes = sum((part.sizes for part in parts), np.zeros(SIZES, np.int64))
    is_repeated = sentences.is_repeated
    return {
        "documents": total["documents"],
        "sentences": total["sentences"],
        "tokens": total["tokens"],
        "unknown_share": total["unknown"] / max(total["tokens"], 1),
        "documents_of_source": _summed([part.documents_of for part in parts]),
        "tokens_of_source": _summed([part.tokens_of for part in parts]),
        "document_tokens_log2_counts": sizes.tolist(),
        "one_sentence_share": total["one_sentence"] / max(total["documents"], 1),
        "repeated_sentences_share": float(is_repeated.mean()) if len(is_repeated) else 0.0,
        "repeated_tokens_share": sentences.share_of_tokens(is_repeated),
    }


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    names = sorted({name for of_part in counts for name in of_part})
    return {name: sum(of_part.get(name, 0) for of_part in counts) for name in names}


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _hashes(ids: NDArray[Any], sentence_offsets: NDArray[np.int32]) -> NDArray[np.uint64]:
    """(S,) FNV-1a over the ids of each sentence, mixed by the last step of MurmurHash3."""
    hashes_S = np.empty(len(sentence_offsets) - 1, np.uint64)
    for sentence in range(len(hashes_S)):
        digest = np.uint64(0xCBF29CE484222325)
        for position in range(sentence_offsets[sentence], sentence_offsets[sentence + 1]):
            digest = (digest ^ np.uint64(ids[position])) * np.uint64(0x100000001B3)
        digest = (digest ^ digest >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
        hashes_S[sentence] = digest ^ digest >> np.uint64(33)
    return hashes_S

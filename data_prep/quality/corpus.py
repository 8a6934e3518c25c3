"""What the audit finds in the documents and in the token store, before any pair is made of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.core.files import read_json
from data_prep.core.objectives import Pairing
from data_prep.core.settings import AuditSettings
from data_prep.stores.tokens import SPLITS, TokenStore

MOST_HASHES = 1 << 24  # sentences compared: of a larger store a sample, all copies of each


def audit_corpus(
    data_dir: Path, pairing: Pairing, bounds: AuditSettings
) -> tuple[dict[str, Any], list[str]]:
    """Figures of data_dir/documents and data_dir/tokens, and why such pairs of them train badly.

    Raises ValueError where the token store is missing or not as its manifest says.
    """
    stores = {split: TokenStore.open(data_dir, split) for split in SPLITS}
    manifest = stores["train"].manifest
    seen = {split: _Sentences(store) for split, store in stores.items()}
    splits = {split: _split_figures(store, seen[split]) for split, store in stores.items()}
    figures = {
        "sources": _collected(data_dir),
        "dropped": dict(manifest.get("dropped", {})),
        "copies": _copies(data_dir),
        "splits": splits,
        "heldout_in_train_share": seen["heldout"].share_met_in(seen["train"]),
    }
    return figures, _faults(splits["train"], pairing, bounds)


def _collected(data_dir: Path) -> dict[str, Any]:
    """Of each source what its collect wrote down; the documents may have been deleted since."""
    manifests = sorted((data_dir / "documents").glob("*/manifest.json"))
    names = ("documents", "dropped", "settings")
    read = {path.parent.name: read_json(path) for path in manifests}
    return {
        source: {
            **{name: manifest[name] for name in names},
            "characters": sum(part["characters"] for part in manifest["parts"]),
        }
        for source, manifest in read.items()
    }


def _copies(data_dir: Path) -> dict[str, Any]:
    """Copies of other documents: of each source how many, and the largest groups; {} if not sought."""
    path = data_dir / "documents" / "duplicates.json"
    record = read_json(path) if path.is_file() else {}
    return {name: record[name] for name in ("sources", "groups", "largest") if name in record}


class _Sentences:
    """Hash and length of each sentence of a split, or of a share of the hashes: the same share of
    them in every split, so that a sentence is met with all of its copies or not at all.
    """

    def __init__(self, store: TokenStore) -> None:
        total = sum(
            part["sentences"] for parts in store.manifest["splits"].values() for part in parts
        )
        one_in = 1
        while total > one_in * MOST_HASHES:
            one_in *= 2
        hashes, lengths = [], []
        for part in store.one_by_one():
            of_part = _hashes(part.ids, part.sentence_offsets)
            is_chosen = of_part % np.uint64(one_in) == 0
            hashes.append(of_part[is_chosen])
            lengths.append(np.diff(part.sentence_offsets)[is_chosen])
        unsorted = np.concatenate([np.empty(0, np.uint64), *hashes])
        order = np.argsort(unsorted)  # copies of a sentence are alike, so any order of them will do
        self.hashes = unsorted[order]
        self.lengths = np.concatenate([np.empty(0, np.int32), *lengths])[order]
        self.is_repeated = np.diff(self.hashes, prepend=~self.hashes[:1]) == 0

    def share_met_in(self, other: _Sentences) -> float:
        """Share of the tokens that stand in a sentence which `other` has too."""
        places = (np.searchsorted(other.hashes, self.hashes, side) for side in ("left", "right"))
        is_met = np.not_equal(*places)
        return float(self.lengths[is_met].sum() / max(self.lengths.sum(), 1))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _hashes(ids: NDArray[Any], sentence_offsets: NDArray[np.int32]) -> NDArray[np.uint64]:
    """(S,) FNV-1a over the ids of each sentence, and MurmurHash3's last step, which mixes the bits."""
    hashes_S = np.empty(len(sentence_offsets) - 1, np.uint64)
    for sentence in range(len(hashes_S)):
        digest = np.uint64(0xCBF29CE484222325)
        for place in range(sentence_offsets[sentence], sentence_offsets[sentence + 1]):
            digest = (digest ^ np.uint64(ids[place])) * np.uint64(0x100000001B3)
        digest = (digest ^ digest >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
        hashes_S[sentence] = digest ^ digest >> np.uint64(33)
    return hashes_S


def _split_figures(store: TokenStore, sentences: _Sentences) -> dict[str, Any]:
    one_sentence, unknown, sizes = 0, 0, np.zeros(32, np.int64)
    unknown_id = store.manifest["special_ids"]["unk"]
    documents: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for part in store.one_by_one():
        one_sentence += int((np.diff(part.document_offsets) == 1).sum())
        unknown += int(np.count_nonzero(part.ids == unknown_id))
        tokens_D = np.diff(part.sentence_offsets[part.document_offsets])
        sizes += np.bincount(np.log2(tokens_D).astype(np.int64), minlength=len(sizes))
        names = pc.replace_substring_regex(part.documents, "/.*", "").dictionary_encode()
        sources = names.dictionary.to_pylist()
        places_D = names.indices.to_numpy()
        for place, source in enumerate(sources):
            documents[source] += int((places_D == place).sum())
            tokens[source] += int(tokens_D[places_D == place].sum())
    is_repeated = sentences.is_repeated
    num_tokens = sum(part.num_tokens for part in store.parts)
    return {
        "documents": store.num_documents,
        "sentences": sum(part.num_sentences for part in store.parts),
        "tokens": num_tokens,
        "unknown_share": unknown / max(num_tokens, 1),
        "documents_of_source": dict(sorted(documents.items())),
        "tokens_of_source": dict(sorted(tokens.items())),
        "document_tokens_log2_counts": sizes.tolist(),  # place i: documents of 2^i to 2^(i+1) - 1
        "one_sentence_share": one_sentence / max(store.num_documents, 1),
        "repeated_sentences_share": float(is_repeated.mean()) if len(is_repeated) else 0.0,
        "repeated_tokens_share": float(
            sentences.lengths[is_repeated].sum() / max(sentences.lengths.sum(), 1)
        ),
    }


def _faults(train: dict[str, Any], pairing: Pairing, bounds: AuditSettings) -> list[str]:
    faults = []
    if pairing is Pairing.nsp and train["documents"] < bounds.fewest_documents:
        faults.append(
            f"there are {train['documents']:,} train documents, and {bounds.fewest_documents:,} "
            "are the least: the few texts that random partners come from are learnt by heart; add "
            "documents, split them where they are collections, or set audit.fewest_documents"
        )
    if pairing.label_1 and train["one_sentence_share"] > bounds.most_one_sentence:
        faults.append(
            f"{train['one_sentence_share']:.1%} of the documents are one sentence, more than "
            f"{bounds.most_one_sentence:.0%}: they have no next sentence, which pairs=none needs not; is a row of the source a "
            "sentence, every line its own document (source.rows_per_document groups rows)? The "
            "bound is audit.most_one_sentence"
        )
    if train["repeated_tokens_share"] > bounds.most_repeated:
        faults.append(
            f"{train['repeated_tokens_share']:.1%} of the tokens stand in a sentence that occurred "
            f"before, more than {bounds.most_repeated:.0%}: the corpus holds documents or lines "
            "many times; remove the copies and collect again, or set audit.most_repeated"
        )
    if train["unknown_share"] > bounds.most_unknown:
        faults.append(
            f"{train['unknown_share']:.2%} of the tokens are unknown, more than "
            f"{bounds.most_unknown:.0%}: is the vocabulary of another language or casing? Make "
            "another one and encode again, or set audit.most_unknown"
        )
    return faults

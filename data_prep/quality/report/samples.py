"""A few examples of the shards as words, to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_prep.stores.shard_reader import Shards
from data_prep.stores.tokens import TokenStore

SHOWN = 5


def shown_examples(
    split: Shards, store: TokenStore, vocab: Sequence[str], mask_id: int
) -> list[dict[str, Any]]:
    """SHOWN examples spread over a split, whose token store is `store`.

    Each has its number, label, names of A's and B's documents, A's length and its pieces. A piece
    is {word}, or {word, put, kind} where it is masked: the input has `put` instead of `word`, and
    `kind` is "mask", "random" or "kept".
    """
    if not split.num_examples:
        return []
    chosen = np.unique(np.linspace(0, split.num_examples - 1, SHOWN).astype(np.int64))
    examples = split.read(chosen)
    names = dict(enumerate(vocab))  # an id beyond them is a fault, shown as a number
    pieces: list[dict[str, str]] = [
        {"word": names.get(token, str(token))} for token in examples.input_ids.tolist()
    ]
    targets, inputs = examples.targets.tolist(), examples.masked_input_ids.tolist()
    for position, target, put in zip(
        examples.masked_indices.tolist(), targets, inputs, strict=True
    ):
        kind = "mask" if put == mask_id else "kept" if put == target else "random"
        pieces[position] |= {"put": names.get(put, str(put)), "kind": kind}
    return [
        {
            "example": int(chosen[i]),
            "next_sentence_label": int(examples.next_sentence_labels[i]),
            "documents": [
                _name(store, int(document[i]))
                for document in (examples.document_a, examples.document_b)
            ],
            "segment_a_length": int(examples.segment_a_lengths[i]),
            "pieces": pieces[examples.offsets[i] : examples.offsets[i + 1]],
        }
        for i in range(len(chosen))
    ]


def _name(store: TokenStore, document: int) -> str:
    if document >= store.num_documents:  # shards of another store: a fault reported elsewhere
        return f"document {document}"
    part, row = store.locate(document)
    return str(store.part(part).documents[row])

"""Counts in the bytes of a shard, and the shares that follow from them.

Suffixes: N examples, T tokens of all examples end to end, M masked positions of all examples.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.core.objectives import MaskingUnit, Pairing
from data_prep.examples.masking import MaskingRule, num_masked
from data_prep.stores.shards import Examples

# Counts of a shard by name; those of a split are their sums.
Counts = dict[str, int]

LABELS = tuple(pairing.label_1 for pairing in Pairing if pairing.label_1)

# Kinds of broken examples: none may occur.
BROKEN = (
    "pairs labelled random within one document",
    "pairs labelled next from two documents",
    "examples of two documents where all are of one",
    "labels of examples without a pair",
    "examples not of the form [CLS] A [SEP] B [SEP]",
    "examples not of the form [CLS] text [SEP]",
    "special ids inside the text",
    "examples longer than seq_len",
    "ids outside the vocabulary",
    "masks on [CLS], [SEP] or out of order",
    "examples with a wrong number of masks",
)


def count(
    examples: Examples,
    pairing: Pairing,
    rule: MaskingRule,
    special_ids: dict[str, int],
    seq_len: int,
) -> Counts:
    """All counts of N examples, those of BROKEN included."""
    ids, starts, ends = examples.input_ids, examples.offsets[:-1], examples.offsets[1:]
    is_nsp, is_single = pairing is Pairing.nsp, pairing is Pairing.none
    is_one = examples.next_sentence_labels == 1
    is_same = examples.document_a == examples.document_b
    first_sep = starts + examples.segment_a_lengths - 1
    lengths_N = ends - starts
    masked_N = np.diff(examples.masked_offsets)
    wanted_N = num_masked(lengths_N, rule)
    # B has a token, or there is no B; A is checked below
    whole = first_sep == ends - 1 if is_single else first_sep < ends - 2
    is_form = whole & (examples.segment_a_lengths >= 3)
    is_form &= (ids[starts] == rule.cls_id) & (ids[ends - 1] == rule.sep_id)
    is_form[whole] &= ids[first_sep[whole]] == rule.sep_id
    is_text = np.ones(len(ids), np.bool_)
    for positions in (starts, ends - 1, first_sep[whole]):
        is_text[positions] = False
    inner_special = [special_ids[name] for name in ("pad", "cls", "sep", "mask")]
    at = examples.masked_indices
    put, target = examples.masked_input_ids, examples.targets
    is_first = np.zeros(len(at), np.bool_)
    is_first[examples.masked_offsets[:-1][masked_N > 0]] = True
    is_rising = np.diff(examples.masked_positions.astype(np.int64), prepend=-1) > 0
    is_mask, is_kept = put == rule.mask_id, put == target
    wrong_number = (masked_N < 1) | (masked_N > rule.max_masked)
    if rule.unit is MaskingUnit.token:
        wrong_number |= masked_N != wanted_N
    broken = (
        is_nsp * (is_one & is_same).sum(),
        is_nsp * (~is_one & ~is_same).sum(),
        (not is_nsp) * (~is_same).sum(),
        is_single * is_one.sum(),
        (not is_single) * (~is_form).sum(),
        is_single * (~is_form).sum(),
        np.isin(ids[is_text], inner_special).sum(),
        (lengths_N > seq_len).sum(),
        (ids >= rule.vocab_size).sum() + (put >= rule.vocab_size).sum(),
        (~is_text[at]).sum() + (~is_rising & ~is_first).sum(),
        wrong_number.sum(),
    )
    sums = {
        "rows": len(examples),
        "tokens": len(ids),
        "text_tokens": is_text.sum(),
        "masked_tokens": len(at),
        "quota": wanted_N.sum(),
        **({pairing.label_1: is_one.sum()} if pairing.label_1 else {}),
        "became_mask": is_mask.sum(),
        "stayed": (is_kept & ~is_mask).sum(),
        "became_random": (~is_mask & ~is_kept).sum(),
        "unknown_tokens": (ids[is_text] == special_ids["unk"]).sum(),
        **dict(zip(BROKEN, broken, strict=True)),
    }
    return {name: int(value) for name, value in sums.items()}


def shares(counts: Counts, seq_len: int) -> dict[str, Any]:
    """The counts, and the shares to compare with the literature."""
    rows, masked = max(counts["rows"], 1), max(counts["masked_tokens"], 1)
    return {
        **{name: n for name, n in counts.items() if name not in BROKEN},
        "mean_length": counts["tokens"] / rows,
        "real_share": counts["tokens"] / (rows * seq_len),
        **{f"{name}_share": counts[name] / rows for name in LABELS if name in counts},
        "masked_share": counts["masked_tokens"] / max(counts["tokens"], 1),
        "mask_share": counts["became_mask"] / masked,
        "random_share": counts["became_random"] / masked,
        "kept_share": counts["stayed"] / masked,
        "unknown_share": counts["unknown_tokens"] / max(counts["text_tokens"], 1),
    }


def content_hashes(ids: NDArray[Any], offsets: NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
    """(N,) a hash of ids[offsets[i] : offsets[i + 1]], such as a sentence's or an example's."""
    raw = ids.view(np.uint8).data
    ends = itertools.pairwise((offsets.astype(np.int64) * ids.itemsize).tolist())
    hashes = (xxhash.xxh3_64_intdigest(raw[start:end]) for start, end in ends)
    return np.fromiter(hashes, np.uint64, len(offsets) - 1)

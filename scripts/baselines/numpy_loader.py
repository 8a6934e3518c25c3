"""A micro-batch of pretrain.data in NumPy alone: read, mask and pack, with the same bits.

It shows the speed of vectorized NumPy (scripts.bench.loader), and is a second program that the
compiled one must agree with (tests). It masks tokens, not whole words.

Suffixes: N sequences, T tokens of the packed row, M masked positions; R of a group of sequences.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.examples.masking import MaskingRule, num_masked
from data_prep.examples.philox import MASK
from data_prep.stores.shards import Examples

Columns = dict[str, NDArray[Any]]
GROUP = 1024  # sequences masked together: their random words fit the cache
SPARE = 16  # random words per sequence for rejected draws
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)


def packed_columns(
    shard: Examples, rows: NDArray[np.int64], keys: NDArray[np.uint64], rule: MaskingRule
) -> Columns:
    """The columns of a `PackedBatch` of these (N,) rows of a mapped shard, with (N, 2) keys."""
    first_N = shard.offsets[rows].astype(np.int64)
    lengths_N = shard.offsets[rows + 1] - first_N
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths_N)])
    offsets_T = np.arange(cu_seqlens[-1])
    position_ids_T = offsets_T - np.repeat(cu_seqlens[:-1], lengths_N)
    ids_T = shard.input_ids[np.repeat(first_N - cu_seqlens[:-1], lengths_N) + offsets_T]
    segment_a_N = shard.segment_a_lengths[rows].astype(np.int64)
    is_chosen = np.zeros(len(ids_T), np.bool_)
    masked_ids_T = ids_T.astype(np.int32)
    quotas_N = num_masked(lengths_N, rule)
    longest_first = np.argsort(-quotas_N, kind="stable")
    for begin in range(0, len(rows), GROUP):
        group_R = longest_first[begin : begin + GROUP]
        positions, ids = _masks(ids_T, cu_seqlens[group_R], lengths_N[group_R], keys[group_R], rule)
        is_chosen[positions] = True
        masked_ids_T[positions] = ids
    masked_positions_M = np.flatnonzero(is_chosen)
    return {
        "input_ids": masked_ids_T,
        "position_ids": position_ids_T.astype(np.int32),
        "segment_ids": (position_ids_T >= np.repeat(segment_a_N, lengths_N)).astype(np.int32),
        "cu_seqlens": cu_seqlens.astype(np.int32),
        "cls_positions": cu_seqlens[:-1],
        "masked_positions": masked_positions_M,
        "labels": ids_T[masked_positions_M].astype(np.int64),
        "next_sentence_labels": shard.next_sentence_labels[rows].astype(np.int64),
    }


def _masks(
    ids_T: NDArray[Any],
    starts_R: NDArray[np.int64],
    lengths_R: NDArray[np.int64],
    keys: NDArray[np.uint64],
    rule: MaskingRule,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Masked positions in the packed row and their ids, of R sequences with descending quotas."""
    quotas_R = num_masked(lengths_R, rule)
    most = int(quotas_R[0])
    # candidates, one sequence per column: all but [CLS] and [SEP]
    offsets = np.arange(int(lengths_R.max()))[:, None]
    ids = ids_T[np.minimum(starts_R + offsets, len(ids_T) - 1)]
    is_candidate = (offsets < lengths_R) & (ids != rule.cls_id) & (ids != rule.sep_id)
    counts_R = is_candidate.sum(0)
    candidates = np.empty((len(offsets), len(lengths_R)), np.int64)
    sequence, position = np.nonzero(is_candidate.T)
    ranks = np.arange(len(sequence)) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)
    candidates[ranks, sequence] = position
    quotas_R = np.minimum(quotas_R, counts_R)
    words = _philox(keys, 3 * most + most + SPARE)
    numbers_R = np.arange(len(lengths_R))
    chosen = np.zeros(candidates.shape, np.bool_)
    used_R = np.zeros(len(lengths_R), np.int64)
    for drawn in range(most):  # Fisher-Yates, on all sequences below their quota
        active = numbers_R[: np.count_nonzero(quotas_R > drawn)]
        other = _below(words, used_R, active, (counts_R[active] - drawn).astype(np.uint64)) + drawn
        chosen[candidates[other, active], active] = True
        candidates[other, active] = candidates[drawn, active]
    sequence, position = np.nonzero(chosen.T)
    at = np.cumsum(quotas_R) - quotas_R
    draws = np.empty(len(sequence), np.uint64)
    entries = np.zeros(len(sequence), np.int64)
    special = np.unique(np.array(rule.special_ids))
    bound = np.uint64(rule.vocab_size - len(special[special < rule.vocab_size]))
    to_mask, to_random = (
        np.uint64(np.ceil(2.0**53 * share))
        for share in (rule.mask_share, rule.mask_share + rule.random_share)
    )
    for number in range(most):  # a sequence's words depend on those it has used
        active = numbers_R[: np.count_nonzero(quotas_R > number)]
        used = used_R[active]
        high, low = words[used, active] >> np.uint64(5), words[used + 1, active] >> np.uint64(6)
        draw = high << np.uint64(26) | low
        draws[at[active] + number] = draw
        used_R[active] += 2
        random = active[(draw >= to_mask) & (draw < to_random)]
        entries[at[random] + number] = _below(words, used_R, random, bound)
    for special_id in special:
        entries += entries >= special_id
    positions = starts_R[sequence] + position
    kept = np.where(draws < to_random, entries, ids_T[positions])
    return positions, np.where(draws < to_mask, rule.mask_id, kept)


def _below(
    words: NDArray[np.uint64], used_R: NDArray[np.int64], active: NDArray[np.int64], bounds: Any
) -> NDArray[np.int64]:
    """`philox.next_below` for the active sequences, with their next words."""
    product = words[used_R[active], active] * bounds
    used_R[active] += 1
    rejected = np.flatnonzero((product & _LOW) < bounds)  # candidates, almost never any
    while len(rejected):
        bound = np.broadcast_to(bounds, product.shape)[rejected]
        is_below = (product[rejected] & _LOW) < (np.uint64(2**32) - bound) % bound
        rejected, bound = rejected[is_below], bound[is_below]
        product[rejected] = words[used_R[active[rejected]], active[rejected]] * bound
        used_R[active[rejected]] += 1
    numbers: NDArray[np.int64] = (product >> _32).astype(np.int64)
    return numbers


def _philox(keys: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """The first `count` words, and up to three more, of R streams of masks: (words, R) uint64."""
    blocks = -(-count // 4)
    shape = (blocks, len(keys))
    c0 = np.broadcast_to(np.arange(blocks, dtype=np.uint64)[:, None], shape)
    c1 = np.broadcast_to(np.uint64(MASK), shape)
    c2, c3 = (np.broadcast_to(half, shape) for half in (keys[:, 1] & _LOW, keys[:, 1] >> _32))
    k0, k1 = keys[:, 0] >> _32, keys[:, 0] & _LOW
    for _ in range(10):
        product0, product1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (product1 >> _32) ^ c1 ^ k0, product1 & _LOW
        c2, c3 = (product0 >> _32) ^ c3 ^ k1, product0 & _LOW
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & _LOW, (k1 + np.uint64(0xBB67AE85)) & _LOW
    return np.stack([c0, c1, c2, c3], axis=1).reshape(-1, len(keys))

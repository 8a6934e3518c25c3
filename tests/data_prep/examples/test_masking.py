"""Masks: equal to a plain version of Google's code, keyed by example, and fair by statistics."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_manifests import shards_manifest, token_rule

from data_prep.core.objectives import MaskingUnit
from data_prep.core.settings import MaskingSettings
from data_prep.examples import philox
from data_prep.examples.masking import (
    MaskingRule,
    dynamic_keys,
    mask_examples,
    num_masked,
    static_keys,
)

V = 1000
RULE = token_rule(V)
WHOLE_WORD = replace(RULE, unit=MaskingUnit.whole_word, continuation=np.arange(V) % 3 == 0)


def make_ids(rng: np.random.Generator, lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Examples [CLS] A [SEP] B [SEP] of these lengths, text ids from 1 ([UNK]) and 5 up."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = rng.integers(5, V, offsets[-1]).astype(np.uint16)
    ids[rng.random(len(ids)) < 0.01] = 1
    for start, end in pairwise(offsets):
        ids[start], ids[rng.integers(start + 2, end - 2)], ids[end - 1] = 2, 3, 3
    return ids, offsets


def keys_of(size: int, seed: int = 1) -> np.ndarray:
    return static_keys(seed, 0, np.arange(size), np.zeros(size, np.int64))


def many(rule: MaskingRule = RULE, size: int = 4000, seed: int = 0):
    rng = np.random.default_rng(seed)
    ids, offsets = make_ids(rng, rng.integers(5, 129, size).tolist())
    return ids, offsets, *mask_examples(ids, offsets, keys_of(size), rule)


def packed(offsets: np.ndarray, positions: np.ndarray, masked_offsets: np.ndarray) -> np.ndarray:
    """The masked positions among the ids of all examples."""
    return np.repeat(offsets[:-1], np.diff(masked_offsets)) + positions


def naive_masks(ids: list[int], key: np.ndarray, rule: MaskingRule) -> dict[int, int]:
    """Google's create_masked_lm_predictions in plain Python, on the numbers of the same stream."""
    stream = np.zeros(philox.WORDS, np.uint32)
    philox.start(stream, key[0], philox.MASK, key[1])
    words: list[list[int]] = []
    for position, token in enumerate(ids):
        if token in (rule.cls_id, rule.sep_id):
            continue
        after_text = ids[position - 1] not in (rule.cls_id, rule.sep_id)
        if rule.unit is MaskingUnit.whole_word and after_text and rule.continuation[token]:
            words[-1].append(position)
        else:
            words.append([position])
    most = len(ids) if rule.max_predictions is None else rule.max_predictions
    quota = min(most, max(1, round(len(ids) * rule.rate)), len(ids) - 3)
    shortest = None
    chosen: list[int] = []
    for i in range(len(words)):
        if len(chosen) == quota:
            break
        j = i + philox.next_below(stream, len(words) - i)
        words[i], words[j] = words[j], words[i]
        if len(chosen) + len(words[i]) <= quota:
            chosen += words[i]
    if not chosen:
        shortest = min(words, key=len)
        chosen = shortest[:most]
    allowed = [token for token in range(rule.vocab_size) if token not in rule.special_ids]
    masks = {}
    for position in sorted(chosen):
        draw = philox.next_double(stream)
        if draw < rule.mask_share:
            masks[position] = rule.mask_id
        elif draw < rule.mask_share + rule.random_share:
            masks[position] = allowed[philox.next_below(stream, len(allowed))]
        else:
            masks[position] = ids[position]
    return masks


@pytest.mark.parametrize("rule", [RULE, WHOLE_WORD], ids=["token", "whole word"])
@pytest.mark.parametrize("most", [None, 1, 3])
@given(lengths=st.lists(st.integers(5, 60), max_size=4), seed=st.integers(0, 2**32 - 1))
def test_masks_equal_those_of_a_plain_rendering_of_google_s_code(rule, most, lengths, seed) -> None:
    rule = replace(rule, max_predictions=most)
    ids, offsets = make_ids(np.random.default_rng(seed), lengths)
    keys = keys_of(len(lengths), seed)
    positions, masked_offsets, masked_ids = mask_examples(ids, offsets, keys, rule)
    for i in range(len(lengths)):
        found = slice(masked_offsets[i], masked_offsets[i + 1])
        expected = naive_masks(ids[offsets[i] : offsets[i + 1]].tolist(), keys[i], rule)
        assert dict(zip(positions[found], masked_ids[found], strict=True)) == expected
        assert positions[found].tolist() == sorted(expected)
        assert len(expected) > 0


@given(length=st.integers(5, 512), rate=st.floats(0.01, 0.99), most=st.integers(1, 100))
def test_the_count_is_python_s_rounding_of_the_rate(length: int, rate: float, most: int) -> None:
    rule = replace(RULE, rate=rate, max_predictions=most)
    expected = min(most, max(1, round(length * rate)), length - 3)
    assert num_masked(np.array([length]), rule).tolist() == [expected]
    ids, offsets = make_ids(np.random.default_rng(length), [length])
    assert len(mask_examples(ids, offsets, keys_of(1), rule)[0]) == expected


def test_a_text_of_one_token_is_masked() -> None:
    assert num_masked(np.array([3, 4]), replace(RULE, num_special=2)).tolist() == [1, 1]


def test_counts_at_full_length_are_the_published_ones() -> None:
    assert num_masked(np.array([128, 512]), RULE).tolist() == [19, 77]
    assert num_masked(np.array([512]), replace(RULE, max_predictions=76)).tolist() == [76]
    # 0.15 * 10 and 0.15 * 30 are ties: rounded to even
    assert num_masked(np.array([10, 30]), RULE).tolist() == [2, 4]


def test_shares_are_80_10_10() -> None:
    ids, offsets, positions, masked_offsets, masked_ids = many()
    targets = ids[packed(offsets, positions, masked_offsets)]
    is_mask, is_kept = masked_ids == RULE.mask_id, masked_ids == targets
    error = 4 * np.sqrt(0.16 / len(positions))  # four standard errors at 40,000 positions
    assert abs(is_mask.mean() - 0.8) < error
    assert abs(is_kept.mean() - 0.1) < error
    assert abs((~is_mask & ~is_kept).mean() - 0.1) < error


def test_random_entries_are_uniform_over_the_vocabulary_without_special_ids() -> None:
    rule = replace(RULE, mask_share=0.0, random_share=1.0, special_ids=(0, 1, 2, 3, 4, 500, 999))
    _, _, _, _, masked_ids = many(rule)
    counts = np.bincount(masked_ids, minlength=V)
    special = list(rule.special_ids)
    assert counts[special].sum() == 0
    drawn = np.delete(counts, special)
    expected = len(masked_ids) / len(drawn)
    chi2 = ((drawn - expected) ** 2 / expected).sum()
    assert abs(chi2 - len(drawn)) < 4 * np.sqrt(2 * len(drawn))  # mean df, deviation sqrt(2 df)


def test_every_position_but_cls_and_sep_is_masked_equally_often() -> None:
    ids, _ = make_ids(np.random.default_rng(0), [40])
    size = 20_000
    offsets = np.arange(size + 1) * 40
    positions, _, _ = mask_examples(np.tile(ids, size), offsets, keys_of(size), RULE)
    counts = np.bincount(positions, minlength=40)
    is_special = np.isin(ids, [2, 3])
    assert counts[is_special].sum() == 0
    expected = size * 6 / 37
    assert (abs(counts[~is_special] - expected) < 5 * np.sqrt(expected)).all()


def test_position_one_and_unknown_tokens_can_be_masked_and_zero_never_ends_a_list() -> None:
    ids, offsets, positions, masked_offsets, _ = many()
    assert (positions == 1).any()
    assert (ids[packed(offsets, positions, masked_offsets)] == 1).any(), "[UNK]"
    assert not (positions == 0).any()
    assert masked_offsets[-1] == len(positions)


def test_masks_of_an_example_do_not_depend_on_its_neighbours() -> None:
    ids, offsets, positions, masked_offsets, masked_ids = many(size=100)
    for i in (0, 17, 99):  # alone, as in another worker
        alone = mask_examples(
            ids[offsets[i] : offsets[i + 1]],
            np.array([0, offsets[i + 1] - offsets[i]]),
            keys_of(100)[i : i + 1],
            RULE,
        )
        found = slice(masked_offsets[i], masked_offsets[i + 1])
        np.testing.assert_array_equal(alone[0], positions[found])
        np.testing.assert_array_equal(alone[2], masked_ids[found])


def test_masks_differ_between_epochs_and_repeat_within_one() -> None:
    ids, offsets = make_ids(np.random.default_rng(0), [60] * 50)
    examples = np.arange(50)

    def positions(epoch: int) -> np.ndarray:
        keys = dynamic_keys(1, np.full(50, epoch), examples)
        return mask_examples(ids, offsets, keys, RULE)[0].reshape(50, 9)

    np.testing.assert_array_equal(positions(0), positions(0))
    assert (positions(0) != positions(1)).any(axis=1).all()


def test_keys_of_passes_epochs_documents_and_pairs_are_all_distinct() -> None:
    numbers, zeros = np.arange(3), np.zeros(3, np.int64)
    keys = [
        static_keys(5, 0, numbers, zeros), static_keys(5, 0, zeros, numbers)[1:],
        static_keys(5, 1, numbers, zeros), static_keys(6, 0, numbers, zeros),
        dynamic_keys(5, zeros, numbers), dynamic_keys(5, zeros + 1, numbers),
    ]  # fmt: skip
    rows = [tuple(row) for row in np.concatenate(keys).tolist()]
    assert len(set(rows)) == len(rows)


def test_the_unmasked_ids_are_left_alone() -> None:
    ids, offsets = make_ids(np.random.default_rng(0), [60] * 50)
    ids.flags.writeable = False  # as a memory map is
    before = ids.copy()
    mask_examples(ids, offsets, keys_of(50), RULE)
    np.testing.assert_array_equal(ids, before)


def test_no_word_is_masked_in_half_and_the_rate_holds() -> None:
    ids, offsets, positions, masked_offsets, _ = many(WHOLE_WORD)
    is_masked = np.zeros(len(ids), bool)
    is_masked[packed(offsets, positions, masked_offsets)] = True
    is_text = ~np.isin(ids, [2, 3])
    joined = is_text[1:] & is_text[:-1] & WHOLE_WORD.continuation[ids[1:]]
    assert joined.sum() > 10_000
    np.testing.assert_array_equal(is_masked[1:][joined], is_masked[:-1][joined])
    assert abs(len(positions) / len(ids) - 0.15) < 0.005


def test_whole_words_draw_the_replacement_of_each_piece_alone() -> None:
    ids, offsets, positions, masked_offsets, masked_ids = many(WHOLE_WORD)
    is_mask = masked_ids == 4
    masked_at = packed(offsets, positions, masked_offsets)
    joined = np.flatnonzero((np.diff(masked_at) == 1) & WHOLE_WORD.continuation[ids[masked_at[1:]]])
    both = (is_mask[joined] & is_mask[joined + 1]).mean()
    assert abs(both - 0.64) < 4 * np.sqrt(0.25 / len(joined))  # 0.8 * 0.8, were they one: 0.8


def test_an_example_of_one_long_word_is_still_masked() -> None:
    ids = np.array([2, 5, 6, 6, 6, 3, 9, 9, 9, 9, 9, 3], np.uint16)  # of 4 and 5 pieces, quota 2
    offsets = np.array([0, len(ids)])
    positions, _, _ = mask_examples(ids, offsets, keys_of(1), WHOLE_WORD)
    assert positions.tolist() == [1, 2, 3, 4]
    capped = replace(WHOLE_WORD, max_predictions=2)
    assert mask_examples(ids, offsets, keys_of(1), capped)[0].tolist() == [1, 2]


def test_no_examples_give_no_masks() -> None:
    nothing = np.zeros(0, np.uint16)
    positions, offsets, _ = mask_examples(nothing, np.zeros(1, np.int64), keys_of(0), RULE)
    assert len(positions) == 0
    assert offsets.tolist() == [0]


MANIFEST = shards_manifest(
    masking=MaskingSettings(0.15, 20, 0.8, 0.1, MaskingUnit.whole_word), vocab_size=7
)


def test_the_rule_of_a_manifest_reads_continuations_from_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\n")
    rule = MaskingRule.from_manifest(MANIFEST, path)
    assert rule.continuation.tolist() == [False] * 6 + [True]
    assert (rule.max_masked, rule.cls_id, rule.sep_id, rule.mask_id) == (20, 2, 3, 4)
    assert rule.special_ids == (0, 1, 2, 3, 4)


def test_whole_words_without_their_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give its vocab\.txt"):
        MaskingRule.from_manifest(MANIFEST, None)
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(ValueError, match="has 5 entries, the data was made with 7"):
        MaskingRule.from_manifest(MANIFEST, path)

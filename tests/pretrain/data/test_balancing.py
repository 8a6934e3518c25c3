"""Dealing a global batch to ranks and micro-steps."""

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep.core.config import SettingsError
from pretrain.config.checks import check_dealable
from pretrain.data.balancing import _first, deal, deal_prefix, longest_prefix, most_tokens
from scripts.baselines.synthetic_shards import draw_lengths

LONGEST = 64
DEALABLE = st.tuples(
    st.lists(st.integers(1, LONGEST), min_size=7, max_size=120).map(np.array),
    st.integers(1, 7),
    st.integers(2 * LONGEST, 600),
)


@given(DEALABLE)
@example((np.array([43, 43, 43, 43, 43, 41]), 1, 128))  # two bins would hold 129 and 127
def test_each_sequence_is_dealt_once_within_budget_in_as_many_micro_steps_on_every_rank(
    given: tuple[np.ndarray, int, int],
) -> None:
    (lengths, num_ranks, budget), dealt = given, deal(*given)
    micro_batches = list(itertools.chain(*dealt))
    np.testing.assert_array_equal(np.sort(np.concatenate(micro_batches)), np.arange(len(lengths)))
    for places in micro_batches:
        assert len(places)
        assert (np.diff(places) > 0).all()
        assert lengths[places].sum() <= budget
    assert len(dealt) == num_ranks
    assert len({len(micro_steps) for micro_steps in dealt}) == 1


@given(DEALABLE)
def test_the_fewest_micro_steps_that_fit_are_taken(given: tuple[np.ndarray, int, int]) -> None:
    """Against a plain count upwards with an own longest-first dealing."""
    lengths, num_ranks, budget = given
    for num_micro_steps in itertools.count(1):
        loads = [0] * (num_ranks * num_micro_steps)
        for length in sorted(lengths.tolist(), reverse=True):
            heapq.heapreplace(loads, loads[0] + length)
        if max(loads) <= budget:
            break
    assert len(deal(*given)[0]) == num_micro_steps


@given(DEALABLE)
@example((np.full(7, LONGEST), 3, 600))
def test_no_micro_batch_has_more_tokens_than_the_most_that_are_planned_for(
    given: tuple[np.ndarray, int, int],
) -> None:
    lengths, num_ranks, budget = given
    bound = most_tokens(len(lengths), num_ranks, LONGEST, budget)
    assert deal(*given).most_tokens <= bound <= budget


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_full_sequences_fill_a_budget_of_one(num_ranks: int) -> None:
    dealt = deal(np.full(8, 512), num_ranks, token_budget=512)
    assert [len(micro_steps) for micro_steps in dealt] == [8 // num_ranks] * num_ranks


def test_wikipedia_like_lengths_are_balanced_within_a_percent() -> None:
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random(4096) < 0.234, 512, rng.integers(5, 370, 4096))
    tokens = [
        lengths[places].sum() for places in itertools.chain(*deal(lengths, 64, token_budget=20_000))
    ]
    assert max(tokens) / np.mean(tokens) < 1.01


@given(
    st.lists(st.integers(1, LONGEST), min_size=60, max_size=120).map(np.array),
    st.integers(1, 7),
    st.integers(LONGEST, 200),
)
def test_a_prefix_fills_its_bins_and_one_sequence_more_does_not(lengths, num_bins, budget) -> None:
    taken = longest_prefix(lengths, num_bins, budget)
    assert taken >= min(num_bins, len(lengths))
    dealt = deal_prefix(lengths[:taken], 1, num_bins)
    assert [len(bins) for bins in dealt] == [num_bins]
    assert max(lengths[places].sum() for places in dealt[0]) == dealt.most_tokens <= budget
    if taken < len(lengths):
        assert deal_prefix(lengths[: taken + 1], 1, num_bins).most_tokens > budget


@pytest.mark.parametrize(("tokens", "num_bins", "least"), [(4096, 8, 0.98), (16_384, 8, 0.99)])
def test_steps_of_tokens_are_full(tokens: int, num_bins: int, least: float) -> None:
    """98 % from 32 k tokens per step on, 99 % from 128 k on, with the lengths of real corpora."""
    rng = np.random.default_rng(0)
    for name in ("wikipedia", "books"):
        fills = []
        for _ in range(20):
            lengths = draw_lengths(name, tokens * num_bins // 150, rng)
            taken = longest_prefix(lengths, num_bins, tokens)
            fills.append(lengths[:taken].sum() / (tokens * num_bins))
        assert np.mean(fills) > least


@pytest.mark.parametrize("name", ["wikipedia", "books"])
def test_from_16_sequences_a_bin_on_costs_are_balanced_within_a_percent(name: str) -> None:
    """The cost of n tokens in BERT-large: n + n ** 2 / (6 * 1024), attention's share."""
    rng, imbalances = np.random.default_rng(0), []
    for _ in range(20):
        lengths = draw_lengths(name, 1024, rng)
        bins = deal_prefix(lengths, 1, 64)[0]
        costs = [(lengths[p] + lengths[p] ** 2 / 6144).sum() for p in bins]
        imbalances.append(max(costs) / np.mean(costs) - 1)
    assert np.mean(imbalances) < 0.01


def test_where_hardly_two_sequences_share_a_bin_the_search_is_short() -> None:
    """Sums say 118 micro-steps, and it takes 200: not one after the other."""
    with_tries: list[int] = []
    lengths = np.full(200, 300)

    def fits(number: int) -> bool:
        with_tries.append(number)
        return number >= 200

    assert _first(fits, 118, 200) == 200
    assert len(with_tries) < 25
    assert len(deal(lengths, 1, 512)[0]) == 200


def test_the_deal_of_a_written_out_batch() -> None:
    dealt = deal(np.array([9, 2, 7, 4, 5, 3]), num_ranks=2, token_budget=20)
    assert [[places.tolist() for places in rank] for rank in dealt] == [[[0, 1, 3]], [[2, 4, 5]]]


@given(
    global_batch=st.integers(1, 40),
    num_ranks=st.integers(1, 9),
    budget=st.integers(1, 5 * LONGEST),
    data=st.data(),
)
@settings(max_examples=300)
def test_what_the_check_lets_pass_can_always_be_dealt(
    global_batch: int, num_ranks: int, budget: int, data: st.DataObject
) -> None:
    try:
        check_dealable(global_batch, num_ranks, budget, LONGEST)
    except SettingsError:
        return
    length = st.one_of(st.just(LONGEST), st.integers(1, LONGEST))
    lengths = data.draw(st.lists(length, min_size=global_batch, max_size=global_batch))
    deal(np.array(lengths), num_ranks, budget)


@pytest.mark.parametrize(
    ("global_batch", "num_ranks", "budget", "cure"),
    [
        (3, 4, 512, "optim.global_batch=4"),
        (8, 2, 511, "engine.tokens_per_micro_batch=512"),
        (8, 3, 1023, "engine.tokens_per_micro_batch=1024 or optim.global_batch=6"),
    ],
)
def test_a_batch_that_cannot_be_dealt_is_refused_with_the_cure(
    global_batch: int, num_ranks: int, budget: int, cure: str
) -> None:
    with pytest.raises(SettingsError, match=cure):
        check_dealable(global_batch, num_ranks, budget, seq_len=512)


def test_steps_of_tokens_need_equally_many_bins_on_every_rank() -> None:
    check_dealable(1, 4, 512, 512, tokens_per_step=8 * 512)
    for tokens, nearest in ((5 * 512, 2048), (7 * 512, 4096), (8 * 512 + 1, 4096), (0, 2048)):
        with pytest.raises(SettingsError, match=f"set optim.tokens_per_step={nearest}, or .*=null"):
            check_dealable(1, 4, 512, 512, tokens_per_step=tokens)


@pytest.mark.parametrize(
    ("lengths", "num_ranks", "message"),
    [([3, 11], 1, "micro-batches of 10 tokens"), ([10] * 4, 3, "leave a rank of 3 without one")],
)
def test_a_sequence_above_the_budget_or_a_rank_without_any_is_refused(
    lengths, num_ranks, message
) -> None:
    with pytest.raises(ValueError, match=message):
        deal(np.array(lengths), num_ranks, token_budget=10)

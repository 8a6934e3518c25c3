"""The order of examples."""

import collections
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.shuffle import ExampleOrder

SIZES = st.one_of(
    st.integers(1, 300),
    st.sampled_from([2**k + d for k in range(1, 14) for d in (-1, 0, 1)]),
    st.sampled_from([2, 3, 5, 7, 251, 257, 4093, 7919]),
)


def epoch_of(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return ExampleOrder(num_examples, seed).examples(epoch * num_examples, num_examples)[1]


@given(num_examples=SIZES, seed=st.integers(0, 2**64), epoch=st.integers(0, 10**6))
@settings(max_examples=60)
def test_an_epoch_holds_each_example_exactly_once(num_examples: int, seed: int, epoch: int) -> None:
    ids = epoch_of(num_examples, seed, epoch)
    np.testing.assert_array_equal(np.sort(ids), np.arange(num_examples))


@given(
    num_examples=SIZES,
    first=st.integers(0, 10**9),
    counts=st.lists(st.integers(1, 400), min_size=1, max_size=4),
)
@settings(max_examples=60)
def test_any_cut_of_the_stream_reads_the_same(num_examples, first, counts) -> None:
    order = ExampleOrder(num_examples, seed=3)
    starts = [first + sum(counts[:i]) for i in range(len(counts))]
    pieces = [order.examples(s, c) for s, c in zip(starts, counts, strict=True)]
    epochs, ids = order.examples(first, sum(counts))
    np.testing.assert_array_equal(np.concatenate([p[0] for p in pieces]), epochs)
    np.testing.assert_array_equal(np.concatenate([p[1] for p in pieces]), ids)
    np.testing.assert_array_equal(epochs, np.arange(first, first + sum(counts)) // num_examples)


def test_the_orders_of_two_epochs_or_seeds_differ_and_each_repeats() -> None:
    first, second, other = epoch_of(1000, 5, 0), epoch_of(1000, 5, 1), epoch_of(1000, 6, 0)
    assert (first == second).sum() < 10  # 1 is expected by chance
    assert (first == other).sum() < 10
    np.testing.assert_array_equal(second, epoch_of(1000, 5, 1))


@pytest.mark.parametrize("num_examples", [1000, 4097, 65536])
def test_place_neighbours_and_next_epoch_do_not_predict_an_id(num_examples: int) -> None:
    """Ids are their own ranks, so these are rank correlations; in units of their chance spread."""
    places = np.arange(num_examples)
    scores = []
    for seed in range(40):
        now, after = epoch_of(num_examples, seed, 0), epoch_of(num_examples, seed, 1)
        pairs = [(places, now), (now[:-1], now[1:]), (now, after)]
        scores.append([np.corrcoef(a, b)[0, 1] * math.sqrt(num_examples) for a, b in pairs])
    spread = np.asarray(scores)
    assert (np.abs(spread.mean(0)) < 4 / math.sqrt(40)).all()  # four sigma of the mean
    assert ((spread.std(0) > 0.6) & (spread.std(0) < 1.4)).all()


@pytest.mark.parametrize("gap", [1, 2, 256])
def test_neighbours_of_an_id_are_scattered_evenly(gap: int) -> None:
    """The distance (mod n) of the ids of two near places is uniform: chi-squared over 64 bins."""
    num_examples = 65536
    ids = epoch_of(num_examples, 11, 0)
    counts = np.bincount((ids[gap:] - ids[:-gap]) % num_examples // 1024, minlength=64)
    expected = counts.sum() / 64
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 63 + 5 * math.sqrt(2 * 63)


def test_a_tiny_corpus_comes_in_all_its_orders_equally_often() -> None:
    _, ids = ExampleOrder(4, seed=1).examples(0, 4 * 4800)
    orders = collections.Counter(map(tuple, ids.reshape(-1, 4).tolist()))
    assert len(orders) == 24
    assert sum((c - 200) ** 2 / 200 for c in orders.values()) < 23 + 5 * math.sqrt(2 * 23)


def test_a_billion_examples_need_no_memory() -> None:
    num_examples = 10**9
    epochs, ids = ExampleOrder(num_examples, seed=9).examples(3 * num_examples - 50_000, 100_000)
    assert len(np.unique(ids[:50_000])) == len(np.unique(ids[50_000:])) == 50_000
    assert ids.min() >= 0
    assert ids.max() < num_examples
    assert epochs[0] == 2
    assert epochs[-1] == 3


def test_an_order_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="one example at least"):
        ExampleOrder(0, seed=1)

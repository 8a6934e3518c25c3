"""A mixture: exact shares, each source in its own order, and the same stream from any place on."""

import dataclasses
import itertools
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.core.config import SettingsError
from data_prep.core.objectives import Pairing
from data_prep.examples.masking import MaskingRule, dynamic_keys
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shards import read_source
from pretrain.config.settings import DataSettings, MaskMode
from pretrain.data.checksums import batch_checksum, together
from pretrain.data.mixture import (
    RANGE,
    STEP,
    MixedOrder,
    Source,
    check_mixture,
    shares_of,
    sources_of,
)
from pretrain.data.shuffle import ExampleOrder, keyed_hash
from pretrain.data.train_loader import TrainLoader, taken
from scripts.baselines.synthetic_shards import write_synthetic_shards

SEQ_LEN = 64
NAMES = ("books", "books", "wiki-de", "books", "wiki-de")
SIZES = (5, 0, 30, 4, 11)  # of the shards: books has two ranges


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lengths = {
        "train": [rng.integers(12, SEQ_LEN + 1, n) for n in SIZES],
        "heldout": [rng.integers(12, SEQ_LEN + 1, n) for n in (2, 0, 3, 0, 0)],
    }
    write_synthetic_shards(
        folder / "len64", lengths, seq_len=SEQ_LEN, vocab_size=500, seed=4, sources=NAMES
    )
    return folder


def data_of(folder: Path, **changed: Any) -> DataSettings:
    return DataSettings(str(folder), SEQ_LEN, Pairing.nsp, MaskMode.dynamic, **changed)


def order_of(sizes: list[int], weights: list[int], seed: int = 1) -> MixedOrder:
    """Sources a, b, ... whose examples follow one another."""
    ends = [*itertools.accumulate(sizes, initial=0)]
    sources = [
        Source(chr(97 + number), [pair], 10 * sizes[number])
        for number, pair in enumerate(itertools.pairwise(ends))
    ]
    return MixedOrder(sources, [Fraction(w, sum(weights)) for w in weights], seed)


def naive(order: MixedOrder, end: int, seed: int) -> list[tuple[int, int]]:
    """(epoch, id) of the first `end` places, one after the other, as the module's text says."""
    offset = keyed_hash("mixture", seed) % RANGE
    ends = [round(RANGE * sum(order.shares[: n + 1])) for n in range(len(order.shares))]
    seen, found = [0] * len(order.sources), []
    for place in range(end):
        number = (place * STEP + offset) % RANGE
        source = next(s for s, border in enumerate(ends) if number < border)
        of_source = order.sources[source]
        own = ExampleOrder(of_source.num_examples, keyed_hash(f"order of {of_source.name}", seed))
        epochs, ids = own.examples(seen[source], 1)
        numbers = [n for first, last in of_source.ranges for n in range(first, last)]
        found.append((int(epochs[0]), numbers[ids[0]]))
        seen[source] += 1
    return found


WEIGHTS = st.lists(st.integers(1, 1_000_000), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(WEIGHTS, st.lists(st.integers(1, 60), min_size=6, max_size=6), st.integers(0, 2**31))
def test_the_stream_is_that_of_a_plain_loop_from_any_place_on(weights, sizes, seed) -> None:
    order = order_of(sizes[: len(weights)], weights, seed)
    whole = naive(order, 60, seed)
    for first, count in ((0, 60), (1, 7), (30, 30), (59, 1)):
        epochs, ids = order.examples(first, count)
        assert [*zip(epochs.tolist(), ids.tolist(), strict=True)] == whole[first : first + count]


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.integers(0, 2**53), st.integers(1, 5_000), st.integers(0, 2**31))
def test_the_places_counted_are_those_assigned(weights, first, count, seed) -> None:
    order = order_of([RANGE] * len(weights), weights, seed)
    own = order.examples(first, count)[1] // RANGE
    counted = order.places(first + count) - order.places(first)
    assert counted.tolist() == np.bincount(own, minlength=len(weights)).tolist()


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, st.integers(0, 10**9), st.integers(1, 10**6), st.integers(0, 2**31))
def test_any_stretch_has_the_shares_but_for_a_few_examples(weights, first, count, seed) -> None:
    order = order_of([1] * len(weights), weights, seed)
    counted = order.places(first + count) - order.places(first)
    shares = np.array([float(share) for share in order.shares])
    assert np.abs(counted - count * shares).max() < 8
    assert counted.sum() == count


def test_in_all_places_together_the_shares_are_exact() -> None:
    order = order_of([1, 1, 1], [6, 3, 1])
    for rounds in (1, 1000):
        counted = order.places(rounds * RANGE)
        assert np.abs(counted / rounds - RANGE * np.array([0.6, 0.3, 0.1])).max() < 1


def test_each_example_of_a_source_comes_once_before_any_comes_twice() -> None:
    order = order_of([40, 7], [1, 3])
    epochs, ids = order.examples(0, 2_000)
    for first, end in ((0, 40), (40, 47)):
        of_source = (ids >= first) & (ids < end)
        own, passes = ids[of_source], epochs[of_source]
        assert (np.diff(passes) >= 0).all()
        for number in range(int(passes.max())):
            assert sorted(own[passes == number]) == [*range(first, end)]


def test_another_seed_gives_another_order_and_other_places() -> None:
    a, b = (order_of([500, 500], [1, 1], seed).examples(0, 200)[1] for seed in (1, 2))
    assert (a < 500).tolist() != (b < 500).tolist()
    assert not set(a) <= set(b)


def test_the_sources_are_read_from_the_shards_themselves(data_dir: Path) -> None:
    shards = Shards.open(data_dir / "len64", "train")
    books, wiki = sources_of(shards)
    assert (books.name, books.ranges) == ("books", [(0, 5), (35, 39)])
    assert (wiki.name, wiki.ranges) == ("wiki-de", [(5, 35), (39, 50)])
    assert books.num_tokens == int(shards.lengths(np.r_[0:5, 35:39]).sum())
    assert read_source(data_dir / "len64" / "train" / "shard-00004.arrow") == "wiki-de"


def test_a_shard_that_names_no_plain_source_is_refused(tmp_path: Path) -> None:
    lengths = {"train": [np.array([12, 12])]}
    write_synthetic_shards(
        tmp_path, lengths, seq_len=SEQ_LEN, vocab_size=500, seed=4, sources=["../x"]
    )
    with pytest.raises(SettingsError, match=r"'\.\./x' is no plain file name"):
        read_source(tmp_path / "train" / "shard-00000.arrow")


def test_weights_are_relative(data_dir: Path) -> None:
    sources = [Source("a", [(0, 10)], 10), Source("b", [(10, 50)], 10)]
    for mixture in ({"a": 0.6, "b": 0.4}, {"b": 2, "a": 3}, {"a": 30, "b": 20}):
        shares = shares_of(data_of(data_dir, mixture=mixture), sources)
        assert shares == [Fraction(3, 5), Fraction(2, 5)]


@pytest.mark.parametrize(("exponent", "expected"), [(0.0, 0.5), (0.5, 2 / 3), (1.0, 0.8)])
def test_a_temperature_is_the_exponent_to_the_sizes(data_dir, exponent, expected) -> None:
    sources = [Source("a", [(0, 10)], 10), Source("b", [(10, 50)], 10)]
    shares = shares_of(data_of(data_dir, mixture_temperature=exponent), sources)
    assert [float(share) for share in shares] == pytest.approx([1 - expected, expected])


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"books": 1, "wiki": 1}, "'wiki' is no source of it; 'wiki-de' has no weight"),
        ({"books": 1}, "'wiki-de' has no weight; .* has books .9 examples., wiki-de .41 examples"),
        ({"books": 1, "wiki-de": 1e9}, "books would have a share of 1.0e-09 .* 1e-07 or more"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_sources(data_dir, mixture, message) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        check_mixture(data_of(data_dir, mixture=mixture))
    assert "\n" not in str(caught.value)


def loader_of(data_dir: Path, rank: int = 0, world_size: int = 1, **changed: Any) -> TrainLoader:
    shards, data = Shards.open(data_dir / "len64", "train"), data_of(data_dir)
    data = dataclasses.replace(data, mixture={"books": 1.0, "wiki-de": 3.0})
    given: dict[str, Any] = {"global_batch": 8, "token_budget": 2 * SEQ_LEN, **changed}
    return TrainLoader(
        shards, rank=rank, world_size=world_size, seed=1, masking=MaskMode.dynamic,
        rule=MaskingRule.from_manifest(shards.manifest, None),
        mixture=MixedOrder.open(shards, data, 1), **given,
    )  # fmt: skip


def checksums(
    data_dir: Path, world_size: int, first: int = 0, count: int = 30, **changed: Any
) -> list[tuple[int, str]]:
    """Position and checksum of each batch, over all ranks."""
    loaders = [loader_of(data_dir, rank, world_size, **changed) for rank in range(world_size)]
    streams = [itertools.islice(loader.prepared(first), count) for loader in loaders]
    found = [
        (step[0].position, together(map(batch_checksum, step)))
        for step in zip(*streams, strict=True)
    ]
    for loader in loaders:
        loader.close()
    return found


@pytest.mark.parametrize("changed", [{}, {"tokens_per_step": 12 * SEQ_LEN}])
def test_one_two_and_three_ranks_see_the_same_batches_from_any_place_on(data_dir, changed) -> None:
    alone = checksums(data_dir, 1, **changed)
    assert checksums(data_dir, 2, **changed) == alone
    assert checksums(data_dir, 3, first=alone[11][0], count=5, **changed) == alone[11:16]


def test_dynamic_masks_are_keyed_by_the_epoch_of_the_source(data_dir: Path, monkeypatch) -> None:
    keyed: list[tuple[int, int]] = []

    def noting(seed: int, epochs: np.ndarray, ids: np.ndarray) -> Any:
        keyed.extend(zip(epochs.tolist(), ids.tolist(), strict=True))
        return dynamic_keys(seed, epochs, ids)

    monkeypatch.setattr("pretrain.data.train_loader.dynamic_keys", noting)
    with loader_of(data_dir) as loader:
        [*itertools.islice(loader.prepared(0), 20)]
    assert len(set(keyed)) == len(keyed) == 160
    times = Counter(number for _, number in keyed)
    epochs = {number: max(e for e, n in keyed if n == number) for number in times}
    assert all(epochs[number] == times[number] - 1 for number in times)
    assert sum(times[n] for n in times if n < 5 or 35 <= n < 39) == pytest.approx(40, abs=2)


def test_shares_are_logged_of_what_is_trained_on_and_epochs_of_the_place(data_dir: Path) -> None:
    with loader_of(data_dir) as loader:
        metrics = loader.source_metrics(0, 80, [[16, 32], [24, 40]])
        ids = np.r_[loader.example_ids(0, 16), loader.example_ids(40, 80)]
        books = np.isin(ids, np.r_[0:5, 35:39])
        in_all = np.isin(loader.example_ids(0, 80), np.r_[0:5, 35:39]).sum()
        assert metrics == {
            "data/source/books/share": books.mean(),
            "data/source/books/epoch": in_all / 9,
            "data/source/wiki-de/share": 1 - books.mean(),
            "data/source/wiki-de/epoch": (80 - in_all) / 41,
        }


def test_what_is_left_of_a_range_is_outside_all_skipped_ranges() -> None:
    ranges = [[10, 20], [15, 30], [40, 50]]
    for first, end in ((0, 60), (12, 45), (16, 28), (30, 40), (0, 5), (20, 20)):
        left = [*itertools.chain(*(range(*span) for span in taken(first, end, ranges)))]
        assert left == [p for p in range(first, end) if not any(a <= p < b for a, b in ranges)]

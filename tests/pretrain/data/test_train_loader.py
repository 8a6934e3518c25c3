"""The stream of global batches, and the held-out examples cut for the ranks."""

import dataclasses
import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import numbers_by_content

from data_prep.core.config import SettingsError, compose
from data_prep.core.objectives import MaskingUnit
from data_prep.examples.masking import MaskingRule, dynamic_keys
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shards import read_shard
from pretrain.config.settings import MaskMode, Settings
from pretrain.data.eval_loader import EvalLoader, held_out_ids
from pretrain.data.mask_rate import MaskRate
from pretrain.data.packing import NewMasks, PackedBatch, pack_rows
from pretrain.data.train_loader import BATCHES_AHEAD, GlobalBatch, TrainLoader, passed_over
from scripts.baselines.numpy_loader import packed_columns
from scripts.baselines.synthetic_shards import write_synthetic_shards

SEQ_LEN, VOCAB = 64, 5000
NUM_TRAIN, NUM_HELDOUT = 50, 23
BATCH = 7  # neither divides NUM_TRAIN nor is divided by 2 or 3 ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("len64")
    rng = np.random.default_rng(0)
    sizes = {"train": (29, 1, 20), "heldout": (11, 12)}
    lengths = {k: [rng.integers(12, SEQ_LEN + 1, n) for n in v] for k, v in sizes.items()}
    write_synthetic_shards(folder, lengths, seq_len=SEQ_LEN, vocab_size=VOCAB, seed=4)
    return folder


@pytest.fixture
def shards(folder: Path) -> Shards:
    return Shards.open(folder, "train")


@pytest.fixture
def make(shards: Shards) -> Iterator[Callable[..., TrainLoader]]:
    """Makes loaders of the train split and closes them in the end."""
    made: list[TrainLoader] = []

    def loader(rank: int = 0, world_size: int = 1, **changed: Any) -> TrainLoader:
        given: dict[str, Any] = {
            "shards": shards, "global_batch": BATCH, "token_budget": 2 * SEQ_LEN, "seed": 1,
            "masking": MaskMode.static, "rule": MaskingRule.from_manifest(shards.manifest, None),
        }  # fmt: skip
        made.append(TrainLoader(rank=rank, world_size=world_size, **(given | changed)))
        return made[-1]

    yield loader
    for each in made:
        each.close()


def take(loader: TrainLoader, count: int, first: int = 0) -> list[GlobalBatch]:
    return list(itertools.islice(loader.batches(first), count))


def take_all(loaders: Iterable[TrainLoader], count: int) -> list[tuple[GlobalBatch, ...]]:
    """Steps of all ranks; masked tokens are summed as their collective does."""
    steps = zip(*(take(loader, count) for loader in loaders), strict=True)
    totals = [(step, float(sum(batch.num_masked for batch in step))) for step in steps]
    return [tuple(b.counted(lambda _, n=total: [n]) for b in step) for step, total in totals]


def rows_of(batch: PackedBatch) -> list[tuple[bytes, dict[int, tuple[int, int]]]]:
    """Each sequence: its unmasked ids as bytes, and position -> (what stands there, label)."""
    unmasked = batch.input_ids.long()
    unmasked[batch.masked_positions] = batch.labels
    rows = []
    for start, end in itertools.pairwise(batch.cu_seqlens.tolist()):
        masks = {
            p - start: (int(batch.input_ids[p]), label)
            for p, label in zip(batch.masked_positions.tolist(), batch.labels.tolist(), strict=True)
            if start <= p < end
        }
        rows.append((unmasked[start:end].numpy().tobytes(), masks))
    return rows


def ids_of(shards: Shards, batch: GlobalBatch) -> list[int]:
    numbers = numbers_by_content(shards)
    return [numbers[row] for micro in batch.micro_batches for row, _ in rows_of(micro)]


def masks_of(shards: Shards, batches: list[GlobalBatch]) -> dict[tuple[int, int], dict[int, Any]]:
    """(epoch, id) -> masks; for batches that begin with position 0."""
    numbers, seen, found = numbers_by_content(shards), Counter[int](), {}
    for batch in batches:
        for row, masks in itertools.chain(*map(rows_of, batch.micro_batches)):
            found[seen[numbers[row]], numbers[row]] = masks
            seen[numbers[row]] += 1
    return found


def assert_same(a: GlobalBatch, b: GlobalBatch) -> None:
    for name in ("position", "dropout_seeds", "num_sequences", "num_masked", "num_tokens"):
        assert getattr(a, name) == getattr(b, name)
    for x, y in zip(a.micro_batches, b.micro_batches, strict=True):
        for field in dataclasses.fields(x):
            u, v = getattr(x, field.name), getattr(y, field.name)
            assert torch.equal(u, v) if isinstance(u, torch.Tensor) else u == v


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_example_comes_once_an_epoch_over_all_ranks(make, shards, world_size) -> None:
    """Also where a global batch straddles the border of two epochs: nothing is left out."""
    streams = [make(rank, world_size).batches(0) for rank in range(world_size)]
    seen = Counter({number: 0 for number in range(NUM_TRAIN)})
    for position in range(NUM_TRAIN):
        for stream in streams:
            seen.update(ids_of(shards, next(stream)))
        finished, begun = divmod((position + 1) * BATCH, NUM_TRAIN)
        expected = {finished: NUM_TRAIN - begun, finished + 1: begun}
        assert Counter(seen.values()) == {times: n for times, n in expected.items() if n}


@pytest.mark.parametrize("masking", list(MaskMode))
def test_one_two_and_three_ranks_see_the_same_masked_stream(make, shards, masking) -> None:
    def stream(world_size: int, budget: int) -> list[Any]:
        loaders = [
            make(rank, world_size, masking=masking, token_budget=budget)
            for rank in range(world_size)
        ]
        steps = zip(*(take(loader, 16) for loader in loaders), strict=True)
        return [
            sorted(
                (row, sorted(masks.items()))
                for batch in step
                for micro in batch.micro_batches
                for row, masks in rows_of(micro)
            )
            for step in steps
        ]

    alone = stream(1, 2 * SEQ_LEN)
    assert stream(2, 2 * SEQ_LEN) == alone
    assert stream(3, 5 * SEQ_LEN) == alone


def test_every_rank_takes_equally_many_micro_steps(make: Callable[..., TrainLoader]) -> None:
    loaders = [make(rank, 3, global_batch=20) for rank in range(3)]
    counts = [[len(b.micro_batches) for b in take(loader, 20)] for loader in loaders]
    assert counts[0] == counts[1] == counts[2]
    assert max(counts[0]) > 1


@pytest.mark.parametrize("masking", list(MaskMode))
def test_starting_at_a_position_equals_reading_up_to_it(make, masking) -> None:
    whole = take(make(1, 2, masking=masking), 20)
    for first in (0, 1, 7, 13):
        again = take(make(1, 2, masking=masking), 5, first * BATCH)
        for a, b in zip(again, whole[first:], strict=False):
            assert_same(a, b)


@pytest.mark.parametrize("masking", list(MaskMode))
def test_the_cost_of_a_start_does_not_grow_with_the_position(
    make, shards, monkeypatch, masking
) -> None:
    """Counted in examples that the order and the shards are asked for, up to the first batch."""

    def asked_for(position: int) -> Counter[str]:
        loader, asked = make(masking=masking), Counter[str]()

        def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def count(*arguments: Any) -> Any:
                # examples(first, count) of the order; of the shards, by their numbers
                asked[name] += arguments[1] if name == "examples" else len(arguments[0])
                return function(*arguments)

            return count

        with monkeypatch.context() as patch:
            patch.setattr(shards, "rows", counted("rows", shards.rows))
            patch.setattr(loader._order, "examples", counted("examples", loader._order.examples))
            assert next(loader.batches(position)).position == position
            loader._pool.submit(int).result()  # those ahead are prepared, too
        return asked

    at_0 = asked_for(0)
    assert at_0["examples"] == (1 + BATCHES_AHEAD) * BATCH
    assert asked_for(7 * 10**6) == at_0, "140,000 epochs later"


def test_a_shuffled_listing_gives_the_same_run(make, folder, monkeypatch) -> None:
    before = take(make(), 8)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda *path: listdir(*path)[::-1])
    monkeypatch.setattr(Path, "iterdir", lambda path: map(path.joinpath, os.listdir(path)))
    monkeypatch.setattr(Path, "glob", lambda path, _: map(path.joinpath, os.listdir(path)))
    after = take(make(shards=Shards.open(folder, "train")), 8)
    for a, b in zip(before, after, strict=True):
        assert_same(a, b)


def test_a_thousand_items_carry_the_labels_and_masks_of_their_shard(make, folder) -> None:
    """Against plain pyarrow."""
    stored: dict[bytes, dict[str, Any]] = {}
    for path in sorted((folder / "train").glob("*.arrow")):
        for row in pa.ipc.open_stream(path.read_bytes()).read_all().to_pylist():
            stored[np.array(row["input_ids"], np.int64).tobytes()] = row
    num_items = 0
    for batch in take(make(token_budget=500), 143):
        for micro in batch.micro_batches:
            segments = torch.split(micro.segment_ids, micro.lengths)
            labels = micro.next_sentence_labels.tolist()
            for (ids, masks), segment, label in zip(rows_of(micro), segments, labels, strict=True):
                row = stored[ids]
                assert label == row["next_sentence_label"]
                assert int((segment == 0).sum()) == row["segment_a_length"]
                assert list(masks) == row["masked_positions"]
                assert [standing for standing, _ in masks.values()] == row["masked_input_ids"]
                num_items += 1
    assert num_items >= 1000


def test_dynamic_masks_differ_between_epochs_and_repeat(make, shards) -> None:
    first = masks_of(shards, take(make(masking=MaskMode.dynamic), 15))
    again = masks_of(shards, take(make(masking=MaskMode.dynamic), 15))
    assert first == again
    same = [first[0, i].keys() == first[1, i].keys() for i in range(NUM_TRAIN)]
    assert sum(same) <= 5  # the shortest mask 2 of 9 positions, so a few may coincide


@pytest.mark.parametrize("kind", ["static", "dynamic", "whole_word"])
def test_every_rank_knows_the_counts_of_all_ranks(make, shards, kind) -> None:
    rule = MaskingRule.from_manifest(shards.manifest, None)
    if kind == "whole_word":
        continuation = np.random.default_rng(0).random(VOCAB) < 0.4
        rule = dataclasses.replace(rule, unit=MaskingUnit.whole_word, continuation=continuation)
    masking = MaskMode.static if kind == "static" else MaskMode.dynamic
    loaders = [make(rank, 3, masking=masking, rule=rule) for rank in range(3)]
    for step in take_all(loaders, 10):
        micro_batches = list(itertools.chain(*(batch.micro_batches for batch in step)))
        for batch in step:
            assert batch.num_masked == sum(micro.num_masked for micro in micro_batches)
            assert batch.num_tokens == sum(micro.num_tokens for micro in micro_batches)
            assert batch.num_sequences == sum(m.num_sequences for m in micro_batches) == BATCH


def test_every_micro_batch_has_a_dropout_seed_of_its_own_over_ranks_and_steps(make) -> None:
    batches = [batch for rank in range(3) for batch in take(make(rank, 3), 30)]
    assert all(len(batch.dropout_seeds) == len(batch.micro_batches) for batch in batches)
    seeds = [seed for batch in batches for seed in batch.dropout_seeds]
    assert len(seeds) == len(set(seeds))
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_another_seed_gives_another_order_and_other_dropout(make, shards) -> None:
    a, b = take(make(seed=1), 1)[0], take(make(seed=2), 1)[0]
    assert sorted(ids_of(shards, a)) != sorted(ids_of(shards, b))
    assert not set(a.dropout_seeds) & set(b.dropout_seeds)


def test_a_batch_larger_than_the_corpus_repeats_it(make, shards) -> None:
    batch = take(make(global_batch=2 * NUM_TRAIN), 1)[0]
    assert Counter(ids_of(shards, batch)) == {number: 2 for number in range(NUM_TRAIN)}
    assert len(set(batch.dropout_seeds)) == len(batch.dropout_seeds)


def test_what_fails_in_the_background_is_raised_at_its_batch(make, shards, monkeypatch) -> None:
    read, calls = shards.rows, itertools.count()

    def failing(examples: np.ndarray) -> Any:
        if next(calls) == 3:
            raise RuntimeError("shard-00001.arrow is gone")
        return read(examples)

    monkeypatch.setattr(shards, "rows", failing)
    stream = make(token_budget=1000).batches(0)  # one micro-batch a step
    assert [next(stream).position for _ in range(3)] == [0, BATCH, 2 * BATCH]
    with pytest.raises(RuntimeError, match=r"shard-00001\.arrow is gone"):
        next(stream)


def test_the_background_thread_ends_with_the_loader(make: Callable[..., TrainLoader]) -> None:
    with make() as loader:
        next(loader.batches(0))
        assert any(t.name.startswith("train-loader") for t in threading.enumerate())
    assert not any(t.name.startswith("train-loader") for t in threading.enumerate())


def test_only_a_few_batches_are_prepared_ahead(make, shards, monkeypatch) -> None:
    reads: list[int] = []
    read = shards.rows

    def counting(examples: np.ndarray) -> Any:
        reads.append(len(examples))
        return read(examples)

    monkeypatch.setattr(shards, "rows", counting)
    loader = make(token_budget=1000)
    take(loader, 2)
    loader.close()
    assert 2 <= len(reads) <= 2 + BATCHES_AHEAD


def test_the_time_spent_waiting_is_counted(make: Callable[..., TrainLoader]) -> None:
    loader = make()
    assert loader.waited_s == 0
    take(loader, 3)
    assert loader.waited_s > 0


def test_a_batch_that_cannot_be_dealt_is_refused_at_once(make: Callable[..., TrainLoader]) -> None:
    with pytest.raises(SettingsError, match=r"optim\.global_batch=9 or more"):
        make(0, 9)
    with pytest.raises(SettingsError, match="tokens_per_micro_batch=64 or more"):
        make(token_budget=63)
    with pytest.raises(SettingsError, match=r"set optim\.tokens_per_step=512, or .*=null"):
        make(0, 2, tokens_per_step=500)


@pytest.mark.parametrize("masking", list(MaskMode))
@pytest.mark.parametrize("budget", [2 * SEQ_LEN, 5 * SEQ_LEN + 9])
def test_static_batches_hold_the_same_and_have_few_shapes(make, masking, budget) -> None:
    changes: dict[str, Any] = {"masking": masking, "token_budget": budget, "global_batch": 20}
    bare = take(make(1, 2, **changes), 30)
    filled = take(make(1, 2, **changes, static=True), 30)
    shapes = set()
    for a, b in zip(bare, filled, strict=True):
        for x, y in zip(a.micro_batches, b.micro_batches, strict=True):
            for field in dataclasses.fields(x):
                u, v = getattr(x, field.name), getattr(y, field.name)
                same = torch.equal(u, v[: len(u)]) if isinstance(u, torch.Tensor) else True
                assert same, field.name
            shapes.add((len(y.input_ids), len(y.lengths), len(y.labels)))
            assert len(y.input_ids) == min(budget, -(-x.num_tokens // 256) * 256)
            assert len(y.lengths) % 16 == len(y.labels) % 64 == 0
    assert (bare[-1].num_shapes, filled[-1].num_shapes) == (0, len(shapes))
    assert len(shapes) <= 3


TOKENS = 12 * 2 * SEQ_LEN  # a step of 12 bins


@pytest.mark.parametrize("static", [False, True])
def test_steps_of_tokens_have_the_same_examples_and_micro_batches_on_any_ranks(
    make: Callable[..., TrainLoader], static: bool
) -> None:
    def stream(world_size: int) -> list[Any]:
        loaders = [
            make(rank, world_size, tokens_per_step=TOKENS, masking=MaskMode.dynamic, static=static)
            for rank in range(world_size)
        ]
        steps = zip(*(take(loader, 12) for loader in loaders), strict=True)
        return [
            (
                {(b.position, b.end, b.num_masked, b.num_tokens, b.squared_lengths) for b in step},
                sorted(
                    (seed, micro.input_ids.tolist(), micro.labels.tolist())
                    for b in step
                    for seed, micro in zip(b.dropout_seeds, b.micro_batches, strict=True)
                ),
            )
            for step in steps
        ]

    alone = stream(1)
    assert all(len(facts) == 1 and len(micro_batches) == 12 for facts, micro_batches in alone)
    for world_size in (2, 3, 4, 12):
        assert stream(world_size) == alone


def test_steps_of_tokens_hold_each_example_once_an_epoch_and_are_nearly_full(make, shards) -> None:
    batches = take(make(tokens_per_step=TOKENS), 12)
    seen: list[int] = []
    for batch in batches:
        assert batch.position == len(seen)
        seen += sorted(ids_of(shards, batch))
        assert all(micro.num_tokens <= 2 * SEQ_LEN for micro in batch.micro_batches)
        assert batch.num_tokens > 0.85 * TOKENS
    assert len(seen) > 3 * NUM_TRAIN
    counts = Counter(seen[: batches[-1].end])
    assert set(counts.values()) <= {len(seen) // NUM_TRAIN, len(seen) // NUM_TRAIN + 1}
    assert len({batch.num_sequences for batch in batches}) > 1


def test_steps_of_tokens_go_on_from_any_of_their_positions(make) -> None:
    whole = take(make(tokens_per_step=TOKENS), 8)
    again = take(make(tokens_per_step=TOKENS), 4, whole[4].position)
    for a, b in zip(whole[4:], again, strict=True):
        assert_same(a, b)
    stream = make(tokens_per_step=TOKENS).batches(0, [[whole[2].position, whole[2].end]])
    without = itertools.islice(stream, 4)
    for a, b in zip([*whole[:2], *whole[3:5]], without, strict=True):
        assert_same(a, b)


WHOLE_WORDS = {"unit": MaskingUnit.whole_word, "continuation": np.arange(VOCAB) % 3 == 0}


@pytest.mark.parametrize("words", [{}, WHOLE_WORDS])
def test_a_falling_mask_rate_is_the_same_for_any_ranks_and_from_any_step(
    make, shards, words
) -> None:
    rule = dataclasses.replace(MaskingRule.from_manifest(shards.manifest, None), **words, rate=0.4)
    changed = {"rule": rule, "masking": MaskMode.dynamic, "token_budget": 4 * SEQ_LEN}
    changed["mask_rate"] = MaskRate(0.4, 0.1, first=0, total=12 * BATCH)
    whole = take(make(**changed), 12)
    for a, b in zip(whole[5:], take(make(**changed), 7, whole[5].position), strict=True):
        assert_same(a, b)
    halves = take_all([make(rank, 2, **changed) for rank in range(2)], 12)
    for alone, both in zip(whole, halves, strict=True):
        masks = [
            [rows_of(m) for batch in of for m in batch.micro_batches] for of in ([alone], both)
        ]
        one, two = (sorted(str(row) for rows in each for row in rows) for each in masks)
        assert one == two
        assert {batch.num_masked for batch in both} == {alone.num_masked}
        assert alone.num_masked == sum(m.num_masked for m in alone.micro_batches)
    shares = [batch.num_masked / batch.num_tokens for batch in whole]
    for number, share in enumerate(shares):
        assert share == pytest.approx(0.4 - 0.3 * number / 12, abs=0.02)


def test_a_rank_draws_whole_words_for_itself_alone(make, shards, monkeypatch) -> None:
    rule = dataclasses.replace(MaskingRule.from_manifest(shards.manifest, None), **WHOLE_WORDS)
    loader, packed = make(1, 3, masking=MaskMode.dynamic, rule=rule), []
    pack = loader._packer.pack
    monkeypatch.setattr(
        loader._packer,
        "pack",
        lambda rows, places, new: packed.append(0) or pack(rows, places, new),
    )
    (batch,) = itertools.islice(loader.prepared(0), 1)
    assert len(packed) == len(batch.micro_batches)
    assert batch.num_masked == sum(micro.num_masked for micro in batch.micro_batches)
    assert not batch.is_counted
    assert make(0, 1, masking=MaskMode.dynamic, rule=rule)._prepare(0).is_counted


def test_a_mask_rate_at_its_own_share_draws_the_masks_of_the_shards_rule(make) -> None:
    plain = take(make(masking=MaskMode.dynamic), 3)
    same = take(make(masking=MaskMode.dynamic, mask_rate=MaskRate(0.15, 0.15, 0, 1)), 3)
    for a, b in zip(plain, same, strict=True):
        assert_same(a, b)


def test_static_shapes_have_room_for_the_largest_mask_rate(make, shards) -> None:
    rule = dataclasses.replace(MaskingRule.from_manifest(shards.manifest, None), rate=0.6)
    changed = {"rule": rule, "masking": MaskMode.dynamic, "global_batch": 40, "token_budget": 4096}
    loader = make(**changed, static=True, mask_rate=MaskRate(0.6, 0.1, 0, 100))
    batch = take(loader, 1)[0]
    assert batch.num_masked > 0.55 * batch.num_tokens
    assert {len(micro.labels) for micro in batch.micro_batches} <= {
        shape.masked for shape in loader.shapes.usual
    }


@pytest.mark.parametrize(
    ("typed", "at", "rate"),
    [
        ("", 0, 0.3), ("", 3_200, 0.25), ("", 9_600, 0.15), ("", 99_999, 0.15),
        ("schedule.start_step=100", 0, 0.25),
        ("data.mask_rate_end=null", 9_600, 0.3),
        ("optim.tokens_per_step=8192", 3_200, 0.3 - 0.15 * 3_200 / (300 * (8_192 / 64 - 0.5))),
    ],
)  # fmt: skip
def test_the_mask_rate_is_a_line_over_the_steps_of_the_schedule(typed, at, rate) -> None:
    given = ["data.mask_rate=0.3", "data.mask_rate_end=0.15", "schedule.total_steps=300"]
    settings = compose("config", Settings, ["+model=tiny", *given, *typed.split()])[0]
    found = MaskRate.of(settings, mean_length=64)
    assert found is not None
    assert found.at(at) == pytest.approx(rate)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=4), st.integers(0, 40))
def test_the_place_after_skipped_ranges_is_the_first_outside_them_all(
    drawn: list[tuple[int, int]], position: int
) -> None:
    ranges = [[first, first + size] for first, size in drawn]
    inside = {p for first, end in ranges for p in range(first, end)}
    expected = next(p for p in itertools.count(position) if p not in inside)
    assert passed_over(position, ranges) == expected


@pytest.mark.parametrize("seed", range(3))
def test_micro_batches_are_those_of_numpy_alone(shards: Shards, folder: Path, seed: int) -> None:
    """A second program without a line in common: the same bits, for masks of several rates."""
    changes = [{}, {"rate": 0.4, "mask_share": 0.3, "random_share": 0.6}, {"max_predictions": 3}]
    rule = dataclasses.replace(
        MaskingRule.from_manifest(shards.manifest, None), **changes[seed], special_ids=(0, 2, 3, 9)
    )
    columns, _ = read_shard(folder / "train" / "shard-00000.arrow")
    numbers = np.random.default_rng(seed).integers(0, len(columns), 40)
    keys = dynamic_keys(seed, numbers * 0 + 5, numbers)
    rows = shards.rows(numbers)
    new_masks = NewMasks(keys, rows.lengths, rule)
    found = pack_rows(rows, np.arange(40), SEQ_LEN, lambda real: real, new_masks)
    for name, expected in packed_columns(columns, numbers, keys, rule).items():
        np.testing.assert_array_equal(getattr(found, name).numpy(), expected, strict=True)


def test_static_evaluation_has_one_shape(folder: Path) -> None:
    for rank in range(3):
        batches = [item.batch for item in held_out(folder, rank, 3, token_budget=200, static=True)]
        shapes = {(len(b.input_ids), len(b.lengths), len(b.labels)) for b in batches}
        assert shapes == {(200, 16, 64)}


def held_out(folder: Path, rank: int, world_size: int, **changed: Any) -> EvalLoader:
    given: dict[str, Any] = {"token_budget": 100, "max_examples": None}
    shards = Shards.open(folder, "heldout")
    return EvalLoader(shards, rank=rank, world_size=world_size, **(given | changed))


@pytest.mark.parametrize("world_size", [1, 2, 3, 40])
@pytest.mark.parametrize("max_examples", [None, 1, 10, 1000])
def test_held_out_examples_are_counted_once_in_as_many_micro_batches_on_every_rank(
    folder: Path, world_size: int, max_examples: int | None
) -> None:
    numbers = numbers_by_content(Shards.open(folder, "heldout"))
    loaders = [
        held_out(folder, r, world_size, max_examples=max_examples) for r in range(world_size)
    ]
    assert len({len(list(loader)) for loader in loaders} | {len(loader) for loader in loaders}) == 1
    counted = [b.batch for loader in loaders for b in loader if b.is_counted]
    seen = [numbers[row] for batch in counted for row, _ in rows_of(batch)]
    size = min(max_examples or NUM_HELDOUT, NUM_HELDOUT)
    assert sorted(seen) == [n * NUM_HELDOUT // size for n in range(size)]
    for loader in loaders:
        assert loader.num_sequences == len(seen)
        assert loader.num_masked == sum(batch.num_masked for batch in counted)


def test_few_held_out_examples_are_of_all_documents_and_not_of_the_first() -> None:
    assert held_out_ids(1000, 5).tolist() == [0, 200, 400, 600, 800]
    assert held_out_ids(7, 5).tolist() == [0, 1, 2, 4, 5]
    assert held_out_ids(3, 5).tolist() == held_out_ids(3, None).tolist() == [0, 1, 2]


def test_held_out_micro_batches_keep_the_budget_and_the_order(folder: Path) -> None:
    numbers = numbers_by_content(Shards.open(folder, "heldout"))
    batches = [each.batch for each in held_out(folder, 0, 1)]
    assert all(batch.num_tokens <= 100 for batch in batches)
    assert [numbers[row] for b in batches for row, _ in rows_of(b)] == list(range(NUM_HELDOUT))


def test_an_evaluation_repeats(folder: Path) -> None:
    loader = held_out(folder, 0, 2)
    for a, b in zip(loader, loader, strict=True):
        assert torch.equal(a.batch.input_ids, b.batch.input_ids)
        assert a.is_counted == b.is_counted


def test_a_held_out_example_above_the_budget_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match="cannot hold a held-out example of 6"):
        held_out(folder, 0, 1, token_budget=30)


def test_no_held_out_example_is_refused_with_the_cure(tmp_path: Path) -> None:
    nothing: dict[str, list[np.ndarray]] = {"train": [], "heldout": []}
    write_synthetic_shards(tmp_path, nothing, seq_len=64, vocab_size=VOCAB, seed=0)
    with pytest.raises(ValueError, match="raise heldout_fraction"):
        held_out(tmp_path, 0, 1)

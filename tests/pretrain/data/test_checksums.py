"""A global batch's checksum: the same whoever holds it, another with any change of its content."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from data_prep.examples.masking import MaskingRule
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shards import Examples
from pretrain.config.settings import MaskMode
from pretrain.data.checksums import batch_checksum, together
from pretrain.data.packing import PackedBatch, pack
from pretrain.data.train_loader import GlobalBatch, TrainLoader
from scripts.baselines.synthetic_shards import write_synthetic_shards

SEQ_LEN, BATCH = 64, 7


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("len64")
    lengths = {"train": [np.random.default_rng(0).integers(12, SEQ_LEN + 1, 30)]}
    lengths["heldout"] = [np.full(2, SEQ_LEN)]
    write_synthetic_shards(folder, lengths, seq_len=SEQ_LEN, vocab_size=5000, seed=4)
    return Shards.open(folder, "train")


def checksums(
    shards: Shards, world_size: int, token_budget: int, masking: MaskMode, static: bool = False
) -> list[str]:
    """Of the first six global batches, which are more than an epoch."""
    loaders = [
        TrainLoader(
            shards, global_batch=BATCH, rank=rank, world_size=world_size,
            token_budget=token_budget, seed=1, masking=masking,
            rule=MaskingRule.from_manifest(shards.manifest, None), static=static,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    streams = [loader.batches(0) for loader in loaders]
    found = [together(batch_checksum(next(stream)) for stream in streams) for _ in range(6)]
    for loader in loaders:
        loader.close()
    return found


@pytest.mark.parametrize("masking", list(MaskMode))
def test_it_is_the_same_on_any_number_of_ranks_and_for_any_token_budget(shards, masking) -> None:
    alone = checksums(shards, 1, BATCH * SEQ_LEN, masking)
    assert len(set(alone)) == 6
    for world_size, token_budget in [(1, 2 * SEQ_LEN), (2, 3 * SEQ_LEN), (3, 2 * SEQ_LEN)]:
        assert checksums(shards, world_size, token_budget, masking) == alone
    assert checksums(shards, 2, 3 * SEQ_LEN, masking, static=True) == alone


def batch_of(*micro_batches: PackedBatch, position: int = 5) -> GlobalBatch:
    num_sequences = sum(m.num_sequences for m in micro_batches)
    return GlobalBatch(
        position, list(micro_batches), [0] * len(micro_batches), num_sequences, 0, 0, 0
    )


def naive(micro_batch: PackedBatch, position: int = 5) -> int:
    """Token by token, in plain Python."""
    total = 0
    for i in range(micro_batch.num_sequences):
        start, end = micro_batch.cu_seqlens[i].item(), micro_batch.cu_seqlens[i + 1].item()
        masked = [
            (p - start, label)
            for p, label in zip(
                micro_batch.masked_positions.tolist(), micro_batch.labels.tolist(), strict=True
            )
            if start <= p < end
        ]
        pair_label = micro_batch.next_sentence_labels[i].item()
        numbers = [position, end - start, len(masked), pair_label]
        numbers += [micro_batch.input_ids[p].item() for p in range(start, end)]
        numbers += [micro_batch.segment_ids[p].item() for p in range(start, end)]
        numbers += [p for p, _ in masked] + [label for _, label in masked]
        data = b"".join(int(n).to_bytes(8, "little", signed=True) for n in numbers)
        total += xxhash.xxh3_128_intdigest(data)
    return total % 2**128


@st.composite
def packed(draw: st.DrawFn, most: int = 4) -> PackedBatch:
    """A few short sequences with any masks, none included."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=most))
    places = [draw(st.sets(st.integers(0, n - 1))) for n in lengths]
    ids = st.integers(0, 2**16 - 1)

    def numbers(count: int, values: st.SearchStrategy[int]) -> Any:
        drawn = draw(st.lists(values, min_size=count, max_size=count))
        return np.array(drawn, dtype=np.uint16)

    masked = [np.array(sorted(p), dtype=np.uint16) for p in places]
    masked_offsets = np.cumsum([0, *map(len, masked)])
    return pack(
        Examples(
            input_ids=numbers(sum(lengths), ids),
            offsets=np.cumsum([0, *lengths]),
            segment_a_lengths=np.array([draw(st.integers(1, n)) for n in lengths], np.uint16),
            masked_positions=np.concatenate(masked),
            masked_offsets=masked_offsets,
            masked_input_ids=numbers(int(masked_offsets[-1]), ids),
            next_sentence_labels=numbers(len(lengths), st.integers(0, 1)).astype(np.uint8),
            document_a=np.zeros(len(lengths), np.uint32),
            document_b=np.zeros(len(lengths), np.uint32),
        ),
        max_seqlen=6,
    )


@given(packed(), packed())
def test_it_is_that_of_a_plain_loop(first: PackedBatch, second: PackedBatch) -> None:
    expected = (naive(first) + naive(second)) % 2**128
    assert batch_checksum(batch_of(first, second)) == expected
    assert batch_checksum(batch_of(second, first)) == expected, "in whatever order they come"


@given(
    packed(),
    st.integers(0, 30),
    st.sampled_from(["input_ids", "segment_ids", "labels", "next_sentence_labels"]),
)
def test_any_other_token_segment_or_label_gives_another(batch, place, name) -> None:
    tensor = getattr(batch, name).clone()
    if not len(tensor):  # no label where nothing is masked
        return
    tensor[place % len(tensor)] += 1
    changed = replace(batch, **{name: tensor})
    assert batch_checksum(batch_of(changed)) != batch_checksum(batch_of(batch))


@given(packed(most=1), st.integers(0, 30))
def test_another_masked_position_gives_another(batch: PackedBatch, place: int) -> None:
    """Moved to a place that is free: the positions stay ascending."""
    masked = batch.masked_positions.tolist()
    free = sorted(set(range(batch.num_tokens)) - set(masked))
    if not masked or not free:
        return
    masked[place % len(masked)] = free[place % len(free)]
    moved = replace(batch, masked_positions=torch.tensor(sorted(masked)))
    assert batch_checksum(batch_of(moved)) != batch_checksum(batch_of(batch))


@given(packed(), packed())
def test_the_same_examples_elsewhere_in_the_stream_have_another(first, second) -> None:
    """So that two batches that have changed places are seen even where a record holds both."""
    in_order = [batch_of(first, position=1), batch_of(second, position=2)]
    swapped = [batch_of(second, position=1), batch_of(first, position=2)]
    if naive(first) != naive(second):
        assert together(map(batch_checksum, in_order)) != together(map(batch_checksum, swapped))


def test_ranks_parts_add_up_to_32_digits() -> None:
    assert together([2**128 - 1, 2]) == f"{1:032x}"

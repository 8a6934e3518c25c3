"""Packing examples into one row."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import DTypeLike

from data_prep.stores.shards import Examples
from pretrain.data.packing import IGNORED, PackedBatch, Shape, pack

CLS, SEP, MASK, VOCAB, LONGEST = 2, 3, 4, 50_000, 27


@dataclasses.dataclass
class Row:
    """One example as a person would write it down."""

    a: list[int]
    b: list[int]
    label: int
    masks: dict[int, int]  # position -> what stands there in the masked input

    @property
    def ids(self) -> list[int]:
        return [CLS, *self.a, SEP, *self.b, SEP]


def as_examples(rows: list[Row], dtype: DTypeLike = np.uint16) -> Examples:
    def offsets(sizes: list[int]) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    return Examples(
        input_ids=np.array([token for row in rows for token in row.ids], dtype),
        offsets=offsets([len(row.ids) for row in rows]),
        segment_a_lengths=np.array([len(row.a) + 2 for row in rows], np.uint16),
        next_sentence_labels=np.array([row.label for row in rows], np.uint8),
        masked_positions=np.array([p for row in rows for p in sorted(row.masks)], np.uint16),
        masked_offsets=offsets([len(row.masks) for row in rows]),
        masked_input_ids=np.array([row.masks[p] for row in rows for p in sorted(row.masks)], dtype),
        document_a=np.zeros(len(rows), np.uint32),
        document_b=np.zeros(len(rows), np.uint32),
    )


@st.composite
def rows(draw: st.DrawFn) -> Row:
    tokens = st.integers(5, VOCAB - 1)
    a = draw(st.lists(tokens, min_size=1, max_size=12))
    b = draw(st.lists(tokens, min_size=1, max_size=12))
    places = st.integers(0, len(a) + len(b) + 2)
    masks = draw(st.dictionaries(places, st.one_of(st.just(MASK), tokens), max_size=6))
    return Row(a, b, draw(st.integers(0, 1)), masks)


ROWS = st.lists(rows(), min_size=1, max_size=8)


@given(ROWS, st.sampled_from([np.uint16, np.uint32]))
def test_a_packed_row_equals_assembly_sequence_by_sequence(rows, dtype) -> None:
    batch = pack(as_examples(rows, dtype), LONGEST)
    for i, row in enumerate(rows):
        part = slice(int(batch.cu_seqlens[i]), int(batch.cu_seqlens[i + 1]))
        assert batch.lengths[i] == len(row.ids)
        assert batch.input_ids[part].tolist() == [
            row.masks.get(p, t) for p, t in enumerate(row.ids)
        ]
        assert batch.position_ids[part].tolist() == list(range(len(row.ids)))
        assert batch.segment_ids[part].tolist() == [0] * (len(row.a) + 2) + [1] * (len(row.b) + 1)
        inside = (batch.masked_positions >= part.start) & (batch.masked_positions < part.stop)
        assert (batch.masked_positions[inside] - part.start).tolist() == sorted(row.masks)
        assert batch.labels[inside].tolist() == [row.ids[p] for p in sorted(row.masks)]
    assert batch.next_sentence_labels.tolist() == [row.label for row in rows]
    assert batch.num_tokens == sum(len(row.ids) for row in rows)
    assert batch.num_sequences == len(rows)
    assert batch.num_masked == sum(len(row.masks) for row in rows)


def test_a_written_out_row() -> None:
    rows = [Row([10, 11], [12], 1, {2: MASK}), Row([20], [21, 22], 0, {0: 30, 4: MASK})]
    examples = as_examples(rows)
    batch = pack(examples, LONGEST)
    assert batch.input_ids.tolist() == [CLS, 10, MASK, SEP, 12, SEP, 30, 20, SEP, 21, MASK, SEP]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    assert batch.segment_ids.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    assert batch.cu_seqlens.tolist() == [0, 6, 12]
    assert batch.masked_positions.tolist() == [2, 6, 10]
    assert batch.labels.tolist() == [11, CLS, 22]
    assert batch.next_sentence_labels.tolist() == [1, 0]
    assert examples.input_ids.tolist() == rows[0].ids + rows[1].ids, "the examples stay"


@given(ROWS, st.integers(0, 3 * LONGEST), st.integers(0, 5), st.integers(0, 9))
def test_filler_follows_the_real_sequences_and_has_no_labels(
    rows: list[Row], tokens: int, sequences: int, masked: int
) -> None:
    bare = pack(as_examples(rows), LONGEST)
    fillers = -(-tokens // LONGEST)
    shape = Shape(
        bare.num_tokens + tokens, bare.num_sequences + fillers + sequences, bare.num_masked + masked
    )
    filled = pack(as_examples(rows), LONGEST, shape)
    for field in dataclasses.fields(bare):
        real, found = getattr(bare, field.name), getattr(filled, field.name)
        if isinstance(real, torch.Tensor):
            assert torch.equal(found[: len(real)], real), field.name
        elif field.name == "lengths":
            assert found[: len(real)] == real
        else:
            assert found == real, field.name
    assert len(filled.input_ids) == len(filled.position_ids) == len(filled.segment_ids)
    assert len(filled.input_ids) == sum(filled.lengths) == shape.tokens == filled.cu_seqlens[-1]
    assert filled.cu_seqlens.diff().tolist() == filled.lengths
    assert len(filled.lengths) == len(filled.cls_positions) == shape.sequences
    assert all(0 < n <= LONGEST for n in filled.lengths[: bare.num_sequences + fillers])
    assert not any(filled.lengths[bare.num_sequences + fillers :])
    begins = filled.position_ids.eq(0).nonzero()[:, 0].tolist()
    assert filled.cls_positions.tolist() == begins + [0] * sequences
    assert len(filled.masked_positions) == len(filled.labels) == shape.masked
    assert filled.labels[bare.num_masked :].eq(IGNORED).all()
    assert filled.next_sentence_labels[bare.num_sequences :].eq(IGNORED).all()


@pytest.mark.parametrize("shape", [Shape(5, 9, 9), Shape(40, 2, 9), Shape(40, 9, 0)])
def test_a_shape_without_room_is_refused(shape: Shape) -> None:
    with pytest.raises(ValueError, match="does not fit Shape"):
        pack(as_examples([Row([10, 11], [12], 1, {2: MASK})]), LONGEST, shape)


def test_a_mask_at_position_0_is_kept() -> None:
    """Loaders that end their list of masks at the first 0 lose it."""
    batch = pack(as_examples([Row([10], [11], 0, {0: MASK, 1: MASK})]), LONGEST)
    assert batch.masked_positions.tolist() == [0, 1]


@pytest.mark.parametrize("masks", [{1: MASK}, {}], ids=["masked", "without a mask"])
def test_types_are_those_that_embeddings_and_kernels_take(masks: dict[int, int]) -> None:
    batch = pack(as_examples([Row([10], [11], 0, masks)]), LONGEST)
    assert batch.num_masked == len(masks)
    types = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    found = {name: value.dtype for name, value in types.items() if isinstance(value, torch.Tensor)}
    narrow = ("cu_seqlens", "input_ids", "position_ids", "segment_ids")
    assert {found.pop(name) for name in narrow} == {torch.int32}
    assert set(found.values()) == {torch.int64}
    assert len(found) == 4


def test_a_batch_moves_whole() -> None:
    batch = pack(as_examples([Row([10, 11], [12], 1, {2: MASK})]), LONGEST)
    moved = batch.to("meta")
    assert isinstance(moved, PackedBatch)
    assert moved.input_ids.device.type == moved.labels.device.type == "meta"
    assert moved.lengths == batch.lengths


def test_no_example_and_one_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="one example at least"):
        pack(as_examples([]), LONGEST)
    empty = dataclasses.replace(as_examples([Row([10], [11], 0, {})]), offsets=np.array([0, 0]))
    with pytest.raises(ValueError, match="example 0 of a micro-batch has no tokens"):
        pack(empty, LONGEST)

"""The static shapes of a run: few by construction, known at the start, and every batch fits one."""

import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.balancing import deal
from pretrain.data.packing import Shape, filler_lengths
from pretrain.data.static_shapes import (
    MOST_SIZES,
    Shapes,
    one_shape,
    spread_sizes,
    usual_shapes,
)
from pretrain.model.compile import MOST_SHAPES

SEQ_LEN, RATE = 512, 0.15


def wikipedia_lengths(rng: np.random.Generator, size: int) -> np.ndarray:
    """Lengths with the published mean and share of full ones (Krell et al., 2021)."""
    short = rng.integers(8, 360, size)
    return np.where(rng.random(size) < 0.234, SEQ_LEN, short)


MANIFEST: Any = types.SimpleNamespace(masking=types.SimpleNamespace(rate=RATE), seq_len=SEQ_LEN)


def micro_batches(seed: int, steps: int, budget: int, sequences: int) -> list[list[Shape]]:
    """The real sizes of the micro-batches of each step on one rank."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(steps):
        lengths = wikipedia_lengths(rng, sequences)
        parts = [lengths[places] for places in deal(lengths, 1, budget)[0]]
        masked = [np.maximum(1, np.rint(RATE * part)).sum() for part in parts]
        found.append(
            [Shape(int(p.sum()), len(p), int(m)) for p, m in zip(parts, masked, strict=True)]
        )
    return found


@pytest.mark.parametrize("budget", [8_192, 32_768, 70_656, 73_728, 131_072, 188_416])
def test_a_run_has_sixteen_shapes_at_most_whatever_its_token_budget(budget: int) -> None:
    sample, later = (micro_batches(seed, 256, budget, 256) for seed in (0, 1))
    sizes = spread_sizes([max(real.tokens for real in step) for step in sample], budget)
    whole = wikipedia_lengths(np.random.default_rng(2), 10_000)
    shapes = usual_shapes(MANIFEST, whole.mean(), sizes)
    reals = [real for step in later for real in step]
    used = [shapes.holding(real) for real in reals]
    assert len(shapes.usual) <= MOST_SIZES
    assert set(used) <= set(shapes.usual)
    filler = 1 - sum(real.tokens for real in reals) / sum(shape.tokens for shape in used)
    assert filler < 0.025


def test_where_batches_are_small_the_sizes_are_multiples_of_256() -> None:
    assert spread_sizes([3_900, 4_200, 3_700], 8_192) == [3_840, 4_096, 4_352, 4_608, 8_192]


@given(st.lists(st.integers(1, 10**6), min_size=1), st.integers(0, 10**6))
def test_sizes_are_few_and_hold_what_was_seen(seen: list[int], more: int) -> None:
    most = max(seen) + more
    sizes = spread_sizes(seen, most)
    assert len(sizes) <= MOST_SIZES
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    step = max(256, (max(seen) - min(seen)) / 12 + 256)
    for size in seen:
        assert 0 <= min(s for s in sizes if s >= size) - size <= step


@given(st.lists(st.integers(3, SEQ_LEN), min_size=1, max_size=300), st.integers(0, 4_000))
def test_every_micro_batch_within_the_budget_has_a_shape(lengths: list[int], room: int) -> None:
    tokens = sum(lengths)
    real = Shape(tokens, len(lengths), tokens)  # the most that could be masked
    shapes = usual_shapes(MANIFEST, 256, [tokens + room])
    shape = shapes.holding(real)
    filler_lengths(real, shape, SEQ_LEN)
    assert shape.tokens == tokens + room


@given(st.integers(1, 2**20), st.integers(3, SEQ_LEN))
def test_all_shapes_of_a_phase_together_stay_below_the_compilers_limit(
    budget: int, mean: int
) -> None:
    shapes = usual_shapes(MANIFEST, mean, [budget])
    assert MOST_SIZES + len(shapes.rare) + 1 < MOST_SHAPES - 20, "20 are for later phases"


def test_full_sequences_fit_the_usual_slots_at_any_size() -> None:
    for tokens in range(SEQ_LEN, 2**19, 37 * SEQ_LEN):
        count = tokens // SEQ_LEN
        shapes = usual_shapes(MANIFEST, SEQ_LEN, [tokens])
        real = Shape(tokens, count, count * round(RATE * SEQ_LEN))
        assert shapes.holding(real) == shapes.usual[0]


def test_known_micro_batches_have_one_shape_with_room_for_each() -> None:
    reals = [Shape(900, 2, 130), Shape(700, 40, 100), Shape(8, 1, 1)]
    shapes = one_shape(reals, 2_000, SEQ_LEN)
    assert shapes.usual == [Shape(1_024, 48, 192)]
    assert {shapes.holding(real) for real in reals} == set(shapes.usual)
    assert one_shape(reals, 900, SEQ_LEN).usual[0].tokens == 900


def test_a_micro_batch_beyond_the_largest_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="no shape up to"):
        Shapes([Shape(512, 16, 64)], SEQ_LEN).holding(Shape(513, 2, 70))

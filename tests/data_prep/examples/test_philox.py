"""Random numbers by counter: published answers, streams, bounded draws, doubles."""

import numba
import numpy as np
import pytest

from data_prep.examples import philox


def block(counter: list[int], key: list[int]) -> str:
    stream = np.zeros(philox.WORDS, np.uint32)
    stream[:4], stream[4:6] = counter, key
    philox.philox4x32(stream)
    return " ".join(f"{word:08x}" for word in stream[6:10])


# Salmon et al., Random123, examples/kat_vectors, "philox4x32 10"
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_blocks_equal_the_published_known_answers(counter, key, answer) -> None:
    assert block(counter, key) == answer


def words(key: int, purpose: int, subject: int, count: int) -> list[int]:
    stream = np.zeros(philox.WORDS, np.uint32)
    philox.start(stream, np.uint64(key), purpose, np.uint64(subject))
    return [int(philox.next_word(stream)) for _ in range(count)]


def test_a_stream_is_the_blocks_of_its_counter_in_order() -> None:
    expected = []
    for number in range(3):
        counter = [number, philox.MASK, 0xDDDDDDDD, 0xCCCCCCCC]
        expected += block(counter, [0xAAAAAAAA, 0xBBBBBBBB]).split()
    found = words(0xAAAAAAAABBBBBBBB, philox.MASK, 0xCCCCCCCCDDDDDDDD, 12)
    assert [f"{word:08x}" for word in found] == expected


@pytest.mark.parametrize("count", [0, 1, 16, 50])
def test_filled_words_are_those_drawn_one_by_one(count: int) -> None:
    key, subject = 0xAAAAAAAABBBBBBBB, 0xCCCCCCCCDDDDDDDD
    filled = np.zeros(64, np.uint32)
    philox.fill(filled, count, np.uint64(key), philox.MASK, np.uint64(subject))
    expected = words(key, philox.MASK, subject, count)
    assert filled[:count].tolist() == expected
    assert not filled[-(-count // 16) * 16 :].any(), "nothing is written behind"


def test_another_key_purpose_or_subject_is_another_stream() -> None:
    names = [(1, 1, 1), (2, 1, 1), (1 << 32, 1, 1), (1, 2, 1), (1, 1, 2), (1, 1, 1 << 32)]
    assert len({tuple(words(*name, 4)) for name in names}) == len(names)


@numba.njit
def draw_below(bound, count):
    stream = np.zeros(11, np.uint32)
    philox.start(stream, np.uint64(7), 1, np.uint64(3))
    out = np.empty(count, np.int64)
    for i in range(count):
        out[i] = philox.next_below(stream, bound)
    return out


@pytest.mark.parametrize("bound", [1, 2, 6, 3 * 2**30])
def test_bounded_draws_are_uniform(bound: int) -> None:
    draws = draw_below(bound, 60_000)
    assert draws.min() >= 0
    assert draws.max() < bound
    # Modulo instead of rejection would put a third too many into a quarter of 0 .. 3 * 2**30.
    cells = min(bound, 12)
    counts = np.bincount(draws * cells // bound, minlength=cells)
    assert ((counts - 60_000 / cells) ** 2 / (60_000 / cells)).sum() < 40  # chi2, 11 df: p < 1e-4


def test_a_rejected_word_is_passed_over_for_the_next() -> None:
    bound = 3 * 2**30  # rejects a quarter of all words: those whose product's low half is small
    kept = [w * bound >> 32 for w in words(7, 1, 3, 400) if w * bound % 2**32 >= 2**32 % bound]
    assert draw_below(bound, len(kept)).tolist() == kept
    assert len(kept) < 350


@pytest.mark.parametrize("bound", [1, 6, 3 * 2**30])
def test_bounded_numbers_of_filled_words_are_those_drawn_one_by_one(bound: int) -> None:
    filled, used, found = np.zeros(416, np.uint32), 0, []
    philox.fill(filled, 400, np.uint64(7), 1, np.uint64(3))
    for _ in range(250):  # of which a quarter more are rejected, where the bound is large
        number, used = philox.below(filled, used, bound)
        found.append(number)
    assert found == draw_below(bound, 250).tolist()


def test_doubles_fill_the_unit_interval_evenly() -> None:
    stream = np.zeros(philox.WORDS, np.uint32)
    philox.start(stream, np.uint64(1), 1, np.uint64(1))
    draws = np.array([philox.next_double(stream) for _ in range(20_000)])
    assert 0 <= draws.min()
    assert draws.max() < 1
    counts = np.bincount((draws * 10).astype(int), minlength=10)
    assert ((counts - 2000) ** 2 / 2000).sum() < 34  # chi2, 9 df: p < 1e-4


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (2**32, 0), (0, -1), (0, 2**32)])
def test_a_seed_or_pass_beyond_32_bits_is_refused(seed: int, index: int) -> None:
    with pytest.raises(ValueError, match="not within 0 to 4294967295"):
        philox.stream_key(seed, index)

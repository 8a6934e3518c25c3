"""The order of examples: a pure function of the number of examples, the seed and the place in it.

The stream is epoch after epoch, each a permutation of all examples. The permutation is computed and
not stored: a Feistel network (each round keyed by seed and epoch) is a bijection of [0, 4**h), and
walking along its cycles until a value below n comes up makes it one of [0, n) (Black and Rogaway,
"Ciphers with arbitrary finite domains", 2002). So seeking is free, and a billion examples need no
memory.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
import xxhash
from numpy.typing import NDArray

ROUNDS = 6
# Below 2 ** 8 values the halves would be too narrow to tell the epochs of a tiny corpus apart.
MIN_HALF_BITS = 4
# The multipliers of MurmurHash3's 64-bit finaliser.
FIRST_MULTIPLIER = np.uint64(0xFF51AFD7ED558CCD)
SECOND_MULTIPLIER = np.uint64(0xC4CEB9FE1A85EC53)


def keyed_hash(purpose: str, *numbers: int) -> int:
    """64 bits that differ between purposes and between numbers: the seed of all that is drawn."""
    return xxhash.xxh3_64_intdigest("/".join([purpose, *map(str, numbers)]).encode())


class ExampleOrder:
    """The endless stream of examples of one run; each example exactly once in each epoch."""

    def __init__(self, num_examples: int, seed: int) -> None:
        """Raises ValueError where there is no example."""
        if num_examples < 1:
            raise ValueError(f"an order needs one example at least; there are {num_examples}")
        self.num_examples = num_examples
        self.seed = seed
        self.half_bits = max(MIN_HALF_BITS, ((num_examples - 1).bit_length() + 1) // 2)

    def examples(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epochs and example ids, (count,) int64 each, of the stream's places from `first` on."""
        epochs, places = np.divmod(np.arange(first, first + count), self.num_examples)
        first_epoch = first // self.num_examples
        num_epochs = (first + count - 1) // self.num_examples - first_epoch + 1
        keys = epoch_keys(self.seed, first_epoch, num_epochs)
        ids = np.empty(count, np.int64)
        _permute(places, epochs - first_epoch, keys, self.half_bits, self.num_examples, ids)
        return epochs, ids


@functools.lru_cache(maxsize=256)
def epoch_keys(seed: int, first_epoch: int, num_epochs: int) -> NDArray[np.uint64]:
    """(num_epochs, ROUNDS) keys of the permutations of epochs from `first_epoch` on."""
    epochs = range(first_epoch, first_epoch + num_epochs)
    keys = [[keyed_hash("order", seed, epoch, r) for r in range(ROUNDS)] for epoch in epochs]
    return np.array(keys, np.uint64)


@numba.njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def permuted(place: int, keys: NDArray[np.uint64], half_bits: int, num_examples: int) -> Any:
    """The example at a place of the epoch that has these (ROUNDS,) keys."""
    half, high = np.uint64(half_bits), np.uint64(64 - half_bits)
    low_half = (np.uint64(1) << half) - np.uint64(1)
    value = np.uint64(place)
    while True:  # it ends: the cycle leads back to the place, which is inside
        left, right = value >> half, value & low_half
        for key in keys:
            mixed = (right ^ key) * FIRST_MULTIPLIER
            mixed ^= mixed >> np.uint64(32)
            mixed *= SECOND_MULTIPLIER
            left, right = right, left ^ (mixed >> high)  # the high bits depend on all others
        value = left << half | right
        if value < np.uint64(num_examples):
            return value


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _permute(
    places: NDArray[np.int64],
    epochs: NDArray[np.int64],
    keys: NDArray[np.uint64],
    half_bits: int,
    num_examples: int,
    ids: NDArray[np.int64],
) -> None:
    """Fill `ids` with the example at each place; keys[epochs[i], round] are the keys of place i."""
    for i in range(len(places)):
        ids[i] = permuted(places[i], keys[epochs[i]], half_bits, num_examples)


def order_seed(run_seed: int, phase_number: int) -> int:
    """Seed of the order of examples in a phase."""
    return (run_seed + phase_number - 1) % 2**32

"""Random numbers by counter: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), inside numba kernels.

The numbers of a stream are a pure function of a 64-bit key (seed and pass), a purpose and a 64-bit
subject (document and pair, or example). So they do not depend on the order of the work or on the
process, and any stream can start anywhere at no cost.

A stream is a uint32 array of WORDS words. Words 0-3 are the counter (block, purpose, subject low,
subject high), 4-5 the key, 6-9 the current block of output; word 10 counts the used words of it.

numba's cache identifies a kernel by its own file only: after a change here, touch the files that
call these kernels.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

WORDS = 11

# The purpose of a stream: two purposes never share numbers, whatever their key and subject.
PAIR, PARTNER, TRUNCATION, MASK, PARTNER_PARTS = range(1, 6)


def stream_key(seed: int, index: int) -> int:
    """The 64-bit key of a seed and the number of a pass or epoch.

    Raises ValueError if one of the two does not fit 32 bits.
    """
    for name, value in (("seed", seed), ("pass or epoch", index)):
        if not 0 <= value < 2**32:
            raise ValueError(f"{name} {value} is not within 0 to 4294967295; choose one in it")
    return seed << 32 | index


@numba.njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _block(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """The four words of the block of a counter and a key; 32 bits each, all as uint64."""
    low32 = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0, c1 = (product1 >> shift) ^ c1 ^ k0, product1 & low32
        c2, c3 = (product0 >> shift) ^ c3 ^ k1, product0 & low32
        k0 = (k0 + np.uint64(0x9E3779B9)) & low32
        k1 = (k1 + np.uint64(0xBB67AE85)) & low32
    return c0, c1, c2, c3


@numba.njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def philox4x32(stream: NDArray[np.uint32]) -> None:
    """Fill words 6-9 of `stream` with the block that its counter and its key name."""
    c0, c1 = np.uint64(stream[0]), np.uint64(stream[1])
    c2, c3 = np.uint64(stream[2]), np.uint64(stream[3])
    k0, k1 = np.uint64(stream[4]), np.uint64(stream[5])
    stream[6], stream[7], stream[8], stream[9] = _block(c0, c1, c2, c3, k0, k1)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def fill(words: NDArray[np.uint32], count: int, key: Any, purpose: int, subject: Any) -> None:
    """Write the first `count` numbers of a stream into `words`, and up to 15 more.

    The numbers are those of `next_word`, in a tenth of the time: the compiler vectorises blocks.
    """
    low32 = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    key_high, key_low = np.uint64(key) >> shift, np.uint64(key) & low32
    subject_low, subject_high = np.uint64(subject) & low32, np.uint64(subject) >> shift
    for block in range((count + 15) // 16 * 4):
        c0, c1, c2, c3 = _block(
            np.uint64(block), np.uint64(purpose), subject_low, subject_high, key_high, key_low
        )
        words[4 * block], words[4 * block + 1] = c0, c1
        words[4 * block + 2], words[4 * block + 3] = c2, c3


@numba.njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def below(words: NDArray[np.uint32], used: int, bound: int) -> tuple[Any, int]:
    """`next_below` on filled words, of which `used` are used: the number and the new `used`."""
    bound64 = np.uint64(bound)
    low32 = np.uint64(0xFFFFFFFF)
    product = np.uint64(words[used]) * bound64
    used += 1
    if product & low32 < bound64:
        threshold = (np.uint64(2**32) - bound64) % bound64
        while product & low32 < threshold:
            product = np.uint64(words[used]) * bound64
            used += 1
    return np.int64(product >> np.uint64(32)), used


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def start(stream: NDArray[np.uint32], key: Any, purpose: int, subject: Any) -> None:
    """Set `stream` to the first number of the stream of this key, purpose and subject."""
    low32 = np.uint64(0xFFFFFFFF)
    stream[0] = 0
    stream[1] = purpose
    stream[2] = np.uint64(subject) & low32
    stream[3] = np.uint64(subject) >> np.uint64(32)
    stream[4] = np.uint64(key) >> np.uint64(32)
    stream[5] = np.uint64(key) & low32
    stream[10] = 4


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def next_word(stream: NDArray[np.uint32]) -> Any:
    """The stream's next 32 bits, as uint64."""
    if stream[10] == 4:
        philox4x32(stream)
        stream[0] += np.uint32(1)
        stream[10] = 0
    word = np.uint64(stream[6 + stream[10]])
    stream[10] += np.uint32(1)
    return word


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def next_below(stream: NDArray[np.uint32], bound: int) -> Any:
    """Uniform in 0 .. bound - 1, exactly, for 1 <= bound <= 2**32 - 1; an int64.

    Lemire, "Fast random integer generation in an interval" (2019), with its exact rejection.
    """
    bound64 = np.uint64(bound)
    low32 = np.uint64(0xFFFFFFFF)
    product = next_word(stream) * bound64
    if product & low32 < bound64:
        threshold = (np.uint64(2**32) - bound64) % bound64
        while product & low32 < threshold:
            product = next_word(stream) * bound64
    return np.int64(product >> np.uint64(32))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def next_double(stream: NDArray[np.uint32]) -> float:
    """Uniform in [0, 1), a multiple of 2**-53."""
    high = next_word(stream) >> np.uint64(5)
    low = next_word(stream) >> np.uint64(6)
    return (np.float64(high) * 67108864.0 + np.float64(low)) / 9007199254740992.0

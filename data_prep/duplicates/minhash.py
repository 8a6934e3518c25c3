"""MinHash signatures of word shingles (Broder 1997)."""

from __future__ import annotations

import functools
import unicodedata

import numba
import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 5

# Two documents of similarity s share a band with probability 1 - (1 - s^8)^14: 0.05 at 0.5, one
# half at 0.69, 0.92 at 0.8. Datatrove and FineWeb use these numbers.
BANDS, BAND_VALUES = 14, 8

VALUES = BANDS * BAND_VALUES

SEED = 1  # of rensa's permutations

PIECE = 1 << 20  # characters case-folded at once; Python needs 12 bytes for each

WORD, OWN_WORD = 1, 2  # kinds of code points; 0 separates words

LAST_LETTER = 0x323AF  # of Unicode 15; beyond it are marks of emoji and private use

# Scripts without spaces between words: first and last code points, other signs included.
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # hiragana, katakana
    (0x3400, 0x9FFF),  # ideographs
    (0xF900, 0xFAFF),
    (0x20000, LAST_LETTER),
)


def shingles(text: str) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """(S,) hashes of a text's shingles, in order, and the case-folded UTF-8 of its letters.

    Repeated shingles are kept; digits and marks count as letters. A text of fewer than five words
    is one shingle.
    """
    pieces = (text[start : start + PIECE] for start in range(0, len(text), PIECE))
    folded = np.frombuffer(b"".join(piece.casefold().encode() for piece in pieces), np.uint8)
    # Words are at least a byte long with a byte in between, or three bytes long
    hashes = np.empty(len(folded) // 2 + 1, np.uint64)
    letters = np.empty(len(folded), np.uint8)
    num_shingles, num_letters = _shingles(folded, _kinds(), hashes, letters)
    return hashes[:num_shingles], letters[:num_letters]


def signature(hashes: NDArray[np.uint64]) -> list[int]:
    """The MinHash signature of a set of shingles: VALUES values of 32 bits."""
    import rensa  # of the extra data; training asks only which stages there are

    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, [0, len(hashes)], VALUES, SEED
    )
    values: list[int] = matrix.to_rows()[0]
    return values


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """Of each code point: 0, WORD or OWN_WORD."""
    categories = map(unicodedata.category, map(chr, range(LAST_LETTER + 1)))
    kinds = np.fromiter((category[0] in "LMN" for category in categories), np.uint8)
    for first, last in UNSPACED:
        kinds[first : last + 1] *= OWN_WORD
    return kinds


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _shingles(
    text: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    hashes: NDArray[np.uint64],
    letters: NDArray[np.uint8],
) -> tuple[int, int]:
    """Fill `hashes` and `letters` from (B,) UTF-8; return the number of each.

    A word's hash is FNV-1a (Fowler, Noll, Vo), a shingle's a polynomial of its words' hashes, mixed
    by the last steps of MurmurHash3.
    """
    start, prime = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
    factor = np.uint64(0x9E3779B97F4A7C15)
    oldest_factor = factor
    for _ in range(SHINGLE_WORDS - 1):
        oldest_factor *= factor
    last, slot = np.zeros(SHINGLE_WORDS, np.uint64), 0  # hashes of the last words, in a ring
    word, rolling, mixed = start, np.uint64(0), np.uint64(0)
    kind = num_words = num_letters = 0
    for position in range(len(text) + 1):
        byte = np.int64(text[position]) if position < len(text) else np.int64(0)
        if not 0x80 <= byte < 0xC0:  # the first byte of a code point
            previous = kind
            code = byte
            if byte >= 0xC0:
                size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
                code = byte & (0x7F >> size)
                for following in range(position + 1, position + size):
                    code = code << 6 | np.int64(text[following]) & 0x3F
            kind = int(kinds[code]) if code < len(kinds) else 0
            if previous and (kind != WORD or previous == OWN_WORD):  # a word ends
                rolling = rolling * factor + word - last[slot] * oldest_factor
                last[slot] = word
                slot = slot + 1 if slot < SHINGLE_WORDS - 1 else 0
                mixed = (rolling ^ rolling >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
                mixed = (mixed ^ mixed >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
                mixed ^= mixed >> np.uint64(33)
                num_words += 1
                if num_words >= SHINGLE_WORDS:
                    hashes[num_words - SHINGLE_WORDS] = mixed
                word = start
        if kind:
            word = (word ^ np.uint64(byte)) * prime
            letters[num_letters] = byte
            num_letters += 1
    if 0 < num_words < SHINGLE_WORDS:
        hashes[0] = mixed
        return 1, num_letters
    return max(num_words - SHINGLE_WORDS + 1, 0), num_letters

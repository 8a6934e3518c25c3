"""Words of languages that are written without spaces, and which tokens continue one.

Chinese: rjieba. Japanese: fugashi, which is MeCab, with the dictionary unidic-lite. Thai: newmm of
pythainlp. All of them and their dictionaries are in packages of the extra `words`: no download.

A token opens a word where the segmenter begins one, and otherwise continues the word before it. A
token that spans a border ties both words together. Text in other scripts follows "##": within a
Latin word such as "café" a border of the segmenter does not count.

Suffixes: S sentences, T tokens of all sentences end to end, C characters.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

Segmenter = Callable[[str], Sequence[str]]

# The packages of each segmenter, whose versions decide the words
PACKAGES = {
    "rjieba": ("rjieba",),
    "fugashi": ("fugashi", "unidic-lite"),
    "pythainlp": ("pythainlp",),
}
WINDOW = 4_000  # characters segmented at once: for a run of digits newmm takes quadratic time
# First and last code points of Thai, kana with their half-width forms, and Han
_UNSPACED = (
    *((0x0E00, 0x0E7F), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    *((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)
# and of marks, which belong to the letter before
_MARKS = (
    *((0x0300, 0x036F), (0x0E31, 0x0E31), (0x0E34, 0x0E3A), (0x0E47, 0x0E4E), (0x3099, 0x309A)),
    *((0xFE00, 0xFE0F), (0xFF9E, 0xFF9F)),
)


@functools.cache
def segmenter(name: str) -> Segmenter:
    """The function that cuts a sentence into words, in order, perhaps without blanks.

    Its dictionary is loaded once per process (0.1 to 1 s).
    """
    if name == "rjieba":
        import rjieba

        cut: Segmenter = rjieba.cut
        return cut
    if name == "fugashi":
        import fugashi

        tagger: Any = fugashi.Tagger("-Owakati")
        return lambda sentence: tagger.parse(sentence.replace("\0", " ")).split(" ")
    os.environ["PYTHAINLP_READ_ONLY"] = "1"  # it would make a folder in the user's home
    from pythainlp.tokenize import word_tokenize

    return functools.partial(word_tokenize, engine="newmm")


def borders(sentence: str, segment: Segmenter) -> list[int]:
    """Where words begin and end in a sentence, ascending; between two may be text of neither."""
    found: list[int] = []
    for first in range(0, len(sentence), WINDOW):
        text = sentence[first : first + WINDOW]
        words = segment(text)
        if sum(map(len, words)) == len(text):
            found += accumulate(map(len, words), initial=first)
            continue
        end = first
        for word in words:
            start = sentence.find(word, end)
            if start >= 0:
                end = start + len(word)
                found += [start, end]
    return found


def continues_word(
    sentences: Sequence[str],
    lengths: NDArray[np.int64],
    spans: NDArray[np.int64],
    is_piece: NDArray[np.bool_],
    segment: Segmenter | None,
) -> NDArray[np.bool_]:
    """(T,) whether each token continues the word of the token before it.

    (S,) tokens of each sentence; (T, 2) the characters of its sentence that a token stands for;
    (T,) whether it is a "##" piece. Without a segmenter these alone continue a word. The first
    token of a sentence continues none.
    """
    found = is_piece.copy()
    if segment is not None and len(found):
        found[1:] = ~_opens(sentences, lengths, spans, is_piece, segment)
    firsts = np.cumsum(lengths) - lengths
    found[firsts[lengths > 0]] = False
    return found


def _opens(
    sentences: Sequence[str],
    lengths: NDArray[np.int64],
    spans: NDArray[np.int64],
    is_piece: NDArray[np.bool_],
    segment: Segmenter,
) -> NDArray[np.bool_]:
    """(T - 1,) whether each token but the first opens a word, by the borders of a segmenter."""
    sizes = np.fromiter(map(len, sentences), np.int64, len(sentences)) + 1
    bases_S = np.cumsum(sizes) - sizes
    codes_C = np.frombuffer("\n".join([*sentences, ""]).encode("utf-32-le"), np.uint32)
    borders_B = np.array(
        [
            base + place
            for base, sentence in zip(bases_S.tolist(), sentences, strict=True)
            for place in borders(sentence, segment)
        ],
        np.int64,
    )
    spans = spans + np.repeat(bases_S, lengths)[:, None]
    starts, gaps = spans[1:, 0], spans[:-1, 1]  # the word before ends in [gap, start] if at all
    opens = np.searchsorted(borders_B, starts, "right") > np.searchsorted(borders_B, gaps, "left")
    after, before = codes_C[starts], codes_C[np.maximum(gaps, 1) - 1]
    by_script = (_is_in(_UNSPACED, after) | _is_in(_UNSPACED, before)) & ~_is_in(_MARKS, after)
    opened: NDArray[np.bool_] = opens & (by_script | ~is_piece[1:])
    return opened


def _is_in(ranges: Sequence[tuple[int, int]], codes: NDArray[np.uint32]) -> NDArray[np.bool_]:
    found = np.zeros(len(codes), np.bool_)
    for first, last in ranges:
        found |= (codes >= first) & (codes <= last)
    return found

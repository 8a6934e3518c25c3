"""WordPiece of printable ASCII text, compiled: most of English, several times as fast as a cache.

Of BERT's rules only three concern such text: lower case, a word for each punctuation mark, and the
greedy longest match. The vocabulary is a trie whose edges are in one hash table: one look-up for
each character, the same for words that were met before and for others.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from data_prep.tokenizer.vocab_file import LONGEST_WORD

_CONTINUES = b"##"
_NONE = -1
_FREE = np.uint32(0xFFFFFFFF)
_END_OF_SENTENCE, _BLANK = 10, 32  # bytes
_IS_LETTER = np.zeros(256, np.bool_)
_IS_LETTER[list((string.ascii_letters + string.digits).encode())] = True


def is_printable_ascii(text: str) -> bool:
    return text.isascii() and text.isprintable()


class AsciiEncoder:
    """Printable ASCII text to the ids that BertTokenizer gives."""

    def __init__(self, tokens: Sequence[str], unknown: int, lowercase: bool) -> None:
        encoded = [(token.encode(), id) for id, token in enumerate(tokens) if token.isascii()]
        text = np.frombuffer(b"".join(token for token, _ in encoded) + _CONTINUES, np.uint8)
        lengths = [len(token) for token, _ in encoded] + [len(_CONTINUES)]
        ids = np.array([id for _, id in encoded] + [_NONE], np.int32)
        # Edges are fewer than bytes: tokens share their beginnings. Each: parent and byte; child
        self._edges = np.full((1 << len(text).bit_length(), 2), _FREE, np.uint32)
        self._ids = np.full(len(text) + 1, _NONE, np.int32)  # of the token that ends at a node
        self._inside = _fill(text, np.cumsum(lengths), ids, self._edges, self._ids)
        self._unknown, self._lowercase = unknown, lowercase

    def encode(self, sentences: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The (T,) ids of N printable ASCII sentences end to end, and their (N,) lengths."""
        joined = "".join(f"{sentence}\n" for sentence in sentences)
        text = (joined.lower() if self._lowercase else joined).encode()
        ids, lengths = np.empty(len(text), np.uint32), np.empty(len(sentences), np.int64)
        trie = self._edges, self._ids, self._inside, self._unknown
        count = _encode(np.frombuffer(text, np.uint8), _IS_LETTER, *trie, ids, lengths)
        return ids[:count], lengths


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _slot(edges: NDArray[np.uint32], edge: int) -> int:
    """Where an edge is in the table, or would be."""
    slot = (edge * 0x9E3779B1 >> 12) & (len(edges) - 1)
    while edges[slot, 0] != edge and edges[slot, 0] != _FREE:
        slot = (slot + 1) & (len(edges) - 1)
    return slot


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _fill(
    text: NDArray[np.uint8],
    ends: NDArray[np.int64],
    ids: NDArray[np.int32],
    edges: NDArray[np.uint32],
    id_of_node: NDArray[np.int32],
) -> int:
    """Put the tokens of `text` that end at `ends` into the trie; return the last one's node."""
    node = num_nodes = start = 0
    for token in range(len(ends)):
        node = 0
        for position in range(start, ends[token]):
            edge = node << 8 | int(text[position])
            slot = _slot(edges, edge)
            if edges[slot, 0] == _FREE:
                num_nodes += 1
                edges[slot] = edge, num_nodes
            node = int(edges[slot, 1])
        if ids[token] != _NONE:
            id_of_node[node] = ids[token]
        start = ends[token]
    return node


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _encode(
    text: NDArray[np.uint8],
    is_letter: NDArray[np.bool_],
    edges: NDArray[np.uint32],
    id_of_node: NDArray[np.int32],
    inside: int,
    unknown: int,
    ids: NDArray[np.uint32],
    lengths: NDArray[np.int64],
) -> int:
    """Fill `ids` and `lengths` from (B,) bytes; return the number of ids.

    `inside` is the node at which the tokens that continue a word begin.
    """
    start = count = first = sentence = 0
    while start < len(text):
        end = start + 1
        if text[start] == _BLANK or text[start] == _END_OF_SENTENCE:
            if text[start] == _END_OF_SENTENCE:
                lengths[sentence] = count - first
                sentence, first = sentence + 1, count
            start = end
            continue
        while is_letter[text[start]] and is_letter[text[end]]:  # the text's last byte is none
            end += 1
        of_word, root = count, 0
        position = start if end - start <= LONGEST_WORD else _NONE
        while 0 <= position < end:
            node, found, following = root, _NONE, _NONE
            for index in range(position, end):
                slot = _slot(edges, node << 8 | int(text[index]))
                if edges[slot, 0] == _FREE:
                    break
                node = int(edges[slot, 1])
                if id_of_node[node] != _NONE:
                    found, following = id_of_node[node], index + 1
            ids[count] = found
            count, position, root = count + 1, following, inside
        if position == _NONE:  # too long, or no token fits
            ids[of_word] = unknown
            count = of_word + 1
        start = end
    return count

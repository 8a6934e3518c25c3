"""WordPiece: training a vocabulary, encoding text with it, and the tokenizer's files.

The rules are those of google-research/bert tokenization.py as Hugging Face's BertTokenizer has
them: control characters dropped, blanks round CJK characters, lower case and no accents where
`lowercase` (else neither), words cut at punctuation, then the greedy longest match. One figure
differs from Google's code: a word over 100 characters (Google: 200) is unknown, as in every
tokenizer that Hugging Face loads, so that an exported model reads text just as it was trained.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from data_prep.tokenizer.vocab_file import SPECIAL_TOKENS, special_ids

LONGEST_WORD = 100  # characters; the default of Hugging Face's WordPiece
MOST_WORDS = 1 << 18  # kept with their ids: 50 MB of English, 16 million characters have 150,000
LONGEST_KEPT = 100  # characters of such a word: bounds the memory on any text
_PARTS = re.compile(r"[!-/:-@\[-`{-~]|[^!-/:-@\[-`{-~]+")  # ASCII punctuation, and what is between


def make_tokenizer(tokens: Sequence[str], lowercase: bool) -> Any:
    """A `tokenizers` tokenizer that knows no special tokens: a literal "[MASK]" stays text."""
    model = WordPiece(
        {token: number for number, token in enumerate(tokens)},
        unk_token=SPECIAL_TOKENS["unk"],
        max_input_chars_per_word=LONGEST_WORD,
    )
    tokenizer = Tokenizer(model)
    # strip_accents unset follows lowercase, as in Google's code
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


class _WordIds(dict[str, bytes]):
    """Words as they stand between two spaces -> their ids, uint32; known once they were asked for.

    `tokenizers` encodes the parts of a word, cut at ASCII punctuation. That neighbours do not matter
    is exact for these characters: each ends a word by BERT's rules, none has a case, is dropped or
    takes up a combining mark, and no mark is reordered over one. Of other blanks and other
    punctuation that is not said: they stay inside a part.
    """

    def __init__(self, tokenizer: Any, lowercase: bool) -> None:
        self._tokenizer = tokenizer
        self._model = tokenizer.model  # the greedy match alone, without the rules before it
        self._lowercase = lowercase

    def __missing__(self, word: str) -> bytes:
        parts = _PARTS.findall(word)
        if len(parts) > 1:
            ids = b"".join(map(self.__getitem__, parts))
        elif word.isascii() and word.isalnum():  # no rule applies but that of the case
            pieces = self._model.tokenize(word.lower() if self._lowercase else word)
            ids = array("I", [piece.id for piece in pieces]).tobytes()
        else:
            ids = array("I", self._tokenizer.encode(word, add_special_tokens=False).ids).tobytes()
        if len(word) <= LONGEST_KEPT:
            if len(self) >= MOST_WORDS:
                self.clear()  # what is frequent is soon back
            self[word] = ids
        return ids


class Encoder:
    """Text to ids, without special tokens.

    The ids equal those of stock BertTokenizer with add_special_tokens=False on text that holds no
    special token by name; such a name is cut into "[", "mask", "]" here, as in Google's code.
    """

    def __init__(self, tokens: Sequence[str], lowercase: bool) -> None:
        self.vocab_size = len(tokens)
        self.special_ids = special_ids(tokens)
        self._word_ids = _WordIds(make_tokenizer(tokens, lowercase), lowercase)

    def encode(self, sentences: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """N sentences to (T,) ids end to end, and the (N,) lengths; a length may be 0."""
        ids_of = self._word_ids.__getitem__
        ids = [b"".join(map(ids_of, sentence.split(" "))) for sentence in sentences]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids)) // np.dtype(np.uint32).itemsize
        return np.frombuffer(b"".join(ids), np.uint32), lengths

"""WordPiece: text to ids.

The rules are those of google-research/bert tokenization.py as in Hugging Face's BertTokenizer:
control characters are dropped, CJK characters are set apart by blanks, `lowercase` lowers case and
removes accents, words are cut at punctuation, then the longest match is taken greedily. A TextForm
changes the rules before the cut. One number differs from Google's code: a word of more than 100
characters (Google: 200) is unknown, as in every tokenizer that Hugging Face loads, so an exported
model reads text as it was trained.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from itertools import chain, compress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from data_prep.core.records import Normalization, TextForm
from data_prep.tokenizer.ascii_words import AsciiEncoder, is_printable_ascii
from data_prep.tokenizer.vocab_file import LONGEST_WORD, SPECIAL_TOKENS, TURKISH_I, special_ids

# Words kept with their ids, 50 MB of memory. 16 million characters of English have 150,000.
MOST_WORDS = 1 << 18
UNICODE_FORMS = {Normalization.nfc: normalizers.NFC, Normalization.nfkc: normalizers.NFKC}
ID_BYTES = np.dtype(np.uint32).itemsize
LONGEST_KEPT = 100  # characters of such a word; bounds the memory on any text
MOST_PARTS_KEPT = 8  # of such a word; one with more, such as a Chinese clause, rarely recurs
# ASCII punctuation, or text between. < = > with a mark are text: Unicode joins them to ≮ ≠ ≯, which
# do not end a word.
_PARTS = r"(?:[^{0}!-/:-@\[-`{{-~]|[<=>](?=[^\0-\x7f]))+|[{0}!-/:-@\[-`{{-~]"
# Most of the CJK characters that BERT sets apart, and punctuation between them
_SET_APART = "、。「」『』！，：；？㐀-䶿一-鿿"


def make_normalizer(form: TextForm) -> Any:
    """The rules of a text form, as a normalizer of `tokenizers`."""
    steps = []
    if form.normalization is not Normalization.none:
        steps.append(UNICODE_FORMS[form.normalization]())
    if form.turkish_i and form.lowercase:
        steps += [normalizers.Replace(*pair) for pair in TURKISH_I]
    bert = normalizers.BertNormalizer(
        clean_text=form.clean_text,
        handle_chinese_chars=form.tokenize_chinese_chars,
        strip_accents=form.strip_accents,
        lowercase=form.lowercase,
    )
    return normalizers.Sequence([*steps, bert]) if steps else bert


def make_tokenizer(tokens: Sequence[str], form: TextForm) -> Any:
    """A `tokenizers` tokenizer without special tokens: a literal "[MASK]" stays text."""
    model = WordPiece(
        {token: number for number, token in enumerate(tokens)},
        unk_token=SPECIAL_TOKENS["unk"],
        max_input_chars_per_word=LONGEST_WORD,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = make_normalizer(form)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


class _WordIds(dict[str, bytes]):
    """A cache from words, as they stand between two spaces, to the bytes of their uint32 ids.

    `tokenizers` encodes the parts of a word, cut at ASCII punctuation. The ids of a part do not
    depend on its neighbours: each of these characters ends a word by BERT's rules, none has a case,
    is dropped or takes a combining mark (but < = >, see _PARTS), and no mark is reordered over one.
    That need not hold for other blanks and punctuation, which stay inside a part. Where CJK
    characters are set apart, each is a part, too.
    """

    def __init__(self, tokenizer: Any, form: TextForm) -> None:
        self._tokenizer = tokenizer
        self._model = tokenizer.model  # the greedy match, without the rules before it
        self._lowercase = form.lowercase
        self._has_own_i = form.turkish_i and form.lowercase
        self._parts = re.compile(_PARTS.format(_SET_APART * form.tokenize_chinese_chars))

    def __missing__(self, word: str) -> bytes:
        parts = self._parts.findall(word)
        if len(parts) > 1:
            ids = b"".join(map(self.__getitem__, parts))
        elif word.isascii() and word.isalnum() and not (self._has_own_i and "I" in word):
            # Only the rule of the case applies
            pieces = self._model.tokenize(word.lower() if self._lowercase else word)
            ids = array("I", [piece.id for piece in pieces]).tobytes()
        else:
            ids = array("I", self._tokenizer.encode(word, add_special_tokens=False).ids).tobytes()
        if len(word) <= LONGEST_KEPT and len(parts) <= MOST_PARTS_KEPT:
            if len(self) >= MOST_WORDS:
                self.clear()  # frequent words are soon back
            self[word] = ids
        return ids


class Encoder:
    """Text to ids, without special tokens.

    The ids are those of stock BertTokenizer with add_special_tokens=False, except for the name of a
    special token in the text: it is cut into "[", "mask", "]" here, as in Google's code.
    """

    def __init__(self, tokens: Sequence[str], form: TextForm) -> None:
        self.vocab_size = len(tokens)
        self.special_ids = special_ids(tokens)
        self._tokenizer = make_tokenizer(tokens, form)
        self._word_ids = _WordIds(self._tokenizer, form)
        self._ascii = AsciiEncoder(tokens, self.special_ids["unk"], form.lowercase)
        self._has_own_i = form.turkish_i and form.lowercase  # whose lower case is not ASCII

    def encode(self, sentences: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The (T,) ids of N sentences end to end, and their (N,) lengths, which may be 0."""
        is_plain = (not self._has_own_i and is_printable_ascii(text) for text in sentences)
        is_plain_N = np.fromiter(is_plain, np.bool_, len(sentences))
        plain, others = (list(compress(sentences, chosen)) for chosen in (is_plain_N, ~is_plain_N))
        ids_of = self._word_ids.__getitem__
        found = [b"".join(map(ids_of, sentence.split(" "))) for sentence in others]
        lengths = np.empty(len(sentences), np.int64)
        plain_ids, lengths[is_plain_N] = self._ascii.encode(plain)
        lengths[~is_plain_N] = np.fromiter(map(len, found), np.int64, len(found)) // ID_BYTES
        is_plain_T = np.repeat(is_plain_N, lengths)
        ids = np.empty(len(is_plain_T), np.uint32)
        ids[is_plain_T] = plain_ids
        ids[~is_plain_T] = np.frombuffer(b"".join(found), np.uint32)
        return ids, lengths

    def encode_spans(
        self, sentences: Sequence[str]
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
        """As `encode`, and (T, 2) the characters [start, end) of its sentence that each id is for.

        Words without spaces repeat too rarely to be kept, so this is as fast for them.
        """
        found = self._tokenizer.encode_batch(sentences, add_special_tokens=False)
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        ids = np.fromiter(chain.from_iterable(e.ids for e in found), np.uint32, lengths.sum())
        ends = chain.from_iterable(chain.from_iterable(e.offsets for e in found))
        return ids, lengths, np.fromiter(ends, np.int64, 2 * lengths.sum()).reshape(-1, 2)

"""Counts what the text of each language becomes, while a task of encode has text and tokens.

Documents, sentences, tokens and characters are counted exactly. What is slower is counted in a
sample of each document's sentences, every n-th from a start that its name decides: words that are
[UNK], words changed by the normalisation, and sentence ends that were missed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

from data_prep.core.records import Normalization, TextForm
from data_prep.quality.languages import LanguageCounts
from data_prep.tokenizer.wordpiece import Encoder, make_normalizer, make_tokenizer

EXACT_CHARACTERS = 4_000_000  # of a corpus: up to here every sentence is in the sample
ONE_IN = 32  # sentences of a larger one

_CUT = pre_tokenizers.BertPreTokenizer()  # at blanks and punctuation
_ASCII_WORD = re.compile("[0-9A-Za-z]+")
# Marks that end sentences and nothing else: Chinese and Japanese, Indian, Arabic and Urdu,
# Ethiopic, Armenian, Burmese. A full stop may end an abbreviation.
_END = re.compile("[。｡！？।॥؟۔።։။]")


def language_counter(
    encoder: Encoder, tokens: Sequence[str], form: TextForm, one_in: int
) -> LanguageCounter:
    """A counter for text that the encoder of this vocabulary and text form encodes."""
    plain = msgspec.structs.replace(form, strip_accents=False, normalization=Normalization.none)
    return LanguageCounter(encoder, make_tokenizer(tokens, form), make_normalizer(plain), one_in)


def sample_one_in(characters: int) -> int:
    """Of how many sentences one is in the sample, in a corpus of so many characters."""
    return 1 if characters <= EXACT_CHARACTERS else ONE_IN


@dataclass
class LanguageCounter:
    """Counts documents as they are encoded, by language."""

    encoder: Encoder
    tokenizer: Any  # of the same rules
    plain: Any  # its normaliser but for accents and the form of Unicode
    one_in: int  # sentences in the sample
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    words: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(
        self, language: str, name: str, sentences: Sequence[str], lengths: NDArray[np.int64]
    ) -> None:
        """Count a document by its name: its sentences, and (S,) tokens of those that have any."""
        counts = self.counts[language]
        counts["documents"] += 1
        counts["one_sentence"] += len(lengths) == 1
        counts["sentences"] += len(lengths)
        counts["tokens"] += int(lengths.sum())
        counts["characters"] += sum(map(len, sentences))
        start = xxhash.xxh3_64_intdigest(name.encode()) % self.one_in
        for sentence in sentences[start :: self.one_in]:
            counts["sampled_sentences"] += 1
            self.words[language].update(sentence.split(" "))
            if not sentence.isascii():
                letters = (i for i in range(len(sentence) - 1, -1, -1) if sentence[i].isalnum())
                counts["missed_ends"] += len(_END.findall(sentence, 0, next(letters, 0)))

    def finish(self) -> dict[str, LanguageCounts]:
        """The counts by language, sorted."""
        for language, words in self.words.items():
            self._add_words(self.counts[language], words)
        return {name: LanguageCounts(**self.counts[name]) for name in sorted(self.counts)}

    def _add_words(self, counts: Counter[str], numbers: Counter[str]) -> None:
        """Count words as they stand between blanks, each a number of times."""
        unk = self.encoder.special_ids["unk"]
        words = list(numbers)
        ids, lengths = self.encoder.encode(words)
        chunks: Counter[str] = Counter()  # each is cut and normalised once
        has_unknown = np.zeros(len(words), np.bool_)
        has_unknown[np.repeat(np.arange(len(words)), lengths)[ids == unk]] = True
        for word, is_unknown in zip(words, has_unknown.tolist(), strict=True):
            number = numbers[word]
            counts["sampled_characters"] += number * len(word)
            if is_unknown:
                found = self.tokenizer.encode(word, add_special_tokens=False)
                spans = zip(found.ids, found.offsets, strict=True)
                unknown = sum(end - start for id_, (start, end) in spans if id_ == unk)
                counts["unknown_characters"] += number * unknown
            if word.isascii():
                counts["words"] += number * len(_ASCII_WORD.findall(word))
                continue
            for chunk in self.plain.normalize_str(word).split(" "):  # with blanks about CJK
                chunks[chunk] += number
        pieces: Counter[str] = Counter()
        for chunk, number in chunks.items():
            for piece, _ in _CUT.pre_tokenize_str(chunk):
                pieces[piece] += number
        for piece, number in pieces.items():
            if not any(map(str.isalnum, piece)):
                continue
            counts["words"] += number
            became = self.tokenizer.normalizer.normalize_str(piece).strip()  # blanks about Han
            if became != piece:
                counts["changed_words"] += number
                forms = (unicodedata.normalize(form, piece) for form in ("NFC", "NFKC"))
                counts["stripped_words"] += number * (became not in forms)

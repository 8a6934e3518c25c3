"""What the text of each language became: counts, shares, and whether it trains badly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec

from data_prep.core.records import Count, Record, Share
from data_prep.core.settings import AuditSettings

JUDGED = 0.01  # share of the tokens; of a smaller language the numbers are shown and not judged
FEWEST_CHARACTERS = 1_000  # of a judged language, in its sample

Mean = Annotated[float, msgspec.Meta(ge=0)]


class LanguageCounts(Record):
    """Counts of the documents of one language; those from sampled_sentences on are of a sample."""

    documents: Count = 0
    one_sentence: Count = 0  # documents
    sentences: Count = 0
    tokens: Count = 0
    characters: Count = 0
    sampled_sentences: Count = 0
    sampled_characters: Count = 0
    unknown_characters: Count = 0  # in words that are [UNK]
    words: Count = 0  # with a letter or digit; a Han character is one
    changed_words: Count = 0  # by more than lower case
    stripped_words: Count = 0  # that lose accents or vowel signs, or are left in pieces (Korean)
    missed_ends: Count = 0  # marks that end sentences, inside of one

    def __add__(self, other: LanguageCounts) -> LanguageCounts:
        names = self.__struct_fields__
        return LanguageCounts(*(getattr(self, name) + getattr(other, name) for name in names))


class LanguageMetrics(Record):
    """What counts.json and audit.json have of one language."""

    documents: Count
    sentences: Count
    tokens: Count
    characters: Count
    sampled_characters: Count
    one_sentence_share: Share  # of the documents
    sentences_per_document: Mean
    tokens_per_sentence: Mean
    characters_per_token: Mean
    unknown_characters_share: Share
    changed_words_share: Share
    stripped_words_share: Share
    missed_ends_per_sentence: Mean

    @classmethod
    def of(cls, counts: LanguageCounts) -> LanguageMetrics:
        """What follows from the counts of a language."""
        documents, words = max(counts.documents, 1), max(counts.words, 1)
        names = ("documents", "sentences", "tokens", "characters", "sampled_characters")
        return cls(
            **{name: getattr(counts, name) for name in names},
            one_sentence_share=counts.one_sentence / documents,
            sentences_per_document=counts.sentences / documents,
            tokens_per_sentence=counts.tokens / max(counts.sentences, 1),
            characters_per_token=counts.characters / max(counts.tokens, 1),
            unknown_characters_share=counts.unknown_characters / max(counts.sampled_characters, 1),
            changed_words_share=counts.changed_words / words,
            stripped_words_share=counts.stripped_words / words,
            missed_ends_per_sentence=counts.missed_ends / max(counts.sampled_sentences, 1),
        )


def language_faults(
    languages: Mapping[str, Mapping[str, Any]], bounds: AuditSettings, has_pairs: bool
) -> Iterator[str]:
    """Why the text of a language would train badly, each with its cure."""
    total = sum(metrics["tokens"] for metrics in languages.values())
    for name, metrics in languages.items():
        if metrics["tokens"] < JUDGED * total or metrics["sampled_characters"] < FEWEST_CHARACTERS:
            continue
        one_sentence = metrics["one_sentence_share"]
        if has_pairs and len(languages) > 1 and one_sentence > bounds.most_one_sentence:
            yield (
                f"{name}: {one_sentence:.1%} of the documents are one sentence, more than "
                f"{bounds.most_one_sentence:.0%}: they have no next sentence; collect longer ones "
                "(source.min_characters), or set pairs=none. The bound is audit.most_one_sentence"
            )
        yield from (f"{name}: {fault}" for fault in _text_faults(metrics, bounds))


def _text_faults(metrics: Mapping[str, Any], bounds: AuditSettings) -> Iterator[str]:
    again = "and run vocab and encode again"
    if (share := metrics["unknown_characters_share"]) > bounds.most_unknown_characters:
        yield (
            f"{share:.1%} of the characters are in words that are [UNK], more than "
            f"{bounds.most_unknown_characters:.0%}: the vocabulary lacks characters of this text; "
            "train a larger one on these documents (vocab_size=N, no vocab_file, "
            f"alphabet_coverage=0.9995 or more) {again}. The bound is audit.most_unknown_characters"
        )
    if (share := metrics["stripped_words_share"]) > bounds.most_stripped_words:
        yield (
            f"{share:.1%} of the words lose accents or vowel signs, or are left in pieces as "
            f"Korean is, more than {bounds.most_stripped_words:.0%}: the model would not know "
            "words apart; set language=CODE of the text, or strip_accents=false, "
            f"{again}. The bound is audit.most_stripped_words"
        )
    if (number := metrics["missed_ends_per_sentence"]) > bounds.most_missed_ends:
        yield (
            f"{number:.1f} marks that end a sentence, such as 。 or ।, stand inside of a sentence "
            f"on average, more than {bounds.most_missed_ends}: its ends were not found; set "
            "language=CODE of the text (language=multi for documents of several languages) "
            f"{again}. The bound is audit.most_missed_ends"
        )
    if (mean := metrics["tokens_per_sentence"]) > bounds.most_sentence_tokens:
        yield (
            f"a sentence has {mean:,.0f} tokens on average, more than "
            f"{bounds.most_sentence_tokens}: its ends were not found; set language=CODE of the "
            f"text {again}, or collect text with punctuation. The bound is "
            "audit.most_sentence_tokens"
        )

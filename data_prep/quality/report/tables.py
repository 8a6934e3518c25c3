"""The rows of the audit's tables, on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Report = dict[str, Any]

# Label, name of the metric in the report of a split, format
Row = tuple[str, str, str]

SHARDS: tuple[Row, ...] = (
    ("examples", "rows", "{:,}"),
    ("tokens", "tokens", "{:,}"),
    ("mean length", "mean_length", "{:.1f}"),
    ("real tokens of all positions", "real_share", "{:.1%}"),
    ("random next", "random_next_share", "{:.2%}"),
    ("swapped", "swapped_share", "{:.2%}"),
    ("masked", "masked_share", "{:.2%}"),
    ("… as [MASK]", "mask_share", "{:.2%}"),
    ("… as a random entry", "random_share", "{:.2%}"),
    ("… kept", "kept_share", "{:.2%}"),
    ("unknown tokens", "unknown_share", "{:.3%}"),
)
CORPUS: tuple[Row, ...] = (
    ("documents", "documents", "{:,}"),
    ("… of one sentence", "one_sentence_share", "{:.1%}"),
    ("sentences", "sentences", "{:,}"),
    ("tokens", "tokens", "{:,}"),
    ("unknown tokens", "unknown_share", "{:.3%}"),
)
REPEATED: tuple[Row, ...] = (
    ("sentences that occurred before", "repeated_sentences_share", "{:.2%}"),
    ("tokens in them", "repeated_tokens_share", "{:.2%}"),
)
REPEATED_EXAMPLES: tuple[Row, ...] = (
    ("examples that occurred before", "repeated_examples", "{:,}"),
)
LANGUAGES: tuple[Row, ...] = (
    ("documents", "documents", "{:,}"),
    ("… of one sentence", "one_sentence_share", "{:.1%}"),
    ("sentences per document", "sentences_per_document", "{:,.1f}"),
    ("tokens per sentence", "tokens_per_sentence", "{:,.1f}"),
    ("characters per token", "characters_per_token", "{:.1f}"),
    ("characters in [UNK]", "unknown_characters_share", "{:.2%}"),
    ("words changed", "changed_words_share", "{:.1%}"),
    ("… that lose marks", "stripped_words_share", "{:.1%}"),
    ("missed ends per sentence", "missed_ends_per_sentence", "{:.2f}"),
)


def table_rows(wanted: Iterable[Row], splits: Mapping[str, Report]) -> list[list[str]]:
    """Label and metric of each split, a dash if it has none; no row if none has it."""
    return [
        [label, *(form.format(split[key]) if key in split else "-" for split in splits.values())]
        for label, key, form in wanted
        if any(key in split for split in splits.values())
    ]


def by_tokens(languages: Mapping[str, Report]) -> list[tuple[str, Report]]:
    """The languages and their metrics, that of the most tokens first."""
    return sorted(languages.items(), key=lambda item: -item[1]["tokens"])


def language_table(languages: Mapping[str, Report]) -> tuple[list[str], list[list[str]]]:
    """Titles of the columns, and a row for each language."""
    rows = [
        [name, *(form.format(metrics[key]) for _, key, form in LANGUAGES)]
        for name, metrics in by_tokens(languages)
    ]
    return ["", *(title for title, _, _ in LANGUAGES)], rows

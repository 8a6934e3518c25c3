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


def table_rows(wanted: Iterable[Row], splits: Mapping[str, Report]) -> list[list[str]]:
    """Label and metric of each split, a dash if it has none; no row if none has it."""
    return [
        [label, *(form.format(split[key]) if key in split else "-" for split in splits.values())]
        for label, key, form in wanted
        if any(key in split for split in splits.values())
    ]

"""Wikipedia as rows of id, title and text: Hugging Face's wikimedia/wikipedia or files like it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.dataset_rows import plan_rows, read_rows
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.sources.wikipedia_articles import article
from data_prep.stores.documents import Document, Reject
from data_prep.text.cleaning import clean_paragraphs, split_lines

_COLUMNS = ("id", "title", "text")


def plan(source: SourceSettings, characters_per_part: int, cache: Path) -> SourcePlan:
    """Tasks of row ranges."""
    return plan_rows(source, characters_per_part, cache, _COLUMNS, multiple_of=1)


def read(source: SourceSettings, task: dict[str, Any]) -> Iterator[Document | Reject]:
    """A document or a reject for each row."""
    for row in read_rows(task, _COLUMNS):
        text = clean_paragraphs(split_lines(row["text"] or ""))
        yield article(source, str(row["id"]), row["title"] or "", text)

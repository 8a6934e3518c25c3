"""Data sets with one book of Project Gutenberg per row, as raw text.

A row is treated as `books` treats a file. A document's id is the number of its row: the data sets'
own ids repeat if a book is in two files of Project Gutenberg.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.core.settings import SourceSettings
from data_prep.sources.books import books
from data_prep.sources.inputs.dataset_rows import plan_rows, read_rows
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.stores.documents import Document, Reject


def plan(source: SourceSettings, characters_per_part: int, cache: Path) -> SourcePlan:
    """Tasks of row ranges."""
    return plan_rows(source, characters_per_part, cache, _columns(source), multiple_of=1)


def read(source: SourceSettings, task: dict[str, Any]) -> Iterator[Document | Reject]:
    """A document or a reject for each book of a row; the title is from its header."""
    (column,) = _columns(source)
    for number, row in enumerate(read_rows(task, [column]), task["first"]):
        yield from books(source, f"row-{number:09d}", None, row[column] or "")


def _columns(source: SourceSettings) -> tuple[str]:
    assert source.text_column is not None
    return (source.text_column,)

"""Books as rows, one a row: Project Gutenberg's raw texts as data sets hold them.

What `books` does to a file is done to a row. A document's id is the number of its row, for the
data sets' own repeat where a book stands in two files of Project Gutenberg.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.core.settings import SourceSettings
from data_prep.sources import SourcePlan
from data_prep.sources.books import body_of
from data_prep.sources.dataset_rows import plan_rows, read_rows
from data_prep.stores.documents import Document, Reject
from data_prep.text.gutenberg import title_of


def plan(source: SourceSettings, characters_per_part: int, cache: Path) -> SourcePlan:
    """Tasks of row ranges."""
    return plan_rows(source, characters_per_part, cache, _columns(source), multiple_of=1)


def read(source: SourceSettings, task: dict[str, Any]) -> Iterator[Document | Reject]:
    """A document, or a reject, for each row; the title is what Project Gutenberg's header says."""
    (column,) = _columns(source)
    for number, row in enumerate(read_rows(task, [column]), task["first"]):
        id, text = f"row-{number:09d}", row[column] or ""
        body, reason = body_of(source, text)
        if reason is None:
            yield Document(id, title_of(text), body)
        else:
            yield Reject(id, title_of(text), text, reason)


def _columns(source: SourceSettings) -> tuple[str]:
    assert source.text_column is not None
    return (source.text_column,)

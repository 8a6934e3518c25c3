"""Data sets with one book of Project Gutenberg per row, as raw text.

A row is treated as `books` treats a file. A document's id is the number of its row: the data sets'
own ids repeat if a book is in two files of Project Gutenberg.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_prep.core.settings import SourceSettings
from data_prep.sources.books import books
from data_prep.sources.inputs.numbered_rows import plan_numbered, read_numbered
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.stores.documents import Damage, Document, Reject


def plan(source: SourceSettings, characters_per_part: int) -> SourcePlan:
    """Tasks of row ranges."""
    return plan_numbered(source, characters_per_part, str(source.text_column))


def read(source: SourceSettings, task: dict[str, Any]) -> Iterator[Document | Reject | Damage]:
    """A document or a reject for each book of a row; the title is from its header."""
    column = str(source.text_column)
    for item in read_numbered(task, [column]):
        if isinstance(item, Damage):
            yield item
            continue
        number, row = item
        id = f"row-{number:09d}"
        text, fault = row.text(column)
        yield from [Reject(id, "", text, fault)] if fault else books(source, id, None, text)

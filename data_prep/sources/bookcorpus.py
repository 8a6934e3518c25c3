"""BookCorpus as rows of one column, text: a sentence each, without marks between books, or books.

Each sentence is a paragraph. source.rows_per_document consecutive rows are a document; it may cross
the border between two books, which the rows do not show.

The hub's rows are in lower case and tokenised as in the Penn Treebank: "`` are n't you , megan 's".
BERT's tokenizer splits at punctuation, so blanks before it change no id. But ``, '' and n't give
other pieces than the usual spelling, which is restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.dataset_rows import plan_rows, read_rows
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.stores.documents import Document, Reject
from data_prep.text.cleaning import clean_paragraphs, split_lines

_COLUMNS = ("text",)


def plan(source: SourceSettings, characters_per_part: int, cache: Path) -> SourcePlan:
    """Tasks of row ranges that hold whole documents."""
    group = source.rows_per_document or 1
    return plan_rows(source, characters_per_part, cache, _COLUMNS, multiple_of=group)


def read(source: SourceSettings, task: dict[str, Any]) -> Iterator[Document | Reject]:
    """A document or a reject for each group of rows; the id is the number of its first row."""
    group = source.rows_per_document or 1
    rows = read_rows(task, _COLUMNS)
    first = task["first"]
    while texts := [row["text"] or "" for row in islice(rows, group)]:
        id = f"row-{first:09d}"
        text = clean_paragraphs([line for text in texts for line in split_lines(text)])
        text = text.replace("``", '"').replace("''", '"').replace(" n't", "n't")
        yield Document(id, "", text) if text else Reject(id, "", "\n".join(texts), "empty")
        first += group

"""BookCorpus as rows of one column, text: a sentence each, without marks between books, or books.

Each sentence is a paragraph. source.rows_per_document consecutive rows are a document; it may cross
the border between two books, which the rows do not show.

The hub's rows are in lower case and tokenised as in the Penn Treebank: "`` are n't you , megan 's".
BERT's tokenizer splits at punctuation, so blanks before it change no id. But ``, '' and n't give
other pieces than the usual spelling, which is restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.numbered_rows import plan_numbered, read_numbered
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.stores.documents import Damage, Document, Reject
from data_prep.text.cleaning import clean_paragraphs, split_lines

_COLUMN = "text"


def plan(source: SourceSettings, characters_per_part: int) -> SourcePlan:
    """Tasks of row ranges that hold whole documents."""
    group = source.rows_per_document or 1
    return plan_numbered(source, characters_per_part, _COLUMN, multiple_of=group)


def read(source: SourceSettings, task: dict[str, Any]) -> Iterator[Document | Reject | Damage]:
    """A document or a reject for each group of rows; the id is the number of its first row."""
    group = source.rows_per_document or 1
    first, texts = task["first"], list[str]()
    for item in read_numbered(task, [_COLUMN]):
        if isinstance(item, Damage):
            yield item
            continue
        number, row = item
        text, fault = row.text(_COLUMN)
        if fault:
            yield Reject(_id(number), "", text, fault)
            continue
        if number >= first + group:
            yield from _document(first, texts)
            first, texts = number - number % group, []
        texts.append(text)
    yield from _document(first, texts)


def _document(first: int, texts: list[str]) -> Iterator[Document | Reject]:
    """What rows are, of which `first` is the first; nothing if there is none."""
    text = clean_paragraphs([line for text in texts for line in split_lines(text)])
    text = text.replace("``", '"').replace("''", '"').replace(" n't", "n't")
    if texts:
        id = _id(first)
        yield Document(id, "", text) if text else Reject(id, "", "\n".join(texts), "empty")


def _id(number: int) -> str:
    return f"row-{number:09d}"

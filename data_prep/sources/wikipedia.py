"""Wikipedia as rows of id, title and text: Hugging Face's wikimedia/wikipedia or files like it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.pieces import Piece, plan_pieces
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.sources.inputs.row_files import read_rows
from data_prep.sources.inputs.row_inputs import find_rows, require_columns
from data_prep.sources.wikipedia_articles import article
from data_prep.stores.documents import Damage, Document, Reject
from data_prep.text.cleaning import clean_paragraphs, split_lines

_COLUMNS = ("text", "id", "title")


def plan(source: SourceSettings, characters_per_part: int) -> SourcePlan:
    """Tasks of pieces of files. Raises SettingsError if the first file lacks a column."""
    files, found = find_rows(source)
    require_columns(files[0], _COLUMNS)
    plan = plan_pieces(files, characters_per_part, _COLUMNS[0])
    return replace(plan, inputs={**plan.inputs, **found})


def read(source: SourceSettings, task: list[Any]) -> Iterator[Document | Reject | Damage]:
    """A document or a reject for each row, and a Damage where a file cannot be read on."""
    for piece in (Piece(*fields) for fields in task):
        for row in read_rows(piece, _COLUMNS):
            if isinstance(row, Damage):
                yield row
                continue
            id = row.id(["id"], piece)
            title = row.values.get("title")
            title = title if isinstance(title, str) else ""
            text, fault = row.text("text")
            if fault:
                yield Reject(id, title, text, fault)
            else:
                yield article(source, id, title, clean_paragraphs(split_lines(text)))

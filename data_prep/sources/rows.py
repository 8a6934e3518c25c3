"""Any files of rows with a column of text: jsonl, json, csv, tsv, parquet, arrow; also packed.

Or a data set of the Hugging Face hub, read where it is. A row is a document; its text is only
brought into one form, as that of every source: nothing is taken out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from data_prep.core.config import SettingsError
from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.pieces import Piece, plan_pieces
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.sources.inputs.row_files import Row, columns_of, read_rows
from data_prep.sources.inputs.row_inputs import find_rows
from data_prep.sources.inputs.text_files import shown
from data_prep.stores.documents import Damage, Document, Reject
from data_prep.text.cleaning import clean_paragraphs, split_lines
from data_prep.text.language import is_language

NUMBERED = "file:row"  # the id_column that names a document by its place
_LANGUAGE = re.compile("[a-z]{2,3}")
_ID_COLUMNS = ("id", "url")


def plan(source: SourceSettings, characters_per_part: int) -> SourcePlan:
    """Tasks of pieces of files. Raises SettingsError if the first file lacks a column."""
    files, found = find_rows(source)
    _check_columns(source, Piece(files[0].name, files[0].at))
    plan = plan_pieces(files, characters_per_part, source.text_column)
    return replace(plan, inputs={**plan.inputs, **found})


def read(source: SourceSettings, task: list[Any]) -> Iterator[Document | Reject | Damage]:
    """A document or a reject for each row, and a Damage where a file cannot be read on."""
    ids = [] if source.id_column == NUMBERED else [source.id_column] if source.id_column else None
    named = [source.text_column, *(_ID_COLUMNS if ids is None else ids)]
    named += [source.title_column, source.language_column]
    columns = [name for name in named if name is not None]
    for piece in (Piece(*fields) for fields in task):
        for row in read_rows(piece, columns):
            if isinstance(row, Damage):
                yield row
            else:
                yield _document(source, row.id(_ID_COLUMNS if ids is None else ids, piece), row)


def _document(source: SourceSettings, id: str, row: Row) -> Document | Reject:
    """A row's document, or a reject with the reason."""
    column = str(source.text_column)
    text, fault = row.text(column)
    given = row.values.get(str(source.title_column))
    title = (
        clean_paragraphs(split_lines(given)).replace("\n", " ") if isinstance(given, str) else ""
    )
    if fault:
        return Reject(id, title, text, fault)
    cleaned = clean_paragraphs(split_lines(text))
    if not cleaned:
        is_there = row.values.get(column) is not None
        return Reject(id, title, text, "empty" if is_there else "no text")
    if source.min_characters is not None and len(cleaned) < source.min_characters:
        return Reject(id, title, cleaned, "too short")
    stated = row.values.get(str(source.language_column))
    if source.language_column and source.language and not _is_stated(stated, source.language):
        return Reject(id, title, cleaned, f"language {stated}, not {source.language}"[:100])
    return Document(id, title, cleaned, _code(stated))


def _is_stated(stated: object, wanted: str) -> bool:
    """Whether a row states that it is of a language: de, de-AT and DE_at are all German."""
    code, wanted = str(stated).strip().lower().replace("_", "-"), wanted.lower()
    return wanted in (code, code.partition("-")[0]) or is_language(str(stated).strip(), wanted)


def _code(stated: object) -> str:
    """A stated language as a code such as de or zh-hant; empty if it is none."""
    code = str(stated).strip().lower().replace("_", "-")
    language = code.partition("-")[0]
    if stated is None or not _LANGUAGE.fullmatch(language):
        return ""
    return code if code in ("zh-hans", "zh-hant") else language


def _check_columns(source: SourceSettings, first: Piece) -> None:
    """Raises SettingsError naming the columns that settings ask for and the first file lacks."""
    asked = {
        "text_column": source.text_column,
        "id_column": None if source.id_column == NUMBERED else source.id_column,
        "title_column": source.title_column,
        "language_column": source.language_column,
    }
    there = columns_of(first, str(source.text_column))
    missing = {setting: name for setting, name in asked.items() if name and name not in there}
    if there and missing:
        setting, name = next(iter(missing.items()))
        raise SettingsError(
            f"source.{setting}={name}: {shown(first.name)} has the columns {', '.join(there)}; set "
            f"source.{setting} to one of them"
        )

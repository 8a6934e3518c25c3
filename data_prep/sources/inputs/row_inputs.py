"""The files of rows of a source: below source.path, or of a data set of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from data_prep.core.config import SettingsError
from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.hub import hub_files
from data_prep.sources.inputs.packed import endings_of
from data_prep.sources.inputs.pieces import Piece
from data_prep.sources.inputs.places import Place, find_inputs
from data_prep.sources.inputs.row_files import READERS, columns_of
from data_prep.sources.inputs.text_files import shown

_ANY = "file of rows (.jsonl, .json, .csv, .tsv, .parquet or .arrow; also .gz, .zst, .bz2, .xz)"


def is_rows(name: str) -> bool:
    """Whether a file is one of rows, plain or packed, by its name."""
    return endings_of(name.partition("?")[0])[0] in READERS


def find_rows(
    source: SourceSettings, what: str = _ANY, is_wanted: Callable[[str], bool] = is_rows
) -> tuple[list[Place], dict[str, Any]]:
    """The files, sorted by name, and what the inputs record: files not read, the hub's commit.

    Raises SettingsError if there is none, or one that is typed is none by its name.
    """
    if source.path is None:
        (files, others), commit = hub_files(source, is_wanted, what)
    else:
        (files, others), commit = find_inputs(source, what, is_wanted), {}
    if odd := next((file for file in files if not is_wanted(file.name)), None):
        raise SettingsError(f"{shown(odd.name)} is no {what} by its name: rename it")
    return files, {**commit, **others}


def require_columns(file: Place, columns: Sequence[str]) -> None:
    """Raises SettingsError if a file lacks one of its columns; a broken one is left to its task."""
    there = columns_of(Piece(file.name, file.at), columns[0])
    if there and (missing := [name for name in columns if name not in there]):
        raise SettingsError(
            f"{shown(file.name)} has the columns {', '.join(there)}, and lacks "
            f"{', '.join(missing)}; point source.path at files with {', '.join(columns)}"
        )

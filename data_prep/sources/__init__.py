"""One module per kind of source: it cuts the input into tasks and yields documents.

May import: data_prep.core, data_prep.stores, data_prep.text.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from data_prep.core.settings import SourceKind, SourceSettings
from data_prep.stores.documents import Damage, Document, Reject


@dataclass(frozen=True)
class SourcePlan:
    """The tasks of an input. They depend only on the input and on characters_per_part."""

    tasks: list[Any]  # one per part, as `read` takes it; of JSON's types
    inputs: dict[str, Any]  # the size of the input, for the manifest
    states: list[Any]  # one per task, of JSON's types; changes when the task's input does


class Source(Protocol):
    """The interface of a module in this folder."""

    def plan(self, source: SourceSettings, characters_per_part: int, cache: Path) -> SourcePlan:
        """Cut the input into tasks. Raises SettingsError if there is nothing to read.

        `cache` is a folder for files that are needed until all documents are collected.
        """

    def read(self, source: SourceSettings, task: Any) -> Iterator[Document | Reject | Damage]:
        """The contents of one task, in order: documents, and rejects with a reason.

        A Damage means that the rest of an input file cannot be read.
        """


def module_of(kind: SourceKind) -> Source:
    """The module of one kind. It is imported here because `datasets` takes a second to load."""
    return cast(Source, importlib.import_module(f"data_prep.sources.{kind.value}"))


def cut_by_size(sizes: list[int], most: int) -> list[range]:
    """Consecutive runs of items whose sizes sum to at most `most`, or of one larger item."""
    runs: list[range] = []
    first = total = 0
    for index, size in enumerate(sizes):
        if index > first and total + size > most:
            runs.append(range(first, index))
            first = index
            total = 0
        total += size
    return [*runs, range(first, len(sizes))] if sizes else []

"""One file a kind of source; each cuts its input into tasks and yields documents.

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
    """How an input is cut. It depends on the input and on characters_per_part, on nothing else."""

    tasks: list[Any]  # one for each part; each is what `read` takes, made of JSON's types
    inputs: dict[str, Any]  # what there is to read, for the manifest
    states: list[Any]  # of each task; changes when its input does; of JSON's types


class Source(Protocol):
    """What a module in this folder offers."""

    def plan(self, source: SourceSettings, characters_per_part: int, cache: Path) -> SourcePlan:
        """Cut the input into tasks. Raises SettingsError where there is nothing to read.

        `cache` is a folder for what must lie on the disk until all documents are collected.
        """

    def read(self, source: SourceSettings, task: Any) -> Iterator[Document | Reject | Damage]:
        """Everything that one task holds, in order: as a document, or rejected with a reason.

        A Damage says that the task's input goes on, or should, and cannot be read.
        """


def module_of(kind: SourceKind) -> Source:
    """The module of one kind, imported only now: `datasets` takes a second to load."""
    return cast(Source, importlib.import_module(f"data_prep.sources.{kind.value}"))


def cut_by_size(sizes: list[int], most: int) -> list[range]:
    """Consecutive runs of items whose sizes add up to `most` at most, or of one larger item."""
    runs: list[range] = []
    first = total = 0
    for index, size in enumerate(sizes):
        if index > first and total + size > most:
            runs.append(range(first, index))
            first = index
            total = 0
        total += size
    return [*runs, range(first, len(sizes))] if sizes else []

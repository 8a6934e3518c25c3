"""Reads whole sources for tests: documents, and rejects with their reasons."""

import json
from pathlib import Path
from typing import Any

from data_prep.core.settings import SourceKind, SourceSettings
from data_prep.sources import module_of
from data_prep.stores.documents import Document, Reject


def source_of(kind: str, path: Path | None = None, **more: Any) -> SourceSettings:
    """Settings of a source, with `more` of them."""
    text = None if path is None else str(path)
    return SourceSettings(name=kind, kind=SourceKind(kind), path=text, **more)


def read_all(source: SourceSettings, characters: int = 10**9) -> list[Document | Reject]:
    """The items of all tasks of a source. Tasks pass through JSON, as in a job."""
    module = module_of(source)
    tasks = json.loads(json.dumps(module.plan(source, characters).tasks))
    return [item for task in tasks for item in module.read(source, task)]


def reasons(items: list[Document | Reject]) -> dict[str, str]:
    """The reasons of the rejects, by id."""
    return {item.id: item.reason for item in items if isinstance(item, Reject)}


def texts(items: list[Document | Reject]) -> dict[str, str]:
    """The texts of the documents, by id."""
    return {item.id: item.text for item in items if isinstance(item, Document)}

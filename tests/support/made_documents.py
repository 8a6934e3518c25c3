"""Sources of documents made up for tests, in the real format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.core.files import write_json
from data_prep.stores.documents import Document, describe_part, write_part


def write_source(data_dir: Path, source: str, parts: Sequence[Sequence[Document]]) -> None:
    """Parts of these documents, and a manifest that names them."""
    folder = data_dir / "documents" / source
    paths = [folder / f"part-{number:05d}.parquet" for number in range(len(parts))]
    described = [
        describe_part(path, write_part(path, rows)) for path, rows in zip(paths, parts, strict=True)
    ]
    write_json(folder / "manifest.json", {"parts": described})

"""Sources of documents made up for tests, in the real format."""

from collections.abc import Sequence
from pathlib import Path

from made_manifests import documents_manifest

from data_prep.core.files import write_json
from data_prep.stores.documents import Document, write_part


def write_source(data_dir: Path, source: str, parts: Sequence[Sequence[Document]]) -> None:
    """Parts of these documents, and a manifest that names them."""
    folder = data_dir / "documents" / source
    entries = [
        write_part(folder / f"part-{number:05d}.parquet", rows) for number, rows in enumerate(parts)
    ]
    write_json(folder / "manifest.json", documents_manifest(entries, source=source))

"""Collect the documents of one source: python -m data_prep.collect +source=NAME data_dir=FOLDER.

Run again with another source, it adds to the corpus; with the same source it does what is missing
or whose input has changed, or everything anew where the settings have changed. What is dropped is
counted in dropped.json, and kept with its reason in rejects/.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.core.config import as_dict
from data_prep.core.files import read_json, write_json
from data_prep.core.job import require_source, start
from data_prep.core.settings import DataPrepSettings, SourceSettings
from data_prep.dedup import duplicates
from data_prep.dedup.signatures import SignatureWriter, signatures_path
from data_prep.executors.run import run_tasks
from data_prep.executors.tasks import TaskEntry, fingerprint
from data_prep.sources import SourcePlan, module_of
from data_prep.stores.documents import (
    SCHEMA_VERSION,
    Damage,
    Document,
    Reject,
    RowWriter,
    describe_part,
    list_parts,
    open_rejects,
    repeated_ids,
    write_part,
)
from data_prep.text.language import language_of


def run(settings: DataPrepSettings) -> dict[str, Any]:
    """Collect settings.source into data_dir/documents/<name>/; return its manifest.

    Raises SettingsError for a source that cannot be read, RuntimeError when tasks fail, when two
    documents have one id and when no document is left.
    """
    source = require_source(settings)
    folder = Path(settings.data_dir) / "documents" / source.name
    plan = module_of(source.kind).plan(source, settings.characters_per_part, folder / "cache")
    identity = _identity(source, settings.characters_per_part)
    tasks = []
    for index, state in enumerate(plan.states):
        paths = (
            _part_path(folder, index),
            _rejects_path(folder, index),
            signatures_path(_part_path(folder, index)),
            _entry_path(folder, index),
        )
        own = fingerprint({**identity, "schema_version": SCHEMA_VERSION, "state": state})
        tasks.append(TaskEntry(paths[0].stem, own, paths))
    counts = run_tasks(
        f"collect {source.name}",
        folder / "logs",
        tasks,
        partial(_collect_part, folder, source, plan.tasks),
        settings,
    )
    manifest = _manifest(folder, source.name, identity, plan, counts)
    write_json(folder / "dropped.json", manifest["dropped"])
    write_json(folder / "manifest.json", manifest)  # last: it says that all the rest is there
    shutil.rmtree(folder / "cache", ignore_errors=True)
    _find_duplicates(settings)
    return manifest


def main(argv: Sequence[str] | None = None) -> int:
    """Collect one source and print a table. An input that breaks off makes the exit status 1."""
    began = time.monotonic()

    def job(settings: DataPrepSettings) -> None:
        manifest = run(settings)
        rows = _find_duplicates(settings)
        sys.stdout.write(_table(manifest, rows, time.monotonic() - began))
        if manifest["damaged"]:
            raise RuntimeError(
                "\n".join(manifest["damaged"]) + "\nAll the rest is collected, and the next jobs "
                "take it as it is; fetch the damaged files anew and run collect again to have it all"
            )

    return start(job, argv)


def _collect_part(
    folder: Path, source: SourceSettings, tasks: list[Any], index: int
) -> dict[str, int]:
    """One task: read its share of the input, write one part, its signatures, and its rejects if
    there are any.
    """
    notes: Counter[str] = Counter()
    rejects_path = _rejects_path(folder, index)
    rejects_path.unlink(missing_ok=True)  # there may be none this time
    signatures = SignatureWriter()
    os.environ["RAYON_NUM_THREADS"] = "1"  # rensa's; tasks run side by side as it is

    with contextlib.ExitStack() as stack:
        rejects: list[RowWriter] = []  # none, or the one: most parts reject nothing

        def kept() -> Iterator[Document]:
            for item in _read(source, tasks[index]):
                if isinstance(item, Document):
                    item = _in_language(item, source.language)
                if isinstance(item, Document):
                    signatures.add(item)
                    yield item
                elif isinstance(item, Damage):
                    notes[f"damaged: {item.input} {item.what}"] += 1
                else:
                    notes[f"dropped: {item.reason}"] += 1
                    if not rejects:
                        rejects.append(stack.enter_context(open_rejects(rejects_path)))
                    rejects[0].add(item)

        counts = write_part(_part_path(folder, index), kept())
    entry = describe_part(_part_path(folder, index), counts)
    signatures.write(_part_path(folder, index), entry["checksum"])
    write_json(_entry_path(folder, index), entry)
    return {**counts, **notes}


def _read(source: SourceSettings, task: Any) -> Iterator[Document | Reject | Damage]:
    """What the source's module reads; an OSError names the inputs."""
    try:
        yield from module_of(source.kind).read(source, task)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(  # a broken disk's say no name
            error.errno, f"{error.strerror}, in reading one of {str(task)[:300]}"
        ) from error


def _find_duplicates(settings: DataPrepSettings) -> list[tuple[str, str]]:
    """Rows of the table; none where another source is still being collected: vocab and encode find
    the duplicates too.
    """
    data_dir = Path(settings.data_dir)
    try:
        parts = list_parts(data_dir)
    except ValueError:
        return []
    entries = duplicates.left_out(settings, parts)
    number = sum(entry["documents"] for entry in entries.values())
    path = data_dir / "documents" / "duplicates.parquet"
    return [("duplicates", f"{number:,} of all sources, see {path}")] if number else []


def _in_language(document: Document, wanted: str | None) -> Document | Reject:
    """The document, or a reject where it is in another language than `wanted`; None wants any."""
    if wanted is None or (found := language_of(document.text)) == wanted:
        return document
    reason = f"language {found}, not {wanted}"
    return Reject(document.id, document.title, document.text, reason)


def _part_path(folder: Path, index: int) -> Path:
    return folder / f"part-{index:05d}.parquet"


def _rejects_path(folder: Path, index: int) -> Path:
    return folder / "rejects" / _part_path(folder, index).name


def _entry_path(folder: Path, index: int) -> Path:
    """The part's entry in the manifest."""
    return folder / "logs" / "parts" / f"part-{index:05d}.json"


def _identity(source: SourceSettings, characters_per_part: int) -> dict[str, Any]:
    """The settings that decide on the bytes of the documents."""
    identity = {**as_dict(source), "characters_per_part": characters_per_part}
    if source.kind.value == "sample":
        identity["python"] = sys.version
    return identity


def _manifest(
    folder: Path, name: str, identity: dict[str, Any], plan: SourcePlan, counts: dict[str, int]
) -> dict[str, Any]:
    parts = [read_json(_entry_path(folder, index)) for index in range(len(plan.tasks))]
    paths = [folder / part["name"] for part in parts]
    dropped = {
        key.removeprefix("dropped: "): n for key, n in counts.items() if key.startswith("dropped: ")
    }
    damaged = [key.removeprefix("damaged: ") for key in counts if key.startswith("damaged: ")]
    if not counts.get("documents"):
        broken = "".join(f"; {damage}" for damage in damaged)
        raise RuntimeError(f"source {name}: no document is left; dropped were {dropped}{broken}")
    if repeated := repeated_ids(paths):
        raise RuntimeError(
            f"source {name}: several documents have one id, such as {', '.join(repeated)}; collect "
            "what comes from different dumps as sources of their own (source.path, source.name)"
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "source": name,
        "settings": identity,
        "inputs": plan.inputs,
        "parts": parts,
        "documents": counts["documents"],
        "characters": counts["characters"],
        "dropped": dropped,
        "damaged": damaged,
    }


def _table(manifest: dict[str, Any], duplicates: list[tuple[str, str]], seconds: float) -> str:
    rows = [
        ("source", manifest["source"]),
        ("documents", f"{manifest['documents']:,}"),
        ("text", f"{manifest['characters'] / 1e6:,.1f} million characters"),
        *((f"dropped: {reason}", f"{n:,}") for reason, n in manifest["dropped"].items()),
        *duplicates,
        ("parts", f"{len(manifest['parts']):,}"),
        ("seconds", f"{seconds:,.1f}"),
    ]
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in rows)


if __name__ == "__main__":
    sys.exit(main())

"""Collect the documents of one source: python -m data_prep.collect +source=NAME data_dir=FOLDER.

Run it once for each source. Run again for the same source, it reads only what is missing or has
changed, and everything if the settings have changed. Dropped documents are counted in dropped.json
and kept with their reason in rejects/. What is taken out of texts, such as headings, is counted.

+source={source}
language={language}
Settings are typed as name=value or group.name=value:

{data_prep.yaml}
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError, as_dict
from data_prep.core.files import write_json
from data_prep.core.job import Rows, require_source, start
from data_prep.core.records import read_record
from data_prep.core.settings import DataPrepSettings, SourceSettings, paths_in
from data_prep.duplicates.ids import repeated_ids
from data_prep.duplicates.signatures import SignatureWriter, signatures_path
from data_prep.executors.run import run_tasks
from data_prep.executors.tasks import TaskEntry, fingerprint
from data_prep.plugins.entry_points import load_plugin
from data_prep.sources import module_of
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.stores.documents import (
    SCHEMA_VERSION,
    Damage,
    Document,
    DocumentsManifest,
    PartEntry,
    Reject,
    RowWriter,
    open_rejects,
    read_documents_manifest,
    write_part,
)
from data_prep.text.language import is_language, known_languages, language_of

_OTHER_IDS = {
    "rows": "set source.id_column=file:row", "warc": "set source.id_column=WARC-Record-ID",
}  # fmt: skip
_LATER = (
    "id_column", "title_column", "language_column", "one_sentence_per_line", "plugin", "options",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Collect one source and print a table. The exit status is 1 if an input is damaged."""
    return start(run, argv, summary=_summary, faults=_damage, has_shares=True)


def run(settings: DataPrepSettings) -> DocumentsManifest:
    """Collect settings.source into data_dir/documents/<name>/; return its manifest.

    Raises SettingsError for a source that cannot be read or would replace another one of the same
    name (see settings.replace), RuntimeError if tasks fail, two documents have the same id or no
    document is left.
    """
    source = require_source(settings)
    folder = Path(settings.data_dir) / "documents" / source.name
    if not settings.replace:
        _check_input(folder, source)
    plan = module_of(source).plan(source, settings.characters_per_part)
    return collect_plan(settings, source, plan)


def collect_plan(
    settings: DataPrepSettings, source: SourceSettings, plan: SourcePlan
) -> DocumentsManifest:
    """Collect what a plan of the source names, as `run` does with all of it."""
    folder = Path(settings.data_dir) / "documents" / source.name
    identity = _identity(source, settings.characters_per_part)
    tasks = []
    for index, state in enumerate(plan.states):
        part = _part_path(folder, index)
        outputs = (
            part,
            _rejects_path(folder, index),
            signatures_path(part),
            _entry_path(folder, index),
        )
        own = fingerprint({**identity, "schema_version": SCHEMA_VERSION, "state": state})
        tasks.append(TaskEntry(part.stem, own, outputs, (index, plan.tasks[index])))
    task = partial(_collect_part, folder, source)
    counts = run_tasks(f"collect {source.name}", folder / "logs", tasks, task, settings)
    manifest = _manifest(folder, source.name, identity, plan, counts, settings.workers)
    write_json(folder / "dropped.json", manifest.dropped)
    write_json(folder / "manifest.json", manifest)  # last: it vouches for the rest
    return manifest


def _check_input(folder: Path, source: SourceSettings) -> None:
    """Raises SettingsError if `folder` holds documents of another input than the source's."""
    if not (folder / "manifest.json").exists():
        return
    before, now = read_documents_manifest(folder).settings, as_dict(source)
    for name in ("kind", "path", "dataset", "subset", "split", "revision", "plugin"):
        old, new = before.get(name), now[name]
        if old == new or (name == "path" and old and new and _is_same(old, new)):
            continue
        raise SettingsError(
            f"{folder} holds the documents of source.{name}={old}, and those of "
            f"source.{name}={new} would replace them; to keep both add source.name=NAME, to "
            "replace them replace=true"
        )


def _is_same(path: str, other: str) -> bool:
    return [*map(os.path.realpath, paths_in(path))] == [*map(os.path.realpath, paths_in(other))]


def _collect_part(folder: Path, source: SourceSettings, item: tuple[int, Any]) -> dict[str, int]:
    """One task: read its share of the input; write one part, its signatures and its rejects."""
    index, task = item
    notes: Counter[str] = Counter()
    path, rejects_path = _part_path(folder, index), _rejects_path(folder, index)
    rejects_path.unlink(missing_ok=True)  # written only if there are any
    signatures = SignatureWriter()
    os.environ["RAYON_NUM_THREADS"] = "1"  # for rensa: tasks run in parallel already

    with contextlib.ExitStack() as stack:
        rejects: RowWriter | None = None

        def kept() -> Iterator[Document]:
            nonlocal rejects
            for item in _read(source, task):
                if isinstance(item, Document) and source.language_column is None:
                    item = _in_language(item, source.language)
                if isinstance(item, Document):
                    signatures.add(item)
                    notes.update({f"removed: {what}": n for what, n in item.removed.items()})
                    yield item
                elif isinstance(item, Damage):
                    notes[f"damaged: {item.input} {item.what}"] += 1
                else:
                    notes[f"dropped: {item.reason}"] += 1
                    rejects = rejects or stack.enter_context(open_rejects(rejects_path))
                    rejects.add(item)

        has_languages = source.language_column is not None
        entry = write_part(path, kept(), has_languages=has_languages)
    signatures.write(path, entry.checksum)
    write_json(_entry_path(folder, index), entry)
    return {"documents": entry.rows, "characters": entry.characters, **notes}


def _read(source: SourceSettings, task: Any) -> Iterator[Document | Reject | Damage]:
    """The items of one task, by the source's module; an OSError names the input."""
    try:
        yield from module_of(source).read(source, task)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(  # errors of a broken disk name no file
            error.errno, f"{error.strerror}, while reading one of {str(task)[:300]}"
        ) from error


def _in_language(document: Document, wanted: str | None) -> Document | Reject:
    """The document, or a reject if its language is not `wanted`; None accepts any."""
    if wanted is None or is_language(found := language_of(document.text), wanted):
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
    """The settings that determine the bytes of the documents."""
    identity = {**as_dict(source), "characters_per_part": characters_per_part}
    for name in _LATER:  # so that stores made before these settings continue
        if identity[name] is None:
            del identity[name]
    if source.kind.value == "sample":
        identity["python"] = sys.version
    if source.kind.value == "plugin":
        identity["plugin_version"] = load_plugin("sources", source.plugin, "source.plugin").version
    return identity


def _manifest(
    folder: Path,
    name: str,
    identity: dict[str, Any],
    plan: SourcePlan,
    counts: dict[str, int],
    workers: int,
) -> DocumentsManifest:
    again = f"delete {folder} and collect the source {name} again"
    parts = [
        read_record(_entry_path(folder, index), PartEntry, again)
        for index in range(len(plan.tasks))
    ]
    dropped, removed = (
        {key.removeprefix(kind): n for key, n in counts.items() if key.startswith(kind)}
        for kind in ("dropped: ", "removed: ")
    )
    damaged = [key.removeprefix("damaged: ") for key in counts if key.startswith("damaged: ")]
    if not counts.get("documents"):
        broken = "".join(f"; {damage}" for damage in damaged)
        raise RuntimeError(
            f"source {name}: no document is left; {_listed(dropped)}{broken}"
            f"{_cure(dropped, identity)}"
        )
    if repeated := repeated_ids(folder, parts, workers):
        cure = _OTHER_IDS.get(
            identity["kind"],
            "collect what comes from different dumps as sources of their own (source.path, "
            "source.name)",
        )
        raise RuntimeError(
            f"source {name}: several documents have one id, such as {', '.join(repeated)}; {cure}"
        )
    return DocumentsManifest(
        schema_version=SCHEMA_VERSION,
        source=name,
        settings=identity,
        inputs=plan.inputs,
        parts=parts,
        documents=counts["documents"],
        characters=counts["characters"],
        dropped=dropped,
        removed=removed,
        damaged=damaged,
    )


def _listed(dropped: dict[str, int]) -> str:
    """The documents that were dropped, by reason, the most frequent one first."""
    by_count = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return "dropped: " + (", ".join(f"{n:,} ({reason})" for reason, n in by_count) or "none")


def _cure(dropped: dict[str, int], identity: dict[str, Any]) -> str:
    """What to type, if the reason for which most was dropped has a setting."""
    reason = max(dropped, key=dropped.__getitem__, default="")
    if reason == "too short":
        least = identity["min_characters"]
        return f"; source.min_characters={least} is the bound, and null keeps texts of any length"
    found = re.fullmatch(r"language ([\w-]+), not .+", reason)
    if found is None or found[1] not in known_languages():
        return ""
    return f"; to prepare text of it, give language={found[1]} to every job"


def _summary(settings: DataPrepSettings, manifest: DocumentsManifest) -> Rows:
    return [
        ("source", manifest.source),
        ("documents", f"{manifest.documents:,}"),
        ("text", f"{manifest.characters / 1e6:,.1f} million characters"),
        *((f"dropped: {reason}", f"{n:,}") for reason, n in manifest.dropped.items()),
        *((f"removed: {what}", f"{n:,}") for what, n in manifest.removed.items()),
        *(("not read", files) for files in manifest.inputs.get("not_read", [])),
        ("parts", f"{len(manifest.parts):,}"),
    ]


def _damage(manifest: DocumentsManifest) -> str:
    if not manifest.damaged:
        return ""
    return (
        "\n".join(manifest.damaged) + "\nAll the rest is collected, and the next jobs use it as "
        "it is; fetch the damaged files again and run collect again to have it all"
    )


if __name__ == "__main__":
    sys.exit(status_of(main))

"""Filter the documents: python -m data_prep.filter data_dir=FOLDER filters=[c4_lines,pii].

Runs between collect and dedup, on all sources or those of filter.sources; run it again for sources
that need other filters. filtered/<source> then has parts of the same names as documents/<source>,
and dedup, vocab and encode read them in their place. Counts and samples of what each rule dropped
or changed are in its manifest.json, whole documents that were dropped in rejects/. Run again, only
what was collected anew or has other filters is filtered. To undo it, delete filtered/<source>.

Settings are typed as name=value or group.name=value:

{data_prep.yaml}
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.files import write_json
from data_prep.core.job import Rows, ShareDone, start
from data_prep.core.printable import shortened
from data_prep.core.records import Record, read_record
from data_prep.core.settings import DataPrepSettings, FilterName, paths_in
from data_prep.duplicates.signatures import SignatureWriter, signatures_path
from data_prep.executors.run import run_tasks
from data_prep.executors.tasks import Task, TaskEntry, TaskPlan, fingerprint, unfinished
from data_prep.filters.boilerplate import count_lines, frequent_lines, num_ranges, write_array
from data_prep.filters.chain import Chain, Inputs, added, identity, make
from data_prep.filters.decontaminate import task_ngrams
from data_prep.filters.rules import has_blanks
from data_prep.stores.documents import (
    SCHEMA_VERSION,
    Document,
    DocumentPart,
    FilterCounts,
    FilteredManifest,
    PartEntry,
    RowWriter,
    collected_parts,
    list_sources,
    open_rejects,
    read_part,
    write_part,
)

BY_WORDS = (FilterName.gopher_quality, FilterName.gopher_repetition, FilterName.fineweb_quality)


class FilteredPart(Record):
    """What a task leaves for the manifest."""

    part: PartEntry
    counts: FilterCounts


def main(argv: Sequence[str] | None = None) -> int:
    """Filter all sources and print what each rule dropped or changed."""
    return start(run, argv, summary=_summary, has_shares=True)


def run(settings: DataPrepSettings) -> list[FilteredManifest]:
    """Filter the sources into data_dir/filtered/<source>/; return their manifests.

    Raises SettingsError for filters that cannot run, ValueError if documents are missing,
    RuntimeError if tasks fail or no document of a source is left.
    """
    data_dir = Path(settings.data_dir)
    _check(settings)
    known = list_sources(data_dir)
    if unknown := sorted(set(settings.filter.sources) - set(known)):
        raise SettingsError(
            f"filter.sources: {unknown[0]} is not collected; there are {', '.join(known)}"
        )
    manifests, shares = [], []
    for source in settings.filter.sources or known:
        try:
            manifests.append(_filter_source(settings, data_dir, source))
        except ShareDone as done:
            shares.append(f"{source}: {done}")
    if shares:
        raise ShareDone("\n".join(shares))
    return manifests


def _check(settings: DataPrepSettings) -> None:
    """Raises SettingsError if there are no filters, or the language has no words for one."""
    if not settings.filters:
        names = ", ".join(name.value for name in FilterName)
        raise SettingsError(
            f"filters is empty; add filters=[NAME,NAME], of {names} (to use documents as they were "
            f"collected, delete their folder in {settings.data_dir}/filtered)"
        )
    by_words = [name.value for name in BY_WORDS if name.value in settings.filters]
    if by_words and not has_blanks(settings.language.code):
        raise SettingsError(
            f"filters: {', '.join(by_words)} counts words by the blanks between them, and "
            f"language={settings.language.code} has none; leave it out"
        )


def _filter_source(settings: DataPrepSettings, data_dir: Path, source: str) -> FilteredManifest:
    folder, parts = data_dir / "filtered" / source, collected_parts(data_dir, source)
    determined_by = identity(settings)
    made_from = {part.name: part.checksum for part in parts}
    is_counted = FilterName.boilerplate.value in settings.filters
    common = {**determined_by, "schema_version": SCHEMA_VERSION}
    if is_counted:  # then every document decides about every other
        common["documents"] = made_from
    tasks = []
    for part in parts:
        own = fingerprint({**common, "document": part.key, "checksum": part.checksum})
        tasks.append(TaskEntry(_stem(part), own, _outputs(folder, part), part))
    inputs = _input_paths(folder, parts, settings)
    job, task = f"filter {source}", partial(_filter_part, folder, inputs, settings)
    if _is_unfinished(job, folder / "logs", tasks, task):
        if is_counted:
            _find_frequent_lines(settings, folder, parts)
        if FilterName.decontaminate.value in settings.filters:
            paths = [Path(path) for path in paths_in(settings.filter.decontaminate_against or "")]
            write_array(_ngrams_path(folder), task_ngrams(paths, settings.filter.ngram))
    run_tasks(job, folder / "logs", tasks, task, settings)
    manifest = _manifest(settings, folder, determined_by, parts)
    write_json(folder / "manifest.json", manifest)  # last: it vouches for the rest
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return manifest


def _is_unfinished(job: str, logs: Path, tasks: Sequence[TaskEntry], task: Task) -> bool:
    return bool(unfinished(TaskPlan(job, logs, tasks, task), range(len(tasks))))


def _find_frequent_lines(
    settings: DataPrepSettings, folder: Path, parts: Sequence[DocumentPart]
) -> None:
    """Two steps before the filtering: the lines of each part, then the sums by range of hashes.

    Raises ShareDone after a share of a step's tasks; started again when all are done, the next
    step's are run.
    """
    cache = folder / "cache"
    counts = [cache / "lines" / f"{_stem(part)}.npy" for part in parts]
    ranges = _range_paths(folder, parts)
    wanted = {
        "documents": {part.name: part.checksum for part in parts},
        "most_documents": settings.filter.most_documents,
        "ranges": len(ranges),
    }
    count = [
        TaskEntry(path.stem, fingerprint(part.checksum), (path,), (part, path))
        for path, part in zip(counts, parts, strict=True)
    ]
    add = [
        TaskEntry(path.stem, fingerprint(wanted), (path,), (number, path))
        for number, path in enumerate(ranges)
    ]
    most = settings.filter.most_documents
    steps: list[tuple[str, list[TaskEntry], Task]] = [
        ("lines", count, _count_lines),
        ("frequent", add, partial(_add_lines, counts, len(ranges), most)),
    ]
    for name, tasks, task in steps:
        job, logs = f"{name} of {folder.name}", cache / name / "logs"
        if _is_unfinished(job, logs, tasks, task):
            run_tasks(job, logs, tasks, task, settings)


def _count_lines(item: tuple[DocumentPart, Path]) -> dict[str, int]:
    """One task: count the documents of each line of one part."""
    part, path = item
    counts = count_lines(document.text for document in read_part(part.path, part.rows))
    write_array(path, counts)
    return {"lines": len(counts)}


def _add_lines(
    counts: Sequence[Path], ranges: int, most: int, item: tuple[int, Path]
) -> dict[str, int]:
    """One task: find the frequent lines in one range of hashes."""
    number, path = item
    found = frequent_lines(counts, number, ranges, most)
    write_array(path, found)
    return {"frequent": len(found)}


def _filter_part(
    folder: Path, inputs: Sequence[Sequence[Path]], settings: DataPrepSettings, part: DocumentPart
) -> dict[str, int]:
    """One task: filter one part; write it, its signatures, its rejects and its counts."""
    path, rejects_path, _, entry_path = _outputs(folder, part)
    rejects_path.unlink(missing_ok=True)  # written only if there are any
    chain = Chain(make(settings, Inputs(*map(_hashes, inputs))), settings.language.code)
    signatures = SignatureWriter()
    os.environ["RAYON_NUM_THREADS"] = "1"  # for rensa: tasks run in parallel already

    with contextlib.ExitStack() as stack:
        rejects: RowWriter | None = None

        def kept() -> Iterator[Document]:
            nonlocal rejects
            for document in read_part(part.path, part.rows):
                item = chain.apply(document)
                if isinstance(item, Document):
                    signatures.add(item)
                    yield item
                else:
                    rejects = rejects or stack.enter_context(open_rejects(rejects_path))
                    rejects.add(item)

        entry = write_part(path, kept(), has_languages=part.has_languages)
    signatures.write(path, entry.checksum)
    write_json(entry_path, FilteredPart(part=entry, counts=chain.counts))
    return {"documents": entry.rows, "characters": entry.characters}


def _input_paths(
    folder: Path, parts: Sequence[DocumentPart], settings: DataPrepSettings
) -> tuple[list[Path], list[Path]]:
    """The files of the hashes that the filters look up: frequent lines, and the tasks' n-grams."""
    is_wanted = set(settings.filters).__contains__
    ranges = _range_paths(folder, parts) if is_wanted(FilterName.boilerplate.value) else []
    tasks = [_ngrams_path(folder)] if is_wanted(FilterName.decontaminate.value) else []
    return ranges, tasks


def _hashes(paths: Sequence[Path]) -> NDArray[np.uint64]:
    """The hashes of these files. Raises OSError if they have not been written."""
    empty = np.zeros(0, np.uint64)
    return np.concatenate([empty, *(np.load(path, allow_pickle=False) for path in paths)])


def _range_paths(folder: Path, parts: Sequence[DocumentPart]) -> list[Path]:
    """Of the frequent lines in each range of hashes."""
    ranges = num_ranges(sum(part.characters for part in parts))
    return [folder / "cache" / "frequent" / f"range-{n:05d}.npy" for n in range(ranges)]


def _ngrams_path(folder: Path) -> Path:
    return folder / "cache" / "task_ngrams.npy"


def _stem(part: DocumentPart) -> str:
    return part.name.removesuffix(".parquet")


def _outputs(folder: Path, part: DocumentPart) -> tuple[Path, Path, Path, Path]:
    """The filtered part, its rejects, its signatures and its entry for the manifest."""
    path = folder / part.name
    entry = folder / "logs" / "parts" / f"{_stem(part)}.json"
    return path, folder / "rejects" / part.name, signatures_path(path), entry


def _manifest(
    settings: DataPrepSettings,
    folder: Path,
    determined_by: dict[str, Any],
    parts: Sequence[DocumentPart],
) -> FilteredManifest:
    source = folder.name
    again = f"delete {folder} and filter the source {source} again"
    done = [read_record(_outputs(folder, part)[3], FilteredPart, again) for part in parts]
    counts = added([part.counts for part in done])
    documents = sum(part.part.rows for part in done)
    if not documents:
        rows = "; ".join(f"{name}: {value}" for name, value in _rule_rows(counts, 0))
        raise RuntimeError(f"source {source}: the filters leave no document ({rows})")
    return FilteredManifest(
        schema_version=SCHEMA_VERSION,
        source=source,
        filters=settings.filters,
        settings=determined_by,
        made_from={part.name: part.checksum for part in parts},
        parts=[part.part for part in done],
        documents=documents,
        characters=sum(part.part.characters for part in done),
        documents_before=sum(part.rows for part in parts),
        characters_before=sum(part.characters for part in parts),
        counts=counts,
    )


def _rule_rows(counts: FilterCounts, samples: int) -> Rows:
    """What each rule did, with the first samples of its texts."""
    rows: Rows = []
    for name, rules in counts.items():
        for rule, done in rules.items():
            numbers = [f"{done.documents:,} documents"] if done.documents else []
            numbers += [f"{done.changes:,} times"] if done.changes else []
            rows.append((f"{name}: {rule}", ", ".join(numbers)))
            rows += [("", f"e.g. {shortened(s.text, 80)}") for s in done.samples[:samples]]
    return rows


def _summary(settings: DataPrepSettings, manifests: list[FilteredManifest]) -> Rows:
    rows: Rows = []
    for manifest in manifests:
        before, after = manifest.characters_before / 1e6, manifest.characters / 1e6
        rows += [
            ("source", manifest.source),
            ("documents", f"{manifest.documents:,} of {manifest.documents_before:,} are kept"),
            ("text", f"{after:,.1f} of {before:,.1f} million characters is kept"),
            *_rule_rows(manifest.counts, 1),
        ]
    return rows


if __name__ == "__main__":
    sys.exit(status_of(main))

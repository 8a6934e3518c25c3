"""The search for copies as numbered tasks: a small corpus at once, a large one in bounded memory.

Documents are numbered over all parts. A slab is a run of whole parts with some SLAB documents, and
hashes are cut into ranges of some RANGE each; the corpus alone decides how many there are of both.
The stages, each of which needs all results of the one before, in data_dir/duplicates/<stage>/:

    signatures  per slab: make those that are missing
    candidates  per band and range: pairs of documents with equal hashes of the band
    copies      per slab of the later document: the pairs whose signatures agree
    clusters    one small reduction, of the copies alone
    choices     per share of the clusters, as many as slabs: who is dropped, and for whom
    rows        per slab of dropped documents: their part of duplicates.parquet

The folder is removed when duplicates.json is there.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.core.files import read_json, whole_or_absent, write_json
from data_prep.core.job import ShareDone
from data_prep.core.settings import DataPrepSettings
from data_prep.duplicates.matching import (
    Choices,
    Corpus,
    Pairs,
    candidates,
    choose,
    clusters,
    compare,
    copies_among,
    signatures_of,
    table,
)
from data_prep.duplicates.minhash import BANDS
from data_prep.executors.run import run_tasks
from data_prep.executors.tasks import TaskEntry, TaskPlan, fingerprint, unfinished
from data_prep.stores.documents import DocumentPart

STAGES = ("signatures", "candidates", "copies", "choices", "rows")  # those of tasks
AT_ONCE = 1_000_000  # documents of a small corpus: 10 s and 100 MB in one process
PARTS_AT_ONCE = 256
SLAB = 1_000_000
RANGE = 16_000_000  # 50 bytes each in a task

Task = Callable[["Plan", int], dict[str, int]]


@dataclass(frozen=True)
class Found:
    """The dropped documents, in order, as tables of any size, and the number of their groups."""

    tables: Iterator[Any]
    groups: int


@dataclass(frozen=True)
class Plan:
    """How the documents of these parts are cut."""

    parts: Sequence[DocumentPart]
    folder: Path
    fingerprint: str  # of all that decides the result
    slabs: list[tuple[int, int]]  # first part of each, and the one after its last
    searches: list[tuple[int | None, int]]  # band and range of each task of the candidates
    ranges: int

    @classmethod
    def of(cls, parts: Sequence[DocumentPart], folder: Path, identity: dict[str, Any]) -> Plan:
        firsts, size = [0], 0
        for number, part in enumerate(parts):
            if size and size + part.rows > SLAB:
                firsts.append(number)
                size = 0
            size += part.rows
        slabs = [*zip(firsts, [*firsts[1:], len(parts)], strict=True)]
        ranges = math.ceil(sum(part.rows for part in parts) / RANGE)
        searches = list(itertools.product((None, *range(BANDS)), range(ranges)))
        decided_by = fingerprint({**identity, "slabs": slabs, "searches": searches})
        return cls(parts, folder, decided_by, slabs, searches, ranges)

    def path(self, stage: str, task: int, suffix: str = ".npy") -> Path:
        return self.folder / stage / f"{task:05d}{suffix}"

    def bounds(self, corpus: Corpus, slab: int) -> tuple[int, int]:
        """The first document of a slab, and the one after its last."""
        first, end = self.slabs[slab]
        return int(corpus.first[first]), int(corpus.first[end])


def search(
    parts: Sequence[DocumentPart],
    folder: Path,
    identity: dict[str, Any],
    settings: DataPrepSettings,
) -> Found:
    """Find the documents to drop; `identity` is all that decides which.

    A large corpus is compared by tasks with files in `folder`, which continue where an earlier
    start ended. Raises ShareDone with settings.share, as run_tasks does.
    """
    if sum(part.rows for part in parts) <= AT_ONCE and len(parts) <= PARTS_AT_ONCE:
        dropped, groups = compare(Corpus(parts))
        return Found(iter([dropped]), groups)
    plan = Plan.of(parts, folder, identity)
    run = functools.partial(_run, plan, settings)
    slabs = range(len(plan.slabs))
    run("signatures", slabs, _sign, suffix=None)
    run("candidates", range(len(plan.searches)), _find)
    run("copies", slabs, _compare)
    _reduce(plan)
    run("choices", slabs, _choose)
    run("rows", slabs, _describe, suffix=".arrow")
    if settings.share is not None:  # one process writes the result and removes the folder
        raise ShareDone(f"share {settings.share}: all tasks are done; run dedup without a share")
    groups = sum(_choices(plan, slab).groups for slab in slabs)
    return Found((_stored_table(plan.path("rows", slab, ".arrow")) for slab in slabs), groups)


def _run(
    plan: Plan,
    settings: DataPrepSettings,
    stage: str,
    tasks: Sequence[int],
    task: Task,
    suffix: str | None = ".npy",
) -> None:
    """Run the tasks of one stage. Raises ShareDone after a share of them."""
    described = {"made_from": plan.fingerprint}
    entries = [
        TaskEntry(
            f"{number:05d}",
            fingerprint({**described, "stage": stage, "task": number}),
            () if suffix is None else (plan.path(stage, number, suffix),),
            number,
        )
        for number in tasks
    ]
    job, logs, one = f"dedup {stage}", plan.folder / stage / "logs", functools.partial(task, plan)
    if unfinished(TaskPlan(job, logs, entries, one), range(len(entries))):
        run_tasks(job, logs, entries, one, settings)


def _sign(plan: Plan, slab: int) -> dict[str, int]:
    parts = plan.parts[slice(*plan.slabs[slab])]
    return {"documents": sum(len(signatures_of(part).ids) for part in parts)}


def _find(plan: Plan, task: int) -> dict[str, int]:
    band, number = plan.searches[task]
    pairs = candidates(Corpus(plan.parts), band, number, plan.ranges)
    _save(plan.path("candidates", task), pairs)
    return {"pairs": len(pairs)}


def _compare(plan: Plan, slab: int) -> dict[str, int]:
    corpus = Corpus(plan.parts)
    first, end = plan.bounds(corpus, slab)
    exact: list[Pairs] = []
    near: list[Pairs] = []
    for task, (band, _) in enumerate(plan.searches):
        pairs = _load(plan.path("candidates", task))
        own = slice(*np.searchsorted(pairs, [first << 32, end << 32]))
        (exact if band is None else near).append(pairs[own])
    pairs = copies_among(corpus, np.concatenate(exact), near)
    _save(plan.path("copies", slab), pairs)
    return {"pairs": len(pairs)}


def _reduce(plan: Plan) -> None:
    """Write each share of the clusters: members in order, and the first of each one's cluster."""
    path, described = plan.folder / "clusters" / "manifest.json", {"made_from": plan.fingerprint}
    if path.is_file() and read_json(path) == described:
        return
    path.unlink(missing_ok=True)
    num_documents, shares = sum(part.rows for part in plan.parts), len(plan.slabs)
    members, roots = clusters(
        num_documents, lambda: (_load(plan.path("copies", slab)) for slab in range(shares))
    )
    for share in range(shares):
        own = np.flatnonzero(roots % shares == share)  # most first members are early documents
        _save(plan.path("clusters", share), np.stack([members[own], roots[own]]))
    write_json(path, described)


def _choose(plan: Plan, share: int) -> dict[str, int]:
    members, roots = _load(plan.path("clusters", share))
    choices = choose(Corpus(plan.parts), members, roots)
    _save(plan.path("choices", share), np.stack(dataclasses.astuple(choices)))
    return {"dropped": len(choices.dropped)}


def _choices(plan: Plan, slab: int) -> Choices:
    return Choices(*_load(plan.path("choices", slab)))


def _describe(plan: Plan, slab: int) -> dict[str, int]:
    corpus = Corpus(plan.parts)
    bounds = plan.bounds(corpus, slab)
    found = []
    for other in range(len(plan.slabs)):
        choices = _load(plan.path("choices", other))
        found.append(choices[:, slice(*np.searchsorted(choices[0], bounds))])
    joined = np.concatenate(found, axis=1)
    joined = joined[:, np.argsort(joined[0], kind="stable")]
    rows = table(corpus, Choices(*joined))
    with (
        whole_or_absent(plan.path("rows", slab, ".arrow")) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, rows.schema) as out,
    ):
        out.write_table(rows)
    return {"rows": rows.num_rows}


def _stored_table(path: Path) -> Any:
    with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as stream:
        return stream.read_all()


def _save(path: Path, array: NDArray[Any]) -> None:
    with whole_or_absent(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def _load(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array

"""Prepares a sample of a source by the jobs themselves, and reads their records."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import audit, build, collect, encode, vocab
from data_prep.core.config import SettingsError
from data_prep.core.files import read_json
from data_prep.core.settings import (
    DataPrepSettings,
    Duplicates,
    Executor,
    SourceSettings,
)
from data_prep.encoding.encode_part import task_name
from data_prep.encoding.held_out import FEWEST_DOCUMENTS, fitting_fraction
from data_prep.planning.forecast import Cost, Line, Sample
from data_prep.sources import module_of
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.stores.documents import DocumentPart, list_parts, read_part
from data_prep.stores.tokens import SPLITS, read_tokens_manifest

# Characters of the sample's tasks: two sizes tell what a task costs from what its text costs
SIZES = {"small": 300_000, "large": 3_000_000}
LARGEST = 64_000_000  # bytes of one task's input
# A few documents need not be fit for training
_ANYTHING_FITS: dict[str, Any] = {
    "random_next_least": 0.0,
    "random_next_most": 1.0,
    "most_unknown": 1.0,
    "fewest_documents": 0,
    "most_one_sentence": 1.0,
    "most_repeated": 1.0,
}
FEWEST_ENTRIES = 1_000  # of a vocabulary of the sample


def measure(settings: DataPrepSettings, source: SourceSettings, folder: Path) -> Sample:
    """Prepare a sample in `folder`: of each size as many tasks as there are workers.

    Raises SettingsError for a source that cannot be read or is not cut into tasks small enough.
    """
    began, whole = time.monotonic(), settings
    settings = dataclasses.replace(
        settings,
        data_dir=str(folder),
        executor=Executor.local,
        share=None,
        copies=1,
        duplicates=Duplicates.keep,  # the sizes overlap
        audit=dataclasses.replace(settings.audit, **_ANYTHING_FITS),
    )
    input_bytes, source_bytes, rest = 0.0, 0.0, []
    for name, size in SIZES.items():
        own = dataclasses.replace(source, name=name)
        plan = module_of(source.kind).plan(own, size)
        chosen = np.linspace(0, len(plan.tasks) - 1, min(len(plan.tasks), settings.workers))
        cut = [round(index) for index in chosen]
        source_bytes, own_bytes = _bytes_of(own, plan, cut)
        input_bytes += own_bytes
        taken = SourcePlan(
            [plan.tasks[index] for index in cut], plan.inputs, [plan.states[index] for index in cut]
        )
        rest.append(_timed(collect.collect_plan, settings, own, taken))
    parts = list_parts(folder)
    sizes = [part.characters for part in parts]
    logs = [folder / "documents" / part.source / "logs" for part in parts]
    records = [_record(log, Path(part.name).stem) for log, part in zip(logs, parts, strict=True)]
    collected = _cost(sizes, records, sum(rest) / len(rest), folder / "documents", len(parts))
    trained = _vocab_line(settings, parts)

    names = [f"{part.source}/{d.id}" for part in parts for d in read_part(part.path, part.rows)]
    if len(names) < 2 * FEWEST_DOCUMENTS:
        raise SettingsError(
            f"the sample of source.path={source.path} has {len(names)} documents, and "
            f"{2 * FEWEST_DOCUMENTS} are the fewest: plan with more or smaller documents"
        )
    fraction = fitting_fraction(names)
    settings = dataclasses.replace(settings, heldout_fraction=fraction)
    own_seconds = _timed(encode.run, settings)
    records = [_record(folder / "tokens" / "logs", task_name(part)) for part in parts]
    encoded = _cost(sizes, records, own_seconds, folder / "tokens", len(parts))

    splits = read_tokens_manifest(folder).splits
    tokens = [part.tokens for split in SPLITS for part in splits[split]]
    builds, audits = {}, {}
    for length in settings.plan.seq_lens:
        own_settings = dataclasses.replace(settings, seq_len=length)
        own_seconds = _timed(build.run, own_settings)
        built = folder / f"len{length}"
        names = [f"{s}-shard-{n:05d}" for s in SPLITS for n in range(len(splits[s]))]
        records = [_record(built / "logs", name) for name in names]
        builds[length] = _cost(tokens, records, own_seconds, built, len(parts))
        audits[length] = _timed(audit.run, own_settings)
    plan = module_of(source.kind).plan(source, whole.characters_per_part)
    return Sample(
        source_bytes=source_bytes,
        source_tasks=len(plan.tasks),
        input_bytes=input_bytes,
        characters=sum(sizes),
        documents=sum(part.rows for part in parts),
        tokens=sum(tokens),
        seconds=time.monotonic() - began,
        collect=collected,
        vocab=trained,
        encode=encoded,
        build=builds,
        audit=audits,
    )


def _bytes_of(
    source: SourceSettings, plan: SourcePlan, chosen: Sequence[int]
) -> tuple[float, float]:
    """Bytes of the whole input, and of the chosen tasks.

    Raises SettingsError if a task is too large for a sample.
    """
    whole = plan.inputs.get("bytes") or sum(map(_size, source.paths))
    if not whole:
        raise SettingsError(
            f"source {source.name}: the size of its input is not known; set source.path to files"
        )
    share = whole / len(plan.tasks)
    if share > LARGEST:
        raise SettingsError(
            f"a task of source.kind={source.kind.value} reads {share / 1e6:,.0f} MB, more than the "
            f"{LARGEST / 1e6:,.0f} MB of a sample: plan with a cut of one file as source.path, and "
            f"plan.bytes={whole:.3g}"
        )
    return whole, share * len(chosen)


def _size(path: str) -> int:
    """Bytes of a file, or of all files of a folder."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def _cost(
    sizes: Sequence[int],
    records: Sequence[dict[str, float]],
    rest: float,
    folder: Path,
    parts: int,
) -> Cost:
    """The cost of tasks of these sizes, whose job has taken `rest` seconds itself.

    `parts` is the number of those that the input was cut into.
    """
    seconds = [record["cpu_seconds"] for record in records]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Cost(
        seconds=Line.through([*zip(sizes, seconds, strict=True)]),
        peak_bytes=Line.through(
            [(size, record["peak_bytes"]) for size, record in zip(sizes, records, strict=True)]
        ),
        rest=rest,
        files=len(files) / parts,
        bytes=sum(path.stat().st_size for path in files) / max(1, sum(sizes)),
    )


def _vocab_line(settings: DataPrepSettings, parts: Sequence[DocumentPart]) -> Line:
    """Seconds of training by characters: on one part, and on all.

    The sample may have too few words for vocab_size; then it has as many as there are.
    """
    whole = sum(part.characters for part in parts)
    size = settings.vocab_size
    points = []
    for most in (1, whole):
        while True:
            own = dataclasses.replace(settings, vocab_size=size, vocab_characters=most)
            try:
                seconds = _timed(vocab.run, own)
            except ValueError:
                if size <= FEWEST_ENTRIES:
                    raise
                size = max(FEWEST_ENTRIES, size // 2)
            else:
                break
        points.append((whole if most > 1 else min(p.characters for p in parts), seconds))
    return Line.through(points)


def _record(logs: Path, task: str) -> dict[str, float]:
    found: dict[str, float] = read_json(logs / "finished" / f"{task}.json")
    return found


def _timed(run: Callable[..., object], *given: object) -> float:
    """Seconds of a core that a call takes in this process, whatever else the machine does."""
    began = time.process_time()
    run(*given)
    return time.process_time() - began

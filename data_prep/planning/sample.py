"""Prepares a sample of a source by the jobs themselves, and reads their records."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import audit, build, collect, encode, filter, vocab
from data_prep.core.config import SettingsError
from data_prep.core.files import read_json
from data_prep.core.settings import (
    DataPrepSettings,
    Duplicates,
    Executor,
    FilterName,
    SourceSettings,
)
from data_prep.encoding.encode_part import task_name
from data_prep.encoding.held_out import FEWEST_DOCUMENTS, fitting_fraction
from data_prep.filters.boilerplate import count_lines
from data_prep.planning.forecast import AuditCost, Cost, Line, Sample
from data_prep.quality.shortcut import MOST_EXAMPLES, audit_shortcut
from data_prep.sources import module_of
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.stores.documents import DocumentPart, list_parts, read_part
from data_prep.stores.shard_reader import Shards
from data_prep.stores.token_records import SPLITS, read_tokens_manifest

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
    input_bytes, source_bytes, collected = _collect(settings, source, folder)
    parts, filtered = list_parts(folder), None
    characters = sum(part.characters for part in parts)
    if settings.filters and source.name in (settings.filter.sources or [source.name]):
        filtered = _filter(settings, folder, parts)
        parts = list_parts(folder)
    trained = _vocab_line(settings, parts)
    settings = dataclasses.replace(settings, heldout_fraction=_fraction(source, parts))
    encoded = _encode(settings, folder, parts)
    builds, audits = {}, {}
    for length in settings.plan.seq_lens:
        own_settings = dataclasses.replace(settings, seq_len=length)
        builds[length] = _build(own_settings, folder, len(parts))
        audits[length] = _audit(own_settings, folder)
    splits = read_tokens_manifest(folder).splits
    plan = module_of(source).plan(source, whole.characters_per_part)
    return Sample(
        source_bytes=source_bytes,
        source_tasks=len(plan.tasks),
        input_bytes=input_bytes,
        characters=characters,
        kept=sum(part.characters for part in parts) / characters,
        documents=sum(part.rows for part in parts),
        tokens=sum(part.tokens for split in SPLITS for part in splits[split]),
        seconds=time.monotonic() - began,
        collect=collected,
        filter=filtered,
        vocab=trained,
        encode=encoded,
        build=builds,
        audit=audits,
    )


def _collect(
    settings: DataPrepSettings, source: SourceSettings, folder: Path
) -> tuple[float, float, Cost]:
    """Collect the sample. Returns its bytes, those of the whole source, and the cost."""
    input_bytes, source_bytes, rest = 0.0, 0.0, 0.0
    for name, size in SIZES.items():
        own = dataclasses.replace(source, name=name)
        plan = module_of(source).plan(own, size)
        chosen = np.linspace(0, len(plan.tasks) - 1, min(len(plan.tasks), settings.workers))
        cut = [round(index) for index in chosen]
        source_bytes, own_bytes = _bytes_of(own, plan, cut)
        input_bytes += own_bytes
        taken = SourcePlan(
            [plan.tasks[index] for index in cut], plan.inputs, [plan.states[index] for index in cut]
        )
        rest += _timed(collect.collect_plan, settings, own, taken)
    cost = _cost_of_parts(list_parts(folder), folder / "documents", rest / len(SIZES))
    return input_bytes, source_bytes, cost


def _filter(settings: DataPrepSettings, folder: Path, parts: Sequence[DocumentPart]) -> Cost:
    """Filter the sample. Returns the cost by its characters before."""
    own = dataclasses.replace(settings, filter=dataclasses.replace(settings.filter, sources=[]))
    cost = _cost_of_parts(parts, folder / "filtered", _timed(filter.run, own) / len(SIZES))
    if FilterName.boilerplate.value not in settings.filters:
        return cost
    # The records of its first tasks, which count the lines, are gone
    texts = [document.text for part in parts for document in read_part(part.path, part.rows)]
    per_character = _timed(count_lines, texts) / sum(part.characters for part in parts)
    line = dataclasses.replace(cost.seconds, slope=cost.seconds.slope + per_character)
    return dataclasses.replace(cost, seconds=line)


def _cost_of_parts(parts: Sequence[DocumentPart], store: Path, rest: float) -> Cost:
    """The cost of the tasks that wrote parts of the same names to <store>/<source>."""
    records = [_record(store / part.source / "logs", Path(part.name).stem) for part in parts]
    return _cost([part.characters for part in parts], records, rest, store, len(parts))


def _fraction(source: SourceSettings, parts: Sequence[DocumentPart]) -> float:
    """A held-out share that leaves documents in both splits. Raises SettingsError for too few."""
    names = [f"{part.source}/{d.id}" for part in parts for d in read_part(part.path, part.rows)]
    if len(names) < 2 * FEWEST_DOCUMENTS:
        raise SettingsError(
            f"the sample of source.path={source.path} has {len(names)} documents, and "
            f"{2 * FEWEST_DOCUMENTS} are the fewest: plan with more or smaller documents"
        )
    return fitting_fraction(names)


def _encode(settings: DataPrepSettings, folder: Path, parts: Sequence[DocumentPart]) -> Cost:
    rest = _timed(encode.run, settings)
    records = [_record(folder / "tokens" / "logs", task_name(part)) for part in parts]
    sizes = [part.characters for part in parts]
    return _cost(sizes, records, rest, folder / "tokens", len(parts))


def _build(settings: DataPrepSettings, folder: Path, num_parts: int) -> Cost:
    rest = _timed(build.run, settings)
    built = folder / f"len{settings.seq_len}"
    splits = read_tokens_manifest(folder).splits
    names = [f"{split}-shard-{n:05d}" for split in SPLITS for n in range(len(splits[split]))]
    records = [_record(built / "logs", name) for name in names]
    tokens = [part.tokens for split in SPLITS for part in splits[split]]
    return _cost(tokens, records, rest, built, num_parts)


def _audit(settings: DataPrepSettings, folder: Path) -> AuditCost:
    """Audit the shards, and once more for the part of the time that grows with the examples."""
    seconds = _timed(audit.run, settings)
    train = Shards.open(folder / f"len{settings.seq_len}", "train", is_verified=True)
    judged = _timed(audit_shortcut, train, settings.audit) if settings.pairs.label_1 else 0.0
    examples = min(MOST_EXAMPLES, train.num_examples)
    line = Line(max(0.0, seconds - judged), judged / max(1, examples))
    tokens = sum(part.tokens for part in read_tokens_manifest(folder).splits["train"])
    return AuditCost(line, train.num_examples / max(1, tokens))


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
            f"a task of source.kind={source.kind.value} reads {share / 1e6:,.0f} MB, more than "
            f"the {LARGEST / 1e6:,.0f} MB of a sample: set source.path to the beginning of one "
            "file, under a name with its ending (head -c 10M FILE >CUT; of parquet, write some "
            f"rows), and plan.bytes={whole:.3g}"
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

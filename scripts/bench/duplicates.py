"""Time and memory of the search for copies and for repeated ids, on made-up signatures.

    python -m scripts.bench.duplicates [documents=2000000] [per_part=8000] [copies=0.2]
        [num_workers=2] [folder=FOLDER]

Writes the signatures of so many documents, of which a share are copies of others (half of them
exact), in parts of `per_part`, which takes 500 bytes per document below `folder`; then compares
them. A part's documents themselves are not there: neither job reads them.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep import dedup
from data_prep.core.files import read_json, write_json
from data_prep.core.job import load
from data_prep.duplicates import search
from data_prep.duplicates.ids import repeated_ids
from data_prep.duplicates.matching import LEAST_EQUAL
from data_prep.duplicates.minhash import VALUES
from data_prep.duplicates.signatures import SignatureWriter
from data_prep.executors.run import run_tasks
from data_prep.stores.documents import DocumentsManifest, PartEntry
from scripts.bench.parts.harness import Record, benchmark, run

POOL = 20_000  # documents that have copies


@benchmark("duplicates")
def main(
    documents: int = 2_000_000,
    per_part: int = 8_000,
    copies: float = 0.2,
    num_workers: int = 2,
    folder: str = "",
) -> Record:
    """The benchmark."""
    with tempfile.TemporaryDirectory(dir=folder or None) as made:
        data_dir = Path(made)
        parts = write_corpus(data_dir, documents, per_part, copies)
        before, began = _own_peak(), time.process_time()
        repeated_ids(data_dir / "documents" / "made", parts, num_workers)
        ids = {"seconds": time.process_time() - began, "peak_bytes": _own_peak(), "before": before}
        stages, seconds = _search(data_dir, num_workers)
        record = read_json(data_dir / "documents" / "duplicates.json")
    print(f"ids         {ids['seconds']:8.1f} s, {_own_peak() / 1e6:8.0f} MB")
    for name, stage in stages.items():
        print(
            f"{name:12}{stage['tasks']:5} tasks, {stage['seconds']:8.1f} s of a core, "
            f"{stage['peak_bytes'] / 1e6:8.0f} MB at most"
        )
    print(f"whole search {seconds:.1f} s, this process {_own_peak() / 1e6:.0f} MB")
    return {
        "ids": ids,
        "stages": stages,
        "seconds": seconds,
        "peak_bytes": _own_peak(),
        "dropped": record["dropped"],
    }


def write_corpus(data_dir: Path, documents: int, per_part: int, copies: float) -> list[PartEntry]:
    """A source of parts that have signatures and no documents; return their entries."""
    folder = data_dir / "documents" / "made"
    folder.mkdir(parents=True)
    parts = []
    for number, values in enumerate(_signatures(documents, per_part, copies)):
        name, digest = f"part-{number:05d}.parquet", f"{number:032x}"
        (folder / name).touch()
        writer = SignatureWriter()
        for row, own in enumerate(values):
            exact = xxhash.xxh3_128_digest(own.tobytes())
            writer.add_signed(
                f"https://www.made.up/{number}/{row}", f"Made {row}", 4_000, exact, own
            )
        writer.write(folder / name, digest)
        parts.append(
            PartEntry(name=name, rows=len(values), characters=4_000 * len(values), checksum=digest)
        )
    manifest = DocumentsManifest(
        schema_version=1,
        source="made",
        settings={},
        inputs={},
        parts=parts,
        documents=documents,
        characters=4_000 * documents,
        dropped={},
        damaged=[],
    )
    write_json(folder / "manifest.json", manifest)
    return parts


def _signatures(documents: int, per_part: int, copies: float) -> Iterator[NDArray[np.uint32]]:
    """The (D, VALUES) signatures of each part."""
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 2**32, (POOL, VALUES), np.uint32)
    for first in range(0, documents, per_part):
        number = min(per_part, documents - first)
        values = rng.integers(0, 2**32, (number, VALUES), np.uint32)
        chosen = np.flatnonzero(rng.random(number) < copies)
        values[chosen] = pool[rng.integers(0, POOL, len(chosen))]
        for row in chosen[::2]:  # near ones: some values are of their own
            places = rng.integers(0, VALUES, (VALUES - LEAST_EQUAL) // 2)
            values[row, places] = rng.integers(0, 2**32, len(places), np.uint32)
        yield values


def _search(data_dir: Path, num_workers: int) -> tuple[dict[str, Record], float]:
    """Each stage's tasks, their seconds of a core and largest memory; the seconds of all."""
    found: dict[str, Record] = {}

    def recorded(job: str, logs: Path, *given: Any) -> dict[str, int]:
        counts = run_tasks(job, logs, *given)
        records = [read_json(path) for path in (logs / "finished").glob("*.json")]
        found[job.removeprefix("dedup ")] = {
            "tasks": len(records),
            "seconds": sum(record["cpu_seconds"] for record in records),
            "peak_bytes": max(record["peak_bytes"] for record in records),
        }
        return counts

    began = time.monotonic()
    with mock.patch.object(search, "run_tasks", recorded):
        dedup.run(load([f"data_dir={data_dir}", f"num_workers={num_workers}"]))
    return found, time.monotonic() - began


def _own_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    run(main)

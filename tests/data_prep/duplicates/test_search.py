"""The search for copies by tasks: the result of the plain rule, in any order, after any failure."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import write_source

from data_prep import dedup, status
from data_prep.core import files
from data_prep.core.files import checksum, read_json
from data_prep.core.job import ShareDone, load
from data_prep.core.settings import DataPrepSettings
from data_prep.duplicates import matching, search
from data_prep.duplicates.matching import FEWEST_CHARACTERS, LEAST_EQUAL
from data_prep.duplicates.minhash import BANDS, VALUES, shingles, signature
from data_prep.executors.tasks import TaskEntry, TaskPlan, record_path, sizes
from data_prep.stores.documents import Document

RESULT = ("duplicates.json", "duplicates.parquet")


def plain_copies(texts: Sequence[str]) -> dict[int, int]:
    """The rule in plain Python, all documents at once: of each dropped document the kept one."""
    exact = [shingles(text)[1].tobytes() or text.encode() for text in texts]
    values = np.array([signature(shingles(text)[0]) for text in texts], np.uint32)

    def equal(one: int, other: int) -> int:
        if exact[one] == exact[other]:
            return VALUES + 1
        return int((values[one] == values[other]).sum())

    cluster = list(range(len(texts)))
    bands = values.reshape(len(texts), BANDS, -1)
    for band in (None, *range(BANDS)):
        runs = defaultdict(list)
        for number in range(len(texts)):
            if band is None:
                runs[exact[number]].append(number)
            elif len(texts[number]) >= FEWEST_CHARACTERS:
                runs[bands[number, band].tobytes()].append(number)
        for run in runs.values():
            for place in range(1, len(run)):
                for other in (run[0], run[place - 1]):
                    if equal(run[place], other) >= LEAST_EQUAL:
                        both = {cluster[run[place]], cluster[other]}
                        cluster = [min(both) if own in both else own for own in cluster]
    kept: dict[int, int] = {}
    leaders = defaultdict(list)
    for number in sorted(range(len(texts)), key=lambda number: (-len(texts[number]), number)):
        own = leaders[cluster[number]]
        copied = [other for other in own if equal(number, other) >= LEAST_EQUAL]
        if copied:
            kept[number] = copied[0]
        else:
            own.append(number)
    return kept


def made_text(seed: int, words: int = 60) -> str:
    letters = np.random.default_rng(seed).integers(97, 123, (words, 4)).astype(np.uint8)
    return " ".join(bytes(word).decode() for word in letters)


@st.composite
def corpora(draw: st.DrawFn) -> list[str]:
    """Families of texts, in which some words of one are replaced by those of another seed."""
    texts = []
    for family in range(draw(st.integers(1, 3))):
        words = made_text(family, draw(st.sampled_from([8, 60, 150]))).split()
        for seed in range(draw(st.integers(1, 6))):
            changed = draw(st.lists(st.integers(0, len(words) - 1), max_size=4))
            own = [f"new{seed}" if place in changed else w for place, w in enumerate(words)]
            texts.append(" ".join(own) + draw(st.sampled_from(["", "!", " more"])))
    return draw(st.permutations(texts))


def write_corpus(data_dir: Path, texts: Sequence[str], cut: int) -> None:
    documents = [Document(f"{n:04d}", f"T{n}", text) for n, text in enumerate(texts)]
    write_source(data_dir, "a", [documents[n : n + cut] for n in range(0, len(texts), cut)])


def outcome(data_dir: Path) -> dict[str, bytes]:
    return {name: (data_dir / "documents" / name).read_bytes() for name in RESULT}


def in_tasks(patch: pytest.MonkeyPatch, slab: int = 3) -> None:
    """Make every corpus a large one: three ranges or so, slabs of a few documents."""
    patch.setattr(search, "AT_ONCE", 0)
    patch.setattr(search, "SLAB", slab)
    patch.setattr(search, "RANGE", 5)


def run_in_disorder(
    job: str, logs: Path, tasks: Sequence[TaskEntry], task: Any, settings: DataPrepSettings
) -> None:
    """In place of run_tasks: every task in this process, in an order of no meaning."""
    for index in random.Random(len(tasks)).sample(range(len(tasks)), len(tasks)):
        task(tasks[index].item)


@pytest.mark.slow
@settings(max_examples=10)
@given(texts=corpora(), cut=st.sampled_from([1, 2, 7]), slab=st.integers(1, 9))
def test_tasks_find_what_the_plain_rule_finds_and_write_the_bytes_of_one_process(
    texts: list[str], cut: int, slab: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outcomes = []
    for is_large in (False, True):
        data_dir = tmp_path_factory.mktemp("corpus")
        write_corpus(data_dir, texts, cut)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "flush_to_disk", lambda path: None)
            for module in (matching, dedup):
                patch.setattr(module, "ROWS_AT_ONCE", 2)
            if is_large:
                in_tasks(patch, slab)
                patch.setattr(search, "run_tasks", run_in_disorder)
            dedup.run(load([f"data_dir={data_dir}"]))
        outcomes.append(outcome(data_dir))
        assert not (data_dir / "duplicates").exists()
    assert outcomes[0] == outcomes[1]
    rows = pq.read_table(data_dir / "documents" / "duplicates.parquet").to_pylist()
    assert {int(row["id"]): int(row["kept"][2:]) for row in rows} == plain_copies(texts)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven documents in four parts, two of them copies; every corpus is a large one."""
    text = made_text(1)
    texts = [text, made_text(2), made_text(3), text.upper(), f"{text} more", made_text(4), "Short."]
    write_corpus(tmp_path / "d", texts, 2)
    dedup.run(load([f"data_dir={tmp_path / 'd'}"]))
    (tmp_path / "expected").mkdir()
    for name in RESULT:
        (tmp_path / "d" / "documents" / name).rename(tmp_path / "expected" / name)
    in_tasks(monkeypatch)
    monkeypatch.setattr(search, "BANDS", 2)  # the first two find them, too
    return tmp_path / "d"


def is_expected(data_dir: Path) -> bool:
    paths = [(data_dir / "documents" / n, data_dir.parent / "expected" / n) for n in RESULT]
    return all(checksum(found) == checksum(expected) for found, expected in paths)


def test_processes_write_the_same_bytes_after_a_task_has_failed(corpus: Path, monkeypatch) -> None:
    given = load([f"data_dir={corpus}", "num_workers=2"])
    describe = search._describe
    monkeypatch.setattr(search, "_describe", int)  # takes no plan
    with pytest.raises(RuntimeError, match="dedup rows: 3 of 3 tasks failed"):
        dedup.run(given)
    assert not (corpus / "documents" / "duplicates.json").exists()
    monkeypatch.setattr(search, "_describe", describe)
    records = corpus / "duplicates" / "candidates" / "logs" / "finished"
    before = {path.name: path.stat().st_mtime_ns for path in records.iterdir()}
    stage = next(s for s in status.stages_of(given, 0.0) if s.name == "dedup")
    assert (stage.state, stage.tasks) == ("failed", "0 of 3")
    monkeypatch.setattr(dedup, "remove_folder", lambda folder: None)
    dedup.run(given)
    assert is_expected(corpus)
    assert {path.name: path.stat().st_mtime_ns for path in records.iterdir()} == before


def run_here(plan: TaskPlan, todo: Sequence[int], num_workers: int) -> dict[int, str]:
    """In place of processes: the tasks in this one, with their records."""
    for entry in (plan.entries[index] for index in todo):
        record = {"fingerprint": entry.fingerprint, "counts": plan.task(entry.item)}
        path = record_path(plan.log_dir, "finished", entry.name)
        files.write_json(path, {**record, "sizes": sizes(entry.outputs)})
    return {}


def test_shares_do_one_stage_after_the_other_and_leave_the_end_to_one_run(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.executors.run.run_processes", run_here)

    def finished() -> list[int]:
        logs = [corpus / "duplicates" / stage / "logs" / "finished" for stage in search.STAGES]
        return [len(list(log.glob("*.json"))) for log in logs]

    done = []
    for _ in search.STAGES:
        for share in ("1/2", "2/2"):
            with pytest.raises(ShareDone, match=f"share {share}: "):
                dedup.run(load([f"data_dir={corpus}", f"share={share}"]))
            done.append(finished())
    assert done == [
        [2, 0, 0, 0, 0], [3, 0, 0, 0, 0], [3, 3, 0, 0, 0], [3, 6, 0, 0, 0], [3, 6, 2, 0, 0],
        [3, 6, 3, 0, 0], [3, 6, 3, 2, 0], [3, 6, 3, 3, 0], [3, 6, 3, 3, 2], [3, 6, 3, 3, 3],
    ]  # fmt: skip
    monkeypatch.setattr("data_prep.executors.run.run_processes", None)  # nothing is left
    with pytest.raises(ShareDone, match="all tasks are done; run dedup without a share"):
        dedup.run(load([f"data_dir={corpus}", "share=3/4"]))
    dedup.run(load([f"data_dir={corpus}"]))
    assert is_expected(corpus)


def test_the_corpus_decides_how_it_is_cut(tmp_path: Path, monkeypatch) -> None:
    write_corpus(tmp_path, ["text"] * 10, 2)
    in_tasks(monkeypatch)
    parts = dedup.list_parts(tmp_path)
    plan = search.Plan.of(parts, tmp_path, {})
    assert plan.slabs == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert plan.ranges == 2
    monkeypatch.setattr(search, "SLAB", 4)
    assert search.Plan.of(parts, tmp_path, {}).slabs == [(0, 2), (2, 4), (4, 5)]


def test_ranges_part_the_hashes(tmp_path: Path) -> None:
    write_corpus(tmp_path, [made_text(n) for n in range(40)], 7)
    corpus = matching.Corpus(dedup.list_parts(tmp_path))
    whole, _ = corpus.keys(0, 0, 1)
    parts = [corpus.keys(0, number, 3)[0] for number in range(3)]
    assert min(map(len, parts)) > 0
    assert sorted(np.concatenate(parts)) == whole.tolist() == list(range(40))


def test_the_record_of_many_tables_is_that_of_one(corpus: Path, monkeypatch) -> None:
    monkeypatch.setattr(search, "run_tasks", run_in_disorder)
    dedup.run(load([f"data_dir={corpus}"]))
    record = read_json(corpus / "documents" / "duplicates.json")
    assert (record["dropped"], record["groups"]) == (2, 1)
    assert record["largest"][0]["dropped"] == ["a/0000", "a/0003"]
    assert is_expected(corpus)

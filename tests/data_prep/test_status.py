"""data_prep.status: the state of every stage, the time left, what failed, what to type next."""

import functools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import made_tasks
import pytest
import task_starts
from made_manifests import (
    documents_manifest,
    filtered_manifest,
    part_entry,
    shards_manifest,
    split_entry,
    tokens_manifest,
    vocab_manifest,
)
from msgspec.structs import replace

from data_prep import status
from data_prep.core.files import checksum, place, read_json, write_json
from data_prep.core.job import load
from data_prep.tokenizer.hf_files import TOKENIZER_FILES

NOW = 1_000_000.0
FILES = (
    "documents/books/part-00000.parquet",
    "documents/duplicates.parquet",
    *(f"vocab/{name}" for name in TOKENIZER_FILES),
    "tokens/counts.json",
    "len128/token_counts.npy",
)
OUT = "out of date"
PARTS = documents_manifest([part_entry("part-00000.parquet", "a")])
DOCUMENTS = {"books/part-00000.parquet": "a"}
VOCAB = vocab_manifest(DOCUMENTS, vocab_size=512)


def write_records(folder: Path, tasks: list[str], **kinds: dict[str, dict]) -> None:
    """What the engine leaves in folder/logs: tasks, and records finished, running and failed."""
    plan = {"job": "any", "tasks": tasks, "fingerprints": ["f"] * len(tasks)}
    write_json(folder / "logs" / "job.json", plan)
    for kind, records in kinds.items():
        for name, record in records.items():
            write_json(folder / "logs" / kind / f"{name}.json", record)


def finished(*names: str) -> dict[str, dict]:
    record = {"fingerprint": "f", "seconds": 60.0, "ended": NOW - 100}
    return dict.fromkeys(names, record)


def running(name: str, host: str, pid: int, seconds: float) -> dict[str, dict]:
    where = place() if host == os.uname().nodename else "elsewhere"
    return {name: {"host": host, "place": where, "pid": pid, "started": NOW - seconds}}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus through all stages, as their manifests describe it."""
    books = tmp_path / "documents" / "books"
    write_records(books, ["part-00000"], finished=finished("part-00000"))
    write_json(books / "manifest.json", PARTS)
    copies = {"made_from": {"documents": DOCUMENTS}, "dropped": 0, "dropped_characters": 0}
    write_json(tmp_path / "documents" / "duplicates.json", copies)
    write_json(tmp_path / "vocab" / "manifest.json", VOCAB)
    tokens, shards = tmp_path / "tokens" / "manifest.json", tmp_path / "len128" / "manifest.json"
    write_json(tokens, tokens_manifest(documents=DOCUMENTS))
    write_json(shards, shards_manifest(tokens_checksum=checksum(tokens)))
    report = {"faults": [], "shards_checksum": checksum(shards)}
    write_json(tmp_path / "audit" / "128" / "audit.json", report)
    for name in FILES:
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def stages(corpus: Path, *overrides: str) -> dict[str, status.Stage]:
    settings = load([f"data_dir={corpus}", "num_workers=2", *overrides])
    return {stage.name: stage for stage in status.stages_of(settings, NOW)}


def states(corpus: Path) -> list[str]:
    return [stage.state for stage in stages(corpus).values()]


def test_a_corpus_that_is_whole_is_done_and_training_comes_next(corpus: Path, capfd) -> None:
    assert states(corpus) == ["done"] * 6
    assert status.main([f"data_dir={corpus}"]) == 0
    assert capfd.readouterr().out.splitlines()[-1].startswith("next: python -m pretrain.run")


def test_stages_not_begun_are_listed_and_the_first_of_them_comes_next(tmp_path, capfd) -> None:
    write_json(tmp_path / "documents" / "books" / "manifest.json", PARTS)
    (tmp_path / FILES[0]).touch()
    assert states(tmp_path) == ["done"] + ["not begun"] * 5
    assert status.main([f"data_dir={tmp_path}"]) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert last == f"next: python -m data_prep.dedup data_dir={tmp_path}"


def test_other_documents_need_dedup_and_encode_and_no_other_vocabulary(corpus: Path) -> None:
    changed = documents_manifest([part_entry("part-00000.parquet", "b")])
    write_json(corpus / "documents" / "books" / "manifest.json", changed)
    assert states(corpus) == ["done", OUT, "done", OUT, "done", "done"]
    assert stages(corpus)["encode"].notes == ["other documents than it was made of"]
    (note,) = stages(corpus)["vocab"].notes
    assert note == "trained on other documents; it serves those of now as it is"
    assert due(corpus) == ["dedup", "encode"]


def due(corpus: Path) -> list[str]:
    return [stage.name for stage in status._due([*stages(corpus).values()])]


LOST = [
    ("documents/books/part-00000.parquet", "collect books", []),
    ("documents/duplicates.parquet", "dedup", []),
    ("vocab/tokenizer.json", "vocab", ["vocab"]),
    ("vocab/vocab.txt", "vocab", ["vocab"]),
    ("tokens/counts.json", "encode", []),
    ("len128/token_counts.npy", "build 128", ["build 128"]),
    ("len128/train/shard-00000.arrow", "build 128", ["build 128"]),
]


@pytest.mark.parametrize(("name", "stage", "needed"), LOST)
def test_a_lost_file_is_named_and_made_again_where_it_is_needed(
    corpus: Path, name: str, stage: str, needed: list[str]
) -> None:
    if name.endswith(".arrow"):
        whole = shards_manifest({"train": split_entry(rows=1)})
        whole.tokens_checksum = checksum(corpus / "tokens" / "manifest.json")
        write_json(corpus / "len128" / "manifest.json", whole)
        made = {"faults": [], "shards_checksum": checksum(corpus / "len128" / "manifest.json")}
        write_json(corpus / "audit" / "128" / "audit.json", made)
    else:
        (corpus / name).unlink()
    found = stages(corpus)[stage]
    assert (found.state, found.notes) == ("incomplete", [f"{corpus / name} is missing"])
    assert due(corpus) == needed


def test_a_lost_part_is_collected_again_where_other_documents_are_to_be_encoded(corpus) -> None:
    (corpus / FILES[0]).unlink()
    write_json(corpus / "documents" / "wiki" / "manifest.json", PARTS)
    (corpus / "documents" / "wiki" / "part-00000.parquet").touch()
    assert due(corpus) == ["collect books", "dedup", "encode"]


@pytest.mark.parametrize("folder", ["documents", "tokens"])
def test_what_only_finished_stages_have_read_may_be_deleted(corpus: Path, folder: str) -> None:
    shutil.rmtree(corpus / folder)
    assert OUT not in states(corpus)
    assert due(corpus) == []


def test_a_vocabulary_without_documents_needs_collect(tmp_path: Path, capfd) -> None:
    write_json(tmp_path / "vocab" / "manifest.json", vocab_manifest())
    for name in TOKENIZER_FILES:
        (tmp_path / "vocab" / name).touch()
    assert status.main([f"data_dir={tmp_path}"]) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert last == f"next: python -m data_prep.collect data_dir={tmp_path} +source=NAME"


@pytest.mark.parametrize(
    ("folder", "source"), [("books", "+source=books"), ("shelf", "+source=NAME source.name=shelf")]
)
def test_a_source_without_records_is_collected_again_by_a_source_there_is(
    tmp_path: Path, folder: str, source: str
) -> None:
    (tmp_path / "documents" / folder).mkdir(parents=True)
    command = f"python -m data_prep.collect data_dir={tmp_path} {source}"
    assert stages(tmp_path)[f"collect {folder}"].command == command


@pytest.mark.parametrize(("rows", "job"), [(3, "collect"), (4, "encode")])
def test_fewer_documents_than_encode_takes_need_collect(
    tmp_path: Path, rows: int, job: str
) -> None:
    parts = documents_manifest([replace(part_entry("part-00000.parquet"), rows=rows)])
    write_json(tmp_path / "documents" / "books" / "manifest.json", parts)
    assert stages(tmp_path)["encode"].command.startswith(f"python -m data_prep.{job} ")


def test_shards_of_another_store_are_built_again_only_with_replace(corpus: Path) -> None:
    write_json(
        corpus / "tokens" / "manifest.json", tokens_manifest(documents=DOCUMENTS, dropped={"a": 1})
    )
    command = f"python -m data_prep.build data_dir={corpus} seq_len=128 replace=true"
    assert stages(corpus)["build 128"].command == command
    assert status.out_of_date(corpus, 128) == ["build 128 (other token store)"]


def test_what_the_shards_lack_is_named_for_training(corpus: Path) -> None:
    assert status.out_of_date(corpus, 128) == []
    write_json(corpus / "documents" / "wiki" / "manifest.json", PARTS)
    assert status.out_of_date(corpus, 128) == ["encode (other documents)"]
    assert status.out_of_date(corpus, 512) == ["encode (other documents)"]
    write_json(corpus / "tokens" / "manifest.json", {"broken": 1})
    assert status.out_of_date(corpus, 128) == ["build 128 (other token store)"]


def test_copies_are_counted_below_their_stage(corpus: Path, capfd) -> None:
    path = corpus / "documents" / "duplicates.json"
    write_json(path, {**read_json(path), "dropped": 2, "dropped_characters": 300_000})
    assert status.main([f"data_dir={corpus}"]) == 0
    said = "2 copies of other documents, 0.3 million characters, are left out by vocab and encode"
    assert f"    {said}\n" in capfd.readouterr().out


def test_a_corpus_that_keeps_copies_has_no_stage_for_them(corpus: Path) -> None:
    assert "dedup" not in stages(corpus, "duplicates=keep")
    (corpus / "documents" / "duplicates.json").unlink()
    assert "dedup" not in stages(corpus)


@pytest.mark.parametrize(
    ("path", "manifest", "stage", "state", "notes"),
    [
        ("documents/wiki", PARTS, "encode", OUT, ["other documents than it was made of"]),
        ("vocab", vocab_manifest(DOCUMENTS, checksum="w"), "encode", OUT,
         ["other vocabulary than it was made of"]),
        ("tokens", tokens_manifest(documents=DOCUMENTS, dropped={"more": 1}), "build 128", OUT,
         ["other token store than it was made of"]),
        ("len128", shards_manifest(lowercase=False), "audit 128", OUT,
         ["other shards than it was made of"]),
    ],
)  # fmt: skip
def test_another_input_makes_a_stage_out_of_date(
    corpus, path, manifest, stage, state, notes
) -> None:
    write_json(corpus / path / "manifest.json", manifest)
    found = stages(corpus)[stage]
    assert (found.state, found.notes) == (state, notes)


def test_a_released_vocabulary_does_not_hang_on_the_documents(corpus: Path) -> None:
    write_json(corpus / "vocab" / "manifest.json", vocab_manifest())
    write_json(corpus / "documents" / "wiki" / "manifest.json", PARTS)
    vocab = stages(corpus)["vocab"]
    assert (vocab.state, vocab.notes) == ("done", [])
    assert vocab.command.endswith(" vocab_file=FILE lowercase=true")


def test_unfit_shards_are_named_and_the_status_is_1(corpus: Path, capfd) -> None:
    shards = checksum(corpus / "len128" / "manifest.json")
    report = {"faults": ["all labels are 1"], "shards_checksum": shards}
    write_json(corpus / "audit" / "128" / "audit.json", report)
    assert status.main([f"data_dir={corpus}"]) == 1
    captured = capfd.readouterr()
    assert "    all labels are 1\n" in captured.out
    assert captured.err == "failed or faulty: audit 128\n"


def test_what_is_left_is_the_mean_time_shared_by_the_running_tasks(tmp_path: Path) -> None:
    names = [f"books-{number}" for number in range(10)]
    busy = running(names[3], "elsewhere", 1, 20) | running(names[4], "elsewhere", 2, 50)
    write_records(tmp_path / "tokens", names, finished=finished(*names[:3]), running=busy)
    encode = stages(tmp_path)["encode"]
    assert (encode.state, encode.tasks) == ("running", "3 of 10, 2 run")
    assert encode.left_s == (5 * 60 + 40 + 10) / 2
    assert encode.notes == []


def test_without_running_tasks_the_rest_is_shared_by_num_workers(tmp_path: Path) -> None:
    names = [f"books-{number}" for number in range(10)]
    write_records(tmp_path / "tokens", names, finished=finished(*names[:2]))
    encode = stages(tmp_path, "num_workers=4")["encode"]
    assert (encode.state, encode.left_s) == ("stopped", 8 * 60 / 4)


def test_a_failed_task_is_named_with_its_reason_and_log(tmp_path: Path, capfd) -> None:
    failed = {"books-0": {"reason": "OSError: No space left on device"}}
    write_records(tmp_path / "tokens", ["books-0", "books-1"], failed=failed)
    assert status.main([f"data_dir={tmp_path}"]) == 1
    log = tmp_path / "tokens" / "logs" / "books-0.log"
    out = capfd.readouterr().out
    assert f"    books-0: OSError: No space left on device (log: {log})\n" in out
    assert stages(tmp_path)["encode"].state == "failed"


@pytest.mark.parametrize("is_zombie", [False, True])
def test_a_task_whose_process_is_gone_ended_without_a_word(tmp_path: Path, is_zombie: bool) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if not is_zombie:
        process.wait()
    gone = running("books-0", os.uname().nodename, process.pid, 5)
    alive = running("books-1", os.uname().nodename, os.getpid(), 5)
    write_records(tmp_path / "tokens", ["books-0", "books-1"], running=gone | alive)
    encode = stages(tmp_path)["encode"]
    assert (encode.state, encode.tasks) == ("running", "0 of 2, 1 run")
    (note,) = encode.notes
    assert f"books-0: process {process.pid} on {os.uname().nodename} ended without a record" in note
    assert encode.is_broken
    process.wait()


def test_tasks_of_a_job_that_was_killed_as_a_whole_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "documents" / "books"
    code = (
        "import functools, made_tasks, task_starts; from pathlib import Path;"
        f"folder = Path({str(folder)!r});"
        "task_starts.start(folder, functools.partial(made_tasks.kill_all, folder), 1)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{Path(made_tasks.__file__).parent}:{Path.cwd()}"},
        start_new_session=True,
        check=False,
    )
    assert process.returncode == -9
    until = time.monotonic() + 10  # the system ends a group's processes one by one
    while (collect := stages(tmp_path)["collect books"]).state == "running":
        assert time.monotonic() < until
    assert (collect.state, collect.tasks) == ("failed", "0 of 4")
    assert "task-0: process " in collect.notes[0]
    assert "ended without a record" in collect.notes[0]


def test_a_real_job_that_failed_names_the_reason_and_the_command(tmp_path, monkeypatch) -> None:
    typed = ["/bin/python3", "-m", "data_prep.collect", "source.path=my texts", "share=1/8"]
    monkeypatch.setattr(sys, "orig_argv", typed)
    folder = tmp_path / "documents" / "books"
    with pytest.raises(RuntimeError):
        task_starts.start(folder, functools.partial(made_tasks.fail, folder, {2}))
    collect = stages(tmp_path)["collect books"]
    assert (collect.state, collect.tasks) == ("failed", "3 of 4")
    assert collect.left_s is not None
    (note,) = collect.notes
    log = folder / "logs" / "task-2.log"
    assert note == f"task-2: ValueError: row 7 of task 2 cannot be read (log: {log})"
    assert collect.command == "python -m data_prep.collect 'source.path=my texts'"


def test_tasks_finished_for_other_settings_are_not_counted(tmp_path: Path) -> None:
    others = {"books-0": {"fingerprint": "other", "seconds": 60.0, "ended": NOW}}
    write_records(tmp_path / "tokens", ["books-0", "books-1"], finished=others)
    assert stages(tmp_path)["encode"].tasks == "0 of 2"


def test_a_task_of_another_host_that_takes_very_long_is_perhaps_dead(tmp_path: Path) -> None:
    old, young = running("b", "elsewhere", 1, 301), running("c", "elsewhere", 1, 299)
    write_records(tmp_path / "tokens", ["a", "b", "c"], finished=finished("a"), running=old | young)
    encode = stages(tmp_path)["encode"]
    (note,) = encode.notes
    assert "b: process 1 on elsewhere has run for 5 minutes, may be dead" in note
    assert not encode.is_broken


def test_a_stage_that_is_being_done_again_is_not_done(corpus: Path) -> None:
    alive = running("books-0", os.uname().nodename, os.getpid(), 5)
    write_records(corpus / "len128", ["books-0"], running=alive)
    assert stages(corpus)["build 128"].state == "running"


def test_a_manifest_of_another_version_is_the_fault_of_its_stage_alone(corpus: Path) -> None:
    path = corpus / "len128" / "manifest.json"
    write_json(path, {"schema_version": 1})
    found = stages(corpus)
    assert found["build 128"].state == "faulty"
    assert "is not as this version writes it" in found["build 128"].notes[0]
    assert found["encode"].state == "done"


def test_of_many_failed_tasks_some_are_shown_and_the_rest_counted(tmp_path: Path, capfd) -> None:
    failed = {f"books-{number:02}": {"reason": "why"} for number in range(25)}
    write_records(tmp_path / "tokens", sorted(failed), failed=failed)
    status.main([f"data_dir={tmp_path}"])
    out = capfd.readouterr().out
    assert out.count("why") == 10
    assert "... and 15 more" in out


def test_a_filtered_source_has_a_stage_whose_result_the_next_ones_read(corpus: Path) -> None:
    folder = corpus / "filtered" / "books"
    made = filtered_manifest([part_entry("part-00000.parquet", "f")], {"part-00000.parquet": "a"})
    write_json(folder / "manifest.json", made)
    (folder / "part-00000.parquet").write_bytes(b"")
    write_records(folder, ["part-00000"], finished=finished("part-00000"))
    found = stages(corpus)
    assert found["filter books"].state == "done"
    assert found["filter books"].notes == ["pii: 1 of 2 documents and 50.0% of the text are kept"]
    assert found["dedup"].state == OUT  # of the unfiltered text
    write_json(folder / "manifest.json", replace(made, made_from={"part-00000.parquet": "b"}))
    assert stages(corpus)["filter books"].state == OUT

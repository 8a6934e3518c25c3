"""Data preparation by job arrays on a real Slurm: the bytes of one process, whatever is killed."""

import functools
import pydoc_data.topics
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from data_prep import build, collect, encode, vocab
from data_prep.core.files import checksum
from data_prep.core.job import load

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240  # a dozen processes import what they need on as few as two cores

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(4 * LIMIT_S)]


def _given(data_dir: Path, *overrides: str) -> list[str]:
    return [
        f"data_dir={data_dir}", "vocab_size=1000", "heldout_fraction=0.3", "seq_len=64",
        "num_workers=1", *overrides,
    ]  # fmt: skip


def _source(folder: Path) -> list[str]:
    """Twelve books, of which every one is a part."""
    (folder / "books").mkdir()
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    for number in range(12):
        (folder / "books" / f"{number:02d}.txt").write_text("\n\n".join(texts[number::12]))
    return [
        "+source=books", f"source.path={folder / 'books'}", "source.language=null",
        "source.min_characters=null", "characters_per_part=10000",
    ]  # fmt: skip


def _bytes(data_dir: Path) -> dict[str, str]:
    """Checksums of the stores' files, without logs and the audit."""
    files = [path for path in data_dir.rglob("*") if path.is_file() and path.name != "README.md"]
    names = {path: path.relative_to(data_dir) for path in files}
    return {
        str(name): checksum(path)
        for path, name in names.items()
        if not {"logs", "audit"} & set(name.parts)
    }


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the jobs are submitted: the repository with a folder of logs of its own."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "logs").mkdir()
    for name in ("slurm", "data_prep", "conf"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return _source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory, source: list[str]) -> Path:
    """Documents and a vocabulary."""
    data_dir = tmp_path_factory.mktemp("collected")
    settings = load(_given(data_dir, *source))
    collect.run(settings)
    vocab.run(settings)
    return data_dir


@pytest.fixture(scope="module")
def encoded(collected: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the token store has to be."""
    data_dir = tmp_path_factory.mktemp("encoded") / "data"
    _link_documents(collected, data_dir)
    encode.run(load(_given(data_dir)))
    return _bytes(data_dir / "tokens")


def _link_documents(collected: Path, data_dir: Path) -> None:
    (data_dir / "documents" / "books").mkdir(parents=True)
    links = [*collected.glob("documents/*.*"), *collected.glob("documents/books/*.*")]
    for path in [*links, collected / "documents" / "books" / "signatures"]:
        (data_dir / path.relative_to(collected)).symlink_to(path)
    (data_dir / "vocab").symlink_to(collected / "vocab")


def _until(met: Any, what: str, limit_s: float = LIMIT_S) -> None:
    end = time.monotonic() + limit_s
    while not met():
        assert time.monotonic() < end, f"{what}: not in {limit_s} s"
        time.sleep(0.1)


def _queue(cluster: Any, *options: str) -> list[str]:
    return subprocess.run(
        ["squeue", "-h", "-r", *options], env=cluster.env, check=True, capture_output=True,
        text=True,
    ).stdout.split()  # fmt: skip


def _submit(cluster: Any, repository: Path, *command: str) -> str:
    """A script's output; all jobs use this interpreter's environment."""
    ended = subprocess.run(
        command, cwd=repository, env=cluster.env | {"VENV": sys.prefix}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def _heed_interrupts() -> None:
    """As in a terminal: a process that a shell starts in the background ignores them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(cluster: Any, repository: Path) -> Iterator[Any]:
    """Starts `python -m data_prep.JOB ...`; ends what a failed test has left."""
    started = []

    def popen(*arguments: str, env: Mapping[str, str] = {}) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=repository, env={**cluster.env, **env},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_heed_interrupts,
        )  # fmt: skip
        started.append(process)
        return process

    yield popen
    for process in started:
        process.kill()
        process.communicate()
    if left := _queue(cluster, "-o", "%i"):
        subprocess.run(["scancel", *left], env=cluster.env, check=True)


def test_executor_slurm_runs_every_share_and_writes_the_bytes_of_one_process(
    cluster: Any, start: Any, collected: Path, encoded: dict[str, str], tmp_path: Path
) -> None:
    _link_documents(collected, tmp_path / "d")
    job = start("data_prep.encode", *_given(tmp_path / "d", "executor=slurm", "array_size=3"))
    out, err = job.communicate(timeout=LIMIT_S)
    assert job.returncode == 0, err
    assert "documents, " in out
    assert _bytes(tmp_path / "d" / "tokens") == encoded
    _until(lambda: not _queue(cluster), "the end of elements whose tasks are done")
    logs = sorted((tmp_path / "d" / "tokens" / "logs" / "array").iterdir())
    assert [path.read_text().splitlines()[-1] for path in logs] == [
        f"share {k}/3: 4 tasks done" for k in (1, 2, 3)
    ]


_HANG = """
import sys, time

def hang(event, arguments):
    if event == "open" and "books-00010.arrow" in str(arguments[0]):
        time.sleep(3600)

sys.addaudithook(hang)
"""


def _that_hangs(folder: Path) -> dict[str, str]:
    """The environment in which the second share's last part is never written."""
    (folder / "sitecustomize.py").write_text(_HANG)
    return {"PYTHONPATH": str(folder)}


def _runs_alone(cluster: Any, store: Path) -> bool:
    """Whether every task has ended but the one that hangs."""
    return len(list(store.glob("logs/finished/*.json"))) == 11 and (
        len(_queue(cluster, "-t", "RUNNING", "-o", "%i")) == 1
    )


def test_an_element_that_is_cancelled_is_named_and_the_next_start_does_what_it_left(
    cluster: Any, start: Any, collected: Path, encoded: dict[str, str], tmp_path: Path
) -> None:
    _link_documents(collected, tmp_path / "d")
    given = _given(tmp_path / "d", "executor=slurm", "array_size=3")
    job = start("data_prep.encode", *given, env=_that_hangs(tmp_path))
    _until(lambda: _runs_alone(cluster, tmp_path / "d" / "tokens"), "one task left")
    [element] = _queue(cluster, "-o", "%i")
    subprocess.run(["scancel", element], env=cluster.env, check=True)
    _, err = job.communicate(timeout=LIMIT_S)
    assert job.returncode == 1
    assert "1 of 12 tasks failed: books-00010. Task books-00010: its element of job array" in err
    assert not (tmp_path / "d" / "tokens" / "manifest.json").exists()

    job = start("data_prep.encode", *given)
    _, err = job.communicate(timeout=LIMIT_S)
    assert job.returncode == 0, err
    assert _bytes(tmp_path / "d" / "tokens") == encoded


def test_control_c_cancels_the_array(cluster, start, collected, tmp_path) -> None:
    _link_documents(collected, tmp_path / "d")
    given = _given(tmp_path / "d", "executor=slurm", "array_size=3")
    job = start("data_prep.encode", *given, env=_that_hangs(tmp_path))
    _until(lambda: _runs_alone(cluster, tmp_path / "d" / "tokens"), "one task left")
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=LIMIT_S)
    assert job.returncode == 130
    assert "interrupted; the same command continues" in err
    _until(lambda: not _queue(cluster), "the array's end")


def test_an_element_that_failed_is_requeued_after_its_input_is_fixed_and_runs_only_the_rest(
    cluster: Any, repository: Path, collected: Path, encoded: dict[str, str], tmp_path: Path
) -> None:
    _link_documents(collected, tmp_path / "d")
    part = tmp_path / "d" / "documents" / "books" / "part-00001.parquet"
    part.unlink()
    part.write_bytes(b"damaged")
    given = _given(tmp_path / "d")
    script = ["slurm/data_prep_array.sh", "encode", *given]
    number = _submit(cluster, repository, "sbatch", "--parsable", "--array=1-3", *script)
    _until(lambda: not _queue(cluster), "the array's end")
    records = tmp_path / "d" / "tokens" / "logs" / "finished"
    before = {path.name: path.stat().st_mtime_ns for path in records.iterdir()}
    assert len(before) == 11
    log = (repository / "logs" / f"data-prep-array-{number}_2.out").read_text()
    assert "1 of 12 tasks failed: books-00001." in log
    assert str(part) in log

    part.unlink()
    part.symlink_to(collected / "documents" / "books" / part.name)
    _submit(cluster, repository, "scontrol", "requeue", f"{number}_2")
    _until(lambda: (records / "books-00001.json").exists(), "the last task")
    _until(lambda: not _queue(cluster), "the end")
    assert not (tmp_path / "d" / "tokens" / "manifest.json").exists()
    encode.run(load(given))
    assert _bytes(tmp_path / "d" / "tokens") == encoded
    assert {name: (records / name).stat().st_mtime_ns for name in before} == before


@pytest.mark.slow
def test_the_whole_chain_of_arrays_gives_the_bytes_of_one_worker_and_of_three(
    cluster: Any, repository: Path, source: list[str], tmp_path: Path
) -> None:
    given = functools.partial(_given, tmp_path / "chain", *source, "audit.fewest_documents=1")
    printed = _submit(cluster, repository, "bash", "slurm/data_prep.sh", *given("array_size=4"))
    assert printed.count(", an array of 4\n") == 9
    _until(lambda: not _queue(cluster), "the end of all jobs", 3 * LIMIT_S)
    for workers in (1, 3):
        data_dir = tmp_path / str(workers)
        own = _given(data_dir, *source, "audit.fewest_documents=1", f"num_workers={workers}")
        settings = load(own)
        for job in (collect, vocab, encode, build):
            job.run(settings)
        assert _bytes(data_dir) == _bytes(tmp_path / "chain")
    assert (tmp_path / "chain" / "audit" / "64" / "audit.json").exists()

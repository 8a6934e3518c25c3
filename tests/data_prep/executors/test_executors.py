"""Tasks by shares and by other executors: the same bytes, and every failure has a sentence."""

import functools
import importlib.util
import os
import pydoc_data.topics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_tasks
import pytest

from data_prep import collect, encode, vocab
from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, read_json, write_json
from data_prep.core.job import ShareDone, load
from data_prep.executors import run, slurm
from data_prep.executors.run import run_tasks
from data_prep.executors.tasks import TaskEntry, sizes

ROOT = Path(__file__).parents[3]
HAS_RAY = importlib.util.find_spec("ray") is not None


def _start(folder: Path, *overrides: str) -> dict[str, int]:
    """Five tasks."""
    outputs = [folder / "outputs" / f"out-{index}" for index in range(5)]
    entries = [TaskEntry(f"task-{i}", "a", (path,), i) for i, path in enumerate(outputs)]
    settings = load([f"data_dir={folder}", "num_workers=2", *overrides])
    task = functools.partial(made_tasks.fail, folder, {4})
    return run_tasks("job", folder / "logs", entries, task, settings)


@pytest.mark.parametrize(
    ("workers", "memory", "is_refused"),
    [
        (5, 30_000_000, True),
        (100_000, 30_000_000, True),
        (100_000, 10**9, False),
        (3, 10**8, False),
    ],
)  # five tasks are never more than five processes
def test_processes_that_cannot_fit_are_refused_before_anything_changes(
    workers: int, memory: int, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "memory_bytes", lambda: memory)
    (tmp_path / "mended").touch()
    if is_refused:
        with pytest.raises(SettingsError, match=f"num_workers={workers} processes take .*=null"):
            _start(tmp_path, f"num_workers={workers}")
        assert not (tmp_path / "logs").exists()
    else:
        _start(tmp_path, f"num_workers={workers}")
        assert len(_written(tmp_path)) == 5


def _written(folder: Path) -> dict[str, str]:
    """How often each task ran."""
    return {path.name: path.read_text() for path in sorted((folder / "outputs").iterdir())}


def test_every_task_is_in_one_share_and_the_whole_job_then_runs_none_again(tmp_path: Path) -> None:
    (tmp_path / "mended").touch()
    for share, expected in (("2/3", ["out-1", "out-4"]), ("1/3", ["out-0", "out-3"])):
        before = set(_written(tmp_path)) if (tmp_path / "outputs").exists() else set()
        with pytest.raises(ShareDone, match=f"^share {share}: 2 tasks done$"):
            _start(tmp_path, f"share={share}")
        assert sorted(set(_written(tmp_path)) - before) == expected
    with pytest.raises(ShareDone, match=r"^share 3/3: 1 tasks done$"):
        _start(tmp_path, "share=3/3")
    assert _start(tmp_path)["documents"] == 15
    assert _written(tmp_path) == {f"out-{i}": f"{i}\n" for i in range(5)}


def test_a_share_whose_task_fails_is_no_success_and_the_whole_job_does_what_it_left(
    tmp_path: Path,
) -> None:
    with pytest.raises(RuntimeError, match=r"1 of 5 tasks failed: task-4\. .*row 7 of task 4"):
        _start(tmp_path, "share=1/2")
    (tmp_path / "mended").touch()
    assert _start(tmp_path)["documents"] == 15
    assert _written(tmp_path) == {f"out-{i}": f"{i}\n" for i in range(5)}


def test_a_share_of_more_processes_than_tasks_is_empty(tmp_path: Path) -> None:
    with pytest.raises(ShareDone, match="share 9/9: 0 tasks done"):
        _start(tmp_path, "share=9/9")
    assert not (tmp_path / "outputs").exists()


def _bytes(data_dir: Path) -> dict[str, str]:
    files = [path for path in data_dir.rglob("*") if path.is_file() and "logs" not in path.parts]
    return {path.relative_to(data_dir).as_posix(): checksum(path) for path in files}


@pytest.mark.slow
def test_shares_in_any_order_write_no_manifest_and_come_to_the_bytes_of_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    books = tmp_path / "books"
    books.mkdir()
    for name, text in sorted(pydoc_data.topics.topics.items())[:12]:
        (books / f"{name}.txt").write_text(text)
    given = [
        "+source=books", f"source.path={books}", "source.language=null", "vocab_size=256",
        "source.min_characters=null", "characters_per_part=9000", "heldout_fraction=0.3",
    ]  # fmt: skip
    for name in ("a", "b"):
        own = [*given, f"data_dir={tmp_path / name}"]
        for job, store in ((collect, "documents/books"), (encode, "tokens")):
            for share in ("2/2", "1/2") if name == "b" else ():
                assert job.main([*own, f"share={share}"]) == 0
                assert capsys.readouterr().out.startswith(f"share {share}: ")
                assert not (tmp_path / name / store / "manifest.json").exists()
            assert job.main(own) == 0
            if job is collect:
                assert vocab.main(own) == 0
            capsys.readouterr()
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")
    assert len(_bytes(tmp_path / "a")) > 20


INTERRUPTED_JOB = """
import functools, sys, made_tasks, task_starts
from multiprocessing import forkserver
from pathlib import Path
from data_prep.core.command import status_of
folder, preload = Path(sys.argv[1]), sys.argv[2:]
if preload:  # the server imports for as long as it takes for Ctrl-C to come
    forkserver.set_forkserver_preload(preload)
    forkserver.set_forkserver_preload = lambda names: None
task = functools.partial(made_tasks.interrupt_all, folder)
sys.exit(status_of(lambda: task_starts.start(folder, task) and 0))
"""


def _interrupted(folder: Path, *preload: str) -> subprocess.CompletedProcess[str]:
    """A job in a group of its own, all of which gets SIGINT."""
    path = f"{ROOT}:{Path(made_tasks.__file__).parent}:{folder}"
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED_JOB, str(folder), *preload], start_new_session=True,
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_ctrl_c_ends_a_job_and_its_tasks_in_one_line(tmp_path: Path) -> None:
    ended = _interrupted(tmp_path)
    # the pipes are closed: no task and no server holds them any more
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "-c: interrupted\n"
    assert list((tmp_path / "logs" / "running").glob("[!.]*")) == []
    assert list((tmp_path / "logs" / "failed").glob("*")) == []


def test_ctrl_c_while_the_fork_server_imports_prints_no_stack(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import os, signal\nos.killpg(0, signal.SIGINT)\n")
    ended = _interrupted(tmp_path, "slow")
    assert ended.returncode == 130
    assert ended.stderr == "-c: interrupted\n"


def test_slurm_is_refused_to_a_program_that_is_no_job(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"start it as python -m data_prep\.JOB"):
        _start(tmp_path, "executor=slurm")


def test_without_slurm_the_error_names_where_to_start(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("A text.")
    ended = subprocess.run(
        [sys.executable, "-m", "data_prep.collect", "executor=slurm", "+source=books",
         f"source.path={tmp_path / 'books'}", f"data_dir={tmp_path / 'd'}"],
        cwd=ROOT, env={"PATH": "/nowhere"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.startswith("executor=slurm needs sbatch, which is not on this machine")


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_error_shows_how_to_install_it(tmp_path: Path) -> None:
    cure = r"executor=ray needs Ray.*pip install 'bert-pretraining\[ray\]'"
    with pytest.raises(SettingsError, match=cure):
        _start(tmp_path, "executor=ray")


class StandIn:
    """What run_on_ray uses of Ray, whose start fails some times; tasks run in this process."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self, failures: int) -> None:
        self.failures, self.starts = failures, 0
        self.given: dict[str, Any] = {}
        self.crash_at_end = False

    def is_initialized(self) -> bool:
        return self.starts > self.failures

    def init(self, **given: Any) -> None:
        self.starts += 1
        self.given = given
        if self.starts <= self.failures:
            raise Exception("The current node timed out during startup.\nA second line")

    def shutdown(self) -> None:
        pass

    def remote(self, **_: Any) -> Any:
        return lambda run: SimpleNamespace(remote=lambda *given: functools.partial(_inline, *given))

    def put(self, task: Any) -> Any:
        return task

    def wait(self, waiting: list[Any]) -> tuple[list[Any], list[Any]]:
        return waiting[:1], waiting[1:]

    def get(self, task: Any) -> None:
        task()
        if self.crash_at_end:
            raise RuntimeError("The worker died unexpectedly while executing this task.")


def _inline(folder: str, task: Any, entry: TaskEntry, log_dir: Path) -> None:
    record = {"fingerprint": entry.fingerprint, "counts": task(entry.item)}
    record["sizes"] = sizes(entry.outputs)
    write_json(log_dir / "finished" / f"{entry.name}.json", record)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], StandIn]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def make(failures: int) -> StandIn:
        ray = StandIn(failures)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    return make


def test_a_ray_that_does_not_start_in_its_time_is_started_again_and_kept_for_the_next_step(
    tmp_path: Path, stand_in
) -> None:
    ray = stand_in(2)
    for step in ("a", "b"):
        (tmp_path / step).mkdir()
        (tmp_path / step / "mended").touch()
        assert _start(tmp_path / step, "executor=ray")["documents"] == 15
    assert ray.starts == 3


@pytest.mark.parametrize(
    ("address", "said", "starts"),
    [
        (None, "Ray did not start on this machine in 3 tries", 3),
        ("10.0.0.1:1", "10.0.0.1:1 can", 1),
    ],
)
def test_a_ray_that_never_starts_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in, address, said: str, starts: int
) -> None:
    ray = stand_in(9)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RuntimeError, match=f"{said}.*: The current node timed out") as refused:
        _start(tmp_path, "executor=ray")
    assert "\n" not in str(refused.value)
    assert ray.starts == starts


def test_a_worker_of_ray_that_crashes_after_its_task_is_no_failure(
    tmp_path: Path, stand_in
) -> None:
    stand_in(0).crash_at_end = True
    (tmp_path / "mended").touch()
    assert _start(tmp_path, "executor=ray")["documents"] == 15


def test_workers_of_ray_keep_the_paths_of_their_machine(tmp_path: Path, stand_in) -> None:
    ray = stand_in(0)
    (tmp_path / "mended").touch()
    _start(tmp_path, "executor=ray")
    assert ray.given["runtime_env"]["env_vars"]["PYTHONPATH"].endswith(":${PYTHONPATH}")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="no Ray: pip install 'bert-pretraining[ray]'")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray", "ignore::ResourceWarning")
def test_ray_runs_every_task_in_a_process_of_its_own_and_reports_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(Path(made_tasks.__file__).parent)  # Ray's workers find made_tasks there
    with pytest.raises(RuntimeError, match=r"1 of 5 tasks failed: task-4\. .*row 7 of task 4"):
        _start(tmp_path, "executor=ray")
    (tmp_path / "mended").touch()
    assert _start(tmp_path, "executor=ray")["documents"] == 15
    assert _written(tmp_path) == {f"out-{i}": f"{i}\n" for i in range(5)}


@pytest.mark.parametrize(
    ("shown", "output", "said"),
    [
        ("1 COMPLETED\n2 TIMEOUT\n", "begun\nslurmstepd: DUE TO TIME LIMIT\n\n",
         ["7, 2, was ended (TIMEOUT); its output", "ends with: slurmstepd: DUE TO TIME LIMIT"]),
        ("2 OUT_OF_MEMORY\n", None, ["7, 2, was ended (OUT_OF_MEMORY); see", "7_2.out"]),
        ("", "there is no python\n", ["7, 2, was ended; its output", "there is no python"]),
    ],
)  # fmt: skip
def test_the_end_of_an_array_element_is_told_from_slurm_and_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, output: str | None, said: list[str]
) -> None:
    monkeypatch.setattr(slurm, "_slurm", lambda *command: shown)
    if output is not None:
        (tmp_path / "7_2.out").write_text(output)
    reason = slurm._reason(tmp_path, "7", 2, slurm._ends("7"))
    assert [word for word in said if word not in reason] == []


def test_a_task_ended_without_a_record_gets_one_with_the_reason(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(run, "_run", lambda plan, todo, settings: {1: "out of memory", 4: "known"})
    record = tmp_path / "logs" / "failed" / "task-4.json"
    write_json(tmp_path / "logs" / "running" / "task-1.json", {"pid": 1})
    with pytest.raises(RuntimeError, match=r"2 of 5 tasks failed: .*out of memory"):
        _start(tmp_path)
    assert read_json(record.with_name("task-1.json")) == {"reason": "out of memory"}
    assert read_json(record) == {"reason": "known"}
    assert not (tmp_path / "logs" / "running" / "task-1.json").exists()

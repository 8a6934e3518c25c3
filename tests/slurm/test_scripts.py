"""What the batch scripts do by themselves, on a real Slurm, with a stand-in for the programs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.settings import load

ROOT = Path(__file__).resolve().parent.parent.parent
TRAINERS = ("slurm/pretrain_base.sh", "slurm/pretrain_large.sh")
SCRIPTS = (*TRAINERS, "slurm/data_prep.sh")

# In a virtual environment's bin/python. Each start adds a line to calls.jsonl; the override `end=`
# says what follows: `stopped` waits for USR1 in the job's first start, as a trainer would that is
# still far from its last step; `failed` fails in task 1 (or in data_prep.encode) alone.
STAND_IN = """#!{executable}
import json, os, signal, sys
calls, arguments = {calls!r}, sys.argv[1:]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
env = {{name: value for name, value in os.environ.items() if name.startswith(("SLURM", "CUDA", "OMP"))}}
with open(calls, "a") as file:
    file.write(json.dumps({{"arguments": arguments, "cwd": os.getcwd(), "env": env}}) + "\\n")
if "end=failed" in arguments:
    if env["SLURM_PROCID"] == "1" or arguments[2] == "data_prep.encode":
        sys.exit("the reason")
    if arguments[2] == "pretrain.run":
        signal.pause()
if "end=stopped" in arguments and "SLURM_RESTART_COUNT" not in env:
    signal.sigwait([signal.SIGUSR1])
    if env["SLURM_PROCID"] == "0":
        open(os.environ["BERT_STOPPED_FILE"], "w").close()
"""

Calls = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    """Makes the stand-in in tmp_path, which then is a virtual environment; reads what it noted."""
    noted, python = tmp_path / "calls.jsonl", tmp_path / "bin" / "python"
    noted.touch()
    python.parent.mkdir()
    python.write_text(STAND_IN.format(executable=sys.executable, calls=str(noted)))
    python.chmod(0o755)
    return lambda: [json.loads(line) for line in noted.read_text().splitlines()]


@pytest.mark.parametrize("script", [*SCRIPTS, "slurm/job.inc", ".ci/run"])
def test_bash_can_read_the_whole_script(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_started_without_sbatch_it_says_how_to(script: str) -> None:
    ended = subprocess.run(
        ["bash", script], cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "submit this job by sbatch in the repository's root" in ended.stderr


def test_the_folder_of_the_log_files_comes_with_the_repository() -> None:
    assert (ROOT / "logs" / ".gitkeep").exists()  # without it Slurm ends a job without a word
    for script in SCRIPTS:
        assert "#SBATCH --output=logs/%x-%j.out\n" in (ROOT / script).read_text()


@pytest.mark.slurm
@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_accepts_every_option_as_it_stands(cluster: Any, script: str) -> None:
    tried = subprocess.run(
        ["sbatch", "--test-only", script], cwd=ROOT, env=cluster.env, capture_output=True, text=True
    )
    assert tried.returncode == 0, tried.stderr


@pytest.mark.slurm
@pytest.mark.parametrize("script", TRAINERS)
def test_every_gpu_gets_one_task_with_the_overrides_behind_the_scripts_own(
    cluster: Any, script: str, tmp_path: Path, calls: Calls
) -> None:
    overrides = ["run.name=a b", "+model=tiny", "optim.betas=[0.9,0.98]", "log.project='$HOME *'"]

    job = cluster.submit(script, overrides, log_dir=tmp_path, venv=tmp_path)

    assert job.wait_until_ended() == "COMPLETED", job.log
    size = Path(script).stem.removeprefix("pretrain_")
    own = ["-u", "-m", "pretrain.run", f"+model={size}", "data=wikibooks_512"]
    assert [call["arguments"] for call in calls()] == [own + overrides] * 4
    assert {call["cwd"] for call in calls()} == {str(ROOT)}
    tasks = [call["env"] for call in calls()]
    assert sorted(task["SLURM_PROCID"] for task in tasks) == ["0", "1", "2", "3"]
    assert sorted(task["SLURM_LOCALID"] for task in tasks) == ["0", "0", "1", "1"]
    assert {task["CUDA_VISIBLE_DEVICES"] for task in tasks} == {"0,1"}


@pytest.mark.slurm
def test_each_task_gets_the_threads_of_its_cores(
    cluster: Any, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(cluster.env, "OMP_NUM_THREADS")
    job = cluster.submit(
        TRAINERS[0], [], log_dir=tmp_path, venv=tmp_path,
        options=["--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=5"],
    )  # fmt: skip
    assert job.wait_until_ended() == "COMPLETED", job.log
    [task] = [call["env"] for call in calls()]
    assert (task["SLURM_CPUS_PER_TASK"], task["OMP_NUM_THREADS"]) == ("5", "5")


@pytest.mark.slurm
def test_a_job_warned_of_its_end_saves_is_requeued_and_completes(
    cluster: Any, tmp_path: Path, calls: Calls
) -> None:
    job = cluster.submit(TRAINERS[1], ["end=stopped"], log_dir=tmp_path, venv=tmp_path)
    job.wait(lambda: len(calls()) == 4, "all tasks started", limit_s=30)
    job.warn()

    assert job.wait_until_ended() == "COMPLETED", job.log
    assert job.show()["Restarts"] == "1"
    assert len(calls()) == 8
    assert {tuple(call["arguments"]) for call in calls()} == {tuple(calls()[0]["arguments"])}
    assert "start 1:" in job.log, "the log of the first start was overwritten"
    assert "start 2:" in job.log
    assert not list((ROOT / "logs").glob("stopped-*"))


@pytest.mark.slurm
def test_a_stopped_job_that_slurm_does_not_requeue_has_failed_and_says_how_to_continue(
    cluster: Any, tmp_path: Path, calls: Calls
) -> None:
    job = cluster.submit(
        TRAINERS[0], ["end=stopped"], log_dir=tmp_path, venv=tmp_path,
        options=["--ntasks-per-node=2", "--gpus-per-node=2", "--no-requeue"],
    )  # fmt: skip
    job.wait(lambda: len(calls()) == 2, "all tasks started", limit_s=30)
    job.warn()

    assert job.wait_until_ended() == "FAILED", job.log
    assert "submit the same command again" in job.log


@pytest.mark.slurm
def test_a_task_that_fails_ends_the_others_and_the_job_for_good(
    cluster: Any, tmp_path: Path, calls: Calls
) -> None:
    job = cluster.submit(TRAINERS[1], ["end=failed"], log_dir=tmp_path, venv=tmp_path)

    assert job.wait_until_ended() == "FAILED", job.log
    assert job.show()["Restarts"] == "0"
    assert job.log.count("the reason") == 1


@pytest.mark.slurm
@pytest.mark.parametrize("script", SCRIPTS)
def test_submitted_from_elsewhere_it_names_the_option_that_helps(
    cluster: Any, script: str, tmp_path: Path
) -> None:
    job = cluster.submit(script, [], log_dir=tmp_path, options=["--nodes=1"], chdir=tmp_path)
    assert job.wait_until_ended() == "FAILED"
    assert job.log.count("sbatch --chdir=REPOSITORY") == 1


@pytest.mark.slurm
def test_from_elsewhere_chdir_is_enough(cluster: Any, tmp_path: Path, calls: Calls) -> None:
    job = cluster.submit(
        TRAINERS[0], [], log_dir=tmp_path, venv=tmp_path, chdir=tmp_path,
        options=["--ntasks-per-node=1", f"--chdir={ROOT}"],
    )  # fmt: skip
    assert job.wait_until_ended() == "COMPLETED", job.log
    assert [call["cwd"] for call in calls()] == [str(ROOT)]


@pytest.mark.slurm
def test_a_missing_virtual_environment_is_named(cluster: Any, tmp_path: Path) -> None:
    job = cluster.submit(TRAINERS[0], [], log_dir=tmp_path, venv=tmp_path / "absent")
    assert job.wait_until_ended() == "FAILED"
    assert f"there is no {tmp_path}/absent/bin/python" in job.log


@pytest.mark.slurm
def test_data_prep_collects_both_sources_and_builds_both_lengths(
    cluster: Any, tmp_path: Path, calls: Calls
) -> None:
    job = cluster.submit(
        SCRIPTS[2], ["data_dir=a b"], log_dir=tmp_path, venv=tmp_path, options=["--cpus-per-task=3"]
    )
    assert job.wait_until_ended() == "COMPLETED", job.log
    own, typed = ["data_dir=data/wikibooks", "num_workers=3"], ["data_dir=a b"]
    assert [call["arguments"][2:] for call in calls()] == [
        ["data_prep.collect", *own, "+source=wikipedia", *typed],
        ["data_prep.collect", *own, "+source=bookcorpus", *typed],
        ["data_prep.vocab", *own, *typed],
        ["data_prep.encode", *own, *typed],
        ["data_prep.build", *own, "seq_len=128", *typed],
        ["data_prep.audit", *own, "seq_len=128", *typed],
        ["data_prep.build", *own, "seq_len=512", *typed],
        ["data_prep.audit", *own, "seq_len=512", *typed],
    ]
    for call in calls():
        load(call["arguments"][3:])  # the jobs accept what they are given


@pytest.mark.slurm
def test_data_prep_takes_the_source_and_the_length_that_were_typed_and_stops_at_a_failure(
    cluster: Any, tmp_path: Path, calls: Calls
) -> None:
    typed = ["+source=books", "source.path=novels", "seq_len=64", "end=failed"]
    job = cluster.submit(SCRIPTS[2], typed, log_dir=tmp_path, venv=tmp_path, options=[])
    assert job.wait_until_ended() == "FAILED", job.log
    names = [call["arguments"][2] for call in calls()]
    assert names == ["data_prep.collect", "data_prep.vocab", "data_prep.encode"]
    assert "+source=books" in calls()[0]["arguments"]

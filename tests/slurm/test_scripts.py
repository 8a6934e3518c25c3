"""The batch scripts alone, on a real Slurm, with a fake in place of the programs."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.core.job import load
from pretrain.distributed.ranks import _tasks_on_this_node

ROOT = Path(__file__).resolve().parent.parent.parent
TRAINERS = ("slurm/pretrain_base.sh", "slurm/pretrain_large.sh")
OWN = {  # settings of the trainers, before those that are typed
    "slurm/pretrain_base.sh": [
        "+model=base", "data=wikibooks_512", "recipe=base_2k",
        "engine.tokens_per_micro_batch=36864", "engine.device=cuda",
    ],
    "slurm/pretrain_large.sh": [
        "+model=large", "data=wikibooks_512", "recipe=nvidia_lamb", "engine=bf16",
        "engine.tokens_per_micro_batch=36864", "engine.device=cuda", "checkpoint.every_steps=200",
        "eval.every_steps=500",
    ],
}  # fmt: skip
ARRAY = "slurm/data_prep_array.sh"
CHAIN = "slurm/data_prep.sh"
JOBS = (*TRAINERS, ARRAY)
SCRIPTS = (*JOBS, CHAIN)

# In a virtual environment's bin/python. Each start adds a line to calls.jsonl; the override `end=`
# says what follows: `stopped` waits for a signal in the job's first start, as a trainer would that
# is still far from its last step; `failed` fails in task 1 alone, `refused` in data_prep.vocab
# alone; `status=N` ends every start so, the first after a checkpoint.
FAKE_PYTHON = """#!{executable}
import json, os, signal, sys
calls, arguments = {calls!r}, sys.argv[1:]
if "--cfg" in arguments:
    sys.exit()  # the settings are in order
told = [signal.SIGUSR1, signal.SIGTERM]
signal.pthread_sigmask(signal.SIG_BLOCK, told)
kinds = ("SLURM", "CUDA", "OMP", "MASTER")
env = {{name: value for name, value in os.environ.items() if name.startswith(kinds)}}
is_first_start = "SLURM_RESTART_COUNT" not in env
def say(word):
    if env["SLURM_PROCID"] == "0":
        with open(os.environ["BERT_JOB_FILE"], "w") as file:
            file.write(word)
with open(calls, "a") as file:
    file.write(json.dumps({{"arguments": arguments, "cwd": os.getcwd(), "env": env}}) + "\\n")
if "end=failed" in arguments:
    if env["SLURM_PROCID"] == "1":
        sys.exit("the reason")
    signal.pause()
if "end=refused" in arguments and arguments[2] == "data_prep.vocab":
    sys.exit("the reason")
if "end=stopped" in arguments and is_first_start:
    signal.sigwait(told)
    say("stopped")
for argument in arguments:
    if argument.startswith("end=status="):
        if is_first_start:
            say("saved")
        sys.exit(int(argument.removeprefix("end=status=")))
"""

Calls = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    """Make tmp_path a virtual environment with a fake python; return a reader of its calls."""
    noted, python = tmp_path / "calls.jsonl", tmp_path / "bin" / "python"
    noted.touch()
    python.parent.mkdir()
    python.write_text(FAKE_PYTHON.format(executable=sys.executable, calls=str(noted)))
    python.chmod(0o755)
    return lambda: [json.loads(line) for line in noted.read_text().splitlines()]


@pytest.mark.parametrize("script", [*SCRIPTS, "slurm/job.inc", ".ci/run"])
def test_bash_can_read_the_whole_script(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)


@pytest.mark.parametrize("script", JOBS)
def test_started_without_sbatch_it_prints_how_to(script: str) -> None:
    ended = subprocess.run(
        ["bash", script], cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "submit this job by sbatch in the repository's root" in ended.stderr


@pytest.mark.parametrize(("script", "nodes"), [(TRAINERS[0], 1), (TRAINERS[1], 4)])
def test_outside_of_a_job_and_with_a_cluster_it_plans_the_job(
    script: str, nodes: int, tmp_path: Path, calls: Calls
) -> None:
    env = {"PATH": "/usr/bin:/bin", "VENV": str(tmp_path)}
    typed = ["cluster=dgx_h100", "run.name=a b"]
    subprocess.run(["bash", script, *typed], cwd=ROOT, env=env, check=True)
    (call,) = calls()
    own = ["-m", "pretrain.plan", f"cluster.nodes={nodes}", *OWN[script]]
    assert call["arguments"] == own + typed


def test_the_folder_of_the_log_files_comes_with_the_repository() -> None:
    assert (ROOT / "logs" / ".gitkeep").exists()  # without it Slurm ends a job without a word
    for script in SCRIPTS:
        assert "#SBATCH --output=logs/%x-%" in (ROOT / script).read_text()


@pytest.mark.slurm
@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_accepts_every_option_as_it_stands(cluster: Any, script: str) -> None:
    tried = subprocess.run(
        ["sbatch", "--test-only", script], cwd=ROOT, env=cluster.env, capture_output=True, text=True
    )
    assert tried.returncode == 0, tried.stderr


@pytest.mark.slurm
@pytest.mark.parametrize("script", TRAINERS)
def test_every_gpu_gets_one_task_with_the_overrides_after_the_scripts_own(
    cluster: Any, script: str, tmp_path: Path, calls: Calls
) -> None:
    overrides = ["run.name=a b", "+model=tiny", "optim.betas=[0.9,0.98]", "log.project='$HOME *'"]

    job = cluster.submit(script, overrides, log_dir=tmp_path, venv=tmp_path)

    assert job.wait_until_ended() == "COMPLETED", job.log
    command = ["-u", "-m", "pretrain.run", *OWN[script], *overrides]
    assert [call["arguments"] for call in calls()] == [command] * 4
    assert {call["cwd"] for call in calls()} == {str(ROOT)}
    tasks = [call["env"] for call in calls()]
    assert sorted(task["SLURM_PROCID"] for task in tasks) == ["0", "1", "2", "3"]
    assert sorted(task["SLURM_LOCALID"] for task in tasks) == ["0", "0", "1", "1"]
    assert [_tasks_on_this_node(task) for task in tasks] == [2] * 4
    assert {task["CUDA_VISIBLE_DEVICES"] for task in tasks} == {"0,1"}
    port = str(20_000 + 31 * int(job.number) % 12_000)
    assert {(task["MASTER_ADDR"], task["MASTER_PORT"]) for task in tasks} == {("node1", port)}


@pytest.mark.slurm
def test_each_task_gets_the_threads_of_its_cores(cluster, tmp_path, calls, monkeypatch) -> None:
    monkeypatch.delitem(cluster.env, "OMP_NUM_THREADS")
    job = cluster.submit(
        TRAINERS[0], [], log_dir=tmp_path, venv=tmp_path,
        options=["--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=5"],
    )  # fmt: skip
    assert job.wait_until_ended() == "COMPLETED", job.log
    [task] = [call["env"] for call in calls()]
    assert (task["SLURM_CPUS_PER_TASK"], task["OMP_NUM_THREADS"]) == ("5", "5")


@pytest.mark.slurm
def test_a_job_warned_of_its_end_saves_is_requeued_and_completes(cluster, tmp_path, calls) -> None:
    job = cluster.submit(TRAINERS[1], ["end=stopped"], log_dir=tmp_path, venv=tmp_path)
    job.wait(lambda: len(calls()) == 4, "all tasks started", limit_s=30)
    job.warn()

    assert job.wait_until_ended() == "COMPLETED", job.log
    assert job.show()["Restarts"] == "1"
    assert len(calls()) == 8
    assert {tuple(call["arguments"]) for call in calls()} == {tuple(calls()[0]["arguments"])}
    assert "start 1:" in job.log, "the log of the first start was overwritten"
    assert "start 2:" in job.log
    assert not list((ROOT / "logs").glob("state-*"))


@pytest.mark.slurm
def test_a_warned_job_whose_word_cannot_be_written_is_requeued_and_never_completed_unfinished(
    cluster: Any, tmp_path: Path, calls: Calls
) -> None:
    job = cluster.submit(TRAINERS[1], ["end=stopped"], log_dir=tmp_path, venv=tmp_path)
    word = ROOT / "logs" / f"state-{job.number}"
    job.wait(lambda: len(calls()) == 4, "all tasks started", limit_s=30)
    try:
        word.unlink(missing_ok=True)
        word.mkdir()  # as a full quota or a read-only checkout
        job.warn()
        job.wait(lambda: job.show()["Restarts"] == "1", "a requeue", limit_s=30)
        assert job.wait_until_ended() == "COMPLETED", job.log
    finally:
        word.rmdir()
    assert len(calls()) == 8
    assert job.log.count(f"state-{job.number} cannot be written: after a failure") == 1


@pytest.mark.slurm
def test_a_cancelled_job_is_not_requeued_though_its_tasks_have_saved(
    cluster: Any, tmp_path: Path, calls: Calls
) -> None:
    job = cluster.submit(TRAINERS[1], ["end=stopped"], log_dir=tmp_path, venv=tmp_path)
    job.wait(lambda: len(calls()) == 4, "all tasks started", limit_s=30)
    job.cancel()
    assert job.wait_until_ended() == "CANCELLED", job.log
    assert job.show()["Restarts"] == "0"
    assert len(calls()) == 4


@pytest.mark.slurm
@pytest.mark.parametrize(("status", "requeues", "steps"), [(1, 1, 4 + 1), (2, 0, 1)])
def test_a_failure_requeues_after_a_checkpoint_alone_and_a_wrong_setting_never(
    cluster: Any, status: int, requeues: int, steps: int, tmp_path: Path, calls: Calls
) -> None:
    """Checkpoints in the job's first start alone: what fails at one place ends at the second time.

    The first start has three restarts within the job.
    """
    job = cluster.submit(
        TRAINERS[0], [f"end=status={status}"], log_dir=tmp_path, venv=tmp_path,
        options=["--ntasks-per-node=2", "--gpus-per-node=2"],
    )  # fmt: skip
    assert job.wait_until_ended() == "FAILED", job.log
    shown = job.show()
    assert (shown["Restarts"], shown["ExitCode"]) == (str(requeues), f"{status}:0")
    assert len(calls()) == 2 * steps
    assert job.log.count("failed with status 1 after a checkpoint; to be requeued") == requeues


@pytest.mark.slurm
def test_a_stopped_job_that_slurm_does_not_requeue_fails_and_prints_how_to_continue(
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
def test_a_task_that_fails_ends_the_others_and_the_job_for_good(cluster, tmp_path, calls) -> None:
    job = cluster.submit(TRAINERS[1], ["end=failed"], log_dir=tmp_path, venv=tmp_path)

    assert job.wait_until_ended() == "FAILED", job.log
    assert job.show()["Restarts"] == "0"
    assert job.log.count("the reason") == 1


@pytest.mark.slurm
@pytest.mark.parametrize("script", SCRIPTS)
def test_submitted_from_elsewhere_it_names_the_option_that_helps(cluster, script, tmp_path) -> None:
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
def test_each_element_of_an_array_runs_its_share_and_a_job_alone_all(
    cluster: Any, tmp_path: Path, calls: Calls
) -> None:
    typed = ["encode", "data_dir=a b", "executor=slurm"]
    own = ["-u", "-m", "data_prep.encode", "num_workers=3", *typed[1:], "executor=local"]
    for options in (["--array=1-2"], []):
        options += ["--cpus-per-task=3", "--wait"]
        cluster.submit(ARRAY, typed, log_dir=tmp_path, venv=tmp_path, options=options)
    shares = [[*own, "share=1/2"], [*own, "share=2/2"]]
    assert sorted(call["arguments"] for call in calls()[:2]) == shares
    assert [call["arguments"] for call in calls()[2:]] == [own]


@pytest.fixture
def chain(cluster: Any, tmp_path: Path) -> Callable[..., tuple[str, list[str]]]:
    """Starts the script that submits all jobs, waits for their end: what it printed, the queue."""
    (tmp_path / "logs").mkdir()
    for name in ("slurm", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)

    def queue() -> list[str]:
        command = ["squeue", "-h", "-o", "%j %T"]
        return subprocess.run(
            command, env=cluster.env, check=True, capture_output=True, text=True
        ).stdout.splitlines()

    # As from a shell inside another job's array
    outer = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "9"}

    def start(*command: str) -> tuple[str, list[str]]:
        env = cluster.env | {"VENV": str(tmp_path)} | outer
        ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        end = time.monotonic() + 120
        while queue():
            assert time.monotonic() < end, queue()
            time.sleep(0.2)
        return ended.stdout, sorted(path.name for path in (tmp_path / "logs").iterdir())

    return start


@pytest.mark.slurm
def test_the_chain_has_an_array_and_a_finish_for_every_source_and_length(chain, calls) -> None:
    printed, _ = chain("bash", CHAIN, "data_dir=a b", "array_size=2")
    given = ["data_dir=data/wikibooks"]
    typed = ["data_dir=a b", "array_size=2", "executor=local"]
    seen = [(call["arguments"][2].split(".")[1], call["arguments"]) for call in calls()]
    for _, arguments in seen:
        assert arguments[3].startswith("num_workers=")
        load(arguments[3:])  # the jobs accept what they are given
    names = ["collect"] * 6 + ["dedup"] * 11 + ["vocab"] + ["encode"] * 3
    assert [name for name, _ in seen[:21]] == names
    assert sorted(name for name, _ in seen[21:]) == ["audit"] * 6 + ["build"] * 6
    for job, own, num_arrays in (
        ("collect", ["+source=wikipedia"], 1),
        ("collect", ["+source=bookcorpus"], 1),
        ("dedup", [], 5),
        ("vocab", [], 0),
        ("encode", [], 1),
        ("build", ["seq_len=128"], 1),
        ("audit", ["seq_len=128"], 1),
        ("build", ["seq_len=512"], 1),
        ("audit", ["seq_len=512"], 1),
    ):
        ends = [
            arguments[4:]
            for name, arguments in seen
            if name == job and arguments[5 : 5 + len(own)] == own
        ]
        whole = [*given, *own, *typed]
        for first in range(0, 2 * num_arrays, 2):
            array = sorted(ends[first : first + 2])
            assert array == [[*whole, "share=1/2"], [*whole, "share=2/2"]]
        assert ends[2 * num_arrays :] == [whole]  # the finish comes last
    assert printed.count(", an array of 2\n") == 12
    assert printed.endswith("python -m data_prep.status data_dir=a b\n")


@pytest.mark.slurm
def test_the_chain_takes_what_was_typed_and_what_waits_for_a_failed_job_is_cancelled(
    chain: Any, calls: Calls
) -> None:
    typed = ["+source=books", "source.path=novels", "seq_len=64", "end=refused"]
    _, logs = chain("sbatch", "--wait", "--mem=2G", CHAIN, "array_size=1", *typed)
    jobs = [call["arguments"][2].removeprefix("data_prep.") for call in calls()]
    assert jobs == ["collect"] * 2 + ["dedup"] * 6 + ["vocab"]
    assert "+source=books" in calls()[0]["arguments"]
    assert calls()[0]["env"]["SLURM_CPUS_PER_TASK"] == "16"  # not the submitting job's
    steps = [f"dedup-{step}" for step in ("candidates", "choices", "copies", "signatures")]
    assert sorted(name.rsplit("-", 1)[0] for name in logs) == [
        *("collect-books", "collect-books", "data-prep", "dedup", "dedup", *steps, "vocab")
    ]

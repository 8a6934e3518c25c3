"""What a training job does at its end, with stand-ins for Slurm's programs."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BATCH = """#!/bin/bash
#SBATCH --signal=B:USR1@300
. slurm/job.inc
pretrain run.name=x
"""
PROGRAMS = {
    # the n-th step ends with the n-th or last STATUS after such a WORD is written, -: none, and,
    # where WARNED is set, after a signal to the script
    "srun": """
echo "$MASTER_PORT $*" >>steps
step=$(wc -l <steps) words=($WORD -) statuses=($STATUS)
trap 'WARNED=' USR1
[ -z "$WARNED" ] || kill -USR1 "$PPID"
until [ -z "$WARNED" ]; do /bin/sleep 0.01; done # until the script has passed it on
word=${words[step - 1]-${words[-2]}}
[ "$word" = - ] || echo -n "$word" >"$BERT_JOB_FILE"
exit "${statuses[step - 1]-${statuses[-1]}}"
""",
    "scontrol": """
case $1 in
    show) echo node1 ;;
    requeue) touch requeued; exit "$REQUEUE" ;;
esac
""",
    "squeue": """
case $* in
    *%L) echo "$LEFT" ;;
    *) [ -n "$STATE" ] && echo "$STATE" ;;
esac
""",
    "sleep": "exit 0",
    "bin/python": "exit 0",
}


@dataclass(frozen=True)
class Ended:
    status: int
    is_requeued: bool
    log: str
    steps: list[str]  # the port of each and the arguments of srun


@pytest.fixture
def job(tmp_path: Path):
    """Run a batch script to its end; settings are those of the stand-ins."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    (tmp_path / "batch").write_text(BATCH)
    (tmp_path / "bin").mkdir()
    for name, code in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{code}")
        (tmp_path / name).chmod(0o755)

    def run(**given: str) -> Ended:
        usual = {"STATUS": "0", "WORD": "", "WARNED": "", "STATE": "RUNNING", "REQUEUE": "0",
                 "LEFT": "1-00:00:00"}  # fmt: skip
        slurm = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS": "8",
                 "SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "node1",
                 "VENV": str(tmp_path)}  # fmt: skip
        env = {**usual, **slurm, **given, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "batch"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30
        )
        log = done.stdout + done.stderr
        steps = tmp_path / "steps"
        lines = steps.read_text().splitlines() if steps.exists() else []
        return Ended(done.returncode, (tmp_path / "requeued").exists(), log, lines)

    return run


@pytest.mark.parametrize(
    "given",
    [
        {"WORD": "stopped"},
        {"WORD": "stopped", "STATE": ""},  # squeue does not answer
        {"WORD": "stopped", "STATE": "SIGNALING", "WARNED": "1"},
        {"STATUS": "1", "WARNED": "1"},  # a stop that could not be written: the process fails
        {"STATUS": "130", "WORD": "stopped"},  # Ctrl-C
        {"STATUS": "1", "WORD": "saved"},
    ],
)
def test_a_job_that_is_not_finished_and_has_saved_is_requeued(job, given) -> None:
    ended = job(**given)
    assert ended.is_requeued, ended.log
    assert "to be requeued to continue" in ended.log


@pytest.mark.parametrize(
    ("given", "status"),
    [({}, 0), ({"WARNED": "1"}, 0), ({"STATUS": "2", "WARNED": "1"}, 2), ({"STATUS": "1"}, 1)],
    ids=["done", "done when warned", "wrong settings", "nothing saved"],
)
def test_a_job_that_is_done_or_has_nothing_saved_is_not_requeued(job, given, status) -> None:
    ended = job(**given)
    assert (ended.status, ended.is_requeued) == (status, False), ended.log


@pytest.mark.parametrize("state", ["RUNNING", "", "COMPLETING"])
def test_a_stopped_job_never_succeeds_where_it_is_not_requeued(job, state) -> None:
    assert job(WORD="stopped", STATE=state, REQUEUE="1").status == 1


def test_a_word_that_cannot_be_written_is_said_at_the_start(job, tmp_path: Path) -> None:
    (tmp_path / "logs/state-7").mkdir(parents=True)
    ended = job(STATUS="1", WARNED="1")
    assert ended.is_requeued
    assert ended.log.count("logs/state-7 cannot be written") == 1


def test_a_missing_folder_of_logs_is_made(job, tmp_path: Path) -> None:
    ended = job(WORD="stopped")
    assert ended.is_requeued
    assert "cannot be written" not in ended.log
    assert list((tmp_path / "logs").iterdir()) == []


@pytest.mark.parametrize("left", ["4:59", "5:30", "59:00", "1:00:00", "2-00:00:00", "UNLIMITED"])
def test_a_time_limit_shorter_than_the_warning_is_said_once(job, left: str) -> None:
    log = job(LEFT=left).log
    assert log.count("min before it this job is told to save") == (left in ("4:59", "5:30"))


def test_the_line_about_the_time_limit_does_not_claim_the_warning_that_sbatch_was_given(
    job,
) -> None:
    assert "Unless sbatch was given another --signal, 5 min before it" in job(LEFT="4:59").log


def test_a_failure_after_a_checkpoint_restarts_in_the_job_at_another_port(job) -> None:
    ended = job(STATUS="1 137 0", WORD="saved saved saved")
    assert (ended.status, ended.is_requeued) == (0, False), ended.log
    assert len({step.split()[0] for step in ended.steps}) == 3
    assert "failed with status 137 after a checkpoint; restart 2 of 3 in this job" in ended.log


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"WORD": "saved saved saved saved saved"}, 4),
        ({"WORD": "saved saved", "RESTARTS": "1"}, 2),
        ({"WORD": "saved", "RESTARTS": "0"}, 1),
        ({"WORD": "saved -"}, 2),
        ({"WORD": "saved", "WARNED": "1"}, 1),
    ],
    ids=["by default", "used up", "none", "no new checkpoint", "warned"],
)
def test_a_failure_is_requeued_where_it_is_not_to_restart_in_the_job(job, given, steps) -> None:
    ended = job(STATUS="1", **given)
    assert (len(ended.steps), ended.is_requeued) == (steps, True), ended.log
    assert "failed with status 1 after a checkpoint; to be requeued" in ended.log


@pytest.mark.parametrize(
    ("given", "status"),
    [({"STATUS": "2"}, 2), ({"STATUS": "1 2"}, 2), ({"STATUS": "137", "STATE": "COMPLETING"}, 137)],
    ids=["wrong settings", "wrong settings in the restart", "cancelled"],
)
def test_wrong_settings_and_cancelled_jobs_do_not_restart(job, given, status) -> None:
    ended = job(WORD="saved saved", **given)
    assert (ended.status, ended.is_requeued) == (status, False), ended.log
    assert len(ended.steps) == len(given["STATUS"].split())


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("RESTARTS", "yes", "must be numbers"),
        ("SPARE_NODES", "-1", "must be numbers"),
        ("SPARE_NODES", "4", "leaves none of the 4 nodes"),
    ],
)
def test_wrong_restarts_and_spare_nodes_are_refused(job, name: str, value: str, why: str) -> None:
    ended = job(**{name: value})
    assert (ended.status, ended.is_requeued, ended.steps) == (2, False, [])
    assert f"{name}={value}" in ended.log
    assert why in ended.log


def test_spare_nodes_get_no_tasks(job) -> None:
    assert "--nodes" not in job().steps[0]
    ended = job(SPARE_NODES="1")
    assert "--nodes=3 --ntasks=6" in ended.steps[-1]
    assert "6 tasks on" in ended.log

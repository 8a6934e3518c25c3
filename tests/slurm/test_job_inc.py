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
    # ends with STATUS after WORD is written, and, where WARNED is set, after a signal to the script
    "srun": """
trap 'WARNED=' USR1
[ -z "$WARNED" ] || kill -USR1 "$PPID"
until [ -z "$WARNED" ]; do /bin/sleep 0.01; done # until the script has passed it on
[ -z "$WORD" ] || echo -n "$WORD" >"$BERT_JOB_FILE"
exit "$STATUS"
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
        slurm = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS": "1",
                 "SLURM_JOB_NODELIST": "node1", "VENV": str(tmp_path)}  # fmt: skip
        env = {**usual, **slurm, **given, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "batch"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30
        )
        log = done.stdout + done.stderr
        return Ended(done.returncode, (tmp_path / "requeued").exists(), log)

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

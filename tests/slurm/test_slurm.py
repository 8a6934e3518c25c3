"""Training by sbatch on a real Slurm: two nodes, two tasks each, tiny sizes, gloo on the CPU."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.core.files import read_json
from pretrain.checkpoint.files import newest_whole

SCRIPT = "slurm/pretrain_large.sh"
TINY = [
    "+model=tiny", "model.hidden_size=64", "model.intermediate_size=128", "data=sample",
    "engine.device=cpu", "engine=fp32",
    "optim.global_batch=16", "monitor.every_steps=1", "eval.max_examples=64",
]  # fmt: skip
STEPS = (300, 150)  # of the first and the second phase
TWO_PHASES = [
    "recipe=nvidia_lamb", *TINY, "data.seq_len=32", f"schedule.total_steps={STEPS[0]}",
    "phases=[{changes: {data: {seq_len: 64}, optim: {global_batch: 8, learning_rate: 4e-3}, "
    f"schedule: {{total_steps: {STEPS[1]}, warmup_fraction: 0.128}}}}, moments: kept, "
    "optimizer_step: reset, loss_scaler: reset}]",
    "checkpoint.every_steps=10", "eval.every_steps=1000",
    "engine.timeout_minutes=2",  # for the rank that is stopped: the others end after 96 s
]  # fmt: skip
RESTARTED = "failed with status 137 after a checkpoint; restart 1 of 1 in this job"
LIMIT_S = 600  # four tasks import torch on as few as two cores

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(4 * LIMIT_S)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slurm")


@pytest.fixture(scope="module")
def undisturbed(cluster: Any, folder: Path) -> Any:
    """Both phases without a disturbance, ended; the first task also makes the sample corpus."""
    job = _submit(cluster, folder, "undisturbed", *TWO_PHASES)
    job.wait_until_ended(LIMIT_S)
    return job


@pytest.fixture(scope="module")
def disturbed(cluster: Any, undisturbed: Any, folder: Path) -> Any:
    """The same run, restarted twice in its job, and requeued after signals and a lost rank."""
    run = folder / "runs/disturbed"
    once = replace(cluster, env=cluster.env | {"RESTARTS": "1"})
    job = _submit(once, folder, "disturbed", *TWO_PHASES)

    def kill() -> None:
        os.kill(job.process_of(1), signal.SIGKILL)

    def preempt() -> None:
        """Submit a job that takes all nodes. Slurm sends USR1 to the script, as --signal says."""
        command = ["sbatch", "--partition=urgent", "--nodes=4", "--gpus-per-node=8", "--wrap=true"]
        subprocess.run(command, env=cluster.env, cwd=folder, check=True, capture_output=True)

    def is_seen(requeues: int, restarts: int) -> bool:
        is_restarted = job.log.count(RESTARTED) == restarts
        return is_restarted and job.show()["Restarts"] == str(requeues)

    disturbances: list[tuple[str, int, Callable[[], None], int, int]] = [
        # after how many steps; requeues and restarts in the job until then
        ("a killed rank", 0, kill, 0, 1),
        ("a signal to the script", 0, lambda: job.cancel("--batch", "--signal=TERM"), 1, 1),
        ("preemption", 0, preempt, 2, 1),
        ("preemption where --signal does not hold", 0, lambda: job.cancel("--signal=TERM"), 3, 1),
        ("another killed rank", STEPS[0], kill, 3, 2),
        ("a stopped rank", STEPS[0], lambda: os.kill(job.process_of(3), signal.SIGSTOP), 4, 2),
    ]
    for what, after, disturb, *seen in disturbances:
        before = max(_saved(run), after)
        job.wait(lambda n=before: _saved(run) > n, f"a checkpoint before {what}", LIMIT_S)
        disturb()
        job.wait(lambda seen=seen: is_seen(*seen), f"a start after {what}", LIMIT_S)
    job.wait_until_ended(LIMIT_S)
    return job


def _submit(cluster: Any, folder: Path, name: str, *overrides: str, **how: Any) -> Any:
    folders = [f"data.dir={folder}/data", f"run.dir={folder}/runs", f"run.name={name}"]
    return cluster.submit(SCRIPT, [*overrides, *folders], log_dir=folder, **how)


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last may be half
    return [json.loads(line) for line in lines]


def _steps(run: Path, metric: str) -> list[int]:
    """The steps with this metric in metrics.jsonl, in the order of its lines."""
    return [record["step"] for record in _lines(run / "metrics.jsonl") if metric in record]


def _saved(run: Path) -> int:
    """The step of the last checkpoint."""
    events = _lines(run / "events.jsonl")
    return max((event["step"] for event in events if event["event"] == "checkpoint"), default=0)


@pytest.mark.slow
def test_two_nodes_with_two_tasks_each_train_both_phases_to_the_last_step(
    undisturbed: Any, folder: Path
) -> None:
    run = folder / "runs/undisturbed"
    assert undisturbed.state == "COMPLETED", undisturbed.log
    assert undisturbed.show()["Restarts"] == "0"
    assert _steps(run, "train/loss") == list(range(1, sum(STEPS) + 1))
    assert _steps(run, "eval/mlm_loss") == [STEPS[0], sum(STEPS)]
    started = [event for event in _lines(run / "events.jsonl") if event["event"] == "started"]
    assert [event["ranks"] for event in started] == [4]
    newest = newest_whole(run)
    assert newest.name == f"step-{sum(STEPS):08d}"
    assert (run / "export/model.safetensors").exists()
    config = read_json(run / "export/config.json")
    assert (config["hidden_size"], config["num_hidden_layers"]) == (64, 2)


@pytest.mark.slow
def test_a_job_restarts_after_lost_ranks_requeues_after_signals_and_completes(
    disturbed: Any, folder: Path
) -> None:
    assert disturbed.state == "COMPLETED", disturbed.log
    assert disturbed.show()["Restarts"] == "4"
    assert disturbed.log.count(RESTARTED) == 2
    assert disturbed.log.count("saved before the last step; to be requeued to continue") == 3
    assert (
        len(re.findall("failed with status .* after a checkpoint; to be requeued", disturbed.log))
        == 1
    ), "the stopped rank, when the restarts were used up"
    told = re.findall("no progress for .*", disturbed.log)
    assert len(told) == 1, disturbed.log
    assert "rank 3, which sends no heartbeat" in told[0]
    stops = [e for e in _lines(folder / "runs/disturbed/events.jsonl") if e["event"] == "stopped"]
    assert [stop["signal"] for stop in stops] == ["SIGUSR1", "SIGUSR1", "SIGTERM"]
    assert max(stop["step"] for stop in stops) < STEPS[0]


@pytest.mark.slow
def test_after_requeues_and_restarts_every_step_is_there_once_and_the_weights_are_the_same(
    disturbed: Any, folder: Path
) -> None:
    runs = [folder / "runs" / name for name in ("undisturbed", "disturbed")]
    assert _steps(runs[1], "train/loss") == list(range(1, sum(STEPS) + 1)), disturbed.log
    straight, requeued = [
        read_json(run / f"checkpoints/step-{sum(STEPS):08d}/manifest.json")["files"] for run in runs
    ]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert straight[name] == requeued[name]


@pytest.mark.slow
def test_a_spare_node_takes_the_place_of_a_lost_one_without_the_queue(
    cluster: Any, tmp_path: Path
) -> None:
    spare = replace(cluster, env=cluster.env | {"SPARE_NODES": "1"})
    words = ["recipe=fast", *TINY, "data.seq_len=32", "schedule.total_steps=400",
             "checkpoint.every_steps=10", "eval.every_steps=1000"]  # fmt: skip
    options = ["--nodes=3", "--no-kill", "--ntasks-per-node=1", "--gpus-per-node=1"]
    job, run = _submit(spare, tmp_path, "spare", *words, options=options), tmp_path / "runs/spare"
    job.wait(lambda: _saved(run) > 0, "a checkpoint", LIMIT_S)
    lost = job.control("show", "hostnames", job.show()["NodeList"]).split()[1]
    job.control(
        "update", f"nodename={lost}", "state=down", "reason=lost"
    )  # it comes back by itself
    assert job.wait_until_ended(LIMIT_S) == "COMPLETED", job.log
    assert job.show()["Restarts"] == "0"
    assert "restart 1 of 3 in this job" in job.log
    assert job.log.count("2 ranks on 2 hosts, 1 each") == 2
    assert _steps(run, "train/loss") == list(range(1, 401))


def test_a_wrong_setting_fails_the_job_with_one_message_though_the_first_task_starts_late(
    cluster: Any, tmp_path: Path
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    late = '[ "$SLURM_PROCID" != 0 ] || sleep 2'  # as on a node that has yet to read its files
    python.write_text(f'#!/bin/sh\n{late}\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)

    job = _submit(cluster, tmp_path, "wrong", *TINY, "optim.global_batch=2", venv=tmp_path)

    assert job.wait_until_ended(60) == "FAILED", job.log
    assert job.log.count("cannot be dealt to 4 ranks") == 1, job.log
    assert "Traceback" not in job.log
    assert not (tmp_path / "runs").exists()

"""Training by sbatch on a real Slurm: two nodes, two tasks each, tiny sizes, gloo on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import read_json
from pretrain.checkpoint import newest_whole

SCRIPT = "slurm/pretrain_large.sh"
TINY = [
    "+model=tiny", "model.hidden_size=64", "model.intermediate_size=128", "data=sample",
    "optim.global_batch=16", "monitor.every_steps=1", "eval.max_examples=64",
]  # fmt: skip
LIMIT_S = 600  # four tasks import torch on as few as two cores

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(2 * LIMIT_S)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slurm")


@pytest.fixture(scope="module")
def trial(cluster: Any, folder: Path) -> Any:
    """The trial that README shows, ended: its first task also makes the sample corpus."""
    job = _submit(cluster, folder, "trial", "schedule.total_steps=20", "checkpoint.every_steps=10")
    job.wait_until_ended(LIMIT_S)
    return job


def _submit(cluster: Any, folder: Path, name: str, *overrides: str, **how: Any) -> Any:
    folders = [f"data.dir={folder}/data", f"run.dir={folder}/runs", f"run.name={name}"]
    return cluster.submit(SCRIPT, [*TINY, *folders, *overrides], log_dir=folder, **how)


def _steps(run: Path, figure: str) -> list[int]:
    """The steps for which metrics.jsonl holds a figure, in the order of its lines."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last may be half
    return [record["step"] for record in map(json.loads, lines) if figure in record]


@pytest.mark.slow
def test_two_nodes_with_two_tasks_each_train_to_the_last_step(trial: Any, folder: Path) -> None:
    assert trial.state == "COMPLETED", trial.log
    assert _steps(folder / "runs/trial", "train/loss") == list(range(1, 21))
    assert _steps(folder / "runs/trial", "eval/mlm_loss") == [20]
    [started] = (folder / "runs/trial/events.jsonl").read_text().splitlines()[:1]
    assert json.loads(started)["ranks"] == 4


@pytest.mark.slow
def test_it_ends_with_a_whole_checkpoint_of_the_last_step(trial: Any, folder: Path) -> None:
    newest = newest_whole(folder / "runs/trial")
    assert newest is not None, trial.log
    assert newest.name == "step-00000020"


@pytest.mark.slow
def test_it_ends_with_an_export_of_the_sizes_that_were_typed(trial: Any, folder: Path) -> None:
    export = folder / "runs/trial/export"
    assert (export / "model.safetensors").exists(), trial.log
    config = read_json(export / "config.json")
    assert (config["hidden_size"], config["num_hidden_layers"]) == (64, 2)


@pytest.mark.slow
def test_a_job_warned_of_its_end_continues_after_the_requeue_at_the_step_it_saved(
    cluster: Any, trial: Any, folder: Path
) -> None:
    run = folder / "runs/warned"
    job = _submit(cluster, folder, "warned", "schedule.total_steps=150")
    job.wait(lambda: len(_steps(run, "train/loss")) >= 5, "step 5", LIMIT_S)
    job.warn()

    assert job.wait_until_ended(LIMIT_S) == "COMPLETED", job.log
    assert job.show()["Restarts"] == "1"
    assert _steps(run, "train/loss") == list(range(1, 151))
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    [stopped] = [event for event in events if event["event"] == "stopped"]
    [resumed] = [event for event in events if event["event"] == "resumed"]
    assert resumed["step"] == stopped["step"] < 150
    assert (run / "export/model.safetensors").exists()


def test_a_wrong_setting_fails_the_job_with_one_message_though_the_first_task_starts_late(
    cluster: Any, tmp_path: Path
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    late = '[ "$SLURM_PROCID" != 0 ] || sleep 2'  # as on a node that has yet to read its files
    python.write_text(f'#!/bin/sh\n{late}\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)

    job = _submit(cluster, tmp_path, "wrong", "optim.global_batch=2", venv=tmp_path)

    assert job.wait_until_ended(60) == "FAILED", job.log
    assert job.log.count("cannot be dealt to 4 ranks") == 1, job.log
    assert "Traceback" not in job.log
    assert not (tmp_path / "runs").exists()

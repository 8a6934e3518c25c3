"""docs/launch/: each file keeps its service's schema, and starts what it describes.

The schemas in tests/fixtures are JobSet's and SkyPilot's own; nothing here needs either.
"""

import gzip
import itertools
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from data_prep.core import job
from data_prep.core.config import SettingsError
from pretrain.config import load
from scripts import start_node

PROJECT = Path(__file__).resolve().parents[2]
LAUNCH = PROJECT / "docs/launch"
SCHEMAS = PROJECT / "tests/fixtures/schemas"


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((LAUNCH / name).read_text())
    return document


def jobs(name: str) -> dict[str, dict[str, Any]]:
    """The specifications of a JobSet's jobs, by their names."""
    return {job["name"]: job["template"]["spec"] for job in read(name)["spec"]["replicatedJobs"]}


def container(spec: dict[str, Any]) -> dict[str, Any]:
    (only,) = spec["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize(
    ("name", "schema"),
    [("jobset.yaml", "jobset-v1alpha2"), ("data_prep.yaml", "jobset-v1alpha2"),
     ("sky.yaml", "skypilot-0.14")],
)  # fmt: skip
def test_a_file_keeps_its_service_s_schema(name: str, schema: str) -> None:
    against = json.loads(gzip.decompress((SCHEMAS / f"{schema}.json.gz").read_bytes()))
    validator = jsonschema.Draft202012Validator(against)
    document = read(name)
    assert [error.message for error in validator.iter_errors(document)] == []
    document["spec" if "spec" in document else "resources"]["no_such_key"] = 1
    assert not validator.is_valid(document)


def test_the_settings_of_the_jobset_are_accepted() -> None:
    spec = jobs("jobset.yaml")["node"]
    environment = {e["name"]: e.get("value") for e in container(spec)["env"]}
    ranks = int(environment["NUM_NODES"]) * int(environment["RANKS_PER_NODE"])
    load.load(container(spec)["args"], world_size=ranks)


def test_the_settings_of_the_sky_task_are_accepted() -> None:
    task = read("sky.yaml")
    gpus = int(task["resources"]["accelerators"].split(":")[1])
    load.load(task["envs"]["SETTINGS"].split(), world_size=task["num_nodes"] * gpus)


@pytest.mark.parametrize("name", ["sky.yaml", "hosts.sh"])
def test_torchrun_gives_ranks_that_are_told_to_end_five_minutes_to_save(name: str) -> None:
    assert re.search(r"--shutdown-timeout[= ]300\b", (LAUNCH / name).read_text())


def test_a_jobset_starts_all_pods_again_except_after_a_refusal() -> None:
    """Status 2 fails the job by its pod failure policy, for which the JobSet fails."""
    jobset, spec = read("jobset.yaml")["spec"], jobs("jobset.yaml")["node"]
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["containerName"] == container(spec)["name"]
    assert rule["onExitCodes"]["values"] == [2]
    (rule,) = jobset["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert jobset["failurePolicy"]["maxRestarts"] > 0


def test_the_pods_of_a_jobset_find_each_other() -> None:
    jobset, spec = read("jobset.yaml"), jobs("jobset.yaml")["node"]
    environment = {e["name"]: e for e in container(spec)["env"]}
    name = jobset["metadata"]["name"]
    assert environment["MASTER_ADDR"]["value"] == f"{name}-node-0-0.{name}"
    assert int(environment["NUM_NODES"]["value"]) == spec["completions"] == spec["parallelism"]
    gpus = container(spec)["resources"]["limits"]["nvidia.com/gpu"]
    assert int(environment["RANKS_PER_NODE"]["value"]) == gpus
    index = "batch.kubernetes.io/job-completion-index"
    assert index in environment["NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]


def test_each_stage_of_data_preparation_waits_for_the_one_before() -> None:
    listed = read("data_prep.yaml")["spec"]["replicatedJobs"]
    for before, after in itertools.pairwise(listed):
        assert after["dependsOn"] == [{"name": before["name"], "status": "Complete"}]


def test_the_stages_of_data_preparation_share_their_tasks_and_finish_them(
    tmp_path, monkeypatch
) -> None:
    """Each container's own command, with a `python` that prints its arguments."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/texts").mkdir(parents=True)
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    started = []
    for name, spec in jobs("data_prep.yaml").items():
        pod = container(spec)
        index = spec.get("completions", 1) - 1  # the last pod's
        environment = {e["name"]: e["value"] for e in pod["env"]}
        printed = subprocess.run(
            [*pod["command"], *pod["args"]], check=True, capture_output=True, text=True,
            env={**environment, "PATH": path, "JOB_COMPLETION_INDEX": str(index)},
        ).stdout  # fmt: skip
        for line in printed.splitlines():
            stage, *settings = line.removeprefix("-u -m data_prep.").split()
            shares = [word for word in settings if word.startswith("share=")]
            assert shares == ([f"share={index + 1}/{index + 1}"] if "shares" in name else [])
            started.append((stage, bool(shares)))
    job.load(settings)
    assert started == [
        ("collect", True), ("collect", False), ("dedup", False), ("vocab", False),
        ("encode", True), ("encode", False), ("build", True), ("build", False), ("audit", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("statuses", "word", "status"),
    [
        ([0, 0], "", 0),
        ([0, 0], "saved", 0),
        ([0, 0], "stopped", 75),
        ([-9, 2], "", 2),
        ([1, -15], "saved", 1),
        ([-9, 0], "stopped", 1),
    ],
    ids=["finished", "saved and finished", "stopped", "refused", "failed", "killed"],
)
def test_a_node_s_exit_status_is_that_of_its_ranks(statuses, word: str, status: int) -> None:
    assert start_node.node_status(statuses, word) == status


def test_the_ranks_of_a_node_are_numbered_after_those_of_the_nodes_before() -> None:
    given = {"NUM_NODES": "3", "NODE_RANK": "1", "RANKS_PER_NODE": "2", "MASTER_ADDR": "a"}
    ranks = start_node.rank_environments(given)
    assert [(r["RANK"], r["LOCAL_RANK"], r["WORLD_SIZE"]) for r in ranks] == [
        ("2", "0", "6"), ("3", "1", "6"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"NODE_RANK": "3"}, "NODE_RANK=3 must be below NUM_NODES=3"),
        ({"NUM_NODES": "two"}, "NUM_NODES=two: give"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR=: give"),
    ],
)
def test_wrong_variables_of_a_node_are_refused(wrong: dict[str, str], message: str) -> None:
    given = {"NUM_NODES": "3", "NODE_RANK": "1", "RANKS_PER_NODE": "2", "MASTER_ADDR": "a"}
    with pytest.raises(SettingsError, match=re.escape(message)):
        start_node.rank_environments(given | wrong)

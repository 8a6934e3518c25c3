"""One run through three launchers, each with two nodes of one rank on this machine.

SkyPilot's `run` section until its instances are taken away, JobSet's command until a pod is
evicted, ssh over a list of hosts to the end: the weights and losses are those of an unbroken run.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from run_in_fork import TINY, _free_port, finished_run

from data_prep.core.files import checksum
from pretrain.run_folder.jsonl import readable_lines

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

PROJECT = Path(__file__).resolve().parents[2]
LAUNCH = PROJECT / "docs/launch"
LAST = 24
EVERY = 4
LIMIT_S = 900  # of a start on a busy machine
SETTINGS = (
    *TINY, f"schedule.total_steps={LAST}", "eval.every_steps=24", "eval.max_examples=8",
    f"checkpoint.every_steps={EVERY}", "engine.device=cpu",
)  # fmt: skip


@dataclass
class Ends:
    """What each launcher's nodes ended with, and the two run folders."""

    sky: list[int]
    jobset: list[int]
    hosts: list[int]
    refused: list[int]
    printed: str
    broken: Path
    straight: Path


class Nodes:
    """The processes that start a launcher's nodes."""

    def __init__(self, commands: list[tuple[list[str], dict[str, str]]], cwd: Path) -> None:
        self.output = cwd / "output.txt"
        base = {
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{cwd}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        with self.output.open("ab") as file:
            self.processes = [
                subprocess.Popen(command, cwd=cwd, env=base | env, stdout=file, stderr=file)
                for command, env in commands
            ]

    def wait(self) -> list[int]:
        return [process.wait(LIMIT_S) for process in self.processes]

    def kill_all(self) -> None:
        """As a provider takes instances away: every process of both nodes."""
        for process in self.processes:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()

    def wait_for_checkpoint(self, folder: Path, after: int) -> int:
        """The number of the first checkpoint after that step, as soon as there is one."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end and None in [p.poll() for p in self.processes]:
            if newest := [step for step in checkpoints(folder) if step > after]:
                return newest[0]
            time.sleep(0.01)
        raise AssertionError(self.output.read_text())


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("checkpoints/step-*"))


def sky_nodes(cwd: Path, data: Path) -> Nodes:
    """The task's `run` on each node, with the variables that SkyPilot sets."""
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    # only the port is this test's
    script = task["run"].replace("--master-port 29500", f"--master-port {_free_port()}")
    environment = {
        **task["envs"],
        "RUN": "x", "RUNS": str(cwd / "runs"), "DATA": str(data), "SETTINGS": " ".join(SETTINGS),
        "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "1",
        "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1",
    }  # fmt: skip
    return Nodes(
        [(["bash", "-c", script], environment | {"SKYPILOT_NODE_RANK": str(n)}) for n in (0, 1)],
        cwd,
    )


def jobset_nodes(cwd: Path, data: Path, *more: str) -> Nodes:
    """The container's command in each pod, with its variables."""
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    container: dict[str, Any] = pod["containers"][0]
    environment = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    environment |= {
        "RANKS_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [*container["command"], *SETTINGS, f"data.dir={data}", *more]
    return Nodes([(command, environment | {"NODE_RANK": str(n)}) for n in (0, 1)], cwd)


def listed_hosts(cwd: Path, data: Path) -> Nodes:
    """The script over ssh, where `ssh -n HOST COMMAND` is a shell of this machine."""
    (cwd / "bin").mkdir()
    (cwd / "bin/ssh").write_text('#!/bin/bash\nexec bash -c "${*:3}"\n')
    (cwd / "bin/ssh").chmod(0o755)
    (cwd / "hosts").write_text("# two nodes\n127.0.0.1\nlocalhost\n")
    command = ["bash", str(LAUNCH / "hosts.sh"), "hosts", *SETTINGS, f"data.dir={data}"]
    return Nodes([(command, {"RANKS": "1", "PORT": str(_free_port())})], cwd)


@pytest.fixture(scope="module")
def ends(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Ends:
    straight, cwd = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("broken")
    finished_run([*SETTINGS, f"data.dir={sample_dir}"], straight, ranks=2)
    (cwd / ".venv").symlink_to(sys.prefix)
    folder = cwd / "runs/x"

    nodes = sky_nodes(cwd, sample_dir)
    step = nodes.wait_for_checkpoint(folder, after=0)
    nodes.kill_all()
    sky = nodes.wait()

    nodes = jobset_nodes(cwd, sample_dir)
    nodes.wait_for_checkpoint(folder, after=step + EVERY)
    nodes.processes[1].send_signal(signal.SIGTERM)
    jobset = nodes.wait()

    refused = jobset_nodes(cwd, sample_dir, "optim.learning_rate=1").wait()
    nodes = listed_hosts(cwd, sample_dir)
    hosts = nodes.wait()
    return Ends(sky, jobset, hosts, refused, nodes.output.read_text(), folder, straight / "runs/x")


def losses(folder: Path) -> list[tuple[int, float]]:
    records = readable_lines(folder / "metrics.jsonl")
    return [(record["step"], record["train/loss"]) for record in records if "train/loss" in record]


def test_a_run_whose_instances_are_taken_away_has_not_ended_by_itself(ends: Ends) -> None:
    assert ends.sky == [-signal.SIGKILL] * 2


def test_an_eviction_of_one_pod_saves_and_node_0_asks_for_another_start(ends: Ends) -> None:
    assert ends.jobset == [75, 0], ends.printed
    assert "stopped; the same command continues from step" in ends.printed


def test_refused_settings_end_every_pod_with_status_2(ends: Ends) -> None:
    assert ends.refused == [2, 2], ends.printed


def test_the_last_launcher_finishes_the_run(ends: Ends) -> None:
    assert ends.hosts == [0], ends.printed
    assert (ends.broken / "export/model.safetensors").exists()


def test_weights_and_losses_are_those_of_an_unbroken_run(ends: Ends) -> None:
    assert losses(ends.broken) == losses(ends.straight)
    assert [step for step, _ in losses(ends.broken)] == list(range(1, LAST + 1))
    last = f"checkpoints/step-{LAST:08}/model.safetensors"
    assert checksum(ends.broken / last) == checksum(ends.straight / last)

"""A private Slurm cluster for the session: real daemons, virtual nodes, counted GPUs."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# MINI_SLURM names another program that starts a private cluster
MINI_SLURM = os.environ.get("MINI_SLURM", str(ROOT / "tests/support/mini_slurm"))
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL",
         "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One submitted job, seen through scontrol."""

    number: str
    log_path: Path
    env: dict[str, str]

    def show(self) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        shown = self.control("show", "job", "--oneliner", self.number)
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    @property
    def state(self) -> str:
        return self.show()["JobState"]

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def control(self, *arguments: str) -> str:
        return subprocess.run(
            ["scontrol", *arguments], env=self.env, check=True, capture_output=True, text=True
        ).stdout

    def warn(self) -> None:
        """What --signal=B:USR1@300 does five minutes before the end: USR1 to the batch script."""
        self.cancel("--batch", "--signal=USR1")

    def cancel(self, *options: str) -> None:
        """scancel: ends the job, or sends a signal where the options say so."""
        subprocess.run(["scancel", *options, self.number], env=self.env, check=True)

    def process_of(self, rank: int) -> int:
        """The process of this task; nodes hide theirs from each other, not from us."""
        marks = {f"SLURM_JOB_ID={self.number}", f"SLURM_PROCID={rank}"}
        marks.add(f"SLURM_CONF={self.env['SLURM_CONF']}")  # other clusters have such jobs, too
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                parent = re.findall(r"PPid:\s*(\d+)", (process / "status").read_text())[0]
                is_task = "slurmstepd" in Path(f"/proc/{parent}/comm").read_text()
                if is_task and marks <= set((process / "environ").read_text().split("\0")):
                    return int(process.name)
        raise AssertionError(f"no process is task {rank} of job {self.number}")

    def wait(self, met: Callable[[], bool], what: str, limit_s: float) -> None:
        """Until `met` or the job's end. AssertionError, with the log, when neither comes."""
        end = time.monotonic() + limit_s
        while not met() and (ended := self.state) not in ENDED:
            assert time.monotonic() < end, f"{what}: not in {limit_s} s ({ended})\n{self.log}"
            time.sleep(0.1)
        assert met(), f"{what}: the job is {self.state}\n{self.log}"

    def wait_until_ended(self, limit_s: float = 60) -> str:
        """The final state."""
        self.wait(lambda: self.state in ENDED, "the end", limit_s)
        return self.state


@dataclass(frozen=True)
class Cluster:
    env: dict[str, str]  # with SLURM_CONF, by which the clients find the cluster

    def submit(
        self, script: str, overrides: Sequence[str], *, log_dir: Path,
        options: Sequence[str] = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2"),
        venv: Path = Path(sys.prefix), chdir: Path = ROOT,
    ) -> Job:  # fmt: skip
        """sbatch, from the repository's root unless told otherwise."""
        log = f"--output={log_dir}/%x-%j.out"
        number = subprocess.run(
            ["sbatch", "--parsable", log, *options, str(ROOT / script), *overrides],
            env=self.env | {"VENV": str(venv)}, cwd=chdir, check=True, capture_output=True,
            text=True,
        ).stdout.strip()  # fmt: skip
        return Job(
            number, log_dir / f"{Path(script).stem}-{number}.out".replace("_", "-"), self.env
        )


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes of eight GPUs, so that every script is accepted as it stands."""
    missing = [
        name for name in ("sbatch", "slurmctld", "slurmd", "munged") if not shutil.which(name)
    ]
    if missing:
        pytest.skip(f"no {missing[0]}: apt-get install slurm-wlm munge iproute2")
    if os.geteuid() != 0:
        pytest.skip("a private Slurm cluster needs root")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        size = ["--nodes", "4", "--gpus", "8", "--cpus", "64"]
        try:
            subprocess.run([MINI_SLURM, "start", *size, folder], check=True)
            line = subprocess.run(
                [MINI_SLURM, "env", folder], check=True, capture_output=True, text=True
            ).stdout
            settings = dict(re.findall(r"(SLURM_CONF)=(\S+)", line))
            yield Cluster({**os.environ, **settings, "OMP_NUM_THREADS": "1"})
        finally:
            subprocess.run([MINI_SLURM, "stop", folder], check=True)

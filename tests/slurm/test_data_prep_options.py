"""slurm/data_prep.sh: what it asks Slurm for, and what it refuses; Slurm's commands are fakes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NOVELS = ["data_dir=novels", "+source=sample", "seq_len=64", "array_size=2"]
# What scontrol shows of a job that was submitted with the options of the script alone
OWN = (
    "JobId=7 QOS=normal Account=(null) Features=(null) TimeLimit=00:10:00 Partition=main "
    "CPUs/Task=1 MinMemoryNode=1G Reservation=(null) Comment=x"
)

Submit = Callable[..., list[list[str]]]


@pytest.fixture
def submit(tmp_path: Path) -> Submit:
    """Run the script with commands of its own; return the options of each job it submits."""
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "sinfo", "scontrol"):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n. {tmp_path}/{name}\n")
        path.chmod(0o755)
    (tmp_path / "sbatch").write_text(
        f'printf "%s\\t" "$@" >>{tmp_path}/jobs; echo >>{tmp_path}/jobs\necho 5\n'
    )
    (tmp_path / "batch").mkdir()
    # As Slurm runs a batch script: a copy of this name
    shutil.copy(ROOT / "slurm" / "data_prep.sh", tmp_path / "batch" / "slurm_script")

    def run(
        *typed: str, nodes: str = "main* 64 256000", job: str = "", status: int = 0, **env: str
    ) -> list[list[str]]:
        (tmp_path / "sinfo").write_text(
            f'case "$3" in *c) f=2 ;; *) f=3 ;; esac; echo "{nodes}" | cut -d " " -f 1,$f\n'
        )
        (tmp_path / "scontrol").write_text(f'echo "{job}"\n')
        (tmp_path / "jobs").write_text("")
        script = tmp_path / "batch" / "slurm_script" if job else ROOT / "slurm" / "data_prep.sh"
        path = f"{tmp_path}/bin:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(script), *(typed or NOVELS)], cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "PATH": path, "SLURM_JOB_ID": "7", "VENV": "/none", **env},
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        run.err = done.stderr  # type: ignore[attr-defined]
        jobs = [line.split("\t") for line in (tmp_path / "jobs").read_text().splitlines()]
        return [job[: job.index("slurm/data_prep_array.sh")] for job in jobs]

    return run


@pytest.mark.parametrize(
    ("nodes", "asked"),
    [
        ("main* 64 256000", []),
        ("main* 16 32768", []),
        ("main* 4 256000", ["--cpus-per-task=4"]),
        ("main* 4 8000\nmain* 8 16000", ["--cpus-per-task=8", "--mem=16000"]),
        ("main* 8 1", ["--cpus-per-task=8"]),  # memory is not managed
        ("other 2 100\nmain* 12 64000", ["--cpus-per-task=12"]),
        ("", []),
    ],
)
def test_an_element_asks_for_no_more_than_a_node_has(submit, nodes: str, asked) -> None:
    jobs = submit(nodes=nodes)
    assert len(jobs) == 15
    for job in jobs:
        assert [o for o in job if o.startswith(("--cpus", "--mem"))] == asked


@pytest.mark.parametrize(
    ("typed", "cores"),
    [
        (["--partition=small"], "--cpus-per-task=2"),
        (["num_workers=3"], "--cpus-per-task=3"),
        (["--cpus-per-task=5"], "--cpus-per-task=5"),
    ],
)
def test_what_is_typed_decides_the_cores(submit: Submit, typed: list[str], cores: str) -> None:
    for job in submit(*NOVELS, *typed, nodes="small 2 64000\nmain* 64 64000"):
        assert [o for o in job if o.startswith("--cpus")][-1] == cores
    assert submit(*NOVELS, nodes="small 2 64000\nmain* 64 64000", SBATCH_PARTITION="small")


def test_options_of_sbatch_go_to_every_job_and_not_to_the_settings(submit: Submit) -> None:
    for job in submit("--time=48:00:00", *NOVELS, "--account=lab"):
        assert {"--time=48:00:00", "--account=lab"} <= set(job)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (("TimeLimit=00:10:00", "TimeLimit=2-00:00:00"), ["--time=2-00:00:00"]),
        (("Partition=main", "Partition=long"), ["--partition=long"]),
        (("Account=(null)", "Account=lab"), ["--account=lab"]),
        (("CPUs/Task=1", "CPUs/Task=6"), ["--cpus-per-task=6"]),
        (("MinMemoryNode=1G", "MinMemoryCPU=2G"), ["--mem-per-cpu=2G"]),
        (("Features=(null)", "Features=amd&fast"), ["--constraint=amd&fast"]),
        (("Reservation=(null)", "Reservation=r"), ["--reservation=r"]),
        (("", ""), ["--qos=normal"]),
    ],
)
def test_the_options_of_the_submitting_job_go_to_its_jobs(submit, change, options) -> None:
    jobs = submit(job=OWN.replace(*change))
    assert len(jobs) == 15
    inherited = ("--time", "--cpus", "--mem", "--acc", "--cons", "--res")
    for job in jobs:
        assert set(options) <= set(job)
        others = {"--partition=main", "--qos=normal", *options}
        assert not [o for o in job if o.startswith(inherited) and o not in others]


def test_an_interactive_job_passes_nothing_on(submit: Submit) -> None:
    (first, *_) = submit(NOVELS[0], *NOVELS[1:])
    assert not [o for o in first if o.startswith(("--time", "--partition", "--qos"))]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("+source=bok", "source=bok is not known; there are bookcorpus books"),
        ("+source=books", "source.path is not set"),
        ("seqlen=64", "there is no setting 'seqlen'; did you mean seq_len?"),
        ("masking.rate=2", "masking.rate=2.0; it takes more than 0"),
        ("word", "'word' is no setting"),
    ],
)
def test_wrong_settings_are_refused_before_a_job_is_submitted(submit, typed, said) -> None:
    assert submit(*NOVELS, typed, status=2, VENV=sys.prefix) == []
    assert said in submit.err


def _names(jobs: list[list[str]]) -> list[str]:
    return [o.removeprefix("--job-name=") for job in jobs for o in job if "job-name" in o]


def test_every_job_but_vocab_is_an_array_for_each_of_its_steps_and_a_job_alone(submit) -> None:
    jobs = submit(*NOVELS)
    arrays = [name for name, job in zip(_names(jobs), jobs, strict=True) if "--array=1-2" in job]
    steps = [f"dedup-{step}" for step in ("signatures", "candidates", "copies", "choices")]
    assert arrays == ["collect-sample", *steps, "dedup", "encode", "build-64", "audit-64"]
    alone = [name for name, job in zip(_names(jobs), jobs, strict=True) if "--array=1-2" not in job]
    assert alone == ["collect-sample", "dedup", "vocab", "encode", "build-64", "audit-64"]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ("[c4_lines,pii]", ["filter", "filter"]),
        ("[boilerplate,pii]", ["filter-count", "filter-add", "filter", "filter"]),
    ],
)
def test_filters_are_jobs_between_collect_and_dedup(submit: Submit, filters: str, names) -> None:
    jobs = submit(*NOVELS, f"filters={filters}")
    submitted = _names(jobs)
    first, last = submitted.index("collect-sample"), submitted.index("dedup-signatures")
    assert submitted[first + 2 : last] == names

"""CONTAINER=...: the arguments of Apptainer and pyxis, and a run in a fake Apptainer."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "+model=tiny", "model.hidden_size=32", "model.intermediate_size=64", "data=sample",
    "engine.device=cpu", "engine=fp32", "phases=[]",
    "data.seq_len=64", "optim.global_batch=8", "schedule.total_steps=4", "eval.max_examples=16",
]  # fmt: skip

# Runs the command as Apptainer would, as far as mounts go: in a root that holds the system, an
# "image" with Python alone, and what is bound. Apptainer, too, hands the host's environment on,
# but for PATH. No Slurm programs are in there.
APPTAINER = """#!/bin/bash
set -eu
[ "$1 $2 $3 $5" = "exec --nv --bind --pwd" ]
export BINDS=$4 FOLDER=$6
shift 7
exec unshare --mount bash -euc '
    mount -t tmpfs tmpfs /mnt
    mount_at() {{ # SOURCE TARGET
        [ -d "$1" ] && mkdir -p "/mnt$2" || {{ mkdir -p "/mnt${{2%/*}}" && touch "/mnt$2"; }}
        mount --rbind "$1" "/mnt$2"
    }}
    for path in /usr /bin /lib /lib64 /etc /proc /dev /sys {image}; do
        mount_at "$path" "$path"
    done
    mkdir -m 1777 /mnt/tmp 2>/dev/null || true
    for program in scontrol srun squeue; do mount --bind /dev/null "/mnt/usr/bin/$program"; done
    IFS=,
    for pair in $BINDS; do mount_at "${{pair%%:*}}" "${{pair#*:}}"; done
    export PATH={python}:/usr/bin:/bin HOME=/
    exec /usr/sbin/chroot /mnt bash -c "cd \\"\\$FOLDER\\" && exec \\"\\$@\\"" - "$@"
' - "$@"
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of programs, first on PATH; in it an apptainer that is never started."""
    return executable(tmp_path / "bin/apptainer", "#!/bin/sh\n").parent


def words(programs: Path, container: str, *overrides: str, mounts: str = "") -> list[str]:
    """What slurm/job.inc puts around Python: options of srun, `|`, the command in each task."""
    script = (
        '. slurm/job.inc; containerize "$@"; printf "%s\\n" "${srun_options[@]}" "|" "${python[@]}"'
    )
    env = {
        "PATH": f"{programs}:/usr/bin:/bin", "CONTAINER": container, "CONTAINER_MOUNTS": mounts,
        "VENV": "/not/there",
    }  # fmt: skip
    ended = subprocess.run(
        ["bash", "-c", script, "-", *overrides], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip("\n").split("\n")


def test_apptainer_gets_the_repository_as_its_folder_and_the_image_s_python(programs: Path) -> None:
    assert words(programs, "/images/bert.sif", "run.name=x") == [
        "|", "apptainer", "exec", "--nv", "--bind", f"{ROOT}:{ROOT}", "--pwd", str(ROOT),
        "/images/bert.sif", "python",
    ]  # fmt: skip


@pytest.mark.parametrize("image", ["nvcr.io#org/bert:1", "/images/bert.sqsh"])
def test_pyxis_gets_the_same_as_options_of_srun(programs: Path, image: str) -> None:
    assert words(programs, image, "run.name=x") == [
        f"--container-image={image}", f"--container-mounts={ROOT}:{ROOT}",
        f"--container-workdir={ROOT}", "|", "python",
    ]  # fmt: skip


def test_absolute_paths_that_are_typed_are_mounted_and_folders_of_a_new_run_made(
    programs: Path, tmp_path: Path
) -> None:
    runs, text = tmp_path / "new/runs", tmp_path / "text"
    typed = [f"run.dir={runs}", f"source.path={text}", "data.dir=data/mine"]
    mounts = words(programs, "image", *typed, mounts="/scratch,/nfs/a:/b")[1]
    paths = [f"{path}:{path}" for path in (ROOT, "/scratch")] + ["/nfs/a:/b"]
    paths += [f"{path}:{path}" for path in (runs, text)]
    assert mounts == "--container-mounts=" + ",".join(paths)
    assert runs.is_dir()
    assert not text.exists()


@pytest.mark.parametrize("variable", ["MELLANOX_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"])
def test_the_image_asks_enroot_for_all_adapters_and_gpus(variable: str) -> None:
    assert f" {variable}=all " in (ROOT / "Dockerfile").read_text()


def test_a_sif_without_apptainer_is_refused_with_a_sentence(tmp_path: Path) -> None:
    bash, env = shutil.which("bash"), {"PATH": str(tmp_path), "CONTAINER": "x.sif"}
    command = [str(bash), "-c", ". slurm/job.inc"]
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "CONTAINER=x.sif needs apptainer, which is not on PATH here\n"


@pytest.mark.slurm
@pytest.mark.parametrize("job", ["slurm/pretrain_base.sh", "slurm/data_prep_array.sh"])
def test_with_pyxis_a_job_starts_its_tasks_by_srun_in_the_image(
    cluster: Any, job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun is a fake that logs its arguments: without the plugin it refuses pyxis' options."""
    srun = executable(tmp_path / "bin/srun", f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/words\n')
    monkeypatch.setitem(cluster.env, "PATH", f"{srun.parent}:{os.environ['PATH']}")
    monkeypatch.setitem(cluster.env, "CONTAINER", "org#bert")
    options = ["--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=2"]
    ended = cluster.submit(job, ["encode"], log_dir=tmp_path, options=options)
    assert ended.wait_until_ended() == "COMPLETED", ended.log
    noted = (tmp_path / "words").read_text().splitlines()
    mounts = f"--container-mounts={ROOT}:{ROOT}"
    expected = ["--container-image=org#bert", mounts, f"--container-workdir={ROOT}", "python"]
    start = noted.index(expected[0])
    assert noted[start : start + 6] == [*expected, "-u", "-m"]


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.timeout(1200)
def test_two_nodes_train_in_a_container_that_sees_no_more_than_what_is_mounted(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no right to make mounts, which the fake Apptainer needs")
    image = {sys.prefix, sys.base_prefix} - {"/usr"}
    text = APPTAINER.format(image=" ".join(sorted(image)), python=f"{sys.prefix}/bin")
    programs = executable(tmp_path / "bin/apptainer", text).parent
    monkeypatch.setitem(cluster.env, "PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setitem(cluster.env, "CONTAINER", f"{tmp_path}/bert.sif")

    folders = [f"data.dir={tmp_path}/data", f"run.dir={tmp_path}/runs", "run.name=x"]
    job = cluster.submit(
        "slurm/pretrain_large.sh", [*TINY, *folders], log_dir=tmp_path,
        options=["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1"],
    )  # fmt: skip

    assert job.wait_until_ended(600) == "COMPLETED", job.log
    assert "apptainer exec --nv" in job.log
    events = map(json.loads, (tmp_path / "runs/x/events.jsonl").read_text().splitlines())
    assert [event["ranks"] for event in events if event["event"] == "started"] == [2]
    assert (tmp_path / "runs/x/export/model.safetensors").exists()

"""The wheel works by itself: installed without the checkout, and started in an empty folder."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from data_prep.core.entry import commands

PROJECT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git knows: what lies in build/ would be packed, too."""
    tree, dist = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    listed = ["git", "-C", str(PROJECT), "ls-files", "-z", "--cached", "--others"]
    files = subprocess.run([*listed, "--exclude-standard"], capture_output=True, check=True).stdout
    subprocess.run(
        ["tar", "-C", PROJECT, "--null", "-T", "-", "--create", "--file", tree / "all.tar"],
        input=files, check=True,
    )  # fmt: skip
    subprocess.run(["tar", "-C", tree, "-xf", tree / "all.tar"], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--wheel-dir", dist, tree],
        check=True,
    )  # fmt: skip
    [built] = dist.iterdir()
    return built


@pytest.fixture(scope="module")
def bin_(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, which sees the packages of others here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    # .pth files in a folder that is named in one are not read: the checkout stays unknown
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet",
         "--no-index", "--no-deps", "--ignore-installed", wheel],
        check=True,
    )  # fmt: skip
    return folder / "bin"


@pytest.fixture
def typed(bin_: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command in an empty folder."""
    for variable in ("PYTHONPATH", "PYTHONSAFEPATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here = tmp_path / "empty"
    here.mkdir()

    def run(command: str) -> subprocess.CompletedProcess[str]:
        program, *words = command.split()
        return subprocess.run(
            [bin_ / program, *words], cwd=here, capture_output=True, text=True, check=False
        )

    run.here = here
    return run


def test_it_holds_all_settings_pages_and_batch_scripts(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"data_prep/conf/{p.relative_to(PROJECT / 'conf')}" for p in conf_files()}
    slurm = {
        f"data_prep/executors/slurm_scripts/{path.name}" for path in (PROJECT / "slurm").iterdir()
    }
    modules = {f"{name.replace('.', '/')}.py" for name in commands()}
    pages = {
        str(path.relative_to(PROJECT))
        for top in ("data_prep", "pretrain", "scripts")
        for pattern in ("*.html", "*.md")
        for path in (PROJECT / top).rglob(pattern)
    }
    assert conf | slurm | modules | pages <= packed
    assert not [name for name in packed if name.startswith(("tests/", "conf/", "build/", "docs/"))]


def conf_files() -> list[Path]:
    return sorted((PROJECT / "conf").rglob("*.yaml"))


def test_the_code_that_runs_is_the_installed(bin_: Path, typed) -> None:
    where = subprocess.run(
        [bin_ / "python", "-c", "import data_prep; print(data_prep.__file__)"],
        cwd=typed.here, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout).is_relative_to(bin_.parent)


def test_a_slip_is_refused_by_name(typed) -> None:
    refused = typed("bert-pretrain +model=base optim.global_btch=3")
    assert (refused.returncode, refused.stderr) == (
        2,
        "bert-pretrain: there is no setting 'optim.global_btch'; "
        "did you mean optim.global_batch?\n",
    )


def test_the_batch_scripts_are_copied(typed) -> None:
    assert typed("bert-data slurm").returncode == 0
    copied = {path.name: path.read_bytes() for path in (typed.here / "slurm").iterdir()}
    assert copied == {path.name: path.read_bytes() for path in (PROJECT / "slurm").iterdir()}


def test_text_becomes_a_trained_and_exported_model(typed) -> None:
    (typed.here / "text").mkdir()
    for path in (PROJECT / "docs").glob("*.md"):
        shutil.copyfile(path, typed.here / "text" / f"{path.stem}.txt")
    small = "data_dir=d seq_len=16 vocab_size=512 num_workers=1"
    for command in (
        f"bert-data collect +source=books source.path=text {small}",
        f"bert-data vocab {small}",
        f"bert-data encode heldout_fraction=0.2 {small}",
        f"bert-data build {small}",
        "bert-pretrain +model=tiny data.dir=d data.seq_len=16 run.name=x schedule.total_steps=2 "
        "schedule.warmup_steps=1 optim.global_batch=4",
    ):
        ran = typed(command)
        assert ran.returncode == 0, (command, ran.stderr)
    assert (typed.here / "runs/x/export/model.safetensors").exists()
    assert typed("bert-pretrain runs").stdout.count("\n") >= 2

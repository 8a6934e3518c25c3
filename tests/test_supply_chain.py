"""What is installed: checksums for every version, and images whose user cannot change the code."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
IMAGES = ("Dockerfile", "apptainer.def")


def versions(file: str) -> dict[str, str]:
    pairs = re.findall(r"^([\w.-]+)==(\S+)", (PROJECT / file).read_text(), re.M)
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_every_version_has_checksums_and_no_other_is_listed() -> None:
    torch = {"torch": versions(".ci/hashes-cuda.txt")["torch"]}  # a machine may have another build
    assert versions(".ci/hashes.txt") | torch == versions("constraints.txt"), "run make hashes"


@pytest.mark.parametrize("file", [".ci/hashes.txt", ".ci/hashes-cuda.txt"])
def test_every_package_has_a_checksum_and_no_registry_is_named(file: str) -> None:
    text = (PROJECT / file).read_text()
    entries = re.split(r"^(?=[a-zA-Z])", text, flags=re.M)[1:]
    assert len(entries) == len(versions(file))
    assert not [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry)]
    assert "://" not in text
    assert "index" not in text


def test_the_packages_of_cuda_are_listed_once() -> None:
    assert not versions(".ci/hashes.txt").keys() & versions(".ci/hashes-cuda.txt").keys()
    assert {"nvidia-cublas", "nvidia-nccl-cu13", "triton"} <= versions(".ci/hashes-cuda.txt").keys()


@pytest.mark.parametrize("file", [*IMAGES, "Makefile"])
def test_packages_are_installed_by_their_checksums_first(file: str) -> None:
    text = re.sub(r"\s*\\\n\s*", " ", (PROJECT / file).read_text())
    asks = re.compile(r"(?:pip install|\$\(PIP\)).* (?:-e|-r|--editable|--requirement) ")
    installs = [line for line in text.splitlines() if asks.search(line)]
    assert "--require-hashes --no-deps" in installs[0]
    assert "hashes.txt" in installs[0]
    if file in IMAGES:
        assert ".ci/hashes-cuda.txt" in installs[0]
        assert all("--no-deps" in install for install in installs)
        assert "pip check" in text


@pytest.mark.parametrize("is_right", [True, False])
def test_a_file_with_another_checksum_is_not_installed(tmp_path: Path, is_right: bool) -> None:
    wheel = tmp_path / "made-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr("made.py", "")
        metadata = "Metadata-Version: 2.1\nName: made\nVersion: 1\n"
        files.writestr("made-1.dist-info/METADATA", metadata)
        files.writestr("made-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        files.writestr("made-1.dist-info/RECORD", "")
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "hash", wheel], capture_output=True, text=True, check=True
    )
    [line] = re.findall(r"--hash=sha256:\w+", asked.stdout)
    known = line if is_right else f"--hash=sha256:{'0' * 64}"
    (tmp_path / "hashes.txt").write_text(f"made==1 {known}\n")
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", tmp_path, "--target",
         tmp_path / "there", "--require-hashes", "--no-deps", "-r", tmp_path / "hashes.txt"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (installed.returncode == 0) is is_right, installed.stderr
    assert (tmp_path / "there" / "made.py").exists() is is_right


@pytest.mark.parametrize("file", IMAGES)
def test_the_base_of_an_image_can_be_named_by_its_digest(file: str) -> None:
    text = (PROJECT / file).read_text()
    assert re.search(r"^FROM \$\{BASE\}$|^From: \{\{ BASE \}\}$", text, re.M)
    assert re.search(r"^(?:ARG | +)BASE=python:3\.1[12]-slim$", text, re.M)


def test_who_runs_an_image_cannot_change_its_code() -> None:
    docker = (PROJECT / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)$", docker, re.M) == ["1000"]
    assert docker.index("USER 1000") > docker.rindex("COPY ")
    assert "--chown" not in docker
    assert re.findall(r"chmod (\S+ \S+)", docker) == ["--recursive a+rX,go-w", "1777 data"]
    assert "chmod --recursive a+rX,go-w ." in (PROJECT / "apptainer.def").read_text()

"""The record of a start names the code that ran, not what lies around it."""

import importlib.metadata
import shutil
import subprocess
from pathlib import Path

import pytest

from pretrain.run_folder import environment as module


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with one commit, and in it a copy of the code that has no commit."""
    installed = tmp_path / "venv" / "pretrain" / "run_folder" / "environment.py"
    installed.parent.mkdir(parents=True)
    shutil.copyfile(module.__file__, installed)
    (tmp_path / "other.py").touch()
    (tmp_path / ".gitignore").write_text("venv\n")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path, "other.py", ".gitignore")
    (tmp_path / "other.py").write_text("changed")
    monkeypatch.setattr(module, "__file__", str(installed))
    return tmp_path


def git(folder: Path, *words: str) -> str:
    names = ("-c", "user.name=n", "-c", "user.email=e")
    ran = subprocess.run(["git", "-C", folder, *names, *words], capture_output=True, check=True)
    return ran.stdout.decode().strip()


def commit(folder: Path, *files: str) -> None:
    git(folder, "add", "--force", *files)
    git(folder, "commit", "--quiet", "--message", "m")


def test_the_commit_of_a_repository_around_the_environment_is_not_recorded(repository) -> None:
    found = module.environment()
    assert (found["commit"], found["has_uncommitted_changes"]) == (None, False)


def test_the_commit_of_the_code_is_recorded_also_as_part_of_another_repository(repository) -> None:
    commit(repository, "venv")
    found = module.environment()
    assert found["commit"] == git(repository, "rev-parse", "HEAD")
    assert found["has_uncommitted_changes"]


def test_the_version_of_the_project_is_recorded() -> None:
    version = importlib.metadata.version("bert-pretraining")
    assert module.environment()["packages"]["bert-pretraining"] == version

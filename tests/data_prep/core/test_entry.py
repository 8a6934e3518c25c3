"""What every command answers before its own imports: --help, no command, no environment."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.core import entry
from scripts.drills import faults

PROJECT = Path(entry.PROJECT)
COMMANDS = entry.commands()


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a Python that has no packages, in the checkout."""
    return subprocess.run(
        [sys.executable, "-S", *words], cwd=PROJECT, capture_output=True, text=True, check=False
    )


def test_every_file_at_the_top_is_a_command() -> None:
    for top in entry.TOPS:
        names = {f"{top}.{path.stem}" for path in (PROJECT / top).glob("*.py")}
        assert names - {f"{top}.__init__"} == {c for c in COMMANDS if c.rpartition(".")[0] == top}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_package_and_shows_how_to_type_the_command(command: str) -> None:
    asked = typed("-m", command, "--help", "no setting")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert f"python -m {command} " in asked.stdout.replace("\n", " ")
    assert max(map(len, asked.stdout.splitlines())) <= 100
    assert not re.search(r"(?<!\$)\{[a-z_.]+\}", asked.stdout)  # a placeholder


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("data_prep.build", ("data_dir: ???", "most_told_together: 0.98", "unit: token")),
        ("data_prep.collect", ("+source=bookcorpus|books|", "characters_per_part: ")),
        ("pretrain.run", ("+model=base|large|small|tiny", "zero0|zero1", "paper|roberta_like")),
        ("pretrain.plan", ("[cluster=a6000|dgx1_v100|", "[json=true]")),
        ("scripts.finetune_qa", ("learning_rate: 3e-5", "stride")),
        ("scripts.evaluate_checkpoints", ("run=runs/x", "warmup_fraction: 0.1")),
        ("scripts.finetune_table", ("out=FOLDER",)),
        ("scripts.predict", ("--embed", "--top", "--file")),
        ("scripts.drill", (*faults.FAULTS, "out ")),
    ],
)
def test_help_has_the_settings(command: str, settings: tuple[str, ...]) -> None:
    shown = typed("-m", command, "-h").stdout
    assert [name for name in settings if name not in shown] == []


@pytest.mark.parametrize(
    "module",
    ["pretrain", "pretrain.model", "pretrain.model.bert", "data_prep.core", "data_prep.core.entry",
     "scripts", "scripts.bench", "scripts.bench.parts.harness", "pretrain.no_such_file"],
)  # fmt: skip
def test_a_module_that_is_no_command_says_so_and_lists_those_that_are(module: str) -> None:
    refused = typed("-m", module, "--help")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"{module}: this is no command; ")
    for command in COMMANDS:
        package, _, name = command.rpartition(".")
        (line,) = (x for x in refused.stderr.splitlines() if x.startswith(f"  {package}: "))
        assert name in line.replace(",", "").split()


def test_a_slip_in_a_command_is_named() -> None:
    assert "did you mean python -m pretrain.export? " in typed("-m", "pretrain.exprt").stderr


@pytest.mark.parametrize("command", ["data_prep.vocab", "pretrain.run", "scripts.finetune_qa"])
def test_without_the_packages_a_command_names_the_environment(command: str) -> None:
    refused = typed("-m", command, "+model=tiny")
    assert refused.returncode == 2
    assert f"{sys.executable} has no package msgspec; use the project's env" in refused.stderr
    assert "source .venv/bin/activate" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_without_the_packages_an_installed_command_names_pip(tmp_path: Path) -> None:
    for name in ("", "core"):
        (tmp_path / "data_prep" / name).mkdir()
        for file in (PROJECT / "data_prep" / name).glob("*.py"):
            shutil.copy(file, tmp_path / "data_prep" / name)
    (tmp_path / "data_prep" / "conf").mkdir()
    refused = subprocess.run(
        [sys.executable, "-S", "-m", "data_prep.vocab"], cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "no package msgspec; `pip install bert-pretraining` in that" in refused.stderr


def test_a_python_that_is_too_old_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match="2"):
        entry.answer()
    assert f"Python 3.11 to 3.14 is needed, and {sys.executable} is 3.9;" in capsys.readouterr().err


@pytest.mark.parametrize(
    "file", ["data_prep/__init__.py", "data_prep/core/__init__.py", "data_prep/core/entry.py"]
)
def test_what_runs_first_is_in_the_syntax_of_old_pythons(file: str) -> None:
    tree = ast.parse((PROJECT / file).read_text(), feature_version=(3, 6))
    assert not any(isinstance(node, ast.NamedExpr) for node in ast.walk(tree))
    froms = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "__future__" not in froms  # of annotations, which Python 3.6 lacks


@pytest.mark.parametrize("words", [["--config-dir", "{}"], ["--config-dir={}"]])
def test_help_shows_the_choices_of_a_folder_of_ones_own(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text("")
    shown = typed("-m", "pretrain.run", *(word.format(tmp_path) for word in words), "-h").stdout
    assert "optim=adamw|bert_adam|lamb|lamb_nvidia|mine|muon" in shown


def test_a_folder_of_settings_that_is_missing_is_named(tmp_path: Path) -> None:
    refused = typed("-m", "pretrain.run", f"--config-dir={tmp_path}/none", "+model=tiny")
    assert (refused.returncode, refused.stderr) == (
        2,
        f"pretrain.run: {tmp_path}/none is no folder; --config-dir takes one with settings in "
        "files\n",
    )


def test_a_program_of_others_that_imports_the_packages_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    program = tmp_path / "scripts" / "mine.py"
    program.write_text("import data_prep\nprint('mine')\n")
    ran = subprocess.run(
        [sys.executable, program, "--help"], env={"PYTHONPATH": entry.PROJECT}, cwd=PROJECT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.stdout == "mine\n"

"""Training needs few packages; what else a command needs is an extra, which it names if missing."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from data_prep.core import entry
from data_prep.core.config import SettingsError
from pretrain.config.load import load
from pretrain.data.corpus import prepare_sample

PROJECT = Path(__file__).resolve().parents[1]
DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
OWN = ("data_prep", "pretrain", "scripts")
OF_HYDRA = {"omegaconf", "yaml"}  # hydra-core's own, as it hands out their objects
NOT_OF_TRAINING = {
    "pretrain.push", "pretrain.hub.repository",
    "pretrain.report", "pretrain.reporting.page", "pretrain.reporting.plots",
    "pretrain.reporting.charts",
}  # fmt: skip
OF_TRAINING = sorted(
    name
    for path in (PROJECT / "pretrain").rglob("*.py")
    if (name := ".".join(path.relative_to(PROJECT).with_suffix("").parts)) not in NOT_OF_TRAINING
    # logged to a tracker only if asked for
    and not name.startswith("pretrain.trackers.")
)


of_packages = functools.cache(packages_distributions)


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=;~ ]", requirement)[0].lower().replace("_", "-")


def distributions(extra: str) -> set[str]:
    """The distributions of an extra, those of the extras in it included."""
    found: set[str] = set()
    for requirement in DECLARED["optional-dependencies"][extra]:
        if within := re.match(r"bert-pretraining\[(.*)\]", requirement):
            found = found.union(*(distributions(name) for name in within[1].split(",")))
        else:
            found.add(distribution(requirement))
    return found


def imported_at_start(module: str) -> set[str]:
    """What a module imports when it is imported itself, by full name."""
    path = PROJECT / (module.replace(".", "/") + ".py")
    if not path.exists():
        path = path.with_suffix("") / "__init__.py"
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if is_module(name) else str(node.module) for name in names}
    return found


def is_module(name: str) -> bool:
    path = PROJECT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def test_training_needs_at_most_twelve_packages() -> None:
    assert len(DECLARED["dependencies"]) <= 12


def test_training_imports_only_what_is_declared() -> None:
    seen, left, theirs = set(), list(OF_TRAINING), set()
    while left:
        module = left.pop()
        for name in imported_at_start(module):
            if name.split(".")[0] not in OWN:
                theirs.add(name.split(".")[0])
            elif name not in seen:
                seen.add(name)
                left.append(name)
    declared = {distribution(requirement) for requirement in DECLARED["dependencies"]}
    of_package = of_packages()
    assert not {
        package
        for package in theirs - set(sys.stdlib_module_names) - OF_HYDRA
        if not {name.lower().replace("_", "-") for name in of_package[package]} & declared
    }


@pytest.mark.parametrize("extra", entry.EXTRAS)
def test_the_packages_looked_for_are_those_of_the_extra(extra: str) -> None:
    of_package = of_packages()
    asked = {of_package[package][0].lower().replace("_", "-") for package in entry.EXTRAS[extra]}
    assert asked <= distributions(extra)
    # told where they are used: not for every machine
    assert distributions(extra) - asked <= {"pycld2", "mwparserfromhell"}


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("data_prep.collect", "nupunkt", "data"),
        ("data_prep.audit", "matplotlib", "data"),
        ("pretrain.report", "jinja2", "report"),
        ("pretrain.push", "huggingface_hub", "hub"),
        ("scripts.finetune_qa", "accelerate", "finetune"),
        ("scripts.predict", "transformers", "finetune"),
        ("scripts.build_site", "zensical", "docs"),
    ],
)
def test_a_command_without_its_extra_is_one_line_that_names_it(
    command, package, extra, monkeypatch, capsys
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else known(name)
    )
    monkeypatch.setattr(entry, "_started", lambda: command)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which `answer` replaces
    monkeypatch.setattr(sys, "argv", ["-m"])
    with pytest.raises(SystemExit, match="2"):
        entry.answer()
    refused = capsys.readouterr().err
    assert refused == (
        f"{command}: {sys.executable} has no package {package}, which the extra {extra} installs: "
        f'pip install "bert-pretraining[{extra}]"\n'
    )


def test_the_sample_without_the_packages_of_data_is_refused_by_the_extra(monkeypatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "nupunkt" else known(name)
    )
    settings, _ = load(["+model=tiny"], world_size=1)
    with pytest.raises(SettingsError, match=r"sample corpus .* nupunkt, .* extra data installs"):
        prepare_sample(settings.data)


@pytest.mark.parametrize(
    "command",
    ["data_prep.slurm", "pretrain.run", "pretrain.plan", "scripts.start_node", "scripts.drill"],
)
def test_other_commands_need_no_extra(command, monkeypatch) -> None:
    known = importlib.util.find_spec
    of_extras = {package for packages in entry.EXTRAS.values() for package in packages}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in of_extras else known(name)
    )
    monkeypatch.setattr(entry, "_started", lambda: command)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["-m"])
    entry.answer()


def loaded(*words: str) -> set[str]:
    """The packages that a command imports."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *words],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = re.findall(r"^import time:.*\| +([\w.]+)$", ran.stderr, re.M)
    assert "data_prep" in names
    return {name.split(".")[0] for name in names}


def test_help_imports_no_package() -> None:
    assert not loaded("pretrain.run", "--help") & {"hydra", "numpy", "msgspec", "numba", "torch"}


def test_a_slip_in_a_setting_is_refused_before_what_takes_long_is_imported() -> None:
    slow = {"torch", "deepspeed", "numba", "transformers", "tokenizers", "matplotlib", "wandb",
            "datasets", "pandas", "scipy"}  # fmt: skip
    found = loaded("pretrain.run", "+model=base", "optim.global_btch=3")
    assert "hydra" in found
    assert not found & slow


@pytest.mark.parametrize(
    "typed",
    ["scripts.predict model=nowhere", "scripts.finetune_qa +task=squd", "pretrain.export runs=x"],
)
def test_a_slip_in_another_command_waits_for_no_import_of_torch(typed: str) -> None:
    assert not loaded(*typed.split()) & {"torch", "transformers"}

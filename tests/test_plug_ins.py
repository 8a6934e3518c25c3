"""Sources, optimizers, trackers and recipes of others, as docs/extending.md shows them.

The package is made of the page's own code, outside of this project, and found by its metadata.
"""

import contextlib
import dataclasses
import functools
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import at_step
from run_in_fork import TINY, finished_run, pretrain_run
from tracker_start import record_steps, tracked_run

from data_prep import collect
from data_prep.core import entry, job
from data_prep.core.config import SettingsError
from data_prep.core.files import checksum
from data_prep.core.job import require_source
from data_prep.sources import module_of
from data_prep.stores.documents import read_documents_manifest, read_part
from pretrain.config.load import load
from pretrain.config.settings import OptimSettings
from pretrain.metrics.monitor import JsonLines, Monitor
from pretrain.optim.optimizers import build_optimizer
from pretrain.trackers.choose import check_trackers, start_trackers

PROJECT = Path(__file__).parents[1]
PAGE = (PROJECT / "docs" / "extending.md").read_text(encoding="utf-8")
TALES = [(1, "The fox", "A fox ran.\n\n  It   was red."), (2, "Nothing", " \n"), (3, "x", "End.")]


def write_package(folder: Path, name: str, files: dict[str, str], points: dict[str, Any]) -> None:
    """A package in `folder`, with the metadata that pip would write."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    info = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    groups = [
        "\n".join([f"[{group}]", *(f"{n} = {value}" for n, value in entries.items())])
        for group, entries in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups) + "\n")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's package and settings, in a folder of their own."""
    folder = tmp_path_factory.mktemp("outside")
    blocks = re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", PAGE, re.M | re.S)
    files = {path.removeprefix("my_package/"): text for path, text in blocks}
    assert len(files) == 4
    (toml,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)
    project = tomllib.loads(toml)["project"]
    files["my_package/__init__.py"] = ""
    write_package(folder, project["name"], files, project["entry-points"])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]


@pytest.fixture
def typed_source(tmp_path: Path) -> list[str]:
    """What is typed for the page's source, with its input."""
    with contextlib.closing(sqlite3.connect(tmp_path / "tales.db")) as made, made:
        made.execute("CREATE TABLE tales (id INTEGER, title TEXT, body TEXT)")
        made.executemany("INSERT INTO tales VALUES (?, ?, ?)", TALES)
    return [
        "+source=own", "source.plugin=sqlite", f"source.path={tmp_path / 'tales.db'}",
        "source.name=tales", "source.options={table: tales}", f"data_dir={tmp_path / 'data'}",
        "num_workers=1",
    ]  # fmt: skip


def test_a_source_of_another_package_is_cut_and_read(shown: Path, typed_source: list[str]) -> None:
    source = require_source(job.load(typed_source))
    plan = module_of(source).plan(source, 20)
    assert plan.tasks == [[1], [2, 3]]
    found = [item for task in plan.tasks for item in module_of(source).read(source, task)]
    assert [type(item).__name__ for item in found] == ["Document", "Reject", "Document"]


@pytest.mark.slow
def test_a_source_of_another_package_is_collected(
    shown: Path, typed_source: list[str], tmp_path: Path
) -> None:
    assert collect.main(typed_source) == 0
    store = tmp_path / "data" / "documents" / "tales"
    documents = [(d.id, d.title, d.text) for d in read_part(store / "part-00000.parquet", 2)]
    assert documents == [("1", "The fox", "A fox ran.\nIt was red."), ("3", "x", "End.")]
    manifest = read_documents_manifest(store)
    assert manifest.dropped == {"empty": 1}
    own = {name: manifest.settings[name] for name in ("plugin", "options", "plugin_version")}
    assert own == {
        "plugin": "sqlite", "options": {"table": "tales"}, "plugin_version": "my-package 0.1",
    }  # fmt: skip


@functools.cache
def composed() -> OptimSettings:
    typed = ["+model=tiny", "optim=own", "optim.plugin=lion"]
    typed += ["optim.options={betas: [0.5, 0.25]}", "optim.learning_rate=0.01"]
    return load(typed, world_size=1)[0].optim


def optim_settings(name: str) -> OptimSettings:
    return dataclasses.replace(composed(), plugin=name)


def groups_of(weight: torch.Tensor) -> list[dict[str, Any]]:
    return [{"label": "decayed", "params": [torch.nn.Parameter(weight)], "weight_decay": 0.1}]


def test_an_optimizer_of_another_package_is_built_with_its_options(shown: Path) -> None:
    optimizer = build_optimizer(groups_of(torch.ones(3)), optim_settings("lion"))
    assert type(optimizer).__module__ == "my_package.optimizers"
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.01, [0.5, 0.25], 0.1)


BROKEN = {
    "no optimizer": ("return object()", "returns the type object, not a torch.optim.Optimizer"),
    "raising": ("raise KeyError('rho')", "fails (KeyError: 'rho')"),
    "own rate": ("return Made(groups, rate=0.1)", "changes weights at the rate 0"),
    "more state": ("return Made(groups, name='mean')", "keeps mean in its state"),
    "hidden state": ("return Made(groups, hides=True)", "does not continue from its step"),
    "norm": ("return Made(groups, takes_norm=True)", "updates a tensor in another way than its"),
}
MADE = """
import torch

class Made(torch.optim.Optimizer):
    def __init__(self, groups, rate=None, name="exp_avg", hides=False, takes_norm=False):
        super().__init__(groups, {"lr": 1.0})
        self.own = rate, name, hides, takes_norm
        self.calls = 0

    @torch.no_grad()
    def step(self, closure=None):
        rate, name, hides, takes_norm = self.own
        self.calls += 1
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                mean = state.setdefault(name, torch.zeros_like(weight))
                mean.mul_(0.9).add_(weight.grad)
                update = mean / mean.norm() if takes_norm else mean
                factor = self.calls if hides else 1
                weight.sub_((rate or group["lr"]) * factor * update)

"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A package whose plug-ins each break something."""
    folder = tmp_path_factory.mktemp("broken")
    names = {kind: kind.replace(" ", "_") for kind in BROKEN}
    functions = "\n".join(
        f"def {names[kind]}(groups, settings):\n    {body}\n" for kind, (body, _) in BROKEN.items()
    )
    files = {"broken/__init__.py": "", "broken/optim.py": MADE + functions}
    files["broken/lacking.py"] = "import a_package_that_nobody_has\n"
    points = {
        "bert_pretraining.optimizers": {n: f"broken.optim:{n}" for n in names.values()},
        "bert_pretraining.sources": {"lacking": "broken.lacking", "empty": "broken"},
        "bert_pretraining.trackers": {"empty": "broken.optim:Made"},
    }
    write_package(folder, "broken", files, points)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.mark.parametrize("kind", BROKEN)
def test_an_optimizer_that_breaks_the_contract_is_refused_with_its_file(
    broken: Path, kind: str
) -> None:
    settings = optim_settings(kind.replace(" ", "_"))
    with pytest.raises(SettingsError) as refused:
        build_optimizer(groups_of(torch.ones(3)), settings)
    text = str(refused.value)
    assert BROKEN[kind][1] in text
    assert f"optim.plugin={kind.replace(' ', '_')}: broken.optim:" in text
    assert f"of broken 0.1 ({broken / 'broken' / 'optim.py'})" in text


def test_a_tracker_of_another_package_has_each_step_once_after_a_kill(
    shown: Path, tmp_path: Path
) -> None:
    for first, last in ((0, 25), (20, 33)):
        feeds = start_trackers(tracked_run(tmp_path, ["csv"]), first)
        monitor = Monitor([JsonLines(tmp_path, first)], feeds)
        record_steps(monitor, first, last)
        monitor.close()
        feeds[0].close()
        table = tmp_path / "losses.csv"
        if last == 25:
            table.write_text(table.read_text()[:-30])  # as after a SIGKILL
    lines = [line.split(",") for line in table.read_text().splitlines()[1:]]
    assert [(int(step), float(loss)) for step, loss in lines] == [
        (step, 1 / step) for step in range(1, 34)
    ]


def test_a_recipe_in_a_folder_of_the_user_s_is_composed(
    shown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(entry.OWN_CONF, str(shown / "my_conf"))
    settings, _ = load(["+model=tiny", "recipe=mine"], world_size=1)
    assert (settings.optim.label, settings.optim.weight_decay) == ("lion", 0.1)
    assert settings.schedule.decay_fraction is not None
    assert settings.log.names == ["csv"]


def test_a_plug_in_that_no_package_has_is_refused_with_those_that_are_installed(
    shown: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"optim.plugin=tiger is no installed plug-in; .* lion"):
        build_optimizer(groups_of(torch.ones(3)), optim_settings("tiger"))
    with pytest.raises(SettingsError, match=r"log.trackers=xml is not known; there are .*, csv"):
        check_trackers(tracked_run(tmp_path, ["xml"]).log)


def test_a_console_command_names_what_a_plug_in_in_the_current_folder_needs(
    tmp_path: Path,
) -> None:
    points = {"bert_pretraining.trackers": {"apart": "apart:x"}}
    files = {"apart.py": "x = 1\n"}
    write_package(tmp_path, "apart", files, points)
    ask = (
        "from data_prep.plugins.entry_points import load_plugin\n"
        "try: print(load_plugin('trackers', 'apart', 'log.trackers').what)\n"
        "except ValueError as error: print(error)"
    )
    path = str(PROJECT)
    answers = []
    for found in (path, f"{path}{os.pathsep}."):
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": found}
        ran = subprocess.run(
            [sys.executable, "-c", ask], cwd=tmp_path, env=environment, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        answers.append(ran.stdout)
    assert "is no installed plug-in" in answers[0]
    assert "current folder are found with PYTHONPATH=. before the command" in answers[0]
    assert answers[1] == "1\n"


def test_a_plug_in_of_two_packages_is_refused(
    shown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, "other", {}, {"bert_pretraining.trackers": {"csv": "csv:writer"}})
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError, match="csv is a plug-in of my-package and other; uninstall"):
        check_trackers(tracked_run(tmp_path, ["csv"]).log)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lacking", "cannot be imported (ModuleNotFoundError: No module named 'a_package_that"),
        ("empty", "has no function plan and read"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused_with_its_file(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    typed = ["+source=own", f"source.plugin={name}", f"data_dir={tmp_path}"]
    assert collect.main(typed) == 2
    printed = capsys.readouterr().err
    assert text in printed
    assert str(broken) in printed
    assert len(printed.splitlines()) == 1


def test_a_tracker_that_is_none_is_refused_with_its_file(broken: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"broken/optim.py\) is no subclass of pretrain"):
        check_trackers(tracked_run(tmp_path, ["empty"]).log)


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("optim=own", "optim=own needs a name"),
        ("optim.plugin=lion", "optim.plugin and optim.options are not adamw's"),
        ("optim.options={a: 1}", "optim.plugin and optim.options are not adamw's"),
    ],
)
def test_settings_of_plug_ins_without_a_plug_in_are_refused(typed: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        load(["+model=tiny", typed], world_size=1)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_with_an_optimizer_and_a_tracker_of_another_package_survives_a_kill_exactly(
    shown: Path, sample_dir: Path, tmp_path: Path
) -> None:
    typed = [
        *TINY, f"data.dir={sample_dir}", "schedule.total_steps=10", "checkpoint.every_steps=4",
        "eval.max_examples=20", "engine.timeout_minutes=2", "optim=own", "optim.plugin=lion",
        "optim.learning_rate=1e-4", "log.trackers=[csv]",
    ]  # fmt: skip
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    finished_run(typed, tmp_path / "straight", ranks=2)
    statuses, _ = pretrain_run(typed, tmp_path / "killed", ranks=2, hook=at_step(7))
    assert -signal.SIGKILL in statuses
    finished_run(typed, tmp_path / "killed", ranks=2)
    state = "runs/x/checkpoints/step-00000010"
    for file in ("model.safetensors", "optimizer.safetensors"):
        straight, killed = (tmp_path / name / state / file for name in ("straight", "killed"))
        assert checksum(straight) == checksum(killed)
    lines = (tmp_path / "killed/runs/x/losses.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in lines] == list(range(1, 11))

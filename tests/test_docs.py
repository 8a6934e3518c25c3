"""README.md, CONTRIBUTING.md and docs/ are right: their commands, their output, their links."""

import functools
import importlib
import itertools
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_prep.core import job
from data_prep.core.config import as_dict
from data_prep.core.settings import SourceKind, SourceSettings
from pretrain import plan, tune
from pretrain.config import load
from pretrain.config.arguments import parse_arguments
from scripts import build_site, predict, seed_experiment
from scripts.finetuning import settings as finetuning_settings
from scripts.finetuning.settings import Kind

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text()
# The log holds commands as they were on their day
PAGES = [
    PROJECT / page for page in build_site.pages() if page.name not in ("log.md", "CHANGELOG.md")
]
RUN_IN_ORDER = (PROJECT / "README.md", PROJECT / "docs/data.md", PROJECT / "docs/training.md")
STARTS = ("python -m ", "torchrun ", "deepspeed ", "sbatch ", "bash slurm/", "make ")
OTHERS = (
    r"(?:[A-Z_]+=\S+ )*"
    r"(?:apptainer|docker|hf|pip|git|wandb|pytest|python -m (?:pytest|http\.server)) "
)


def fences(page: Path) -> list[tuple[str, str, str]]:
    """(mark, language, body) of each code block; the mark is `kind` of `<!-- tested: kind -->`."""
    found = re.finditer(
        r"^(?:<!-- tested: (\w+) -->\n)?```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S
    )
    return [(match[1] or "", match[2], match[3]) for match in found]


def commands(body: str) -> list[str]:
    """Its commands: continued lines are joined, comments and assignments left out."""
    lines = [line.split(" #")[0].strip() for line in body.replace("\\\n", " ").splitlines()]
    return [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line) for line in lines if line]


def shown_commands() -> list[object]:
    return [
        pytest.param(command, id=f"{page.name}: {command}")
        for page in PAGES
        for _, language, body in fences(page)
        if language in ("", "bash")
        for command in commands(body)
        if command.startswith(STARTS) and not re.match(OTHERS, command)
    ]


def module_of(command: str) -> str | None:
    """What follows -m, --module or the launcher's -m."""
    found = re.search(r"(?:-m|--module) ([\w.]+)", command)
    return found[1] if found else None


@pytest.mark.parametrize("command", shown_commands())
def test_every_command_shown_exists_and_takes_its_settings(command, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("my_texts", "novels", "FOLDER"):
        (tmp_path / folder).mkdir()
    words = shlex.split(command)
    typed = [word for word in words if re.match(r"\+?[\w.]+=", word)]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (PROJECT / "Makefile").read_text(), re.M)
        return
    if script := re.search(r"slurm/\w+\.sh", command):
        assert (PROJECT / script[0]).is_file()
        check_batch_script(script[0], typed)
        return
    module = module_of(command)
    assert (PROJECT / module.replace(".", "/")).with_suffix(".py").is_file(), module
    arguments = words[words.index(module) + 1 :]
    if module.startswith("data_prep."):
        job.load(["data_dir=FOLDER", *typed] if module == "data_prep.plan" else typed)
    elif module == "pretrain.run":
        load.load(typed, world_size=8)
    elif module == "pretrain.tune":
        load.load([word for word in typed if word.partition("=")[0] not in tune.OWN], world_size=8)
    elif module == "pretrain.plan":
        plan.load([word for word in typed if not word.startswith("json=")])
    elif module in (
        "pretrain.average",
        "pretrain.evaluate",
        "pretrain.export",
        "pretrain.push",
        "pretrain.report",
        "pretrain.runs",
        "pretrain.verify",
    ):
        function = getattr(importlib.import_module(module), module.removeprefix("pretrain."))
        parse_arguments(function, arguments)
    elif module == "scripts.seed_experiment":
        given = parse_arguments(seed_experiment.Arguments, arguments)
        seed_experiment.Experiment(seed_experiment.Arguments(**given), []).check()
    elif module == "scripts.predict":
        predict._arguments(arguments)
    elif module == "scripts.bag_of_words":
        finetuning_settings.load(typed, Kind.classification)
    elif module == "scripts.evaluate_checkpoints":
        typed = [word for word in typed if not word.startswith("run=")]
        finetuning_settings.load([*typed, "model=x"])
    elif module.startswith("scripts.bench."):
        parse_arguments(importlib.import_module(module).main, arguments)
    elif kind := re.fullmatch(r"scripts\.finetune_(\w+)", module):
        finetuning_settings.load(typed, Kind[kind[1]])
    else:
        pytest.fail(f"no check of the arguments of {module}")


def _finetune(tasks: str, model: str) -> None:
    """The arguments of slurm/finetune.sh that are checked."""


def check_batch_script(script: str, typed: list[str]) -> None:
    """The settings that are typed after a batch script are those of the job it starts."""
    if model := re.search(r"pretrain_(\w+)", script):
        load.load([f"+model={model[1]}", "data=wikibooks_512", *typed], world_size=8)
    elif "finetune" in script:
        words = parse_arguments(_finetune, [w for w in typed if re.match(r"(tasks|model)=", w)])
        for task in words["tasks"].split(","):
            finetuning_settings.load([f"+task={task}", f"model={words['model']}"])
    else:
        job.load(["data_dir=data/wikibooks", *typed])


def rows_of_settings(page: Path) -> list[tuple[str, str]]:
    """(name, default) of the rows of tables `setting | default | ...` that give one plain value."""
    tables = re.findall(r"^\| setting \| default \|.*\n((?:\|.*\n)+)", page.read_text(), re.M)
    rows = [re.split(r" *(?<!\\)\| *", line) for table in tables for line in table.splitlines()]
    return [
        (name[1], row[2].strip("`").replace(",", ""))
        for row in rows
        if (name := re.fullmatch(r"`([\w.]+)(?:=\S*)?`", row[1]))
        and re.fullmatch(r"null|true|false|[\d.,]+(?:e-\d+)?", row[2].strip("`"))
    ]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if rows_of_settings(page)], ids=lambda page: page.name
)
def test_the_defaults_shown_are_those_of_conf(page: Path) -> None:
    if page.name == "data.md":
        settings = as_dict(job.load(["data_dir=x"]))
    elif page.name == "finetuning.md":
        settings = as_dict(finetuning_settings.load(["+task=sst2", "model=x"]))
    else:
        settings = as_dict(load.load(["+model=base"], world_size=8)[0])
    shown, real = {}, {}
    for name, default in rows_of_settings(page):
        if not name.startswith("source."):  # each kind of source has its own
            words = {"null": None, "true": True, "false": False}
            shown[name] = words[default] if default in words else float(default)
            real[name] = functools.reduce(dict.__getitem__, name.split("."), settings)
    assert shown == real


def test_no_link_or_anchor_of_a_page_is_broken() -> None:
    assert build_site.broken_links() == []


def test_every_module_that_a_page_names_exists() -> None:
    named = {
        (page.name, module)
        for page in PAGES
        for module in re.findall(r"-m ((?:pretrain|data_prep|scripts)(?:\.\w+)+)", page.read_text())
    }
    missing = [
        (page, module)
        for page, module in sorted(named)
        if not (PROJECT / module.replace(".", "/")).with_suffix(".py").is_file()
    ]
    assert not missing


def test_the_readme_has_at_most_150_lines_of_at_most_100_characters() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100] == []


def test_the_tree_names_every_folder_that_is_there() -> None:
    for folder in ("conf", "data_prep", "pretrain", "scripts", "slurm", "docs", "tests"):
        assert (PROJECT / folder).is_dir()
        assert re.search(rf"^{folder}/ ", README, re.M), folder


def test_every_page_is_in_the_site_s_navigation() -> None:
    navigation = (PROJECT / "mkdocs.yml").read_text().split("\nnav:")[1]
    listed = set(re.findall(r"[\w-]+\.md", navigation))
    pages = {build_site.PAGES.get(str(page), page.name) for page in build_site.pages()}
    assert listed == pages


def test_every_drawing_is_drawn_from_its_present_source() -> None:
    assert build_site.stale_drawings() == [], "run make docs where dot is installed"


@pytest.mark.parametrize("package", ["data_prep", "pretrain"])
def test_the_drawing_of_the_packages_has_every_package(package: str) -> None:
    drawn = set(re.findall(r">(\w+)</text>", (PROJECT / "docs/images/packages.svg").read_text()))
    packages = {path.parent.name for path in (PROJECT / package).glob("*/*.py")}
    jobs = {path.stem for path in (PROJECT / package).glob("*.py")} - {"__init__"}
    assert (packages | jobs) - drawn == set()


def test_the_output_shown_is_what_the_command_prints(tmp_path: Path) -> None:
    shown = 0
    for page in PAGES:
        blocks = fences(page)
        for (mark, _, body), (_, language, output) in itertools.pairwise(blocks):
            if mark == "output":
                assert language == "text"
                printed = subprocess.run(
                    [sys.executable, *shlex.split(body)[1:]], cwd=tmp_path, check=True,
                    env={**os.environ, "PYTHONPATH": str(PROJECT)}, text=True, capture_output=True,
                )  # fmt: skip
                assert printed.stdout == output, f"{page.name}: paste the new output of {body}"
                shown += 1
    assert shown


@pytest.mark.slow
def test_a_folder_of_text_files_becomes_a_model_by_the_commands_shown(sample_dir, tmp_path) -> None:
    for folder in ("novels", "my_texts"):
        (tmp_path / folder).mkdir()
        for part in (sample_dir / "documents/sample").glob("part-*.parquet"):
            for number, text in enumerate(pq.read_table(part)["text"].to_pylist()):
                path = tmp_path / folder / f"{part.stem}-{number}.txt"
                path.write_text(text.replace("\n", "\n\n"))
    (tmp_path / "words.txt").write_text("frobnicate\nxylophones\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    blocks = [fence for page in RUN_IN_ORDER for fence in fences(page)]
    for (mark, language, body), (_, next_language, shown) in itertools.pairwise(blocks):
        if mark != "run":
            continue
        if language == "bash":
            # The README's run takes minutes: it ends after 20 steps here
            steps = " schedule.stop_step=20"
            lines = [c + steps if "pretrain.run" in c else c for c in commands(body)]
            call = ["bash", "-c", "\n".join(["set -e", *lines])]
        else:
            call = [sys.executable, "-c", body]
        ended = subprocess.run(
            call, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, timeout=600
        )
        assert ended.returncode == 0, ended.stdout
        if next_language == "text":
            assert phrases(shown) - phrases(ended.stdout) == set()


def phrases(output: str) -> set[str]:
    """What an output says besides its numbers: the longer pieces between them and wide gaps."""
    pieces = re.split(r"[\d.,%:]+|\s{2,}|\n", output)
    return {piece.strip() for piece in pieces if len(piece.strip()) > 8}


def test_every_test_that_the_guarantees_name_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (PROJECT / "docs/guarantees.md").read_text()))
    there = {
        name
        for path in (PROJECT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 50
    assert not named - there


@pytest.mark.parametrize(
    ("heading", "num_rows"), [("Pitfalls in other projects", 52), ("Events during a run", 16)]
)
def test_every_guarantee_names_a_test(heading: str, num_rows: int) -> None:
    section = (PROJECT / "docs/guarantees.md").read_text().split(f"\n## {heading}")[1]
    rows = re.findall(r"^\|.*\|$", section.split("\n## ")[0], re.M)[2:]
    assert len(rows) >= num_rows
    assert all(re.search(r"`test_\w+`", row.split("|")[3]) for row in rows)


def test_pytest_without_python_m_collects() -> None:
    """README writes it so: without the project on sys.path, tests/data_prep hid data_prep."""
    program = Path(sys.executable).with_name("pytest")
    if not program.exists():
        pytest.skip("pytest is not installed next to this Python")
    found = subprocess.run(
        [program, "--collect-only", "-q", "tests/test_layout.py"],
        cwd=PROJECT, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_source_that_contributing_shows_reads_a_folder(tmp_path: Path) -> None:
    page = (PROJECT / "CONTRIBUTING.md").read_text()
    shown = re.search(r"    ```python\n(.*?)    ```", page, re.DOTALL)
    source: dict[str, Any] = {}
    exec(textwrap.dedent(shown[1]), source)
    (tmp_path / "a.md").write_text("# A\n\nOne. Two.\n")
    (tmp_path / "b.md").write_text("")
    settings = SourceSettings(name="markdown", kind=SourceKind.books, path=str(tmp_path))
    (task,) = source["plan"](settings, 1000).tasks
    document, reject = source["read"](settings, task)
    assert (document.id, document.text) == ("a.md", "# A\nOne. Two.")
    assert reject.reason == "empty"

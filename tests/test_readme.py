"""The commands of README.md do what it says, in its order, on a folder of plain text files."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep import settings as data_prep_settings
from pretrain import run
from scripts import predict
from scripts.finetuning import settings as finetuning_settings
from scripts.finetuning.settings import Kind

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    """The code blocks behind `<!-- tested: kind -->`."""
    return re.findall(rf"<!-- tested: {kind} -->\n```(?:python)?\n(.*?)```", README, re.DOTALL)


def commands(kind: str) -> list[str]:
    return [line for block in blocks(kind) for line in block.splitlines() if line]


def test_every_block_of_commands_is_tested_or_has_its_own_target() -> None:
    shown = re.findall(r"(<!-- tested: \w+ -->\n)?```(?:python)?\n(.*?)```", README, re.DOTALL)
    untested = [
        body
        for mark, body in shown
        if not mark and re.search(r"^(python|sbatch|torchrun)", body, re.M)
    ]
    assert not untested


@pytest.mark.parametrize("command", commands("settings"))
def test_the_settings_of_every_command_are_accepted(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_texts").mkdir()
    words = command.split()
    overrides = [word for word in words if re.match(r"\+?[\w.]+=", word)]
    if "scripts.predict" in command:
        predict._arguments(shlex.split(command)[3:])
        return
    if "scripts." in command:
        kind = re.search(r"finetune_(\w+)", command)
        named = [word for word in overrides if not word.startswith("run=")]
        model = [] if kind else ["model=x"]
        finetuning_settings.load([*named, *model], Kind[kind[1]] if kind else None)
        return
    if "slurm/finetune.sh" in command:
        for task in re.findall(r"tasks=(\S+)", command)[0].split(","):
            finetuning_settings.load([f"+task={task}", *re.findall(r"model=\S+", command)])
        return
    if "data_prep" in command:
        data_prep_settings.load(overrides)
        return
    if script := re.search(r"slurm/pretrain_(\w+)\.sh", command):
        assert (PROJECT / script.group()).exists()
        overrides = [f"+model={script.group(1)}", *overrides]
    run.load(overrides, world_size=8)


def test_the_tree_names_every_folder_that_is_there() -> None:
    for folder in ("conf", "data_prep", "pretrain", "scripts", "slurm", "docs", "tests"):
        assert (PROJECT / folder).is_dir()
        assert re.search(rf"^{folder}/ ", README, re.M), folder


@pytest.mark.slow
def test_a_folder_of_text_files_becomes_a_model_by_the_commands_shown(
    sample_dir: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "my_texts"
    texts.mkdir()
    for part in (sample_dir / "documents/sample").glob("part-*.parquet"):
        for number, text in enumerate(pq.read_table(part)["text"].to_pylist()):
            (texts / f"{part.stem}-{number}.txt").write_text(text.replace("\n", "\n\n"))
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    (tmp_path / "words.txt").write_text("frobnicate\nxylophones\n")
    kinds = ("prepare", "train", "continue")
    script = "\n".join(["set -e", *itertools.chain(*map(commands, kinds))])
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True, timeout=600)
    for block in blocks("python"):
        subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=environment, check=True, timeout=300
        )


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

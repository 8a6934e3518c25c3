"""Metrics over a run's checkpoints, and the table over an array's members."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_bert import tiny_bert

from scripts import evaluate_checkpoints, finetune_table

REVIEWS = "words\tmood\n" + "the film was good\tpositive\nthe film was bad\tnegative\n" * 4


@pytest.mark.slow
def test_each_checkpoint_is_exported_and_fine_tuned_once(tmp_path, monkeypatch) -> None:
    """The export is faked here by a copy of one model; test_export.py tests the command."""
    run, bert = tmp_path / "run", tiny_bert(tmp_path / "bert")
    (tmp_path / "reviews.tsv").write_text(REVIEWS)
    exported = []

    def export(run: Path, checkpoint: Path, target: Path) -> None:
        exported.append(checkpoint.name)
        shutil.copytree(bert, target)

    monkeypatch.setattr(evaluate_checkpoints, "_export", export)
    typed = [
        "+task=custom", f"task.folder={tmp_path}", "task.train=reviews.tsv",
        "task.dev=reviews.tsv", "task.text=words", "task.label=mood", "epochs=1", "max_length=16",
    ]  # fmt: skip
    for step in (10, 20):
        folder = run / f"checkpoints/step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        lines = evaluate_checkpoints.evaluate(run, typed)
    assert exported == ["step-00000010", "step-00000020"]
    assert [line["step"] for line in lines] == [10, 20]
    assert lines[0]["figures"] == lines[1]["figures"]
    written = (run / "downstream.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == lines
    assert not list(run.rglob("*.safetensors"))


def test_a_run_without_checkpoints_is_refused(tmp_path, capsys) -> None:
    assert evaluate_checkpoints.main([f"run={tmp_path}", "+task=rte"]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def member(out: Path, task: str, seed: int, accuracy: float, epochs: int = 3) -> None:
    folder = out / task / f"seed-{seed}"
    folder.mkdir(parents=True)
    summary = {
        "task": task, "start": "pretrained", "metrics": ["dev_accuracy"],
        "chosen": {"batch_size": 32, "learning_rate": 3e-5, "epochs": epochs},
        "chosen_on_dev": "the epoch", "seeds": [{"seed": seed, "dev_accuracy": accuracy}],
        "best_epochs": [1], "seconds": [1.0],
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(summary))
    (folder / "settings.json").write_text(json.dumps({"epochs": epochs, "model": "x", "seeds": 1}))


def test_the_table_is_over_all_members_and_names_those_that_failed(tmp_path, capsys) -> None:
    (tmp_path / "members").write_text("rte 1\nrte 2\nsst2 1\nsst2 2\n")
    member(tmp_path, "rte", 1, 60)
    member(tmp_path, "rte", 2, 62)
    (tmp_path / "sst2/seed-2").mkdir(parents=True)
    (tmp_path / "sst2/seed-2/job").write_text("7_4\n")
    assert finetune_table.main([f"out={tmp_path}"]) == 1
    said = capsys.readouterr().out
    assert "61.00  1.41  60.00 62.00" in said
    assert "FAILED  sst2, seed 1: it was never started" in said
    assert "FAILED  sst2, seed 2: job 7_4" in said


def test_members_of_other_settings_are_not_put_together(tmp_path, capsys) -> None:
    (tmp_path / "members").write_text("rte 1\nrte 2\n")
    member(tmp_path, "rte", 1, 60)
    member(tmp_path, "rte", 2, 62, epochs=4)
    assert finetune_table.main([f"out={tmp_path}"]) == 2
    assert "differ in epochs" in capsys.readouterr().err

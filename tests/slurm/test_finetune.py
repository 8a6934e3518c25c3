"""Fine-tuning as an array on a real Slurm: the table of tasks and seeds; failures run again."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240
REVIEWS = "words\tmood\n" + "the film was good\tpositive\nthe film was bad\tnegative\n" * 8
TAGGED = "anna\tB-person\nlives\tO\n\n" * 8


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.timeout(4 * LIMIT_S)
def test_failed_members_are_named_and_run_alone_by_the_same_command(cluster, tmp_path) -> None:
    from tiny_bert import tiny_bert

    tiny_bert(tmp_path / "bert")
    (tmp_path / "reviews.tsv").write_text(REVIEWS)
    (tmp_path / "words.conll").write_text("anna\n")  # without tags
    env = cluster.env | {"VENV": sys.prefix, "SBATCH_OUTPUT": f"{tmp_path}/%x-%A_%a.out"}
    command = [
        "bash", "slurm/finetune.sh", f"model={tmp_path}/bert", "tasks=custom,tags", "seeds=2",
        f"out={tmp_path}/out", "epochs=1", "max_length=16", f"task.folder={tmp_path}",
        "custom:task.train=reviews.tsv", "custom:task.dev=reviews.tsv", "custom:task.text=words",
        "custom:task.label=mood", "tags:task.train=words.conll", "tags:task.dev=words.conll",
    ]  # fmt: skip

    def run() -> tuple[str, str]:
        said = subprocess.run(
            command, cwd=ROOT, env=env, check=True, capture_output=True, text=True
        ).stdout
        number = re.findall(r"finetune-table: job (\d+)", said)[0]
        log = ROOT / f"logs/finetune-table-{number}.out"
        while True:
            state = subprocess.run(
                ["scontrol", "show", "job", "--oneliner", number], env=env, check=True,
                capture_output=True, text=True,
            ).stdout  # fmt: skip
            if re.search(r"JobState=(COMPLETED|FAILED|CANCELLED)", state):
                break
            subprocess.run(["sleep", "0.5"], check=True)
        text = log.read_text()
        log.unlink()
        return said, text

    said, table = run()
    assert "4 of 4 members" in said
    assert re.search(r"^custom +pretrained +dev_accuracy", table, re.M)
    assert re.findall(r"FAILED  (tags, seed \d): job \d+_\d", table) == [
        "tags, seed 1",
        "tags, seed 2",
    ]

    (tmp_path / "words.conll").write_text(TAGGED)
    said, table = run()
    assert "2 of 4 members" in said
    assert "FAILED" not in table
    assert re.search(r"^tags +pretrained +dev_f1", table, re.M)

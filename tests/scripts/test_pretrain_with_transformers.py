"""Stock transformers on our data, in our order, with our masks and first weights: our losses."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from run_in_fork import finished_run
from small_corpus import cut

from pretrain.report import main as report
from pretrain.run_folder.jsonl import readable_lines

pytest.importorskip("transformers")
from scripts.pretrain_with_transformers import main

STEPS = 6


@pytest.fixture
def run(sample_dir: Path, tmp_path: Path) -> Path:
    """A run of ours, with a checkpoint in its middle."""
    cut(sample_dir, tmp_path / "corpus", [40], [16])
    command = (
        "+model=tiny model.hidden_size=32 model.intermediate_size=64 model.hidden_dropout_prob=0 "
        f"data.dir={tmp_path}/corpus data.seq_len=128 data.masking=dynamic optim.global_batch=8 "
        f"optim.learning_rate=3e-3 schedule.total_steps={STEPS} schedule.warmup_steps=2 "
        "engine.tokens_per_micro_batch=512 engine.zero_stage=0 survival.rehearse=false "
        "checkpoint.every_steps=3 monitor.every_steps=1 monitor.sentences=[] eval.every_steps=3 "
        f"run.name=ours run.dir={tmp_path}"
    ).split()
    finished_run(command, tmp_path)
    return tmp_path / "ours"


def same_metrics(one: Path, other: Path, steps: Sequence[int]) -> int:
    """The number of metrics that two runs share at these steps; all are equal but for rounding."""
    by_step = [
        [line for line in readable_lines(run / "metrics.jsonl") if line["step"] in steps]
        for run in (one, other)
    ]
    assert len(by_step[0]) == len(by_step[1]) >= len(steps)
    compared = 0
    for ours, stock in zip(*by_step, strict=True):
        for name in {*ours} & {*stock} - {"time"}:
            if not name.startswith("perf/"):
                assert ours[name] == pytest.approx(stock[name], abs=1e-4), (ours["step"], name)
                compared += 1
    return compared


def test_stock_transformers_has_our_losses_step_by_step_and_the_report_takes_both(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"run={run}", f"out={tmp_path}/stock"]) == 0
    assert same_metrics(run, tmp_path / "stock", range(1, STEPS + 1)) > 7 * STEPS
    assert "largest difference 0.0000 nats" in capsys.readouterr().out
    assert main([f"run={run}", f"out={tmp_path}/stock"]) == 2
    assert "already holds metrics" in capsys.readouterr().err
    assert report([f"run={run}", f"other={tmp_path}/stock"]) == 0


def test_stock_transformers_goes_on_from_a_checkpoint_of_ours(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints/step-00000003"
    assert main([f"run={run}", f"out={tmp_path}/stock", f"checkpoint={checkpoint}"]) == 0
    assert same_metrics(run, tmp_path / "stock", range(4, STEPS + 1)) > 7 * 3


def test_a_checkpoint_that_is_not_whole_is_refused(run, tmp_path, capsys) -> None:
    assert main([f"run={run}", f"checkpoint={tmp_path}"]) == 2
    assert "is no whole checkpoint: manifest.json is missing" in capsys.readouterr().err


def test_a_checkpoint_after_the_last_step_is_refused(run, capsys) -> None:
    checkpoint = run / "checkpoints/step-00000003"
    assert main([f"run={run}", f"checkpoint={checkpoint}", "steps=2"]) == 2
    assert "is of step 3, and training would end at step 2" in capsys.readouterr().err

"""Stock transformers on our data, in our order, with our masks and first weights: our losses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "pretrain"))
from run_in_fork import pretrain_run
from small_corpus import cut

from pretrain.monitor import readable_lines
from pretrain.report import main as report

pytest.importorskip("transformers")
from scripts.pretrain_with_transformers import main

STEPS = 6


def test_stock_transformers_has_our_losses_step_by_step_and_the_report_takes_both(
    sample_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(sample_dir, tmp_path / "corpus", [40], [16])
    command = (
        "+model=tiny model.hidden_size=32 model.intermediate_size=64 model.hidden_dropout_prob=0 "
        f"data.dir={tmp_path}/corpus data.seq_len=128 data.masking=dynamic optim.global_batch=8 "
        f"optim.learning_rate=3e-3 schedule.total_steps={STEPS} schedule.warmup_steps=2 "
        "engine.tokens_per_micro_batch=512 engine.zero_stage=0 survival.rehearse=false "
        "checkpoint.every_steps=100 monitor.every_steps=1 monitor.sentences=[] eval.every_steps=3 "
        f"run.name=ours run.dir={tmp_path}"
    ).split()
    statuses, output = pretrain_run(command, tmp_path)
    assert statuses == [0], output
    assert main([f"run={tmp_path}/ours", f"out={tmp_path}/stock"]) == 0
    ours, stock = (readable_lines(tmp_path / name / "metrics.jsonl") for name in ("ours", "stock"))
    assert [line["step"] for line in ours] == [line["step"] for line in stock]
    compared = 0
    for one, other in zip(ours, stock, strict=True):
        for name in {*one} & {*other} - {"time"}:
            if not name.startswith("perf/"):
                assert one[name] == pytest.approx(other[name], abs=1e-4), (one["step"], name)
                compared += 1
    assert compared > 7 * STEPS
    assert "largest difference 0.0000 nats" in capsys.readouterr().out
    assert main([f"run={tmp_path}/ours", f"out={tmp_path}/stock"]) == 2
    assert "holds figures already" in capsys.readouterr().err
    assert report([f"run={tmp_path}/ours", f"other={tmp_path}/stock"]) == 0

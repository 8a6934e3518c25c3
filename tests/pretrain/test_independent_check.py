"""Stock transformers on the exported folder, fed from the held-out shards by plain pyarrow.

Nothing of this project computes here: the figures of metrics.jsonl must come out all the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest
import torch
from run_in_fork import pretrain_run

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def finished(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    statuses, output = pretrain_run(
        [
            "+model=tiny",
            f"data.dir={sample_dir}",
            "run.name=x",
            "model.hidden_size=64",
            "optim.global_batch=16",
            "schedule.total_steps=60",
            "eval.every_steps=60",
            "eval.max_examples=null",
            "engine.tokens_per_micro_batch=1024",
        ],
        folder,
        ranks=2,
    )
    assert statuses == [0, 0], output
    return folder / "runs/x"


def test_stock_transformers_finds_the_held_out_figures_of_the_run(
    sample_dir: Path, finished: Path
) -> None:
    from transformers import BertForPreTraining

    model = BertForPreTraining.from_pretrained(finished / "export").eval()
    mlm_loss = nsp_loss = 0.0
    mlm_right = nsp_right = num_masked = num_sequences = 0
    for shard in sorted((sample_dir / "len128/heldout").glob("*.arrow")):
        for row in pa.ipc.open_stream(shard).read_all().to_pylist():
            ids = np.array(row["input_ids"], dtype=np.int64)
            masked = ids.copy()
            masked[row["masked_positions"]] = row["masked_input_ids"]
            segments = (np.arange(len(ids)) >= row["segment_a_length"]).astype(np.int64)
            with torch.no_grad():
                answer = model(
                    input_ids=torch.from_numpy(masked)[None],
                    token_type_ids=torch.from_numpy(segments)[None],
                )
            logits = answer.prediction_logits[0, row["masked_positions"]].double()
            labels = torch.from_numpy(ids[row["masked_positions"]])
            mlm_loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            mlm_right += int((logits.argmax(-1) == labels).sum())
            num_masked += len(labels)
            next_logits = answer.seq_relationship_logits[0].double()
            nsp_loss -= torch.log_softmax(next_logits, 0)[row["next_sentence_label"]].item()
            nsp_right += int(next_logits.argmax() == row["next_sentence_label"])
            num_sequences += 1

    lines = [orjson.loads(line) for line in (finished / "metrics.jsonl").read_bytes().splitlines()]
    (figures,) = [line for line in lines if "eval/mlm_loss" in line]
    assert figures["eval/mlm_loss"] == pytest.approx(mlm_loss / num_masked, rel=1e-4)
    assert figures["eval/mlm_accuracy"] == pytest.approx(mlm_right / num_masked, abs=1e-4)
    assert figures["eval/nsp_loss"] == pytest.approx(nsp_loss / num_sequences, rel=1e-4)
    assert figures["eval/nsp_accuracy"] == pytest.approx(nsp_right / num_sequences, abs=1e-4)

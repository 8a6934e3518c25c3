"""Stock transformers on the exported folder, fed from the held-out shards by plain pyarrow.

Nothing of this project computes here: the figures of metrics.jsonl must come out all the same.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from run_in_fork import finished_run
from safetensors.torch import load_file

from data_prep.core.files import read_json
from data_prep.core.objectives import Pairing
from pretrain.config.load import load
from pretrain.huggingface.export import check_export
from pretrain.run_folder.jsonl import readable_lines

pytestmark = pytest.mark.distributed

NUM_EXAMPLES = 300  # spread evenly over the stored ones


def finished(sample_dir: Path, pairing: Pairing, folder: Path) -> Path:
    """The folder of a run on two ranks."""
    typed = [
        "+model=tiny", f"data.dir={sample_dir}", f"data.pairs={pairing.name}", "run.name=x",
        "model.hidden_size=64", "optim.global_batch=16", "schedule.total_steps=40",
        "eval.every_steps=40", f"eval.max_examples={NUM_EXAMPLES}",
        "engine.tokens_per_micro_batch=1024",
    ]  # fmt: skip
    finished_run(typed, folder, ranks=2)
    return folder / "runs/x"


OTHERS = [pairing for pairing in Pairing if pairing is not Pairing.nsp]


@pytest.mark.parametrize(
    "pairing", [Pairing.nsp, *(pytest.param(p, marks=pytest.mark.slow) for p in OTHERS)]
)
def test_stock_transformers_computes_the_held_out_metrics_of_the_run(
    sample_dirs: Callable[[Pairing], Path], tmp_path: Path, pairing: Pairing
) -> None:
    import transformers

    sample_dir = sample_dirs(pairing)
    run = finished(sample_dir, pairing, tmp_path)
    (kind,) = read_json(run / "export/config.json")["architectures"]
    assert kind == ("BertForMaskedLM" if pairing is Pairing.none else "BertForPreTraining")
    model = getattr(transformers, kind).from_pretrained(run / "export").eval()
    mlm_loss = pair_loss = 0.0
    mlm_right = pair_right = num_masked = num_sequences = 0
    shards = sorted((sample_dir / "len128/heldout").glob("*.arrow"))
    stored = pa.concat_tables([pa.ipc.open_stream(shard).read_all() for shard in shards])
    evenly = [number * len(stored) // NUM_EXAMPLES for number in range(NUM_EXAMPLES)]
    for row in stored.take(evenly).to_pylist():
        ids = np.array(row["input_ids"], dtype=np.int64)
        masked = ids.copy()
        masked[row["masked_positions"]] = row["masked_input_ids"]
        segments = (np.arange(len(ids)) >= row["segment_a_length"]).astype(np.int64)
        with torch.no_grad():
            answer = model(
                input_ids=torch.from_numpy(masked)[None],
                token_type_ids=torch.from_numpy(segments)[None],
            )
        token_logits = answer[0][0, row["masked_positions"]].double()
        labels = torch.from_numpy(ids[row["masked_positions"]])
        mlm_loss += torch.nn.functional.cross_entropy(token_logits, labels, reduction="sum").item()
        mlm_right += int((token_logits.argmax(-1) == labels).sum())
        num_masked += len(labels)
        if pairing is not Pairing.none:
            logits = answer.seq_relationship_logits[0].double()
            pair_loss -= torch.log_softmax(logits, 0)[row["next_sentence_label"]].item()
            pair_right += int(logits.argmax() == row["next_sentence_label"])
        num_sequences += 1

    lines = readable_lines(run / "metrics.jsonl")
    (figures,) = [line for line in lines if "eval/mlm_loss" in line]
    assert figures["eval/mlm_loss"] == pytest.approx(mlm_loss / num_masked, rel=1e-4)
    assert figures["eval/mlm_accuracy"] == pytest.approx(mlm_right / num_masked, abs=1e-4)
    task, loss = pairing.name, (mlm_loss / num_masked + pair_loss / num_sequences)
    assert figures["eval/loss"] == pytest.approx(loss, rel=1e-4)
    if pairing is not Pairing.none:
        assert figures[f"eval/{task}_loss"] == pytest.approx(pair_loss / num_sequences, rel=1e-4)
        assert figures[f"eval/{task}_accuracy"] == pytest.approx(
            pair_right / num_sequences, abs=1e-4
        )

    said = (tmp_path / "output.txt").read_text() + (run / "export/README.md").read_text()
    names = [*(name for line in lines for name in line), *said.split()]
    for other in set(Pairing) - {pairing, Pairing.none}:
        assert not [name for name in names if other.name in name.lower()], other


@pytest.mark.slow
def test_a_run_with_every_way_to_learn_faster_ends_in_a_stock_model_of_the_same_logits(
    sample_dir: Path, tmp_path: Path
) -> None:
    second = "{changes: {optim: {global_batch: 8}, schedule: {start_step: 8, stop_step: null}}"
    typed = [
        "+model=tiny", f"data.dir={sample_dir}", "run.name=x", "recipe=fast", "schedule=wsd",
        "optim.equal_rows=true", "engine=zero2", "engine.trim_last_layer=true",
        "optim.global_batch=16",
        "schedule.total_steps=16", "schedule.warmup_steps=2", "schedule.stop_step=8",
        "engine.tokens_per_micro_batch=2048", "eval.max_examples=20", "monitor.sentences=[]",
        f"phases=[{second}, moments: kept, optimizer_step: kept, loss_scaler: kept}}]",
    ]  # fmt: skip
    finished_run(typed, tmp_path, ranks=2)
    run = tmp_path / "runs/x"
    trained = load_file(run / "checkpoints/step-00000016/model.safetensors")
    model = load(typed[:4], 1)[0].model
    assert check_export(run / "export", trained, model, Pairing.nsp) <= 1e-5

"""A run as pretrain.run leaves one, made without training."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import orjson
from made_manifests import documents_manifest, shards_manifest, split_entry
from safetensors.torch import save_file
from torch import Tensor

from data_prep.core.config import as_yaml, compose
from data_prep.core.files import checksum, write_json
from data_prep.core.records import TextForm
from data_prep.tokenizer.hf_files import save_tokenizer
from pretrain.checkpoint.files import MANIFEST_FILE, path_of
from pretrain.checkpoint.progress import CheckpointState, Progress
from pretrain.config.settings import Settings
from pretrain.model.bert import BertForPreTraining


def made_run(folder: Path, model: BertForPreTraining, tokens: Sequence[str]) -> Path:
    """<folder>/runs/first, of 20 steps with checkpoints at 10 (half of the weights) and 20."""
    data_dir, run_folder = folder / "corpus", folder / "runs" / "first"
    save_tokenizer(data_dir / "vocab", list(tokens), TextForm(True))
    documents = documents_manifest(documents=77)
    write_json(data_dir / "documents" / "novels" / "manifest.json", documents)
    splits = {
        name: split_entry(rows=rows, tokens=4_000, masked_tokens=600, random_next=rows // 2)
        for name, rows in (("train", 80), ("heldout", 8))
    }
    shards = shards_manifest(splits, vocab_size=len(tokens), vocab_checksum="0123abcd")
    write_json(data_dir / "len64" / "manifest.json", shards)
    run_folder.mkdir(parents=True)
    settings, _ = compose("config", Settings, ["+model=tiny", "data.seq_len=64"])
    settings.model = model.settings
    settings.data.dir = str(data_dir)
    settings.run.dir = str(run_folder.parent)
    (run_folder / "config.yaml").write_text(as_yaml(settings))
    begun = {"time": "2026-03-01T12:00:00.000+00:00", "event": "started", "step": 0, "ranks": 1}
    (run_folder / "events.jsonl").write_bytes(orjson.dumps(begun) + b"\n")
    metrics = [
        {"step": step, "time": begun["time"], f"{kind}/mlm_loss": step / 10}
        for step in (10, 20)
        for kind in ("train", "eval")
    ]
    (run_folder / "metrics.jsonl").write_bytes(b"\n".join(map(orjson.dumps, metrics)))
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for step in (10, 20):
        state = {name: tensor * (step / 20) for name, tensor in weights.items()}
        made_checkpoint(run_folder, step, state)
    return run_folder


def made_checkpoint(
    run_folder: Path, step: int, weights: dict[str, Tensor], phase: int = 1
) -> Path:
    """A whole checkpoint of these weights, without the optimizer's state."""
    path = path_of(run_folder, step)
    path.mkdir(parents=True)
    save_file(weights, path / "model.safetensors")
    progress = msgspec.structs.asdict(Progress.begin(phase, step))
    write_json(path / "state.json", CheckpointState(**progress, identity={}))
    files = {p.name: {"bytes": p.stat().st_size, "checksum": checksum(p)} for p in path.iterdir()}
    write_json(path / MANIFEST_FILE, {"schema_version": 1, "files": files})
    return path

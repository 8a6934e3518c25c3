"""Exports the newest checkpoint of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from data_prep.core.config import SettingsError
from data_prep.core.files import read_json
from data_prep.stores.shard_records import read_shards_manifest
from pretrain.checkpoint.files import newest_whole, read_state
from pretrain.config.load import settings_of
from pretrain.config.phases import phases_of
from pretrain.data.corpus import folder_of
from pretrain.huggingface.export import export
from pretrain.metrics.names import held_out
from pretrain.run_folder.jsonl import readable_lines
from pretrain.run_folder.line_types import extensions_of
from pretrain.training.evaluation import last_evaluation


def export_run(
    run_folder: Path, checkpoint: Path | None = None, target: Path | None = None
) -> Path:
    """Export a run's newest whole checkpoint (or `checkpoint`) to <run>/export (or `target`).

    Returns the folder written. Raises SettingsError if there is no run or no checkpoint.
    """
    settings = settings_of(run_folder)
    checkpoint = checkpoint or newest_whole(run_folder)
    if checkpoint is None or not (checkpoint / "model.safetensors").exists():
        raise SettingsError(
            f"there is no whole checkpoint in {checkpoint or run_folder / 'checkpoints'}; train "
            "until the first is written, or give checkpoint=FOLDER"
        )
    step = read_state(checkpoint).step
    data_folder = Path(settings.data.dir)
    card = {
        "name": run_folder.resolve().name,
        "step": step,
        "settings": settings,
        "sources": {
            path.parent.name: read_json(path)["documents"]  # of any version: the run is trained
            for path in sorted(data_folder.glob("documents/*/manifest.json"))
        },
        "data": [
            read_shards_manifest(folder_of(phase.settings.data)) for phase in phases_of(settings)
        ],
        "held_out": held_out(last_evaluation(run_folder / "metrics.jsonl", step)),
        "start": _start(run_folder / "events.jsonl"),
        "extended": [e for e in extensions_of(run_folder / "events.jsonl") if e.step < step],
    }
    target = target or run_folder / "export"
    state = load_file(checkpoint / "model.safetensors")
    export(state, settings.model, settings.data.pairs, data_folder / "vocab", target, card)
    return target


def _start(events: Path) -> dict[str, Any] | None:
    """The facts of run.init_from; None: the run started from random weights."""
    starts = [e for e in readable_lines(events) if e["event"] == "init_from"]
    return starts[-1] if starts else None

"""Exports the newest checkpoint of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from safetensors.torch import load_file

from data_prep.core.config import SettingsError
from data_prep.core.files import read_json
from pretrain.checkpoint.files import newest_whole
from pretrain.config.load import settings_of
from pretrain.config.phases import phases_of
from pretrain.data.corpus import folder_of
from pretrain.huggingface.export import export
from pretrain.run_folder.jsonl import readable_lines


def export_run(
    run_folder: Path, checkpoint: Path | None = None, target: Path | None = None
) -> Path:
    """Export a run's newest whole checkpoint (or `checkpoint`) to <run>/export (or `target`).

    Returns the folder written. Raises SettingsError where there is no run or no checkpoint.
    """
    settings = settings_of(run_folder)
    checkpoint = checkpoint or newest_whole(run_folder)
    if checkpoint is None or not (checkpoint / "model.safetensors").exists():
        raise SettingsError(
            f"there is no whole checkpoint in {checkpoint or run_folder / 'checkpoints'}; train "
            "until the first is written, or give checkpoint=FOLDER"
        )
    step = read_json(checkpoint / "state.json")["step"]
    data_folder = Path(settings.data.dir)
    card = {
        "name": run_folder.resolve().name,
        "step": step,
        "settings": settings,
        "sources": {
            path.parent.name: read_json(path)["documents"]
            for path in sorted(data_folder.glob("documents/*/manifest.json"))
        },
        "data": [
            read_json(folder_of(phase.settings.data) / "manifest.json")
            for phase in phases_of(settings)
        ],
        "held_out": _held_out(run_folder / "metrics.jsonl", step),
        "start": _start(run_folder / "events.jsonl"),
    }
    target = target or run_folder / "export"
    state = load_file(checkpoint / "model.safetensors")
    export(state, settings.model, settings.data.pairs, data_folder / "vocab", target, card)
    return target


def _held_out(metrics: Path, step: int) -> dict[str, float]:
    """The figures of the last held-out evaluation up to `step`; empty where there was none."""
    found: dict[str, float] = {}
    if metrics.exists():
        for line in metrics.read_bytes().splitlines():
            figures = orjson.loads(line)
            if "eval/mlm_loss" in figures and figures["step"] <= step:
                found = {key: value for key, value in figures.items() if key.startswith("eval/")}
    return found


def _start(events: Path) -> dict[str, Any] | None:
    """What the run started from; None: random weights."""
    starts = [e for e in readable_lines(events) if e["event"] == "init_from"]
    return starts[-1] if starts else None

"""Exports a run's newest checkpoint, or the mean of its last ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from data_prep.core.config import SettingsError
from data_prep.core.files import read_json
from data_prep.stores.shard_records import read_shards_manifest
from pretrain.checkpoint.average import last_checkpoints, mean_weights
from pretrain.checkpoint.files import newest_whole, read_state
from pretrain.config.load import settings_of
from pretrain.config.phases import phases_of
from pretrain.config.settings import Settings
from pretrain.data.corpus import folder_of
from pretrain.huggingface.export import export, write_card
from pretrain.metrics.names import held_out
from pretrain.run_folder.jsonl import readable_lines
from pretrain.run_folder.line_types import extensions_of
from pretrain.training.evaluate_model import evaluate_model
from pretrain.training.evaluation import last_evaluation


@dataclass(frozen=True)
class Average:
    """An exported mean of checkpoints and its held-out metrics, by the names of metrics.jsonl."""

    target: Path
    steps: list[int]  # of the checkpoints; the last one is the newest
    examples: int  # evaluated
    metrics: dict[str, float]
    metrics_of_last: dict[str, float]


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
    card = _card(run_folder, settings, step)
    card["held_out"] = held_out(last_evaluation(run_folder / "metrics.jsonl", step))
    target = target or run_folder / "export"
    state = load_file(checkpoint / "model.safetensors")
    export(state, settings.model, settings.data.pairs, _vocab(settings), target, card)
    return target


def export_average(run_folder: Path, last: int, target: Path | None = None) -> Average:
    """Export the mean of a run's `last` checkpoints to <run>/average (or `target`); evaluate it.

    The last checkpoint alone is evaluated, too, on the held-out examples of its phase, as many as
    eval.max_examples. Raises SettingsError as `last_checkpoints` and `mean_weights` do.
    """
    settings = settings_of(run_folder)
    checkpoints = last_checkpoints(run_folder, last)
    states = [read_state(path) for path in checkpoints]
    target = target or run_folder / "average"
    card = _card(run_folder, settings, states[-1].step)
    card |= {"averaged": [state.step for state in states], "held_out": {}}
    weights = mean_weights(checkpoints)
    export(weights, settings.model, settings.data.pairs, _vocab(settings), target, card)
    data = phases_of(settings)[states[-1].phase - 1].settings.data
    alone, mean = (
        evaluate_model(
            run, checkpoint, data.folder, data.seq_len, "heldout", settings.eval.max_examples
        )
        for run, checkpoint in ((run_folder, str(checkpoints[-1])), (target, None))
    )
    write_card(target, {**card, "held_out": held_out(mean.metrics)})
    return Average(target, card["averaged"], mean.examples, mean.metrics, alone.metrics)


def _vocab(settings: Settings) -> Path:
    return settings.data.folder / "vocab"


def _card(run_folder: Path, settings: Settings, step: int) -> dict[str, Any]:
    """What the model card says about the run up to `step`, without its held-out metrics."""
    return {
        "name": run_folder.resolve().name,
        "step": step,
        "settings": settings,
        "sources": {
            path.parent.name: read_json(path)["documents"]  # of any version: the run is trained
            for path in sorted(settings.data.folder.glob("documents/*/manifest.json"))
        },
        "data": [
            read_shards_manifest(folder_of(phase.settings.data)) for phase in phases_of(settings)
        ],
        "start": _start(run_folder / "events.jsonl"),
        "extended": [e for e in extensions_of(run_folder / "events.jsonl") if e.step < step],
    }


def _start(events: Path) -> dict[str, Any] | None:
    """The facts of run.init_from; None: the run started from random weights."""
    starts = [e for e in readable_lines(events) if e["event"] == "init_from"]
    return starts[-1] if starts else None

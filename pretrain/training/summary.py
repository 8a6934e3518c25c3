"""The end of a run: export, a few guesses, a short table and where everything lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from data_prep.core.objectives import Pairing
from pretrain.config.settings import Settings
from pretrain.training.evaluation import frequency_baseline


def close_run(run_folder: Path, settings: Settings, manifest: dict[str, Any]) -> None:
    """Export the last checkpoint of a finished run and print what came of it."""
    from pretrain.huggingface.load import fill_masks
    from pretrain.huggingface.weights import hugging_face_class
    from pretrain.training.export_run import export_run

    export = export_run(run_folder)
    figures = last_evaluation(run_folder / "metrics.jsonl")
    summary = {**figures, "eval/frequency_mlm_loss": frequency_baseline(settings, manifest)}
    print("\n".join(["", *_table(summary, manifest), ""]))
    sentences = settings.monitor.sentences
    filled = fill_masks(export, sentences, top_k=3) if sentences else []
    for sentence, guesses in zip(sentences, filled, strict=True):
        words = ", ".join(f"{word} {probability:.0%}" for word, probability in guesses)
        print(f"  {sentence}  {words}")
    newest = max((run_folder / "checkpoints").glob("step-*"))
    print(
        f"\n  metrics     {run_folder / 'metrics.jsonl'}\n  checkpoint  {newest}\n"
        f"  export      {export}   ({hugging_face_class(settings.data.pairs)}.from_pretrained loads it)"
    )


def last_evaluation(metrics: Path) -> dict[str, float]:
    """The figures of the last held-out evaluation in metrics.jsonl, with its step."""
    lines = [orjson.loads(line) for line in metrics.read_bytes().splitlines()]
    evaluations: list[dict[str, float]] = [line for line in lines if "eval/mlm_loss" in line]
    if not evaluations:
        raise RuntimeError(f"{metrics} holds no held-out evaluation; was it edited?")
    return evaluations[-1]


def _table(figures: dict[str, float], manifest: dict[str, Any]) -> list[str]:
    loss, by_frequency = figures["eval/mlm_loss"], figures["eval/frequency_mlm_loss"]
    comparison = "better" if loss < by_frequency else "worse"
    lines = [
        f"  held-out after {figures['step']:,} steps",
        f"  MLM loss      {loss:8.4f}   by token frequency alone {by_frequency:.4f}, "
        f"{abs(by_frequency - loss):.4f} {comparison}",
        f"  MLM accuracy  {figures['eval/mlm_accuracy']:8.2%}",
    ]
    pairing, held_out = Pairing[manifest["pairs"]], manifest["splits"]["heldout"]
    if pairing.label_1:
        task, share = pairing.name.upper(), held_out[pairing.label_1] / held_out["rows"]
        lines += [
            f"  {task} loss      {figures[f'eval/{pairing.name}_loss']:8.4f}",
            f"  {task} accuracy  {figures[f'eval/{pairing.name}_accuracy']:8.2%}   a constant answer "
            f"{max(share, 1 - share):.2%}",
        ]
    return lines

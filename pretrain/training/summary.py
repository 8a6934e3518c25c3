"""The end of a run: export, results, a few guesses and the paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.stores.shard_records import ShardsManifest
from pretrain.config.settings import Settings
from pretrain.training.evaluation import frequency_baseline, last_evaluation

WIDTH = 80  # of a terminal


def close_run(run_folder: Path, settings: Settings, manifest: ShardsManifest) -> None:
    """Export the last checkpoint of a finished run and print its results, if metrics.jsonl has
    them."""
    from pretrain.huggingface.load import fill_masks
    from pretrain.huggingface.weights import hugging_face_class
    from pretrain.training.export_run import export_run

    export = export_run(run_folder)
    metrics = last_evaluation(run_folder / "metrics.jsonl")
    if not metrics:
        print(
            f"{run_folder / 'metrics.jsonl'} has no held-out evaluation (was it removed or "
            f"edited?): no results are printed; the model is in {export}"
        )
        return
    print("\n".join(["", *_table(metrics, frequency_baseline(settings, manifest), manifest), ""]))
    sentences = settings.monitor.sentences
    filled = fill_masks(export, sentences, top_k=3) if sentences else []
    for sentence, guesses in zip(sentences, filled, strict=True):
        words = ", ".join(f"{word} {probability:.0%}" for word, probability in guesses)
        line = f"  {sentence}  {words}"
        print(line if len(line) <= WIDTH else f"  {sentence}\n      {words}")
    newest = max((run_folder / "checkpoints").glob("step-*"))
    loader = f"{hugging_face_class(settings.data.pairs)}.from_pretrained loads it"
    print(
        f"\n  metrics     {run_folder / 'metrics.jsonl'}\n  checkpoint  {newest}\n"
        f"  export      {export}   ({loader})"
    )


def _table(metrics: dict[str, Any], by_frequency: float, manifest: ShardsManifest) -> list[str]:
    loss = metrics["eval/mlm_loss"]
    comparison = "better" if loss < by_frequency else "worse"
    lines = [
        f"  held-out after {metrics['step']:,} steps",
        f"  MLM loss      {loss:8.4f}   by token frequency alone {by_frequency:.4f}, "
        f"{abs(by_frequency - loss):.4f} {comparison}",
        f"  MLM accuracy  {metrics['eval/mlm_accuracy']:8.2%}",
    ]
    pairing, held_out = manifest.pairs, manifest.splits["heldout"]
    if pairing.label_1:
        task, share = pairing.name.upper(), held_out.label_1 / held_out.rows
        lines += [
            f"  {task} loss      {metrics[f'eval/{pairing.name}_loss']:8.4f}",
            f"  {task} accuracy  {metrics[f'eval/{pairing.name}_accuracy']:8.2%}   a constant "
            f"answer {max(share, 1 - share):.2%}",
        ]
    return lines

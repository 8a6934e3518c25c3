"""Results of one task, and the table of several."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.finetuning.job import Job
from scripts.finetuning.settings import InputError, Settings

FILE = "results.json"


def summary(
    settings: Settings, job: Job, runs: list[dict[str, Any]], tried: list[dict[str, Any]]
) -> dict[str, Any]:
    """What results.json holds: figures in percent, of every seed, with mean and deviation."""
    task = settings.task
    choices = ["the epoch"] + (["batch size, rate and epochs"] if len(tried) > 1 else [])
    trial = runs[0]["trial"]
    return {
        "task": task.name,
        "model": str(settings.model),
        "start": settings.start.name,
        "metrics": [f"{dev.name}_{name}" for dev in job.dev for name in task.metrics],
        "figures": spread([run["figures"] for run in runs]),
        "seeds": [{"seed": run["trial"]["seed"], **run["figures"]} for run in runs],
        "best_epochs": [run["best_epoch"] for run in runs],
        "chosen": {name: trial[name] for name in ("batch_size", "learning_rate", "epochs")},
        "chosen_on_dev": f"{' and '.join(choices)}, so its figures are a little too good",
        "tried": [{**run["trial"], **run["figures"]} for run in tried] if len(tried) > 1 else [],
        "examples": {"train": len(job.train), **{dev.name: len(dev.features) for dev in job.dev}},
        "left_out_or_cut": job.notes.lines(),
        "new_parts": runs[0]["new_parts"],
        "seconds": [run["seconds"] for run in runs],
    }


def spread(figures: Sequence[dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """{figure: mean and standard deviation (n - 1; None of a single seed)}."""
    return {
        name: {
            "mean": statistics.fmean(line[name] for line in figures),
            "std": statistics.stdev(line[name] for line in figures) if len(figures) > 1 else None,
        }
        for name in figures[0]
    }


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """A line a figure: task, figure, mean, deviation, each seed; below it what was chosen on dev."""
    head = ["task", "start", "figure", "mean", "std", "each seed", "chosen"]
    lines = [head]
    for one in summaries:
        chosen = one["chosen"]
        how = f"batch {chosen['batch_size']}, rate {chosen['learning_rate']:g}, {chosen['epochs']:g} epochs"
        for number, name in enumerate(one["metrics"]):
            figure = one["figures"][name]
            std = "–" if figure["std"] is None else f"{figure['std']:.2f}"
            each = " ".join(f"{seed[name]:.2f}" for seed in one["seeds"])
            label = [one["task"], one["start"]] if number == 0 else ["", ""]
            lines.append(
                [*label, name, f"{figure['mean']:.2f}", std, each, how if number == 0 else ""]
            )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text += sorted({f"chosen on dev: {one['chosen_on_dev']}" for one in summaries})
    return "\n".join(text)


def read(folder: Path) -> dict[str, Any]:
    """results.json of a folder. Raises InputError where there is none."""
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"there is no {path}; it is written when a task's seeds are done")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def combined(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One summary of several of the same task and settings, which have other seeds."""
    seeds = [seed for one in summaries for seed in one["seeds"]]
    return {
        **summaries[0],
        "seeds": seeds,
        "figures": spread([{k: v for k, v in seed.items() if k != "seed"} for seed in seeds]),
        "best_epochs": [epoch for one in summaries for epoch in one["best_epochs"]],
        "seconds": [seconds for one in summaries for seconds in one["seconds"]],
    }

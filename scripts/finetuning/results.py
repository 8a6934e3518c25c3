"""Results of one task, and the table of several."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from scripts.finetuning.job import Job
from scripts.finetuning.settings import Settings

FILE, TRIALS, MODEL = "results.json", "trials", "model"  # below `out`


def summary(
    settings: Settings, job: Job, runs: list[dict[str, Any]], tried: list[dict[str, Any]]
) -> dict[str, Any]:
    """The content of results.json: metrics of every seed in percent, mean and deviation."""
    task = settings.task
    choices = "the epoch" + " and batch size, rate and epochs" * (len(tried) > 1)
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
        "chosen_on_dev": f"{choices}, so its metrics are slightly optimistic",
        "tried": [{**run["trial"], **run["figures"]} for run in tried] if len(tried) > 1 else [],
        "examples": {"train": len(job.train), **{dev.name: len(dev.features) for dev in job.dev}},
        "left_out_or_cut": job.notes.lines(),
        "new_parts": runs[0]["new_parts"],
        "seconds": [run["seconds"] for run in runs],
    }


def spread(seeds: Sequence[dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation (n - 1; None for a single seed) of each metric."""
    return {
        name: {
            "mean": statistics.fmean(seed[name] for seed in seeds),
            "std": statistics.stdev(seed[name] for seed in seeds) if len(seeds) > 1 else None,
        }
        for name in seeds[0]
    }


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """One line per metric: mean, deviation, each seed; then what was chosen on dev."""
    head = ["task", "start", "metric", "mean", "std", "each seed", "chosen"]
    lines = [head]
    for one in summaries:
        chosen = one["chosen"]
        how = "batch {batch_size}, rate {learning_rate:g}, {epochs:g} epochs".format(**chosen)
        for number, name in enumerate(one["metrics"]):
            mean, std = one["figures"][name]["mean"], one["figures"][name]["std"]
            each = " ".join(f"{seed[name]:.2f}" for seed in one["seeds"])
            numbers = [f"{mean:.2f}", "–" if std is None else f"{std:.2f}", each]
            task, start, end = (one["task"], one["start"], how) if number == 0 else ("", "", "")
            lines.append([task, start, name, *numbers, end])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text += sorted({f"chosen on dev: {one['chosen_on_dev']}" for one in summaries})
    return "\n".join(text)


def combined(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One summary of several with the same task and settings, but different seeds."""
    seeds = [seed for one in summaries for seed in one["seeds"]]
    return {
        **summaries[0],
        "seeds": seeds,
        "figures": spread([{k: v for k, v in seed.items() if k != "seed"} for seed in seeds]),
        "best_epochs": [epoch for one in summaries for epoch in one["best_epochs"]],
        "seconds": [seconds for one in summaries for seconds in one["seconds"]],
    }

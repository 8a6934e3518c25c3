"""The trainings of the benchmark: what each is, and its result, which is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.core.config import SettingsError, as_dict
from data_prep.core.files import read_json, write_json
from pretrain.config.load import load
from pretrain.config.phases import phases_of
from pretrain.config.settings import Settings
from pretrain.data.corpus import manifest_of
from pretrain.run_folder.jsonl import readable_lines

# Counted in steps, from a recipe's own length to another
LENGTHS = ("total_steps", "warmup_steps", "start_step", "stop_step")
KEPT = ("loss", "accuracy", "tokens", "seconds", "steps")


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    program: str  # ours | transformers
    overrides: tuple[str, ...] = ()  # of pretrain.run
    has_batch: bool = False  # the recipe names the sequences of a step


# As its users have it: dropout, masks drawn by the collator, a rate that falls linearly
STOCK = (
    "optim=adamw", "model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1",
    "data.masking=dynamic",
)  # fmt: skip
REFERENCE = "transformers"
VARIANTS = {
    REFERENCE: Variant(REFERENCE, "transformers", STOCK),
    "adamw": Variant("adamw", "ours", ("optim=adamw",)),
    "fast": Variant("fast", "ours", ("recipe=fast",)),
    "demo": Variant("demo", "ours", ("recipe=demo",), has_batch=True),  # short sequences first
}
# recipe=fast with one of its techniques off
TECHNIQUES = {
    "AdamW": ("optim=adamw", "optim.matrix_rate=null"),
    "weight decay 0.01": ("optim.weight_decay=0.01",),
    "initial weights of 0.02": ("model.initializer_range=0.02",),
    "random positions": ("model.position_init=normal",),
    "a mask rate of 0.15": ("data.mask_rate=null", "data.mask_rate_end=null"),
    "dropout 0.1": ("model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1"),
}
ABLATION = {
    f"fast with {name}": Variant(f"fast with {name}", "ours", ("recipe=fast", *overrides))
    for name, overrides in TECHNIQUES.items()
}


@dataclass(frozen=True)
class Trial:
    """One training: a variant at a length, a rate and a seed."""

    variant: Variant
    tokens: float  # about; whole steps are made
    rate: float
    seed: int

    @property
    def name(self) -> str:
        words = self.variant.name.lower().replace(" ", "-")
        return f"{words}-{round(self.tokens)}-{self.rate:g}-seed{self.seed}"


@dataclass(frozen=True)
class Laboratory:
    """Where trials run and their results are kept; `given` are overrides of all of them."""

    out: Path
    given: tuple[str, ...]  # of pretrain.run: model, data
    threads: int = 1

    def result(self, trial: Trial) -> dict[str, Any] | None:
        """What an earlier start found; None if there is nothing.

        Raises SettingsError if that is of other settings.
        """
        path = self._path(trial)
        if not path.exists():
            return None
        found: dict[str, Any] = read_json(path)
        if found["overrides"] != self.overrides(trial):
            raise SettingsError(
                f"{path} is of other settings ({' '.join(found['overrides'])}); give another out="
            )
        return found

    def overrides(self, trial: Trial) -> list[str]:
        """Of pretrain.run; its folder is missing, so that results can be moved."""
        own = [*self.given, *trial.variant.overrides, f"optim.learning_rate={trial.rate:g}"]
        settings = load(own, 1)[0]
        return [*own, *scaled(settings, trial.tokens), f"run.seed={trial.seed}"]

    def perform(self, trial: Trial) -> dict[str, Any]:
        """Train, and keep the result. Raises SettingsError if the training fails."""
        overrides, runs = self.overrides(trial), self.out / "runs"
        run = runs / trial.name
        if trial.variant.program == "transformers":  # it has no checkpoints
            shutil.rmtree(run, ignore_errors=True)
        words = [
            "-m", "scripts.bench.parts.child", trial.variant.program, str(self.threads),
            *overrides, "eval.every_steps=1000000000", "checkpoint.every_steps=1000",
            "monitor.sentences=[]", f"run.dir={runs}", f"run.name={trial.name}",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with (self.out / "trials.log").open("ab") as log:
            ended = subprocess.run(
                [sys.executable, *words], env=environment, stdout=log, stderr=log, check=False
            )
        if ended.returncode:
            raise SettingsError(f"{trial.name} ended with {ended.returncode}: see {log.name}")
        found = {**outcome(run), "overrides": overrides}
        write_json(self._path(trial), found)
        shutil.rmtree(run)
        return found

    def _path(self, trial: Trial) -> Path:
        return self.out / "trials" / f"{trial.name}.json"


def outcome(run: Path) -> dict[str, Any]:
    """Loss and accuracy at the end of a run, its steps, tokens and seconds of training."""
    lines = list(readable_lines(run / "metrics.jsonl"))
    last = next(line for line in reversed(lines) if "eval/mlm_loss" in line)
    records = [line for line in lines if "perf/training_seconds" in line]
    seconds = [line["perf/training_seconds"] for line in records]
    return {
        "loss": last["eval/mlm_loss"],
        "accuracy": last["eval/mlm_accuracy"],
        "steps": last["step"],
        "seconds": sum(seconds),
        "tokens": round(
            sum(r["perf/tokens_per_second"] * s for r, s in zip(records, seconds, strict=True))
        ),
    }


def scaled(settings: Settings, tokens: float) -> list[str]:
    """Overrides that stretch a schedule, with all its phases, to about so many tokens."""
    each = [_tokens(phase.settings) for phase in phases_of(settings)]
    factor = tokens / sum(each)
    words = [
        f"schedule.{name}={value}"
        for name, value in _stretched(as_dict(settings)["schedule"], factor).items()
    ]
    if not settings.phases:
        return words
    phases = as_dict(settings)["phases"]
    for phase in phases:
        schedule = phase["changes"].get("schedule", {})
        phase["changes"]["schedule"] = {**schedule, **_stretched(schedule, factor)}
    return [*words, f"phases={typed(phases)}"]


def _tokens(settings: Settings) -> float:
    """Tokens of a phase."""
    split = manifest_of(settings.data, has_one_length=False).splits["train"]
    mean, steps = split.tokens / split.rows, settings.schedule.last_step
    if steps is None:
        raise SettingsError("schedule.budget_hours: the benchmark's trainings count steps")
    return steps * mean * settings.optim.sequences_per_step(mean)


def _stretched(schedule: Mapping[str, Any], factor: float) -> dict[str, int]:
    return {name: max(1, round(schedule[name] * factor)) for name in LENGTHS if schedule.get(name)}


def typed(value: Any) -> str:
    """A value as one types it in an override: keys have no quotes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {typed(own)}" for key, own in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(typed, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)

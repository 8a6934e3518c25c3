"""The run of every kind of task: check, read, try a grid, repeat with seeds, write the results."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.core.config import CONF, SettingsError, as_dict, as_yaml
from data_prep.core.files import read_json, write_json
from scripts.finetuning import results
from scripts.finetuning.job import Job, check_length
from scripts.finetuning.models import checked, identity, load_tokenizer
from scripts.finetuning.settings import InputError, Kind, Settings, load, tasks
from scripts.finetuning.trial import RESULT, SeedRun, run_trial

TRIALS = "trials"
MODEL = "model"
# Settings that do not change the metrics of a trial: where it goes, the other trials, the logging
FREE = (
    "out", "seeds", "first_seed", "resume", "wandb", "project", "grid", "eval_batch_size", "model",
)  # fmt: skip


def main(kind: Kind, argv: Sequence[str] | None = None) -> int:
    """Fine-tune from the command line; --help and --cfg only print. Status 2: refused, with why."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    module = f"scripts.finetune_{kind.name}"
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(_help(module, kind))
        return 0
    try:
        settings = load([word for word in arguments if word != "--cfg"], kind)
        if "--cfg" in arguments:
            sys.stdout.write(as_yaml(settings))
        else:
            finetune(settings)
    except SettingsError as error:
        sys.stderr.write(f"{module}: {error}\n")
        return 2
    return 0


def finetune(settings: Settings) -> dict[str, Any]:
    """Run all trials of a task; write, print and return the content of results.json.

    Raises InputError before training if model, data or settings cannot be used.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("fine-tuning is one process; several seeds or tasks: slurm/finetune.sh")
    config = checked(settings.model_folder)
    tokenizer = load_tokenizer(settings.model_folder)
    check_length(settings.max_length, config["max_position_embeddings"])
    started = time.monotonic()
    kind = importlib.import_module(f"scripts.finetuning.{settings.task.kind.name}")
    job: Job = kind.prepare(settings, tokenizer)
    _print_inputs(settings, job, time.monotonic() - started)
    out = settings.out_folder
    if not settings.resume:
        shutil.rmtree(out / TRIALS, ignore_errors=True)
    fingerprint = _fingerprint(settings)

    def outcome(trial: SeedRun) -> dict[str, Any]:
        folder = out / TRIALS / trial.name
        earlier = _earlier(folder, fingerprint)
        if earlier is not None:
            print(f"{trial.name}: done before")
            return earlier
        print(f"{trial.name}: in {folder}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder):
            (folder / "fingerprint").write_text(fingerprint)
            return run_trial(trial, settings, job, tokenizer, folder, fingerprint)

    first = f"{job.dev[0].name}_{settings.task.metrics[0]}"
    tried: list[dict[str, Any]] = []
    for trial in _grid(settings):
        tried.append(outcome(trial))
        best = max(tried, key=lambda result: result["figures"][first])
        for result in tried:  # a grid's models would fill a disk
            if result is not best:
                shutil.rmtree(_model_of(out, result), ignore_errors=True)
    chosen = SeedRun(**best["trial"])
    runs = [best] + [
        outcome(dataclasses.replace(chosen, seed=settings.first_seed + number))
        for number in range(1, settings.seeds)
    ]
    summary = results.summary(settings, job, runs, tried)
    write_json(out / "settings.json", as_dict(settings))
    _keep_best_model(out, runs, first)
    write_json(out / results.FILE, summary)
    print(results.table([summary]))
    print(f"results  {out / results.FILE}\nmodel    {out / MODEL}")
    return summary


def _grid(settings: Settings) -> list[SeedRun]:
    grid = settings.grid
    return [
        SeedRun(batch_size, rate, epochs, settings.first_seed)
        for batch_size, rate, epochs in itertools.product(
            grid.batch_size or [settings.batch_size],
            grid.learning_rate or [settings.learning_rate],
            grid.epochs or [settings.epochs],
        )
    ]


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Raise InputError if another process trains in `folder`. The lock ends with its process."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is training in {folder}; let it end, or give another out="
            ) from None
        yield


def _earlier(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The result in `folder` or None. Raises InputError if it is of another fingerprint."""
    mark = folder / "fingerprint"
    if mark.is_file() and mark.read_text() != fingerprint:
        raise InputError(
            f"{folder} was made with another model, other data or settings; "
            "give another out=, or resume=false to start again"
        )
    path = folder / RESULT
    return dict(read_json(path)) if path.is_file() else None


def _fingerprint(settings: Settings) -> str:
    """A digest of all that decides a trial's metrics, except the trial; data by size and time."""
    plain = {name: value for name, value in as_dict(settings).items() if name not in FREE}
    for name in ("batch_size", "learning_rate", "epochs"):
        del plain[name]  # in the trial's name
    files = {}
    if settings.task.folder is not None:
        for role in ("train", "dev", "other_dev"):
            if name := getattr(settings.task, role):
                stat = os.stat(Path(settings.task.folder) / name)
                files[role] = [stat.st_size, stat.st_mtime_ns]
    text = json.dumps([plain, files, identity(settings.model_folder)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _keep_best_model(out: Path, runs: list[dict[str, Any]], first: str) -> None:
    """Make the best seed's model out/model, as links to the trial's files."""
    source = _model_of(out, max(runs, key=lambda result: result["figures"][first]))
    if not source.is_dir():
        raise InputError(f"{source}, the best model, is missing; resume=false trains it again")
    temporary = out / f".{MODEL}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, copy_function=os.link)
    shutil.rmtree(out / MODEL, ignore_errors=True)
    temporary.rename(out / MODEL)


def _model_of(out: Path, result: dict[str, Any]) -> Path:
    return out / TRIALS / SeedRun(**result["trial"]).name / MODEL


def _print_inputs(settings: Settings, job: Job, seconds: float) -> None:
    dev = ", ".join(f"{dev.name} {len(dev.features):,}" for dev in job.dev)
    print(f"{settings.task.name}: train {len(job.train):,}, {dev} inputs in {seconds:.1f} s")
    for line in job.notes.lines():
        print(f"  {line}")


def _help(module: str, kind: Kind) -> str:
    return (
        f"python -m {module} +task=TASK model=FOLDER [SETTING=VALUE ...]\n\n"
        f"tasks: {', '.join(tasks(kind))}\n\n{(CONF / 'finetune.yaml').read_text()}"
    )

"""The run of every kind of task: check, read, try a grid, repeat with seeds, write the results."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.core.bert_folder import check_folder, identity
from data_prep.core.command import INTERRUPTED, as_typed
from data_prep.core.config import SettingsError, as_dict, as_yaml
from data_prep.core.files import link_or_copy, remove_folder, whole_or_absent, write_json
from scripts.finetuning import results
from scripts.finetuning.results import MODEL, TRIALS
from scripts.finetuning.settings import InputError, Kind, Settings, Start, load

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from scripts.finetuning.job import Job

# Settings that do not change the metrics of a trial: where it goes, the other trials, the logging
FREE = (
    "out", "seeds", "first_seed", "resume", "wandb", "project", "grid", "eval_batch_size", "model",
)  # fmt: skip


def main(kind: Kind, argv: Sequence[str] | None = None) -> int:
    """Fine-tune from the command line; --cfg only prints. Status 2: refused, with why."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    module = as_typed(f"scripts.finetune_{kind.name}")
    try:
        settings = load([word for word in arguments if word != "--cfg"], kind)
        if "--cfg" in arguments:
            sys.stdout.write(as_yaml(settings))
        else:
            finetune(settings)
    except SettingsError as error:
        sys.stderr.write(as_typed(f"{module}: {error}\n"))
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{module}: interrupted; the same command continues\n")
        return INTERRUPTED
    return 0


def finetune(settings: Settings) -> dict[str, Any]:
    """Run all trials of a task; write, print and return the content of results.json.

    Raises InputError before training if model, data or settings cannot be used.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("fine-tuning is one process; several seeds or tasks: slurm/finetune.sh")
    config = check_folder(settings.model_folder)
    if settings.max_length > (positions := config.max_position_embeddings):
        raise InputError(
            f"max_length={settings.max_length}: the model has {positions} positions; "
            f"add max_length={positions}"
        )
    # Not before the settings are known to be right: these imports take seconds
    from scripts.finetuning.models import load_tokenizer, rows_beyond

    tokenizer = load_tokenizer(settings.model_folder)
    started = time.monotonic()
    kind = importlib.import_module(f"scripts.finetuning.{settings.task.kind.name}")
    job: Job = kind.prepare(settings, tokenizer)
    if rows := rows_beyond(settings.model_folder, tokenizer):
        reason = "row(s) of embeddings beyond the vocabulary left out"
        job.notes.add(reason, str(settings.model_folder), rows)
    dev = ", ".join(f"{dev.name} {len(dev.features):,}" for dev in job.dev)
    seconds = time.monotonic() - started
    print(f"{settings.task.name}: train {len(job.train):,}, {dev} inputs in {seconds:.1f} s")
    print("".join(f"  {line}\n" for line in job.notes.lines()), end="")
    if not settings.resume:
        remove_folder(settings.out_folder / TRIALS)
    return _trials(settings, job, tokenizer)


def _trials(settings: Settings, job: Job, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Try the grid, repeat the best with the other seeds, write and print the results."""
    from scripts.finetuning.trial import SeedRun, Task

    out = settings.out_folder
    task = Task(settings, job, tokenizer, _fingerprint(settings))
    tried: list[dict[str, Any]] = []
    for values in itertools.product(
        settings.grid.batch_size or [settings.batch_size],
        settings.grid.learning_rate or [settings.learning_rate],
        settings.grid.epochs or [settings.epochs],
    ):
        tried.append(task.outcome(SeedRun(*values, settings.first_seed)))
        best = task.best(tried)
        for other in tried:  # a grid's models would fill a disk
            if other is not best:
                shutil.rmtree(task.model(other), ignore_errors=True)
    chosen = SeedRun(**best["trial"])
    more = range(settings.first_seed + 1, settings.first_seed + settings.seeds)
    runs = [best] + [task.outcome(dataclasses.replace(chosen, seed=seed)) for seed in more]
    found = results.summary(settings, job, runs, tried)
    write_json(out / "settings.json", as_dict(settings))
    _link_model(task.model(task.best(runs)), out / MODEL)
    write_json(out / results.FILE, found)
    print(results.table([found]))
    print(f"results  {out / results.FILE}\nmodel    {out / MODEL}")
    return found


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
    has_weights = settings.start is not Start.random  # which takes the sizes alone
    model = identity(settings.model_folder, has_weights=has_weights)
    text = json.dumps([plain, files, model], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _link_model(source: Path, target: Path) -> None:
    """Make the best seed's model `target`, as links to the trial's files."""
    if not source.is_dir():
        raise InputError(f"{source}, the best model, is missing; resume=false trains it again")
    with whole_or_absent(target, is_folder=True) as temporary:
        shutil.copytree(source, temporary, copy_function=link_or_copy, dirs_exist_ok=True)

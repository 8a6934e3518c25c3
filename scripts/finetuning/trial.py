"""One fine-tuning with one seed by `transformers.Trainer`: it resumes and keeps the best epoch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from data_prep.core.files import only_process, read_json, remove_folder, write_json
from scripts.finetuning.job import Job
from scripts.finetuning.models import load_model, num_entries, quiet
from scripts.finetuning.results import MODEL, TRIALS
from scripts.finetuning.settings import InputError, Precision, Settings

RESULT = "result.json"


@dataclass(frozen=True)
class SeedRun:
    """The settings in which one run of a task differs from the others."""

    batch_size: int
    learning_rate: float
    epochs: float
    seed: int

    @property
    def name(self) -> str:
        return (
            f"batch-{self.batch_size}-rate-{self.learning_rate:g}-epochs-{self.epochs:g}"
            f"-seed-{self.seed}"
        )


class ScoringTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """A Trainer that scores whole development sets, because answers span several windows."""

    control: Any

    def __init__(self, job: Job, **how: Any) -> None:
        super().__init__(**how, eval_dataset=job.dev[0].features, data_collator=job.collate)
        self.job = job

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Metrics of all development sets, `eval_<set>_<metric>`."""
        values: dict[str, float] = {}
        for dev in self.job.dev:
            loader = self.get_test_dataloader(dev.features)
            output = self.evaluation_loop(loader, "Evaluation", prediction_loss_only=False)
            found = dev.score(output.predictions)
            values |= {f"eval_{dev.name}_{name}": value for name, value in found.items()}
            # each set has its own progress bar
            self.callback_handler.on_predict(self.args, self.state, self.control, values)
        self.log(values)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, values
        )
        return values


class _NotFinite(TrainerCallback):  # type: ignore[misc]
    """Ends a training whose loss is not finite."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise InputError(
                f"step {state.global_step}: the loss is {loss}; try a smaller learning_rate="
            )


@dataclass(frozen=True)
class Task:
    """What all trials of a task share."""

    settings: Settings
    job: Job
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str  # of all that decides the metrics, except the trial

    @property
    def deciding(self) -> str:
        """The metric that chooses the best epoch, trial and seed."""
        return f"{self.job.dev[0].name}_{self.settings.task.metrics[0]}"

    def best(self, outcomes: Iterable[dict[str, Any]]) -> dict[str, Any]:
        return max(outcomes, key=lambda outcome: outcome["figures"][self.deciding])

    def folder(self, trial: SeedRun) -> Path:
        return self.settings.out_folder / TRIALS / trial.name

    def model(self, outcome: dict[str, Any]) -> Path:
        return self.folder(SeedRun(**outcome["trial"])) / MODEL

    def outcome(self, trial: SeedRun) -> dict[str, Any]:
        """The result of a trial, which runs if it has none.

        Raises InputError if its folder is of another fingerprint or in use.
        """
        folder = self.folder(trial)
        mark, path = folder / "fingerprint", folder / RESULT
        if mark.is_file() and mark.read_text() != self.fingerprint:
            raise InputError(
                f"{folder} was made with another model, other data or settings; "
                "give another out=, or resume=false to start again"
            )
        if path.is_file():
            print(f"{trial.name}: done before")
            return dict(read_json(path))
        print(f"{trial.name}: in {folder}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                is_locked = stack.enter_context(only_process(folder / "lock"))
            except BlockingIOError:
                raise InputError(
                    f"another process is training in {folder}; let it end, or give another out="
                ) from None
            if not is_locked:
                print("this file system has no locks: start no second process with the same out=")
            mark.write_text(self.fingerprint)
            return self._train(trial, folder)

    def _train(self, trial: SeedRun, folder: Path) -> dict[str, Any]:
        """Train, or continue an interrupted start; the result has the best epoch's metrics.

        `folder`/model gets the best model; `folder`/result.json, the result, is written last.
        """
        settings = self.settings
        set_seed(trial.seed)
        changes = dict(self.job.config)
        if settings.dropout is not None:
            names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
            changes |= dict.fromkeys(names, settings.dropout)
        class_name, start = self.job.class_name, settings.start
        entries = num_entries(self.tokenizer)
        model, new = load_model(class_name, settings.model_folder, start, changes, entries)
        started = time.monotonic()
        trainer = self._trainer(trial, model, folder)
        with quiet():
            trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
        if settings.wandb:
            import wandb

            wandb.finish()  # otherwise the next seed would continue this one's run
        first = f"eval_{self.deciding}"
        evaluations = [line for line in trainer.state.log_history if first in line]
        chosen = max(evaluations, key=lambda line: line[first])
        assert trainer.state.best_metric is not None
        assert math.isclose(chosen[first], trainer.state.best_metric)
        metrics = {
            name.removeprefix("eval_"): value
            for name, value in chosen.items()
            if name.startswith("eval_")
        }
        self._save(trainer.model, metrics, folder / MODEL)
        for line in evaluations:
            del line["step"]
        result = {
            "trial": vars(trial),
            "figures": metrics,
            "best_epoch": chosen["epoch"],
            "curve": evaluations,
            "new_parts": new,
            "steps": trainer.state.global_step,
            "seconds": round(time.monotonic() - started, 1),
            "fingerprint": self.fingerprint,
        }
        for checkpoint in folder.glob("checkpoint-*"):
            remove_folder(checkpoint)
        write_json(folder / RESULT, result)
        return result

    def _trainer(self, trial: SeedRun, model: PreTrainedModel, folder: Path) -> ScoringTrainer:
        settings = self.settings
        steps = math.ceil(len(self.job.train) / trial.batch_size) * trial.epochs
        on_gpu = torch.cuda.is_available()
        arguments = TrainingArguments(
            output_dir=str(folder),
            run_name=f"{settings.out_folder.name}-{trial.name}",
            per_device_train_batch_size=trial.batch_size,
            per_device_eval_batch_size=settings.eval_batch_size,
            learning_rate=trial.learning_rate,
            num_train_epochs=trial.epochs,
            warmup_steps=math.ceil(settings.warmup_fraction * steps),
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            lr_scheduler_type="linear",
            seed=trial.seed,
            bf16=settings.precision is Precision.bf16
            or (settings.precision is Precision.auto and on_gpu and torch.cuda.is_bf16_supported()),
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,  # and the best one
            load_best_model_at_end=True,
            metric_for_best_model=self.deciding,
            greater_is_better=True,
            logging_steps=max(1, round(steps / 20)),
            logging_nan_inf_filter=False,  # _NotFinite must see them
            dataloader_pin_memory=on_gpu,
            report_to=["wandb"] if settings.wandb else [],
            project=settings.project,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # several would multiply the batch
        return ScoringTrainer(
            self.job,
            model=model,
            args=arguments,
            train_dataset=self.job.train,
            processing_class=self.tokenizer,
            callbacks=[_NotFinite()],
        )

    def _save(self, model: PreTrainedModel, metrics: dict[str, float], folder: Path) -> None:
        """Write a Hugging Face folder: safetensors, label names in the config, the tokenizer."""
        if getattr(model.config, "has_no_answer", False):  # for prediction; chosen on dev
            model.config.no_answer_threshold = metrics["dev_best_f1_threshold"]
        with quiet():
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


def _last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint: Trainer writes trainer_state.json last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    newest = max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
    return None if newest is None else str(newest)

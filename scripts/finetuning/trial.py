"""One fine-tuning with one seed by `transformers.Trainer`: it resumes and keeps the best epoch."""

from __future__ import annotations

import math
import shutil
import time
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

from data_prep.core.files import write_json
from scripts.finetuning.job import Job
from scripts.finetuning.models import load_model, quiet
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


def run_trial(
    trial: SeedRun,
    settings: Settings,
    job: Job,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    fingerprint: str,
) -> dict[str, Any]:
    """Train, or continue an interrupted start, and return the result with the best epoch's metrics.

    `folder`/model gets the best model; `folder`/result.json, the result, is written last.
    """
    set_seed(trial.seed)
    changes = dict(job.config)
    if settings.dropout is not None:
        names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
        changes |= dict.fromkeys(names, settings.dropout)
    model, new = load_model(job.class_name, settings.model_folder, settings.start, changes)
    started = time.monotonic()
    trainer = _trainer(trial, settings, job, tokenizer, model, folder)
    with quiet():
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
    if settings.wandb:
        import wandb

        wandb.finish()  # otherwise the next seed would continue this one's run
    best = trainer.state.best_metric
    first = f"eval_{job.dev[0].name}_{settings.task.metrics[0]}"
    evaluations = [line for line in trainer.state.log_history if first in line]
    chosen = max(evaluations, key=lambda line: line[first])
    assert best is not None
    assert math.isclose(chosen[first], best)
    metrics = {
        name.removeprefix("eval_"): value
        for name, value in chosen.items()
        if name.startswith("eval_")
    }
    _save(trainer.model, tokenizer, metrics, folder / "model")
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
        "fingerprint": fingerprint,
    }
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    write_json(folder / RESULT, result)
    return result


def _trainer(
    trial: SeedRun,
    settings: Settings,
    job: Job,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    folder: Path,
) -> ScoringTrainer:
    steps = math.ceil(len(job.train) / trial.batch_size) * trial.epochs
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
        metric_for_best_model=f"{job.dev[0].name}_{settings.task.metrics[0]}",
        greater_is_better=True,
        logging_steps=max(1, round(steps / 20)),
        logging_nan_inf_filter=False,  # _NotFinite must see them
        dataloader_pin_memory=on_gpu,
        report_to=["wandb"] if settings.wandb else [],
        project=settings.project,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several would multiply the batch
    return ScoringTrainer(
        job,
        model=model,
        args=arguments,
        train_dataset=job.train,
        processing_class=tokenizer,
        callbacks=[_NotFinite()],
    )


def _last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint: Trainer writes trainer_state.json last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    newest = max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
    return None if newest is None else str(newest)


def _save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    metrics: dict[str, float],
    folder: Path,
) -> None:
    """Write a Hugging Face folder: safetensors, label names in the config, the tokenizer."""
    if getattr(model.config, "has_no_answer", False):  # for prediction; chosen on dev
        model.config.no_answer_threshold = metrics["dev_best_f1_threshold"]
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

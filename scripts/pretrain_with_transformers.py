"""Repeat a run with stock transformers: the same data, order, masks and first weights.

    python -m scripts.pretrain_with_transformers run=runs/x [out=runs/x-transformers] [steps=N]
        [checkpoint=runs/x/checkpoints/step-00006000]

steps       the last step, of the run's schedule; default: all
checkpoint  start from its weights and moments, to compare a later part of the run

The model is `transformers.BertForPreTraining` (without pairs BertForMaskedLM) on padded batches,
trained by torch's AdamW at the rates of the run's schedule. Shards, order of examples, masks,
weights at step 0 and held-out examples are those of the run. Without dropout the two curves differ
by rounding; with dropout, by its masks. out/ gets the metrics as a run's folder has them, so that

    python -m pretrain.report run=runs/x other=runs/x-transformers

compares the two. At the end comes a table of the held-out losses, with the largest difference. Of
several phases the first is trained. Status 2: wrong arguments, or a run that stock parts cannot
train (LAMB, 16 bits, a budget of hours).
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.files import read_json
from data_prep.core.objectives import Pairing
from data_prep.stores.shard_records import ShardsManifest
from data_prep.tokenizer.vocab_file import read_vocab
from pretrain.checkpoint.files import find_fault, read_state
from pretrain.config.arguments import run_command
from pretrain.config.load import settings_of
from pretrain.config.settings import OptimizerName, Precision, Settings
from pretrain.data.corpus import manifest_of
from pretrain.data.eval_loader import EvalLoader
from pretrain.data.open_loaders import open_loaders
from pretrain.data.packing import IGNORED, PackedBatch
from pretrain.engine.snapshot import ENGINE_FILE, MOMENTS, WEIGHT, read_tensors
from pretrain.huggingface import init_from
from pretrain.huggingface.export import model_config
from pretrain.huggingface.weights import hugging_face_class, to_hugging_face
from pretrain.metrics.monitor import JsonLines
from pretrain.model.bert import BertForPreTraining
from pretrain.optim.schedules import learning_rate
from pretrain.run_folder.jsonl import readable_lines
from pretrain.training.evaluation import means
from scripts.baselines.transformers_step import padded

clock = time.perf_counter  # as in pretrain.training.log_window
HELD_OUT = ("eval/mlm_loss", "eval/nsp_loss", "eval/sop_loss")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    return run_command(repeat, argv)


def repeat(
    run: Path, out: Path | None = None, steps: int | None = None, checkpoint: Path | None = None
) -> None:
    """The command."""
    out = out or Path(f"{run}-transformers")
    settings = settings_of(run)
    _check(settings, out)
    last = settings.schedule.last_step
    assert last is not None, "a budget of hours is refused"
    steps = min(steps or last, last)
    if checkpoint is not None:
        _check_checkpoint(checkpoint, steps)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "environment.json"):
        shutil.copyfile(run / name, out / name)
    train(settings, out, steps, checkpoint)
    print("\n".join(compared(run, out)))


def _check(settings: Settings, out: Path) -> None:
    wrong = []
    if settings.optim.name is not OptimizerName.adamw:
        wrong.append(f"optim={settings.optim.name.name}: of these, torch has only AdamW")
    if settings.engine.precision is not Precision.fp32:
        wrong.append(f"engine.precision={settings.engine.precision.name}: this loop is fp32")
    if settings.schedule.budget_hours is not None:
        wrong.append("schedule.budget_hours: the rate follows the clock, so no two runs are alike")
    if (out / "metrics.jsonl").exists():
        wrong.append(f"{out} already holds metrics; give another out=, or delete it")
    if wrong:
        raise SettingsError("\n".join(wrong))


def _check_checkpoint(checkpoint: Path, steps: int) -> None:
    """Raise SettingsError unless it is whole and before step `steps`."""
    if fault := find_fault(checkpoint):
        raise SettingsError(f"checkpoint={checkpoint} is no whole checkpoint: {fault}")
    state = read_state(checkpoint)
    if state.step >= steps:
        raise SettingsError(
            f"checkpoint={checkpoint} is of step {state.step}, and training would end at step "
            f"{steps}; give an earlier checkpoint or a later steps="
        )


def train(settings: Settings, out: Path, steps: int, begin: Path | None = None) -> None:
    """Train up to step `steps`, from a checkpoint of the run or from its first weights.

    Metrics go to out/metrics.jsonl by our names.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    manifest, pairing = manifest_of(settings.data), settings.data.pairs
    model = _model(settings, manifest).to(device).train()
    optimizer = _optimizer(model, settings)
    step_before, position = 0, 0
    if begin is not None:
        state = read_state(begin)
        step_before, position = state.step, state.position
        _continue(model, optimizer, settings, manifest, begin)
    loader, held_out = open_loaders(settings, 1, manifest, rank=0, world_size=1, static=False)
    lines = JsonLines(out, 0)
    lines.event(
        "started",
        {"step": step_before, "ranks": 1, "by": f"transformers {transformers.__version__}"},
    )
    torch.manual_seed(settings.run.seed)  # noqa: TID251  dropout's
    window = _Window()
    with loader:
        for step, batch in enumerate(loader.batches(position), start=step_before + 1):
            rate = learning_rate(step - 1, settings.schedule, settings.optim.learning_rate)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            for micro_batch in batch.micro_batches:
                sums = _sums(model, micro_batch.to(device), pairing)
                loss = sums[0] / max(1, batch.num_masked) + sums[1] / batch.num_sequences
                torch.autograd.backward(loss)
                window.add(sums)
            bound = settings.optim.max_grad_norm or float("inf")
            norm = nn.utils.clip_grad_norm_(model.parameters(), bound)
            optimizer.step()
            window.count(batch.num_masked, batch.num_sequences, batch.num_tokens)
            if step % settings.monitor.every_steps == 0 or step == steps:
                optim = {"optim/learning_rate": rate, "optim/grad_norm": float(norm)}
                lines.record(step, window.metrics("train", pairing) | optim)
                window = _Window()
            if step % settings.eval.every_steps == 0 or step == steps:
                lines.record(step, evaluate(model, held_out, pairing, device))
                window.started = clock()
            if step == steps:
                break
    lines.event("finished", {"phase": 1, "step": steps})
    lines.close()


def evaluate(
    model: nn.Module, held_out: EvalLoader, pairing: Pairing, device: torch.device
) -> dict[str, float]:
    """Held-out metrics, on the same examples as the run's."""
    window = _Window()
    model.eval()
    with torch.no_grad():
        for item in held_out:
            window.add(_sums(model, item.batch.to(device), pairing))
    model.train()
    return means(window.sums.tolist(), held_out.num_masked, held_out.num_sequences, "eval", pairing)


def _sums(model: nn.Module, batch: PackedBatch, pairing: Pairing) -> Tensor:
    """(4,): losses of tokens and pairs, correct predictions of both, summed over the batch."""
    inputs = padded(batch, max(batch.lengths))
    labels, pair_labels = (inputs.pop(name) for name in ("labels", "next_sentence_label"))
    answer = model(**inputs)
    tokens = (answer.logits if pairing is Pairing.none else answer.prediction_logits).flatten(0, 1)
    masked = labels.flatten() != IGNORED  # the other rows add only time
    parts = [(tokens[masked], labels.flatten()[masked])]
    if pairing is not Pairing.none:
        parts.append((answer.seq_relationship_logits, pair_labels))
    losses = [F.cross_entropy(logits, to, reduction="sum") for logits, to in parts]
    right = [(logits.argmax(-1) == to).sum().to(losses[0]) for logits, to in parts]
    nothing = [losses[0].new_zeros(())] * (2 - len(parts))
    return torch.stack([*losses, *nothing, *right, *nothing])


class _Window:
    """Sums since the last line of metrics."""

    def __init__(self) -> None:
        self.started = clock()
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.counts = (0, 0, 0)

    def add(self, sums: Tensor) -> None:
        self.sums += sums.detach().double().cpu()

    def count(self, masked: int, sequences: int, tokens: int) -> None:
        before = self.counts
        self.counts = (before[0] + masked, before[1] + sequences, before[2] + tokens)

    def metrics(self, prefix: str, pairing: Pairing) -> dict[str, float]:
        masked, sequences, tokens = self.counts
        seconds = clock() - self.started
        return {
            **means(self.sums.tolist(), masked, sequences, prefix, pairing),
            "perf/tokens_per_second": tokens / seconds,
            "perf/sequences_per_second": sequences / seconds,
            "perf/training_seconds": seconds,
        }


def _model(settings: Settings, manifest: ShardsManifest) -> nn.Module:
    """Stock BERT with the first weights of the run."""
    vocab_size, pairing = manifest.vocab_size, settings.data.pairs
    ours = BertForPreTraining(settings.model, vocab_size, pairing)
    ours.initialize(torch.Generator().manual_seed(settings.run.seed))
    if settings.run.init_from is not None:
        tokens = read_vocab(settings.data.folder / "vocab" / "vocab.txt")
        origin = init_from.find(settings.run.init_from)
        ours.load_weights(origin.weights(ours, tokens, manifest.form)[0])
    state = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    config = transformers.BertConfig(**model_config(settings.model, vocab_size, pairing))
    model: nn.Module = getattr(transformers, hugging_face_class(pairing))(config)
    answer = model.load_state_dict(
        to_hugging_face(state, settings.model, vocab_size, pairing), strict=False
    )
    lacking = [name for name in answer.missing_keys if "cls.predictions.decoder" not in name]
    assert not lacking, lacking
    assert not answer.unexpected_keys, answer.unexpected_keys
    return model


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; biases and LayerNorm have no weight decay, as in transformers' Trainer."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups["LayerNorm" not in name and not name.endswith("bias")].append(parameter)
    optim = settings.optim
    beta_1, beta_2 = optim.betas
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": optim.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=optim.learning_rate,
        betas=(beta_1, beta_2),
        eps=optim.eps,
    )


def _continue(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    manifest: ShardsManifest,
    checkpoint: Path,
) -> None:
    """Load weights, moments and optimizer step of one of our checkpoints into stock parts."""
    ours: dict[str, dict[str, Tensor]] = {WEIGHT: {}, **{key: {} for key in MOMENTS}}
    for key, name, value in read_tensors(checkpoint):
        ours[key][name] = value
    shape = (settings.model, manifest.vocab_size, settings.data.pairs)
    theirs = {key: to_hugging_face(values, *shape) for key, values in ours.items()}
    taken = read_json(checkpoint / ENGINE_FILE)["optimizer_step"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # tied ones once
            parameter.copy_(theirs[WEIGHT][name])
            optimizer.state[parameter] = {
                "step": torch.tensor(float(taken)),
                **{key: theirs[key][name].to(parameter.device, copy=True) for key in MOMENTS},
            }


def compared(run: Path, out: Path) -> Iterator[str]:
    """Lines of the held-out losses of both, step by step, and the largest difference."""
    ours, stock = (
        {
            line["step"]: line
            for line in readable_lines(folder / "metrics.jsonl")
            if HELD_OUT[0] in line
        }
        for folder in (run, out)
    )
    largest = 0.0
    yield f"{'step':>8}  {'metric':14}  {'ours':>8}  {'transformers':>12}  {'difference':>10}"
    for step in sorted({*ours} & {*stock}):
        for name in HELD_OUT:
            if name in ours[step]:
                difference = stock[step][name] - ours[step][name]
                largest = max(largest, abs(difference))
                yield (
                    f"{step:8,}  {name:14}  {ours[step][name]:8.4f}  {stock[step][name]:12.4f}  "
                    f"{difference:+10.4f}"
                )
    yield f"largest difference {largest:.4f} nats"


if __name__ == "__main__":
    sys.exit(status_of(main))

"""Evaluates a checkpoint or an exported folder on a split of any shards with its vocabulary."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_prep.core.config import SettingsError
from data_prep.core.objectives import Pairing
from data_prep.core.records import typed
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shard_records import ShardsManifest, read_shards_manifest
from data_prep.tokenizer.released import differing
from data_prep.tokenizer.vocab_file import read_vocab
from pretrain.checkpoint.files import path_of, read_state
from pretrain.config.load import settings_of
from pretrain.config.phases import phases_of
from pretrain.config.settings import DataSettings, MaskMode, ModelSettings
from pretrain.data.corpus import folder_of, manifest_of
from pretrain.data.eval_loader import EvalLoader, HeldOutBatch
from pretrain.data.packing import PackedBatch
from pretrain.distributed.device import cuda_is_usable
from pretrain.huggingface.init_from import InitWeights, find
from pretrain.model.bert import BertForPreTraining
from pretrain.training.evaluation import metrics_of, sums_of

TOKENS = 8192  # of a micro-batch, for a folder that is no run
# What a folder of Hugging Face does not decide about an evaluation
_FREE: dict[str, Any] = {
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02,
    "pad_vocab_size_multiple_of": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """The result, and what it is of."""

    model: Path
    shards: Path
    split: str
    examples: int
    of_examples: int  # in the split
    precision: str
    note: str  # why pairs are not evaluated; "": they are, or there are none
    metrics: dict[str, float]  # by the names of metrics.jsonl


def evaluate_model(
    run: Path,
    checkpoint: str | None,
    data_dir: Path | None,
    seq_len: int | None,
    split: str,
    max_examples: int | None,
) -> Evaluation:
    """Evaluate a run's checkpoint (a step or a folder; None: its newest whole one) or an export.

    `data_dir` and `seq_len` None: those of the run's last phase. Dropout is off, the masks are
    those of the shards, and micro-batches those of the run: on its own shards the metrics are those
    that it logged. Raises SettingsError if something is missing or does not fit the model.
    """
    own, tokens = None, TOKENS
    if (run / "config.yaml").exists():
        last = phases_of(settings_of(run))[-1].settings
        own, tokens = last.data, last.engine.tokens_per_micro_batch
    origin = _origin(run, checkpoint)
    data = _data(data_dir, seq_len, own)
    manifest = manifest_of(data)
    if split not in manifest.splits:
        raise SettingsError(f"split={split} is none of {', '.join(sorted(manifest.splits))}")
    _check_vocabulary(origin, data.folder / "vocab" / "vocab.txt", manifest)
    model, pairing = _model(origin, manifest)
    shards = Shards.open(folder_of(data), split)
    loader = EvalLoader(
        shards, rank=0, world_size=1, token_budget=max(tokens, data.seq_len),
        max_examples=max_examples,
    )  # fmt: skip
    shared, note = pairing, ""
    if pairing is not manifest.pairs:
        shared = Pairing.none
        note = f"MLM alone: the model has pairs={pairing.name}, the shards {manifest.pairs.name}"
    device = torch.device("cuda" if cuda_is_usable() else "cpu")
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    with _autocast(has_bf16), torch.inference_mode():
        step = _step(model.to(device).eval())
        sums = sums_of(step, _shown(loader), len(loader.sources), device)
    if shared is Pairing.none:
        sums[:, [1, 3]] = 0.0
    return Evaluation(
        origin.folder, shards.folder, split, loader.num_sequences, shards.num_examples,
        "bf16_autocast" if has_bf16 else "fp32", note, metrics_of(sums, loader, shared),
    )  # fmt: skip


def _origin(run: Path, checkpoint: str | None) -> InitWeights:
    """The weights to evaluate, known by their folder's small files."""
    folder = run
    if checkpoint is not None:
        folder = path_of(run, int(checkpoint)) if checkpoint.isdecimal() else Path(checkpoint)
        if not folder.is_dir():
            there = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
            raise SettingsError(
                f"checkpoint={checkpoint}: {folder} is no folder; {run / 'checkpoints'} has "
                f"{', '.join(there) or 'none'}"
            )
    try:
        return find(str(folder))
    except SettingsError as error:
        raise SettingsError(str(error).replace("run.init_from=", "run=")) from error


def _data(data_dir: Path | None, seq_len: int | None, own: DataSettings | None) -> DataSettings:
    """The shards: what was typed, and otherwise the run's."""
    if data_dir is None and own is None:
        raise SettingsError("data.dir is missing; add data.dir=FOLDER, prepared by data_prep")
    folder = data_dir or (own.folder if own else Path())
    if seq_len is None and own is not None:
        seq_len = own.seq_len
    if seq_len is None:
        lengths = sorted(
            int(path.parent.name.removeprefix("len"))
            for path in folder.glob("len*/manifest.json")
            if path.parent.name.removeprefix("len").isdecimal()
        )
        if len(lengths) != 1:
            raise SettingsError(
                f"{folder} has shards of {', '.join(map(str, lengths)) or 'no'} tokens; add "
                "data.seq_len=N, one of them"
            )
        [seq_len] = lengths
    pairs = Pairing.nsp
    shards = folder / f"len{seq_len}"
    if (shards / "manifest.json").exists():
        pairs = read_shards_manifest(shards).pairs
    return DataSettings(str(folder), seq_len, pairs, MaskMode.static)


def _check_vocabulary(origin: InitWeights, path: Path, manifest: ShardsManifest) -> None:
    """Raise SettingsError unless the shards were encoded with the model's vocabulary."""
    own, there = origin.tokens, read_vocab(path)
    cure = "the loss is comparable on shards of the model's vocabulary alone: encode the texts "
    cure += "with vocab_file= of the model's folder"
    if own != there:
        pairs = zip(own, there, strict=False)
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(own), len(there)))
        a, b = (repr(of[first]) if first < len(of) else "nothing" for of in (own, there))
        raise SettingsError(
            f"{path} ({len(there):,} entries) is not the vocabulary of {origin.folder} "
            f"({len(own):,} entries): entry {first} is {b} there and {a} in the model's; {cure}"
        )
    if wrong := differing(origin.rules, manifest.form):
        own_rules = {name: manifest.rules[name] for name in wrong}
        raise SettingsError(
            f"{path} has {typed(own_rules)}, and the vocabulary of {origin.folder} has "
            f"{typed(wrong)}; {cure}"
        )


def _model(origin: InitWeights, manifest: ShardsManifest) -> tuple[BertForPreTraining, Pairing]:
    """The model with its weights, and the pairs that it was trained on."""
    if origin.is_checkpoint:
        identity = read_state(origin.folder).identity
        sizes = {
            name.removeprefix("model."): value
            for name, value in identity.items()
            if name.startswith("model.")
        }
        pairing = Pairing[identity["data.pairs"]]
    else:
        sizes, pairing = {**_FREE, **origin.sizes}, manifest.pairs
    settings = ModelSettings(**sizes)
    if manifest.seq_len > settings.max_position_embeddings:
        raise SettingsError(
            f"data.seq_len={manifest.seq_len} is longer than the {settings.max_position_embeddings}"
            f" positions of {origin.folder}; evaluate on shorter shards"
        )
    segments = 1 if manifest.pairs is Pairing.none else 2
    if settings.type_vocab_size < segments:
        raise SettingsError(
            f"{origin.folder} has type_vocab_size={settings.type_vocab_size}, and the shards hold "
            f"pairs={manifest.pairs.name}; build them with pairs=none"
        )
    model = BertForPreTraining(settings, manifest.vocab_size, pairing)
    weights, facts = origin.weights(model, origin.tokens, manifest.form)
    new = [name.partition(".")[0] for name in facts["new"]]
    if "mlm_head" in new:
        raise SettingsError(
            f"{origin.folder} has no MLM head, so that it has no loss; train one: "
            "run.init_from=, or evaluate its fine-tuning"
        )
    if new:  # the pooler or the head of pairs
        pairing = Pairing.none
    model.load_weights(weights)
    return model, pairing


def _step(model: BertForPreTraining) -> Callable[[PackedBatch], torch.Tensor]:
    device = next(model.parameters()).device

    def step(batch: PackedBatch) -> torch.Tensor:
        return torch.stack([value.double() for value in model(batch.to(device))])

    return step


def _shown(loader: EvalLoader) -> Iterator[HeldOutBatch]:
    yield from tqdm(loader, unit="batch", disable=not sys.stderr.isatty())


@contextlib.contextmanager
def _autocast(has_bf16: bool) -> Iterator[None]:
    with torch.autocast("cuda", torch.bfloat16) if has_bf16 else contextlib.nullcontext():
        yield

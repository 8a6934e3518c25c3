"""Small engines and global batches for the tests of the engine and of checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_samples import small_settings

from data_prep.core.objectives import Pairing
from data_prep.stores.shards import Examples
from pretrain.config.settings import (
    Compile,
    Device,
    EngineSettings,
    OptimizerName,
    OptimSettings,
    Precision,
    Shard,
    TrustRatio,
)
from pretrain.data.balancing import deal
from pretrain.data.packing import pack
from pretrain.data.train_loader import GlobalBatch
from pretrain.distributed.ranks import Ranks
from pretrain.engine.deepspeed_setup import get_accelerator
from pretrain.engine.engine import Engine
from pretrain.engine.snapshot import WEIGHT
from pretrain.model.bert import BertForPreTraining

VOCAB_SIZE, BATCH_SIZE, LONGEST = 90, 12, 24
ONE_MICRO_STEP, MANY_MICRO_STEPS = 10_000, 48  # token budgets


def build_model(
    seed: int = 0, dropout: float = 0.0, kind: Any = BertForPreTraining,
    pairing: Pairing = Pairing.nsp,
) -> Any:  # fmt: skip
    """A model of 2 layers with initial weights; no parameter's size is a multiple of 4 ranks."""
    settings = small_settings(
        hidden_size=20, intermediate_size=37, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, pad_vocab_size_multiple_of=1, initializer_range=0.2,
    )  # fmt: skip
    model = kind(settings, VOCAB_SIZE - 1, pairing)
    model.initialize(torch.Generator().manual_seed(seed))
    return model


def optim_settings(**changes: Any) -> OptimSettings:
    values: dict[str, Any] = {
        "name": OptimizerName.adamw, "global_batch": BATCH_SIZE, "tokens_per_step": None,
        "learning_rate": 3e-3, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01,
        "max_grad_norm": 1.0, "bias_correction": True, "grad_averaging": True,
        "trust_ratio": TrustRatio.none,
    }  # fmt: skip
    return OptimSettings(**{**values, **changes})


def build_engine(
    ranks: Ranks, stage: int, precision: Precision = Precision.fp32, model: Any = None,
    timeout_minutes: float = 1.0, activation_checkpointing: bool = False,
    compile: Compile = Compile.false, shard: Shard = Shard.world, **optim: Any,
) -> Engine:  # fmt: skip
    """An engine on the CPU; DeepSpeed, which refuses fp16 there, is made to allow it."""
    if precision is Precision.fp16:
        get_accelerator().is_fp16_supported = lambda: True
        supported = [torch.float32, torch.float16, torch.bfloat16]
        get_accelerator().supported_dtypes = lambda: supported
    settings = EngineSettings(
        stage,
        precision,
        MANY_MICRO_STEPS,
        activation_checkpointing,
        compile,
        timeout_minutes,
        Device.cpu,
        shard=shard,
    )
    model = build_model() if model is None else model
    return Engine(model, optim_settings(**optim), settings, ranks)


def gathered(engine: Engine, key: str = WEIGHT) -> dict[str, torch.Tensor]:
    """Whole master weights, or moments, by parameter name, on rank 0; {} elsewhere. Collective."""
    whole = {name: engine._state.whole(key, name).clone() for name in engine._state.parameters}
    return whole if engine.ranks.rank == 0 else {}


def save_state(engine: Engine, folder: Path) -> None:
    """The engine's state as it is now, into `folder`, which exists. Collective; rank 0 writes."""
    snapshot = engine.new_snapshot()
    engine.take(snapshot)
    if snapshot is not None:
        snapshot.write(folder)


def global_batch(
    position: int, rank: int = 0, world_size: int = 1, token_budget: int = ONE_MICRO_STEP
) -> GlobalBatch:
    """This rank's share of 12 sequences, dealt as in a run; some have one mask and some many."""
    numbers = np.arange(position * BATCH_SIZE, (position + 1) * BATCH_SIZE)
    everything = _examples(numbers)
    lengths = np.diff(everything.offsets)
    mine = deal(lengths, world_size, token_budget)[rank]
    return GlobalBatch(
        position=position,
        micro_batches=[pack(_examples(numbers[places]), LONGEST) for places in mine],
        dropout_seeds=[1000 * position + int(places[0]) for places in mine],
        num_sequences=BATCH_SIZE,
        num_masked=len(everything.masked_positions),
        num_tokens=int(lengths.sum()),
        squared_lengths=int((lengths**2).sum()),
    )


def _examples(numbers: np.ndarray) -> Examples:
    """Random examples that depend on their numbers alone."""
    rows = [_row(int(number)) for number in numbers]
    ids, places, fillings, labels = zip(*rows, strict=True)
    return Examples(
        input_ids=np.concatenate(ids).astype(np.uint16), offsets=_offsets(ids),
        segment_a_lengths=np.array([len(row) // 2 for row in ids], np.uint16),
        next_sentence_labels=np.array(labels, np.uint8),
        masked_positions=np.concatenate(places).astype(np.uint16), masked_offsets=_offsets(places),
        masked_input_ids=np.concatenate(fillings).astype(np.uint16),
        document_a=np.zeros(len(rows), np.uint32), document_b=np.zeros(len(rows), np.uint32),
    )  # fmt: skip


def _row(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    rng = np.random.default_rng(number)
    length = int(rng.integers(6, LONGEST + 1))
    num_masked = 1 if number % 3 else length // 2
    places = np.sort(rng.permutation(length)[:num_masked])
    ids, fillings = rng.integers(5, VOCAB_SIZE - 1, length), np.full(num_masked, 4)
    return ids, places, fillings, int(rng.integers(2))


def _offsets(rows: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)

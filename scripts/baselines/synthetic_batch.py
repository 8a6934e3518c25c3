"""A global batch of random tokens with the same micro-batch on every rank, for benchmarks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.stores.shard_reader import Shards
from pretrain.data.packing import pack
from pretrain.data.train_loader import GlobalBatch
from scripts.baselines.synthetic_shards import write_synthetic_shards

VOCAB_SIZE = 30_522
SEQ_LEN = 512


def synthetic_batch(
    lengths: NDArray[np.int64], world_size: int, micro_batches: int = 1
) -> GlobalBatch:
    """A batch whose micro-batches each hold sequences of these lengths, 5 tokens or more."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_synthetic_shards(
            folder, {"train": [lengths]}, seq_len=SEQ_LEN, vocab_size=VOCAB_SIZE, seed=2
        )
        micro_batch = pack(Shards.open(folder, "train").read(np.arange(len(lengths))), SEQ_LEN)
    copies = world_size * micro_batches
    return GlobalBatch(
        position=0,
        micro_batches=[micro_batch] * micro_batches,
        dropout_seeds=list(range(micro_batches)),
        num_sequences=len(lengths) * copies,
        num_masked=micro_batch.num_masked * copies,
        num_tokens=micro_batch.num_tokens * copies,
        squared_lengths=int(np.square(lengths).sum()) * copies,
    )

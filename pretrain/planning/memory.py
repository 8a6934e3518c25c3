"""The memory of a rank, by part, and the token budgets that fit it.

Activations are what autograd keeps of pretrain.model.bert; states what DeepSpeed 0.19 allocates for
a ZeRO stage. All bytes are of one rank when the backward pass of a full micro-batch begins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pretrain.config.settings import (
    ClusterSettings,
    DataSettings,
    EngineSettings,
    ModelSettings,
    Precision,
    Shard,
)
from pretrain.model.flops import layer_parameters
from pretrain.optim.buckets import BUCKET_ELEMENTS

MASKED_SHARE = 0.16  # of the tokens, at most: 15 %, rounded up in short ones
GIB = 2**30
SNAPSHOT_BYTES = 12  # per parameter, of rank 0's host: the copy that a checkpoint is written from


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    weights: float  # what the forward pass reads
    gradients: float
    optimizer: float  # moments, and fp32 master weights in low precision
    activations: float
    logits: float
    buffers: float  # of collectives
    reserved: float

    @property
    def total(self) -> float:
        """Bytes of the whole."""
        return math.fsum(vars(self).values())


# Elements: the word embedding, or layers until there are BUCKET_ELEMENTS
_LARGEST_BUCKET = 1.3 * BUCKET_ELEMENTS


def num_shards(engine: EngineSettings, cluster: ClusterSettings, ranks: int) -> int:
    """Ranks among which the state is sharded."""
    return min(ranks, cluster.gpus_per_node) if engine.shard is Shard.node else ranks


def states(
    num_parameters: int,
    engine: EngineSettings,
    ranks: int,
    num_of_muon: int = 0,
    num_embedded: int = 0,
) -> tuple[float, float, float, float]:
    """Bytes of weights, gradients, optimizer and buffers under a ZeRO stage, on one of `ranks`.

    `num_of_muon` parameters have one moment instead of two; `num_embedded` are of the embeddings.
    """
    precision, stage = engine.precision, engine.zero_stage
    is_low = precision in (Precision.bf16, Precision.fp16)
    width = 2 if is_low else 4
    n, part = num_parameters, num_parameters / ranks
    weights = width * (part if stage == 3 else n)
    if precision is Precision.bf16_autocast:
        weights += 2 * n  # copies for the products, kept for the backward pass
        if stage in (1, 2):  # where only the embeddings are there in fp32, too
            weights -= 4 * (n - num_embedded)
    if stage == 0:
        return weights, 4 * n, 8 * n - 4 * num_of_muon, 4 * n if ranks > 1 else 0
    optimizer = 12 * part - 4 * num_of_muon / ranks
    accumulated = 4 if precision is Precision.bf16 else width
    gradients = accumulated * (n if stage == 1 else part)
    bucket = float(min(n, _LARGEST_BUCKET))
    # one bucket's gradients while they are copied, and this rank's sums of all
    buffers = width * bucket + accumulated * part
    if stage == 2:  # two buckets of whole gradients
        buffers = (width + 2 * accumulated) * bucket
    if stage == 3:  # DeepSpeed copies all gradients, and keeps up to a billion gathered parameters
        buffers = float(width * (n + min(n, 1_000_000_000)))
    return weights, gradients, optimizer, buffers


def most_masked_share(data: DataSettings) -> float:
    """The largest share of a micro-batch's tokens that is masked."""
    return MASKED_SHARE if data.largest_mask_rate is None else data.largest_mask_rate + 0.01


def activation_bytes(
    model: ModelSettings,
    precision: Precision,
    tokens: int,
    seq_len: int,
    is_cpu: bool,
    recomputes: bool,
    masked_share: float = MASKED_SHARE,
) -> float:
    """Bytes that autograd keeps of `tokens` tokens in sequences of `seq_len`, without the logits.

    On a GPU the attention kernel keeps no scores. On a CPU with dropout on them, ours keeps two
    numbers per score (torch's, in half precision, three), and masks are numbers instead of bytes.
    """
    hidden, inner, heads = model.hidden_size, model.intermediate_size, model.num_attention_heads
    is_low = precision in (Precision.bf16, Precision.fp16)
    product = 4 if precision is Precision.fp32 else 2  # bytes of a number that products read
    stream = 2 if is_low else 4  # bytes of a number in the sums between blocks
    mask = 0 if model.hidden_dropout_prob == 0 else product if is_cpu else 1
    # inputs of four products, q, k, v, attention, GELU
    layer: float = product * (7 * hidden + 2 * inner)
    layer += 2 * hidden * (stream + mask) + 4 * heads + 4 * stream
    if is_cpu and model.attention_probs_dropout_prob > 0:
        is_ours = precision is Precision.fp32
        layer += (8 if is_ours else 12) * heads * seq_len - 4 * heads
        layer += 0 if is_ours else 4 * hidden
    rest: float = hidden * (stream + mask) + 2 * stream + 24  # embeddings, and the ids themselves
    rest += masked_share * (hidden * (3 * product + stream) + 16)
    layers = model.num_hidden_layers
    kept = layers * stream * hidden + layer if recomputes else layers * layer
    return tokens * (kept + rest)


def logit_bytes(
    vocab_size: int, precision: Precision, tokens: int, masked_share: float = MASKED_SHARE
) -> float:
    """Bytes of the logits at masked positions: computed, in fp32, and their log-softmax."""
    return (8 if precision is Precision.fp32 else 10) * vocab_size * masked_share * tokens


def memory(
    model: ModelSettings,
    vocab_size: int,
    num_parameters: int,
    engine: EngineSettings,
    seq_len: int,
    cluster: ClusterSettings,
    ranks: int,
    recomputes: bool,
    tokens: int | None = None,
    masked_share: float = MASKED_SHARE,
    num_of_muon: int = 0,
) -> Memory:
    """A rank's memory with micro-batches of `tokens` (None: engine.tokens_per_micro_batch)."""
    tokens = engine.tokens_per_micro_batch if tokens is None else tokens
    precision = engine.precision
    num_embedded = num_parameters - model.num_hidden_layers * layer_parameters(model)
    weights, gradients, optimizer, buffers = states(
        num_parameters, engine, num_shards(engine, cluster, ranks), num_of_muon, num_embedded
    )
    return Memory(
        weights, gradients, optimizer,
        activation_bytes(
            model, precision, tokens, seq_len, cluster.is_cpu, recomputes, masked_share
        ),
        logit_bytes(vocab_size, precision, tokens, masked_share), buffers,
        GIB * cluster.reserved_gib,
    )  # fmt: skip


def largest_budget(
    model: ModelSettings,
    vocab_size: int,
    num_parameters: int,
    engine: EngineSettings,
    seq_len: int,
    cluster: ClusterSettings,
    ranks: int,
    recomputes: bool,
    masked_share: float = MASKED_SHARE,
    num_of_muon: int = 0,
) -> int:
    """Most tokens of a micro-batch that fit, a multiple of `seq_len`; 0 if no sequence fits."""

    def total(tokens: int) -> float:
        return memory(
            model, vocab_size, num_parameters, engine, seq_len, cluster, ranks, recomputes, tokens,
            masked_share,
            num_of_muon,
        ).total  # fmt: skip

    per_sequence = total(seq_len) - total(0)
    room = GIB * cluster.memory_gib - total(0)
    return max(0, int(room // per_sequence)) * seq_len

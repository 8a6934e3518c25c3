"""Parameter and FLOP counts of BERT over packed rows."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.core.objectives import Pairing
from pretrain.config.settings import ModelSettings


@dataclass(frozen=True)
class Lengths:
    """Averages over sequences, on which their cost depends."""

    mean: float  # tokens, including padding
    mean_square: float
    masked: float  # tokens with an MLM label

    @classmethod
    def full(cls, seq_len: int, masked: float) -> Lengths:
        """All sequences have `seq_len` tokens."""
        return cls(seq_len, seq_len**2, masked)


def parameters(model: ModelSettings, vocab_size: int, pairs: Pairing) -> int:
    """Number of parameters of BertForPreTraining, the tied matrix once, padded rows included."""
    hidden = model.hidden_size
    multiple = model.pad_vocab_size_multiple_of
    rows = -(-vocab_size // multiple) * multiple
    embeddings = (rows + model.max_position_embeddings + model.type_vocab_size + 2) * hidden
    head = hidden**2 + 3 * hidden + rows
    pair_head = 0 if pairs is Pairing.none else hidden**2 + hidden + 2 * hidden + 2
    return embeddings + model.num_hidden_layers * layer_parameters(model) + head + pair_head


def layer_parameters(model: ModelSettings) -> int:
    """Number of parameters of one layer."""
    hidden, inner = model.hidden_size, model.intermediate_size
    attention = 4 * (hidden**2 + hidden)
    return attention + 2 * hidden * inner + inner + hidden + 4 * hidden


def flops(
    model: ModelSettings,
    vocab_size: int,
    lengths: Lengths,
    recomputes: bool = False,
    trims: bool = False,
) -> float:
    """Floating-point operations of a sequence's matrix products, forward and backward.

    A multiply-add counts 2, the backward pass twice the forward pass. `recomputes` adds the layers'
    forward pass once more. `trims`: the last layer computes only the positions that the heads read.
    LayerNorm, softmax, GELU and the update are left out, as is usual.
    """
    hidden = model.hidden_size
    passes = 4 if recomputes else 3
    attention = passes * model.num_hidden_layers * 4 * hidden * lengths.mean_square
    heads = 2 * lengths.masked * (hidden**2 + hidden * vocab_size) + 2 * hidden**2 + 4 * hidden
    return linear_flops(model, lengths, recomputes, trims) + attention + 3 * heads


def linear_flops(
    model: ModelSettings, lengths: Lengths, recomputes: bool = False, trims: bool = False
) -> float:
    """Those of `flops` that are products with the layers' weights."""
    hidden, inner = model.hidden_size, model.intermediate_size
    of_token = 2 * (4 * hidden**2 + 2 * hidden * inner)
    layers = model.num_hidden_layers * of_token * lengths.mean
    if trims:  # queries, keys and values are of all tokens
        unread = lengths.mean - lengths.masked - 1
        layers -= 2 * (hidden**2 + 2 * hidden * inner) * unread
    return (4 if recomputes else 3) * layers

"""Small models, packed batches and their padded twins for the tests of the model and its export."""

from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from data_prep.core.objectives import Pairing
from pretrain.config.settings import ModelSettings
from pretrain.data.packing import PackedBatch
from pretrain.model.bert import BertForPreTraining


def small_settings(**changes: object) -> ModelSettings:
    """Two layers of 32 without dropout, with `changes`."""
    values = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 64, "type_vocab_size": 2,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_vocab_size_multiple_of": 64,
    }  # fmt: skip
    return ModelSettings(**{**values, **changes})


def hugging_face_config(vocab_size: int, own: ModelSettings | None = None, **more: Any) -> Any:
    """The configuration of stock transformers for these sizes, without dropout."""
    own = own or small_settings()
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names += ("hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps")
    sizes = {name: getattr(own, name) for name in names}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertConfig(vocab_size=vocab_size, **sizes, **rates, **more)


def old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the first released files: TensorFlow's of LayerNorm."""
    pairs = ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")
    for new, old in pairs:
        weights = {name.replace(new, old): tensor for name, tensor in weights.items()}
    return weights


def random_batch(
    lengths: list[int], vocab_size: int, seed: int, masked: list[int] | None = None
) -> PackedBatch:
    """A packed row of random ids (never id 0); `masked[i]` positions of sequence i are masked."""
    rng = np.random.default_rng(seed)
    lengths_N = np.array(lengths)
    starts_N = np.concatenate([[0], np.cumsum(lengths_N)])
    counts = [max(1, n // 6) for n in lengths] if masked is None else masked
    masked_positions = [
        start + np.sort(rng.permutation(n)[:m])
        for start, n, m in zip(starts_N, lengths, counts, strict=False)
    ]
    position_ids_T = np.concatenate([np.arange(n) for n in lengths])
    segment_ids_T = position_ids_T >= np.repeat(lengths_N // 2, lengths_N)
    return PackedBatch(
        input_ids=torch.from_numpy(rng.integers(1, vocab_size, starts_N[-1])),
        position_ids=torch.from_numpy(position_ids_T),
        segment_ids=torch.from_numpy(segment_ids_T.astype(np.int64)),
        cu_seqlens=torch.from_numpy(starts_N.astype(np.int32)), lengths=lengths,
        cls_positions=torch.from_numpy(starts_N[:-1]),
        masked_positions=torch.from_numpy(np.concatenate(masked_positions).astype(np.int64)),
        labels=torch.from_numpy(rng.integers(1, vocab_size, sum(counts))),
        next_sentence_labels=torch.from_numpy(rng.integers(0, 2, len(lengths))), max_seqlen=64,
        num_tokens=sum(lengths), num_sequences=len(lengths), num_masked=sum(counts),
    )  # fmt: skip


def padded(batch: PackedBatch) -> dict[str, Tensor]:
    """The same batch as `transformers.BertForPreTraining` takes it, padded to the longest."""
    shape = (len(batch.lengths), max(batch.lengths))
    fields = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "token_type_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, -100),
    }
    labels_T = torch.full((batch.num_tokens,), -100)
    labels_T[batch.masked_positions] = batch.labels
    start = 0
    for i, n in enumerate(batch.lengths):
        row = slice(start, start + n)
        fields["input_ids"][i, :n] = batch.input_ids[row]
        fields["token_type_ids"][i, :n] = batch.segment_ids[row]
        fields["attention_mask"][i, :n] = 1
        fields["labels"][i, :n] = labels_T[row]
        start += n
    return {**fields, "next_sentence_label": batch.next_sentence_labels}


def random_model(
    settings: ModelSettings, vocab_size: int, seed: int, pairing: Pairing = Pairing.nsp
) -> BertForPreTraining:
    """A model whose weights are larger than initial ones and whose biases are not 0: sharp tests.

    The rows that pad the vocabulary hold numbers, too, so that using them would show.
    """
    generator = torch.Generator().manual_seed(seed)
    model = BertForPreTraining(settings, vocab_size, pairing)
    model.initialize(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model

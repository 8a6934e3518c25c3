"""Guesses of a model for sentences with a masked word, to read next to the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data_prep.core.config import SettingsError
from pretrain.data.packing import PackedBatch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Guesses = list[tuple[str, float]]  # tokens with their probabilities, best first


class MaskedSentences:
    """Sentences with one [MASK] each, as one micro-batch."""

    def __init__(self, sentences: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> None:
        """Raises SettingsError on a sentence without exactly one [MASK], or with too many
        tokens."""
        self.sentences = list(sentences)
        self._tokens = {i: token for token, i in tokenizer.get_vocab().items()}
        mask_id = tokenizer.get_vocab()["[MASK]"]
        encoded = [torch.tensor(tokenizer.encode(sentence).ids) for sentence in sentences]
        for sentence, ids in zip(sentences, encoded, strict=True):
            if (count := int(ids.eq(mask_id).sum())) != 1:
                raise SettingsError(f"{sentence!r} holds {count} [MASK]; it must hold exactly one")
            if len(ids) > max_tokens:
                raise SettingsError(
                    f"{sentence!r} has {len(ids)} tokens and the model {max_tokens} positions"
                )
        masked = torch.cat(encoded).eq(mask_id)
        segments = [torch.zeros_like(ids) for ids in encoded]
        self.batch = packed(encoded, segments, masked.nonzero()[:, 0], max_tokens)

    def read(self, logits_SV: Tensor, top_k: int) -> list[Guesses]:
        """The `top_k` likeliest tokens of each of the S sentences."""
        best = torch.softmax(logits_SV.float(), -1).topk(top_k)
        return [
            [(self._tokens[i], p) for i, p in zip(ids, probabilities, strict=True)]
            for ids, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def packed(
    sequences: Sequence[Tensor],
    segments: Sequence[Tensor],
    masked_positions: Tensor,
    max_seqlen: int,
) -> PackedBatch:
    """Token ids as a packed row. The labels are 0 and unused."""
    lengths = [len(sequence) for sequence in sequences]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    return PackedBatch(
        input_ids=torch.cat(list(sequences)),
        position_ids=torch.cat([torch.arange(n) for n in lengths]),
        segment_ids=torch.cat(list(segments)),
        cu_seqlens=ends.to(torch.int32),
        lengths=lengths,
        cls_positions=ends[:-1],
        masked_positions=masked_positions,
        labels=torch.zeros_like(masked_positions),
        next_sentence_labels=torch.zeros(len(lengths), dtype=torch.long),
        max_seqlen=max_seqlen,
        num_tokens=int(ends[-1]),
        num_sequences=len(lengths),
        num_masked=len(masked_positions),
    )

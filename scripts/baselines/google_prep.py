"""Data preparation as published with BERT, in plain Python, for the benchmark to compare with.

It follows tokenization.py and create_pretraining_data.py of google-research/bert step by step: one
pass (dupe_factor 1), instances in memory. In its favor, files are neither read nor written.
"""

from __future__ import annotations

import random  # noqa: TID251  the published code's own generator, so its own speed
from collections.abc import Sequence
from typing import Any

Sentences = list[list[str]]  # of one document, each a list of word pieces
MASK_RATE = 0.15
SHORT_SEQ_PROB = 0.1


class PublishedTokenizer:
    """FullTokenizer, from the copy of tokenization.py in `transformers`."""

    def __init__(self, tokens: Sequence[str], lowercase: bool) -> None:
        from transformers.models.bert.tokenization_bert_legacy import (
            BasicTokenizer,
            WordpieceTokenizer,
        )

        self.numbers = {token: number for number, token in enumerate(tokens)}
        self._basic = BasicTokenizer(do_lower_case=lowercase)
        self._pieces = WordpieceTokenizer(self.numbers, "[UNK]")

    def tokenize(self, text: str) -> list[str]:
        return [
            piece for word in self._basic.tokenize(text) for piece in self._pieces.tokenize(word)
        ]


def prepare(
    documents: Sequence[Sequence[str]], tokenizer: PublishedTokenizer, seq_len: int, seed: int
) -> list[dict[str, Any]]:
    """Turn sentences of documents into padded features of masked pairs, as lists of integers."""
    rng = random.Random(seed)
    most_predictions = round(MASK_RATE * seq_len)
    tokenized = [
        [pieces for sentence in document if (pieces := tokenizer.tokenize(sentence))]
        for document in documents
    ]
    tokenized = [document for document in tokenized if document]
    rng.shuffle(tokenized)
    words = list(tokenizer.numbers)
    instances = []
    for index in range(len(tokenized)):
        for a, b, is_random in _pairs(tokenized, index, seq_len - 3, rng):
            tokens = ["[CLS]", *a, "[SEP]", *b, "[SEP]"]
            segment_ids = [0] * (len(a) + 2) + [1] * (len(b) + 1)
            masked = _mask(tokens, most_predictions, words, rng)
            instances.append((tokens, segment_ids, is_random, masked))
    rng.shuffle(instances)
    return [
        _features(*instance, tokenizer.numbers, seq_len, most_predictions) for instance in instances
    ]


def _pairs(
    documents: list[Sentences], index: int, window: int, rng: random.Random
) -> list[tuple[list[str], list[str], bool]]:
    """create_instances_from_document, up to the masks."""
    document = documents[index]
    target = rng.randint(2, window) if rng.random() < SHORT_SEQ_PROB else window
    pairs = []
    chunk: Sentences = []
    length = i = 0
    while i < len(document):
        chunk.append(document[i])
        length += len(document[i])
        if i == len(document) - 1 or length >= target:
            a_end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
            a = [token for sentence in chunk[:a_end] for token in sentence]
            b: list[str] = []
            is_random = len(chunk) == 1 or rng.random() < 0.5
            if is_random:
                for _ in range(10):
                    other = rng.randint(0, len(documents) - 1)
                    if other != index:
                        break
                start = rng.randint(0, len(documents[other]) - 1)
                for sentence in documents[other][start:]:
                    b.extend(sentence)
                    if len(b) >= target - len(a):
                        break
                i -= len(chunk) - a_end  # put back the unused sentences
            else:
                b.extend(token for sentence in chunk[a_end:] for token in sentence)
            _truncate(a, b, window, rng)
            pairs.append((a, b, is_random))
            chunk = []
            length = 0
        i += 1
    return pairs


def _truncate(a: list[str], b: list[str], window: int, rng: random.Random) -> None:
    """truncate_seq_pair."""
    while len(a) + len(b) > window:
        longer = a if len(a) > len(b) else b
        if rng.random() < 0.5:
            del longer[0]
        else:
            longer.pop()


def _mask(
    tokens: list[str], most: int, words: list[str], rng: random.Random
) -> list[tuple[int, str]]:
    """create_masked_lm_predictions, in place; returns the positions and their tokens."""
    candidates = [i for i, token in enumerate(tokens) if token not in ("[CLS]", "[SEP]")]
    rng.shuffle(candidates)
    quota = min(most, max(1, round(len(tokens) * MASK_RATE)))
    masked = []
    for i in sorted(candidates[:quota]):
        masked.append((i, tokens[i]))
        if rng.random() < 0.8:
            tokens[i] = "[MASK]"
        elif rng.random() < 0.5:
            tokens[i] = words[rng.randint(0, len(words) - 1)]
    return masked


def _features(
    tokens: list[str],
    segment_ids: list[int],
    is_random: bool,
    masked: list[tuple[int, str]],
    numbers: dict[str, int],
    seq_len: int,
    most: int,
) -> dict[str, Any]:
    """write_instance_to_example_files, up to the file."""
    padding = [0] * (seq_len - len(tokens))
    unused = [0] * (most - len(masked))
    return {
        "input_ids": [numbers[token] for token in tokens] + padding,
        "input_mask": [1] * len(tokens) + padding,
        "segment_ids": segment_ids + padding,
        "masked_lm_positions": [i for i, _ in masked] + unused,
        "masked_lm_ids": [numbers[token] for _, token in masked] + unused,
        "masked_lm_weights": [1.0] * len(masked) + [0.0] * len(unused),
        "next_sentence_labels": int(is_random),
    }

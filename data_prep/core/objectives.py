"""The objectives of pretraining: the task on pairs of segments, and the unit of masking.

The names appear in conf/, in the manifests of shards and in the checkpoints of runs.
"""

from __future__ import annotations

import enum


class Pairing(enum.Enum):
    """The second task next to masked language modelling; it decides what an example is."""

    nsp = "nsp"  # [CLS] A [SEP] B [SEP]: does B follow A or come from another document (BERT, 3.1)
    sop = "sop"  # [CLS] A [SEP] B [SEP]: are two neighbours in order or swapped (ALBERT, 3.1)
    none = "none"  # [CLS] text [SEP] of one document, no second task (RoBERTa, 4.2)

    @property
    def num_special(self) -> int:
        """Number of [CLS] and [SEP] tokens in an example."""
        return 2 if self is Pairing.none else 3

    @property
    def label_1(self) -> str | None:
        """The name under which examples of label 1 are counted; None: no labels."""
        return {Pairing.nsp: "random_next", Pairing.sop: "swapped"}.get(self)

    @property
    def meanings(self) -> tuple[str, str]:
        """The meanings of `next_sentence_label` 0 and 1."""
        if self is Pairing.none:
            return "one text", "never"
        other = "B is from another document" if self is Pairing.nsp else "A follows B"
        return "B follows A", other


class RandomNext(enum.Enum):
    """Where the random B of a pair comes from; a document's own text is never its random B."""

    corpus = "corpus"  # from all documents of the split, as published
    source = "source"  # from documents of A's source
    language = "language"  # from documents of A's source and language


class MaskingUnit(enum.Enum):
    """The unit that is masked whole or not at all."""

    token = "token"  # a piece of a word by itself, as in BERT's paper
    # all pieces of a word, as in BERT's later "whole word masking" models
    whole_word = "whole_word"

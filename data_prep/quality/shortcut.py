"""Two small classifiers that try to predict the label of a pair without reading it.

`alone` uses the lengths of A and B and the words of each, never both together: it can learn that a
B of some kind is mostly random. If the random partners come from other domains in other shares than
the text, as with novels and encyclopaedia articles, it is right well above the majority. A fault
in the data (random partners that are marked or cut differently) makes it nearly perfect.

`together` also uses how many words A and B share, rare ones weighted more. Pairs of one document
share names and topics: the task is about this, and the classifier predicts much of it. The pairs
are unfit only if next to nothing is left to learn, for example with a title in every line. For
swapped pairs, whose A and B always come from one document, `together` gains nothing over `alone`.

Suffixes: N examples, T words (distinct ids of an example's segment) end to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.core.settings import AuditSettings
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shards import Examples

SAMPLE = 5_000  # examples to learn from; as many others are judged
MOST_EXAMPLES = 2 * SAMPLE
LEAST = 500  # examples to judge; with fewer the result is chance

Float = NDArray[np.float64]


def audit_shortcut(split: Shards, bounds: AuditSettings) -> tuple[dict[str, Any], list[str]]:
    """Accuracies on unseen examples, and the faults; both empty for too few examples."""
    size = min(MOST_EXAMPLES, split.num_examples)
    if size < 2 * LEAST:
        return {}, []
    rng = np.random.default_rng(0)
    examples = split.read(rng.choice(split.num_examples, size, replace=False))
    is_random = examples.next_sentence_labels == 1
    alone, together = features(examples, is_random, size // 4)
    judged = is_random[size // 2 :]
    majority = max(judged.mean(), 1 - judged.mean())
    metrics = {"examples": len(judged), "majority": float(majority)}
    faults = []
    for name, inputs, bound, told in (
        ("alone", alone, bounds.most_told_alone, "the lengths and words of either segment"),
        ("together", together, bounds.most_told_together, "the words that the segments share"),
    ):
        learn = slice(size // 4, size // 2)
        weights = _fit(inputs[learn], is_random[learn])
        accuracy = float(((inputs[size // 2 :] @ weights > 0) == judged).mean())
        # 0: as good as the majority label; 1: never wrong
        skill = (accuracy - majority) / (1 - majority) if majority < 1 else 0.0
        metrics[f"{name}_accuracy"], metrics[f"{name}_skill"] = accuracy, float(skill)
        if skill > bound:
            faults.append(
                f"{told} tell {accuracy:.1%} of the pairs' labels where the more frequent "
                f"label is right in {majority:.1%}: {skill:.0%} of its mistakes are avoided, and "
                f"{bound:.0%} is the most: a trivial shortcut; look at the examples for what marks "
                "pairs of label 1"
            )
    return metrics, faults


@dataclass(frozen=True)
class _Words:
    """The distinct words of one segment of each of N examples."""

    keys: NDArray[np.int64]  # (T,) ascending, example * vocab_size + id
    num_rows: int
    vocab_size: int

    @property
    def ids(self) -> NDArray[np.int64]:
        return self.keys % self.vocab_size

    @property
    def rows(self) -> NDArray[np.int64]:
        return self.keys // self.vocab_size

    def sums(self, weights_V: Float) -> Float:
        """(N,) sum of the weights of an example's words."""
        sums_N: Float = np.bincount(self.rows, weights_V[self.ids], self.num_rows).astype(
            np.float64
        )
        return sums_N

    def extremes(self, weights_V: Float) -> Float:
        """(N, 2) smallest and largest weight of an example's words, 0 included."""
        out = np.zeros((self.num_rows, 2))
        for column, pick in enumerate((np.minimum, np.maximum)):
            pick.at(out[:, column], self.rows, weights_V[self.ids])
        return out

    def counts(self, is_chosen_N: NDArray[np.bool_]) -> Float:
        """(V,) number of the chosen examples in which each word occurs."""
        chosen_T = self.ids[is_chosen_N[self.rows]]
        return np.bincount(chosen_T, minlength=self.vocab_size).astype(np.float64)


def features(examples: Examples, is_random: NDArray[np.bool_], size: int) -> tuple[Float, Float]:
    """(N, 12) and (N, 15) inputs of the two classifiers, including a constant.

    The words' scores are those of a naive Bayes classifier on the first `size` examples.
    """
    lengths_N = np.diff(examples.offsets)
    rows_T = np.repeat(np.arange(len(examples)), lengths_N)
    positions_T = np.arange(len(examples.input_ids)) - examples.offsets[rows_T]
    is_a = positions_T < examples.segment_a_lengths[rows_T]
    vocab_size = int(examples.input_ids.max()) + 1
    keys_T = rows_T * vocab_size + examples.input_ids
    a, b = (
        _Words(np.unique(keys_T[chosen]), len(examples), vocab_size) for chosen in (is_a, ~is_a)
    )
    length_a = examples.segment_a_lengths.astype(np.float64)
    length_b = lengths_N - length_a
    ones = np.ones(vocab_size)
    words_a, words_b = a.sums(ones), b.sums(ones)
    is_first = np.arange(len(examples)) < size
    scores_a, scores_b = (_scores(words, is_first, is_random) for words in (a, b))
    alone = np.column_stack(
        [
            np.ones(len(examples)),
            *(np.log1p(length.clip(0)) for length in (length_a, length_b, lengths_N)),
            length_a < 8,
            length_b < 8,
            a.sums(scores_a) / (words_a + 1),
            b.sums(scores_b) / (words_b + 1),
            a.extremes(scores_a),  # a single word that marks a label would be lost in the mean
            b.extremes(scores_b),
        ]
    )
    found_V = a.counts(is_first) + b.counts(is_first)
    rarity_V = np.log(2 * size / (found_V + 1)).clip(0) ** 2
    common = _Words(np.intersect1d(a.keys, b.keys, assume_unique=True), len(examples), vocab_size)
    shared = common.sums(rarity_V)
    num_common = common.sums(ones)
    together = np.column_stack(
        [
            alone,
            shared / np.sqrt(a.sums(rarity_V) * b.sums(rarity_V) + 1),
            shared / (words_b + 1),
            num_common / (words_a + words_b - num_common + 1),
        ]
    )
    return _standardised(alone), _standardised(together)


def _scores(words: _Words, is_first: NDArray[np.bool_], is_random: NDArray[np.bool_]) -> Float:
    """(V,) log odds of a word in random versus next pairs, each word counted once more."""
    random, following = words.counts(is_first & is_random), words.counts(is_first & ~is_random)
    odds_V: Float = np.log((random + 1) / (random + 1).sum())
    odds_V -= np.log((following + 1) / (following + 1).sum())
    return odds_V


def _standardised(inputs: Float) -> Float:
    """Scale every column but the first, a constant, to mean 0 and standard deviation 1."""
    deviation = np.maximum(inputs.std(axis=0), 1e-9)
    scaled: Float = (inputs - inputs.mean(axis=0)) / deviation
    scaled[:, 0] = 1
    return scaled


def _fit(inputs: Float, is_random: NDArray[np.bool_]) -> Float:
    """Weights of a logistic regression with a small L2 penalty, by Newton's method."""
    weights = np.zeros(inputs.shape[1])
    penalty = 1e-3
    for _ in range(20):
        probability = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        slope = inputs.T @ (probability - is_random) / len(inputs) + penalty * weights
        spread = probability * (1 - probability)
        curvature = (inputs * spread[:, None]).T @ inputs / len(inputs)
        weights -= np.linalg.solve(curvature + penalty * np.eye(len(weights)), slope)
    return weights

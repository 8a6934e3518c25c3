"""Figures from sums, and the baseline that knows token frequencies alone."""

import math

import numpy as np
import pytest

from data_prep.core.objectives import Pairing
from pretrain.training.evaluation import frequency_loss, means


def test_means_divide_each_sum_by_its_own_count() -> None:
    figures = means(
        [6.0, 1.0, 2.0, 1.0], num_masked=4, num_sequences=2, prefix="eval", pairing=Pairing.nsp
    )
    assert figures == {
        "eval/loss": 2.0, "eval/mlm_loss": 1.5, "eval/mlm_accuracy": 0.5, "eval/nsp_loss": 0.5,
        "eval/nsp_accuracy": 0.5,
    }  # fmt: skip


def test_the_frequency_baseline_equals_a_naive_loop() -> None:
    train, held_out = np.array([7, 0, 2, 0]), [0, 0, 2, 3]
    expected = 0.0
    for token in held_out:
        expected -= math.log((train[token] + 1) / (train.sum() + 4)) / len(held_out)
    assert frequency_loss(train, np.bincount(held_out, minlength=4)) == pytest.approx(expected)


def test_even_frequencies_cost_the_logarithm_of_the_vocabulary() -> None:
    even = np.full(4096, 50)
    assert frequency_loss(even, even) == pytest.approx(math.log(4096))

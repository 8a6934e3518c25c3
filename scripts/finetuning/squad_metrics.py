"""Exact match and F1 of answers, as in SQuAD's official evaluation scripts (v1.1 and v2.0)."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Mapping, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """The text in lower case, without ASCII punctuation and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(answer: str, right: str) -> float:
    """1.0 if both are equal when normalized, otherwise 0.0."""
    return float(normalized(answer) == normalized(right))


def f1(answer: str, right: str) -> float:
    """Harmonic mean of the precision and recall of words; equality if a side has none."""
    words, right_words = normalized(answer).split(), normalized(right).split()
    if not words or not right_words:
        return float(words == right_words)
    same = sum((collections.Counter(words) & collections.Counter(right_words)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(words), same / len(right_words)
    return 2 * precision * recall / (precision + recall)


def scores_of(
    answers: Mapping[str, str], right: Mapping[str, Sequence[str]]
) -> dict[str, tuple[float, float]]:
    """(exact, F1) per question id, each the best over the right answers; "" if there are none.

    A question that is missing in `answers` is wrong, as in the 1.1 script.
    """
    scores = dict.fromkeys(right, (0.0, 0.0))
    for question in right.keys() & answers.keys():
        texts = [text for text in right[question] if normalized(text)] or [""]
        exacts, f1s = ([score(answers[question], text) for text in texts] for score in (exact, f1))
        scores[question] = (max(exacts), max(f1s))
    return scores


def summary(
    scores: Mapping[str, tuple[float, float]], right: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """exact and f1 in percent; with unanswerable questions also for each kind alone."""
    metrics = _mean(list(scores.values()), "")
    with_answer = [scores[question] for question in scores if right[question]]
    if len(with_answer) < len(scores):
        without = [scores[question] for question in scores if not right[question]]
        metrics |= _mean(with_answer, "has_answer_") | _mean(without, "no_answer_")
    return metrics


def best_threshold(
    scores: Mapping[str, float],
    answers: Mapping[str, str],
    right: Mapping[str, Sequence[str]],
    null_odds: Mapping[str, float],
) -> tuple[float, float]:
    """The best score in percent, and the no-answer odds up to which an answer is then given.

    `scores` are those of the answers without a threshold. It is chosen on the same questions.
    """
    current = best = float(sum(not right[question] for question in scores))
    threshold = 0.0
    for question in sorted(null_odds, key=lambda question: null_odds[question]):
        if right[question]:
            current += scores[question]
        elif answers[question]:
            current -= 1
        if current > best:
            best, threshold = current, null_odds[question]
    return 100.0 * best / len(scores), threshold


def _mean(scores: Sequence[tuple[float, float]], prefix: str) -> dict[str, float]:
    if not scores:
        return {}
    return {
        f"{prefix}{name}": 100.0 * sum(score[column] for score in scores) / len(scores)
        for column, name in enumerate(("exact", "f1"))
    }

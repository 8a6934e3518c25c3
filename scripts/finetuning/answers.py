"""Answers to questions: decoded from logits, and scored as in SQuAD's official scripts."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Window:
    """The positions in the text of the n tokens of one window."""

    question: str  # its id
    first_token: int  # of the text, in the window: after [CLS] question [SEP]
    offsets: np.ndarray  # (n, 2) int32: first character, end
    is_best: np.ndarray  # (n,) bool: no other window has more context around the token


@dataclass(frozen=True)
class Answer:
    text: str
    start: int  # characters of the text
    end: int
    score: float  # start logit + end logit
    probability: float  # among the n best, and no answer if that is allowed


@dataclass(frozen=True)
class Answers:
    """Per question: its n best spans, and the score of no answer minus that of the best span."""

    spans: dict[str, list[Answer]]
    null_odds: dict[str, float]


def best_answers(
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    windows: Sequence[Window],
    contexts: Mapping[str, str],
    n_best: int,
    max_answer_length: int,
) -> Answers:
    """Decode the answers of every question in `contexts`; "" answers one without a span.

    Logits are (L,) per window, with any values after its end. In each window the `n_best` starts
    and ends are paired: the end is not before the start, the span has at most `max_answer_length`
    tokens, and the start has its most context here. The score of no answer is that of [CLS], the
    lowest over all windows (google-research/bert, run_squad.py).
    """
    candidates: dict[str, list[tuple[float, int, int]]] = {question: [] for question in contexts}
    null: dict[str, float] = dict.fromkeys(contexts, np.inf)
    for window, starts_L, ends_L in zip(windows, start_logits, end_logits, strict=True):
        span = slice(window.first_token, window.first_token + len(window.offsets))
        no_answer = float(starts_L[0]) + float(ends_L[0])
        null[window.question] = min(null[window.question], no_answer)
        candidates[window.question] += _spans(
            window, starts_L[span], ends_L[span], n_best, max_answer_length
        )
    found, odds = {}, {}
    for question, context in contexts.items():
        best = sorted(candidates[question], key=lambda span: -span[0])[:n_best]
        has_null = np.isfinite(null[question])
        scores = [score for score, _, _ in best] + ([null[question]] if has_null else [])
        shares = softmax(scores) if scores else []
        found[question] = [
            Answer(context[start:end], start, end, score, float(share))
            for (score, start, end), share in zip(best, shares, strict=False)
        ] or [Answer("", 0, 0, -np.inf, 0.0)]
        odds[question] = null[question] - found[question][0].score if best and has_null else np.inf
    return Answers(found, odds)


def _spans(
    window: Window, starts_n: np.ndarray, ends_n: np.ndarray, n_best: int, longest: int
) -> list[tuple[float, int, int]]:
    """(score, first character, end) of the pairs that may be answers."""
    starts = np.argsort(-starts_n, kind="stable")[:n_best]
    ends = np.argsort(-ends_n, kind="stable")[:n_best]
    first, last = np.meshgrid(starts[window.is_best[starts]], ends, indexing="ij")
    allowed = (last >= first) & (last - first < longest)
    first, last = first[allowed], last[allowed]
    scores = starts_n[first].astype(float) + ends_n[last]
    begins, ends_at = window.offsets[first, 0], window.offsets[last, 1]
    return list(zip(scores.tolist(), begins.tolist(), ends_at.tolist(), strict=True))


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

"""From start and end logits of windows to answers: the n best spans of each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax


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

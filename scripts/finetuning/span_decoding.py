"""From start and end logits of windows to answers: the n best spans of each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """Where the tokens of one window lie in the text (n of them)."""

    question: str  # its id
    first_token: int  # of the text, in the window: behind [CLS] question [SEP]
    offsets: np.ndarray  # (n, 2) int32: characters from and to
    is_best: np.ndarray  # (n,) bool: no other window has more context around this token
    begins: int  # tokens of the text before the window


@dataclass(frozen=True)
class Answer:
    text: str
    start: int  # characters of the text
    end: int
    score: float  # start logit + end logit
    probability: float  # among the n best, no answer included where it is asked for


@dataclass(frozen=True)
class Answers:
    """By question: its n best spans, best first, and how far no answer scores above the best one."""

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
    """Of every question in `contexts`; a question without a span is answered by "".

    Logits are (L,) a window, with anything behind a window's end. In each window the `n_best` starts
    and ends are paired: an end not before its start, at most `max_answer_length` tokens, and the
    start in the window where it has most context. No answer scores as [CLS], the lowest of all
    windows (google-research/bert, run_squad.py).
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
        shares = _softmax(np.array(scores)) if scores else np.zeros(0)
        found[question] = [
            Answer(context[start:end], start, end, score, float(share))
            for (score, start, end), share in zip(best, shares, strict=False)
        ] or [Answer("", 0, 0, -np.inf, 0.0)]
        odds[question] = null[question] - found[question][0].score if best and has_null else np.inf
    return Answers(found, odds)


def _spans(
    window: Window, starts_n: np.ndarray, ends_n: np.ndarray, n_best: int, longest: int
) -> list[tuple[float, int, int]]:
    """(score, first character, character behind the last) of the pairs that may be answers."""
    starts = np.argsort(-starts_n, kind="stable")[:n_best]
    ends = np.argsort(-ends_n, kind="stable")[:n_best]
    first, last = np.meshgrid(starts[window.is_best[starts]], ends, indexing="ij")
    allowed = (last >= first) & (last - first < longest)
    first, last = first[allowed], last[allowed]
    scores = starts_n[first].astype(float) + ends_n[last]
    return list(
        zip(
            scores.tolist(),
            window.offsets[first, 0].tolist(),
            window.offsets[last, 1].tolist(),
            strict=True,
        )
    )


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum())

"""What each kind of task prepares for the shared run: features, a model class, a score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Features = dict[str, Any]  # input_ids, token_type_ids: lists of one length; labels, ...


@dataclass(frozen=True)
class DevSet:
    """A development set, whose metrics follow from the model's outputs for all its features."""

    name: str
    features: list[Features]
    score: Callable[[Any], dict[str, float]]  # from Trainer's logits; in percent


@dataclass
class Notes:
    """The places of what was left out or cut, by reason."""

    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, place: str, times: int = 1) -> None:
        self.places.setdefault(reason, []).extend([place] * times)

    def lines(self) -> list[str]:
        return [f"{len(at):,} {reason} (first: {at[0]})" for reason, at in self.places.items()]


@dataclass(frozen=True)
class Job:
    """One task, read and checked."""

    class_name: str  # of transformers
    config: dict[str, Any]  # changes of the model's config
    train: list[Features]
    dev: list[DevSet]  # the first one chooses the best model
    collate: Any
    notes: Notes


def label_names(names: Sequence[str]) -> dict[str, Any]:
    """The part of a model's config that names its labels, in the order of their ids."""
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


def sample_of(examples: Iterable[T], most: int | None) -> list[T]:
    """All, or `most` drawn without replacement: the same ones for every seed, in their order.

    Not the first ones, because files are sorted by source (STS-B, SQuAD).
    """
    found = list(examples)
    if most is None or most >= len(found):
        return found
    chosen = np.random.default_rng(0).choice(len(found), most, replace=False)
    return [found[i] for i in sorted(chosen)]


def windows(size: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of windows of at most `room` tokens over `size` tokens, `stride` apart.

    One window if all fits; otherwise the last one ends with the text. `stride` is at most `room`.
    """
    stride = min(stride, room)
    starts = [0]
    while starts[-1] + room < size:
        starts.append(starts[-1] + stride)
    return [(start, min(start + room, size)) for start in starts]


def best_windows(spans: list[tuple[int, int]], size: int) -> np.ndarray:
    """(size,) The window of each token in which it has the most context on its shorter side.

    As in google-research/bert, a hundredth of the window's length breaks ties.
    """
    position = np.arange(size)
    context = [
        np.where(
            (position >= start) & (position < end),
            np.minimum(position - start, end - 1 - position) + 0.01 * (end - start),
            -1.0,
        )
        for start, end in spans
    ]
    return np.argmax(np.stack(context), axis=0) if spans and size else np.zeros(size, int)

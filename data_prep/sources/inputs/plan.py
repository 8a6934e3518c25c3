"""The tasks that an input is cut into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SourcePlan:
    """The tasks of an input. They depend only on the input and on characters_per_part."""

    tasks: list[Any]  # one per part, as `read` takes it; of JSON's types
    inputs: dict[str, Any]  # the size of the input, for the manifest
    states: list[Any]  # one per task, of JSON's types; changes when the task's input does


def cut_by_size(sizes: list[int], most: int) -> list[range]:
    """Consecutive runs of items whose sizes sum to at most `most`, or of one larger item."""
    runs: list[range] = []
    first = total = 0
    for index, size in enumerate(sizes):
        if index > first and total + size > most:
            runs.append(range(first, index))
            first = index
            total = 0
        total += size
    return [*runs, range(first, len(sizes))] if sizes else []

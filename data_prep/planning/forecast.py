"""From the costs of a sample to those of the whole input: arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.core.settings import DataPrepSettings, Duplicates
from data_prep.quality.shortcut import MOST_EXAMPLES

# Measured by scripts.bench.duplicates, see docs/log.md
DEDUP_SECONDS = 15e-6  # of one core, per document
DEDUP_BYTES = 1.4e9  # of a task of a large corpus

JOB_START = 1.5  # seconds: Python, imports, and the server from which tasks are forked
AUDIT_TOKENS = 60e6  # per second of a core


@dataclass(frozen=True)
class Line:
    """What a task takes: a constant, and a part that grows with its text."""

    constant: float
    slope: float  # per character or token

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Line:
        """The nearest line to (size, value) points that falls nowhere and is nowhere negative."""
        sizes, values = np.array(points, float).T
        if np.ptp(sizes) > 0:
            slope, constant = np.polyfit(sizes, values, 1)
            if slope >= 0 and constant >= 0:
                return cls(float(constant), float(slope))
            if slope >= 0:
                return cls(0.0, float(sizes @ values / (sizes @ sizes)))
        return cls(float(values.mean()), 0.0)

    def at(self, size: float) -> float:
        return self.constant + self.slope * size


@dataclass(frozen=True)
class Cost:
    """What the tasks of one job take, by their characters or tokens."""

    seconds: Line  # of a core
    peak_bytes: Line
    rest: float  # seconds of the job itself
    files: float  # per task
    bytes: float  # per character or token

    def stage(self, name: str, size: float, tasks: int, settings: DataPrepSettings) -> Stage:
        """The forecast for so many equal tasks, of `size` characters or tokens together."""
        cores = settings.plan.nodes * settings.workers
        one = size / tasks
        seconds = self.seconds.at(one)
        running = min(settings.workers, math.ceil(tasks / settings.plan.nodes))
        return Stage(
            name,
            tasks,
            JOB_START + self.rest + max(seconds, seconds * tasks / cores),
            self.peak_bytes.at(one) * running,
            self.files * tasks,
            self.bytes * size,
        )


@dataclass(frozen=True)
class AuditCost:
    """What the audit takes but for reading the shards, by the examples that it looks at."""

    seconds: Line
    examples: float  # per token of the train split

    def at(self, tokens: float) -> float:
        return self.seconds.at(min(MOST_EXAMPLES, tokens * self.examples))


@dataclass(frozen=True)
class Sample:
    """What the sample has shown."""

    source_bytes: float  # of the whole source
    source_tasks: int  # parts of the whole source
    input_bytes: float  # of the sample
    characters: int
    kept: float  # share of them that the filters leave
    documents: int
    tokens: int
    seconds: float  # that measuring took
    collect: Cost  # per character
    filter: Cost | None  # per character; None without filters
    vocab: Line  # seconds of a core, by characters
    encode: Cost  # per character
    build: dict[int, Cost]  # per token, by length
    audit: dict[int, AuditCost]  # by length


@dataclass(frozen=True)
class Stage:
    """The forecast of one job."""

    name: str
    tasks: int
    seconds: float
    peak_bytes: float  # per node
    files: float = 0
    bytes: float = 0


@dataclass(frozen=True)
class Forecast:
    """All jobs, for so much input."""

    input_bytes: float
    characters: float
    documents: float
    tokens: float
    stages: list[Stage]


def forecast(settings: DataPrepSettings, sample: Sample) -> Forecast:
    """All stages for plan.bytes, or for the whole source."""
    input_bytes = settings.plan.bytes or sample.source_bytes
    scale = input_bytes / sample.input_bytes
    characters, tokens = sample.characters * scale, sample.tokens * scale
    documents = sample.documents * scale
    parts = max(1, round(sample.source_tasks * input_bytes / sample.source_bytes))
    cores = settings.plan.nodes * settings.workers
    stages = [sample.collect.stage("collect", characters, parts, settings)]
    if sample.filter is not None:
        stages.append(sample.filter.stage("filter", characters, parts, settings))
    if settings.duplicates is Duplicates.drop:
        stages.append(_dedup(settings, documents))
    kept = characters * sample.kept
    learnt = min(kept, settings.vocab_characters)
    stages += [
        Stage("vocab", 1, JOB_START + sample.vocab.at(learnt), 0.0),
        sample.encode.stage("encode", kept, parts, settings),
    ]
    for length, cost in sample.build.items():
        # Each part has a shard in both splits, and that of the held-out one is small
        tasks = parts * settings.copies
        built = cost.stage(f"build {length}", tokens * settings.copies, tasks, settings)
        stages.append(built)
        read = tokens * settings.copies / AUDIT_TOKENS / min(cores, tasks)
        seconds = JOB_START + sample.audit[length].at(tokens * settings.copies) + read
        stages.append(Stage(f"audit {length}", tasks, seconds, 0.0))
    return Forecast(input_bytes, characters, documents, tokens, stages)


def _dedup(settings: DataPrepSettings, documents: float) -> Stage:
    is_large = documents > 1_000_000
    cores = settings.plan.nodes * settings.workers if is_large else 1
    running = settings.workers if is_large else 1
    peak = DEDUP_BYTES if is_large else 2e8
    seconds = JOB_START + documents * DEDUP_SECONDS / cores
    return Stage("dedup", 1, seconds, running * peak)

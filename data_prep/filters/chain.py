"""The filters of a job, one after the other, and the record of what each did."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.core.files import checksum
from data_prep.core.settings import DataPrepSettings, FilterName, paths_in
from data_prep.filters import published
from data_prep.filters.boilerplate import boilerplate
from data_prep.filters.decontaminate import decontaminate
from data_prep.filters.language_score import language_score
from data_prep.filters.lines import c4_lines, line_duplicates
from data_prep.filters.pii import pii
from data_prep.filters.rules import Changes, Dropped, Filter
from data_prep.stores.documents import Document, FilterCounts, Reject, RuleCounts, Sample
from data_prep.text.language import MULTI, iso_code, language_of
from data_prep.text.sentences import splitter

RULES = 1  # changes with every change of a rule
SAMPLES = 5  # per rule
SAMPLE_CHARACTERS = 200

_PUBLISHED: dict[FilterName, Callable[[], Filter]] = {
    FilterName.gopher_quality: published.gopher_quality,
    FilterName.gopher_repetition: published.gopher_repetition,
    FilterName.fineweb_quality: published.fineweb_quality,
}


@dataclass(frozen=True)
class Inputs:
    """What filters look up: hashes, ascending."""

    frequent_lines: NDArray[np.uint64]
    task_ngrams: NDArray[np.uint64]


def identity(settings: DataPrepSettings) -> dict[str, Any]:
    """All that determines what the filters do to a document."""
    own, language = settings.filter, settings.language
    tasks = paths_in(own.decontaminate_against) if own.decontaminate_against else []
    splitters = {language.splitter.value} | ({"nupunkt"} if language.code == MULTI else set())
    used: dict[FilterName, Callable[[], dict[str, Any]]] = {
        FilterName.c4_lines: lambda: {
            "fewest_words": own.fewest_words,
            "fewest_sentences": own.fewest_sentences,
            **{name: metadata.version(name) for name in sorted(splitters)},
        },
        FilterName.boilerplate: lambda: {"most_documents": own.most_documents},
        FilterName.language_score: lambda: {"least_language_share": own.least_language_share},
        FilterName.decontaminate: lambda: {
            "ngram": own.ngram,
            "tasks": sorted(f"{Path(path).name} {checksum(Path(path))}" for path in tasks),
        },
        **{name: lambda: {"datatrove": _version_of("datatrove")} for name in _PUBLISHED},
    }
    names = map(FilterName, settings.filters)
    return {
        "rules": RULES,
        "language": language.code,
        "filters": [{"name": name.value, **used.get(name, dict)()} for name in names],
    }


def _version_of(package: str) -> str:
    published.require()
    return metadata.version(package)


def make(settings: DataPrepSettings, inputs: Inputs) -> dict[str, Filter]:
    """The filters of the settings by name, in order. Raises SettingsError for a missing extra."""
    own = settings.filter
    makers: dict[FilterName, Callable[[], Filter]] = {
        **_PUBLISHED,
        FilterName.c4_lines: lambda: c4_lines(
            own.fewest_words,
            own.fewest_sentences,
            functools.partial(_sentences, settings.language.splitter.value),
        ),
        FilterName.line_duplicates: line_duplicates,
        FilterName.boilerplate: lambda: boilerplate(inputs.frequent_lines),
        FilterName.pii: pii,
        FilterName.language_score: lambda: language_score(own.least_language_share),
        FilterName.decontaminate: lambda: decontaminate(inputs.task_ngrams, own.ngram),
    }
    return {name: makers[FilterName(name)]() for name in settings.filters}


def _sentences(splitter_name: str, line: str, code: str) -> list[str]:
    """The sentences of a line, as encode finds them."""
    return splitter("nupunkt" if code == "en" else splitter_name, code)(line)


class Chain:
    """Applies filters to the documents of one part and counts what they do."""

    def __init__(self, filters: Mapping[str, Filter], language: str) -> None:
        self._filters, self._language = filters, language
        self._record = Recorder()

    @property
    def counts(self) -> FilterCounts:
        return self._record.counts()

    def apply(self, document: Document) -> Document | Reject:
        """The document as the filters leave it, or its reject with the filter and rule."""
        text, code = document.text, self._language
        if code == MULTI:
            code = document.language or iso_code(language_of(text))
        for name, apply in self._filters.items():
            changes: Changes = []
            result = apply(text, code, changes)
            if isinstance(result, str) and not result.strip():
                result = Dropped("no text left", text)
            if isinstance(result, Dropped):
                self._record.add(name, result.rule, document.id, result.sample or text, True)
                reason = f"{name}: {result.rule}"
                return Reject(document.id, document.title, document.text, reason)
            for rule, found in changes:
                self._record.add(name, rule, document.id, found)
            text = result
        return replace(document, text=text)


class Recorder:
    """Counts of each rule, and samples that are the same in whatever order they come."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], RuleCounts] = {}
        self._last: dict[tuple[str, str], str] = {}  # id; one sample per document

    def add(self, name: str, rule: str, id: str, text: str, is_dropped: bool = False) -> None:
        counts = self._counts.setdefault((name, rule), RuleCounts())
        counts.documents += is_dropped
        counts.changes += not is_dropped
        if self._last.get((name, rule)) != id:
            self._last[name, rule] = id
            counts.samples.append(Sample(id, text[:SAMPLE_CHARACTERS]))
        if len(counts.samples) > 10 * SAMPLES:
            counts.samples = _first(rule, counts.samples)

    def counts(self) -> FilterCounts:
        """By filter and rule, sorted by rule."""
        found: FilterCounts = {}
        for (name, rule), counts in sorted(self._counts.items()):
            samples = _first(rule, counts.samples)
            found.setdefault(name, {})[rule] = RuleCounts(
                documents=counts.documents, changes=counts.changes, samples=samples
            )
        return found


def added(parts: Sequence[FilterCounts]) -> FilterCounts:
    """The counts of all parts together."""
    total: FilterCounts = {}
    for part in parts:
        for name, rules in part.items():
            for rule, counts in rules.items():
                sums = total.setdefault(name, {}).setdefault(rule, RuleCounts())
                sums.documents += counts.documents
                sums.changes += counts.changes
                sums.samples = _first(rule, [*sums.samples, *counts.samples])
    return total


def _first(rule: str, samples: Iterable[Sample]) -> list[Sample]:
    """SAMPLES of them, by a hash of their document's id."""

    def order(sample: Sample) -> int:
        return xxhash.xxh3_64_intdigest(f"{rule}/{sample.id}".encode())

    return heapq.nsmallest(SAMPLES, samples, key=order)

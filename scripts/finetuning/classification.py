"""A label or a number for one text or two: GLUE, and any table with named columns."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from data_prep.core.printable import shortened
from scripts.finetuning import tables
from scripts.finetuning.job import DevSet, Features, Job, Notes, label_names, sample_of
from scripts.finetuning.labels import label_of, named, refuse_look_alikes, written
from scripts.finetuning.settings import InputError, Settings, TaskSettings
from scripts.finetuning.tables import Row

MOST_LABELS = 1000
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.A | re.I)
Metric = Callable[[np.ndarray, np.ndarray], float]  # of predictions and true labels


@dataclass(frozen=True)
class Example:
    place: str
    text: str
    pair: str | None
    label: str  # as `labels.written` makes it of the data's


def prepare(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Job:
    """Read and check the task's sets, and turn them into features. Raises InputError."""
    task, notes = settings.task, Notes()
    train = list(_examples(task, "train", notes))
    names = _label_names(task, train)
    labels = list(dict.fromkeys(names.values()))
    _check_metrics(task, labels)
    score = functools.partial(_score, task.metrics, task.is_regression)

    def featured(examples: list[Example]) -> tuple[list[Features], np.ndarray]:
        right = [
            _number(x) if task.is_regression else _label_id(x, names, labels) for x in examples
        ]
        return _features(examples, right, tokenizer, settings.max_length, notes), np.array(right)

    dev = []
    for role in ("dev", "other_dev"):
        if examples := sample_of(_examples(task, role, notes), settings.max_dev_examples):
            features, right = featured(examples)
            dev.append(DevSet(role, features, functools.partial(score, right=right)))
    config: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    if not task.is_regression:
        config = {**label_names(labels), "problem_type": "single_label_classification"}
    return Job(
        "BertForSequenceClassification",
        config,
        featured(sample_of(train, settings.max_train_examples))[0],
        dev,
        DataCollatorWithPadding(tokenizer),
        notes,
    )


def _examples(task: TaskSettings, role: str, notes: Notes) -> Iterator[Example]:
    """The examples of one set; rows without text or label are left out and counted."""
    source = task.hub if task.folder is None else task
    assert source is not None
    columns = (source.text, source.text_pair, source.label)
    names = named(task.labels)
    place, num_read, num_kept = "", 0, 0
    for row in _rows(task, role):
        place, num_read = row.place, num_read + 1
        if row.fault:
            if not task.skip_broken:
                raise InputError(
                    f"{place}: {row.fault}; correct the row, or leave such rows out with "
                    "task.skip_broken=true"
                )
            notes.add("row(s) with too few or too many columns left out", place)
            continue
        text, pair = (
            None if column is None else tables.text_in(_cell(row, column), place)
            for column in columns[:2]
        )
        assert text is not None
        if not text.strip() or (pair is not None and not pair.strip()):
            notes.add("row(s) without text left out", place)
            continue
        value = _cell(row, source.label)
        label = written(value) if task.is_regression else label_of(value, names, place)
        if label is None:
            notes.add("row(s) without a label left out", place)
            continue
        num_kept += 1
        yield Example(place, text, pair, label)
    if num_read and not num_kept:
        raise InputError(
            f"{place}: no row so far has text in {' and '.join(filter(None, columns[:2]))} and a "
            f"label in {columns[2]}; are they the right columns? task.text=COLUMN and "
            "task.label=COLUMN name others"
        )
    if not num_read and role != "other_dev":
        raise InputError(f"the set {role!r} of {task.name} has no rows; give a file that has some")


def _rows(task: TaskSettings, role: str) -> Iterator[Row]:
    """The rows of one set; none if the task has no such set."""
    if task.folder is not None:
        if name := getattr(task, role):
            path = tables.path_of(task, name)
            yield from tables.read_table(path, header=task.header, quotes=task.quotes)
    elif split := getattr(task.hub, role):
        assert task.hub is not None
        yield from tables.read_hub(task.hub, split)


def _cell(row: Row, column: str | None) -> object:
    if column not in row.values:
        separators = any(mark in name for name in row.values for mark in ";\t|")
        raise InputError(
            f"{row.place}: there is no column {column!r}; there are "
            f"{shortened(', '.join(map(repr, row.values)))}. "
            + "task.text, task.text_pair and task.label name them"
            + "; columns are separated by commas in .csv, tabs in .tsv" * separators
        )
    return row.values[column]


def _label_names(task: TaskSettings, train: list[Example]) -> dict[str, str]:
    """The name of each label in the data, in the order of the label ids."""
    if task.is_regression:
        return {}
    if task.labels is not None:
        return named(task.labels)
    places: dict[str, str] = {}
    for example in train:
        places.setdefault(example.label, example.place)
    found = sorted(places)
    if not 2 <= len(found) <= MOST_LABELS or (len(found) > 20 and 2 * len(found) > len(train)):
        raise InputError(
            f"{train[0].place}: the training set has {len(found):,} label(s) in "
            f"{len(train):,} rows, such as {shortened(repr(found[0]), 80)}; it must have 2 to "
            f"{MOST_LABELS:,}. "
            "task.label=COLUMN names another column, task.is_regression=true takes numbers"
        )
    refuse_look_alikes(places)
    return {name: name for name in found}


def _check_metrics(task: TaskSettings, labels: list[str]) -> None:
    """Raise InputError for a metric that this number of labels does not have."""
    if "f1" in task.metrics and len(labels) != 2:
        fitting = dict.fromkeys("macro_f1" if name == "f1" else name for name in task.metrics)
        raise InputError(
            f"task.metrics={task.metrics}: f1 is that of the second of two labels, and "
            f"{task.name} has {len(labels)} ({shortened(', '.join(labels))}); use "
            f"task.metrics=[{','.join(fitting)}]"
        )


def _label_id(example: Example, names: dict[str, str], labels: list[str]) -> int:
    name = names.get(example.label, example.label)  # the hub has the names themselves
    if name not in labels:
        raise InputError(
            f"{example.place}: the label {shortened(repr(example.label), 80)} is none of "
            f"{shortened(', '.join(names))}; correct "
            "the row, or name all labels: task.labels='{IN THE FILE: NAME, ...}'"
        )
    return labels.index(name)


def _number(example: Example) -> float:
    number = float(example.label) if NUMBER.fullmatch(example.label) else math.nan
    if not math.isfinite(number):
        raise InputError(
            f"{example.place}: {shortened(repr(example.label), 80)} is no number such as -1.5 or "
            "2e-3; correct the row"
        )
    return number


def _features(
    examples: list[Example],
    right: list[int] | list[float],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    notes: Notes,
) -> list[Features]:
    if not examples:
        return []
    pairs = None if examples[0].pair is None else [example.pair for example in examples]
    encoded = tokenizer(
        [example.text for example in examples], pairs, truncation=True, max_length=max_length
    )
    for example, encoding in zip(examples, encoded.encodings, strict=True):
        if encoding.overflowing:
            notes.add(f"text(s) cut at {max_length} tokens", example.place)
    return [
        {"input_ids": ids, "token_type_ids": segments, "labels": label}
        for ids, segments, label in zip(
            encoded["input_ids"], encoded["token_type_ids"], right, strict=True
        )
    ]


def _score(
    names: list[str], is_regression: bool, logits: Any, right: np.ndarray
) -> dict[str, float]:
    predicted = np.squeeze(logits, -1) if is_regression else np.argmax(logits, -1)
    return {name: 100 * float(METRICS[name](predicted, right)) for name in names}


def _correlation(coefficient: Callable[..., Any]) -> Metric:
    def correlation(predicted: np.ndarray, right: np.ndarray) -> float:
        if np.ptp(predicted) == 0 or np.ptp(right) == 0:
            return 0.0  # undefined for a constant
        return float(coefficient(predicted, right).statistic)

    return correlation


METRICS: dict[str, Metric] = {
    "accuracy": lambda predicted, right: metrics.accuracy_score(right, predicted),
    "f1": lambda predicted, right: metrics.f1_score(right, predicted, zero_division=0.0),
    "macro_f1": lambda predicted, right: metrics.f1_score(
        right, predicted, average="macro", zero_division=0.0
    ),
    "matthews": lambda predicted, right: metrics.matthews_corrcoef(right, predicted),
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}

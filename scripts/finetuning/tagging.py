"""A tag for every word: named entities from CoNLL columns, or jsonl with `tokens` and `tags`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from seqeval.metrics import f1_score, precision_score, recall_score
from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerBase

from scripts.finetuning import tables
from scripts.finetuning.job import (
    DevSet,
    Features,
    Job,
    Notes,
    best_windows,
    label_names,
    sample_of,
    windows,
)
from scripts.finetuning.settings import InputError, Settings, TaskSettings

IGNORED = -100  # label of tokens other than the first piece of a word
DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True)
class Sentence:
    place: str
    words: list[str]
    tags: list[str]  # one per word, IOB2


@dataclass(frozen=True)
class Piece:
    """The words of a sentence that are labelled in one window, and their tokens there."""

    sentence: int
    words: np.ndarray
    tokens: np.ndarray


def prepare(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Job:
    """Read and check the task's sets, and cut them into windows. Raises InputError."""
    task, notes = settings.task, Notes()
    train = list(_sentences(task, "train"))
    types = sorted({tag[2:] for sentence in train for tag in sentence.tags if tag != "O"})
    if not types:
        raise InputError(
            f"the training set of {task.name} has only the tag 'O'; "
            "is it the right column? task.tag_column=NUMBER names another"
        )
    names = ["O", *(f"{prefix}-{name}" for name in types for prefix in "BI")]
    cut = Pieces(tokenizer, settings.max_length, task.stride or settings.max_length)

    def featured(sentences: list[Sentence]) -> tuple[list[Features], list[Piece]]:
        features, pieces = [], []
        for number, sentence in enumerate(sentences):
            ids = [_tag_id(tag, names, sentence.place) for tag in sentence.tags]
            for feature, piece in cut.of(sentence.words, number):
                labels = np.full(len(feature["input_ids"]), IGNORED)
                labels[piece.tokens] = np.array(ids)[piece.words]
                features.append({**feature, "labels": labels.tolist()})
                pieces.append(piece)
            for word in cut.without_pieces:
                notes.add(f"word(s) such as {word!r} that the tokenizer drops", sentence.place)
        return features, pieces

    dev = []
    for role in ("dev", "other_dev"):
        if getattr(task, role) is not None:
            sentences = sample_of(_sentences(task, role), settings.max_dev_examples)
            features, pieces = featured(sentences)
            score = functools.partial(_score, names=names, pieces=pieces, sentences=sentences)
            dev.append(DevSet(role, features, score))
    return Job(
        "BertForTokenClassification",
        label_names(names),
        featured(sample_of(train, settings.max_train_examples))[0],
        dev,
        DataCollatorForTokenClassification(tokenizer),
        notes,
    )


class Pieces:
    """Cuts sentences of any length into windows of at most `max_length` tokens.

    Every word keeps all its pieces. Its label is at the first one, in the window where that has the
    most context.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> None:
        self.tokenizer = tokenizer
        self.room = max_length - 2
        self.stride = stride
        self.without_pieces: list[str] = []  # words of the last sentence

    def of(self, words: Sequence[str], sentence: int) -> list[tuple[Features, Piece]]:
        encoded = self.tokenizer(
            list(words), is_split_into_words=True, add_special_tokens=False, verbose=False
        )
        ids = encoded["input_ids"]
        words_of = np.array(encoded.word_ids(0), int)
        is_first = np.diff(words_of, prepend=-1) != 0
        kept = set(words_of.tolist())
        self.without_pieces = [word for number, word in enumerate(words) if number not in kept]
        spans = windows(len(ids), self.room, self.stride)
        best = best_windows(spans, len(ids))
        found = []
        for number, (start, end) in enumerate(spans):
            tokens = [self.tokenizer.cls_token_id, *ids[start:end], self.tokenizer.sep_token_id]
            features = {"input_ids": tokens, "token_type_ids": [0] * len(tokens)}
            here = start + np.flatnonzero(is_first[start:end] & (best[start:end] == number))
            found.append((features, Piece(sentence, words_of[here], here - start + 1)))
        return found


def iob2(tags: Sequence[str], place: str) -> list[str]:
    """Convert one sentence's tags to IOB2, from IOB2, IOB1 (B- only between neighbors) or types.

    An I- tag after another type, or after O, begins an entity, as in conlleval. Raises InputError
    on other schemes (IOBES, BILOU).
    """
    converted, before = [], "O"
    for tag in tags:
        prefix, dash, name = tag.partition("-")
        if tag == "O":
            converted.append("O")
        elif dash and prefix in ("B", "I") and name:
            begins = prefix == "B" or before != name
            converted.append(f"{'B' if begins else 'I'}-{name}")
        elif re.fullmatch(r"[A-Z](-.*)?", tag) or not tag:
            raise InputError(
                f"{place}: the tag {tag!r} is neither IOB1, IOB2 nor a plain type; "
                "convert E- and L- to I-, S- and U- to B-"
            )
        else:
            name = tag
            converted.append(f"{'I' if before == name else 'B'}-{name}")
        before = "O" if tag == "O" else name
    return converted


def _sentences(task: TaskSettings, role: str) -> Iterator[Sentence]:
    path = tables.path_of(task, getattr(task, role))
    found = 0
    read = _from_json(path) if path.suffix == ".jsonl" else _from_columns(task, path)
    for place, words, tags in read:
        found += 1
        yield Sentence(place, words, iob2(tags, place))
    if not found:
        raise InputError(f"{path} has no sentence; give a file that has some")


def _from_columns(task: TaskSettings, path: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    """Columns are separated by tabs or spaces, sentences by lines without a word."""
    assert task.token_column is not None
    assert task.tag_column is not None
    words: list[str] = []
    tags: list[str] = []
    began = 1
    for number, line in [*tables.lines_of(path), (0, "")]:
        columns = line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]
        if not line.strip() or columns[0] == DOCUMENT:
            if words:
                yield f"{path}, sentence at line {began}", words, tags
            words, tags = [], []
            continue
        try:
            if len(columns) < 2:
                raise IndexError
            word, tag = columns[task.token_column], columns[task.tag_column].strip()
        except IndexError:
            raise InputError(
                f"{path}, line {number}: {len(columns)} column(s), but a word and its tag must be "
                f"in columns {task.token_column} and {task.tag_column}; correct the line"
            ) from None
        if not word.strip() or not tag:
            lacking = "tag" if word else "word"
            raise InputError(f"{path}, line {number} has no {lacking}; correct it")
        if not words:
            began = number
        words.append(word)
        tags.append(tag)


def _from_json(path: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    for row in tables.read_json_lines(path):
        words, tags = row.values.get("tokens"), row.values.get("tags")
        if not isinstance(words, list) or not isinstance(tags, list):
            raise InputError(
                f"{row.place}: it must have lists `tokens` and `tags`; it has "
                f"{', '.join(row.values)}"
            )
        if len(words) != len(tags) or not words:
            raise InputError(
                f"{row.place}: {len(tags)} tag(s) for {len(words)} word(s); correct the row"
            )
        yield row.place, [str(word) for word in words], [str(tag) for tag in tags]


def _tag_id(tag: str, names: list[str], place: str) -> int:
    if tag not in names:
        raise InputError(
            f"{place}: the training set has no tag {tag!r}, only {', '.join(names)}; "
            "correct the sentence, or give a training set that has it"
        )
    return names.index(tag)


def predicted_tags(
    logits: Sequence[np.ndarray], pieces: list[Piece], sizes: Sequence[int], names: Sequence[str]
) -> list[list[str]]:
    """IOB2 tags of every word of every sentence; a word without a piece is O."""
    tags = [["O"] * size for size in sizes]
    for piece, logits_L in zip(pieces, logits, strict=True):
        best = np.argmax(logits_L[piece.tokens], -1)
        for word, tag in zip(piece.words.tolist(), best.tolist(), strict=True):
            tags[piece.sentence][word] = names[tag]
    return [iob2(sentence, "the prediction") for sentence in tags]


def _score(
    logits: Any, *, names: list[str], pieces: list[Piece], sentences: list[Sentence]
) -> dict[str, float]:
    """Entity-level metrics in percent, as in conlleval."""
    right = [sentence.tags for sentence in sentences]
    predicted = predicted_tags(logits, pieces, [len(tags) for tags in right], names)
    metric_of = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    return {
        name: 100 * float(metric(right, predicted, zero_division=0))
        for name, metric in metric_of.items()
    }

"""A tag for every word: named entities from CoNLL columns, or from jsonl with `tokens` and `tags`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from seqeval import metrics
from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerBase

from scripts.finetuning import tables
from scripts.finetuning.job import DevSet, Features, Job, Notes, best_windows, sample_of, windows
from scripts.finetuning.settings import InputError, Settings, TaskSettings

IGNORED = -100  # label of tokens that are not the first piece of a word
DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True)
class Sentence:
    place: str
    words: list[str]
    tags: list[str]  # one a word, IOB2


@dataclass(frozen=True)
class Piece:
    """A window over a sentence: which of its words are labelled here, and at which token."""

    sentence: int
    words: np.ndarray
    tokens: np.ndarray


def prepare(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Job:
    """The task's sets as windows of features, all checked. Raises InputError."""
    task, notes = settings.task, Notes()
    train = list(_sentences(task, "train"))
    types = sorted({tag[2:] for sentence in train for tag in sentence.tags if tag != "O"})
    if not types:
        raise InputError(
            f"the training set of {task.name} has no tag but 'O'; "
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
    config = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
    collate = DataCollatorForTokenClassification(tokenizer)
    sample = sample_of(train, settings.max_train_examples)
    return Job("BertForTokenClassification", config, featured(sample)[0], dev, collate, notes)


class Pieces:
    """Cuts sentences of any length into windows of at most `max_length` tokens.

    Every word keeps all its pieces, however many; its label stands at the first one, in the window
    where that has most context.
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
            features = {
                "input_ids": [
                    self.tokenizer.cls_token_id,
                    *ids[start:end],
                    self.tokenizer.sep_token_id,
                ],
                "token_type_ids": [0] * (end - start + 2),
            }
            here = start + np.flatnonzero(is_first[start:end] & (best[start:end] == number))
            found.append((features, Piece(sentence, words_of[here], here - start + 1)))
        return found


def iob2(tags: Sequence[str], place: str) -> list[str]:
    """Tags of one sentence in IOB2, from IOB2, IOB1 (B- only between neighbours) or plain types.

    A word inside whose word before is of another type, or outside, begins an entity, as in conlleval.
    Raises InputError on other schemes (IOBES, BILOU).
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
                f"{place}: the tag {tag!r} is none of IOB1, IOB2 or plain types; "
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
    """Columns separated by tabs, or else blanks; sentences by lines without a word."""
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
                f"{path}, line {number}: {len(columns)} column(s), where a word and its tag are "
                f"wanted in columns {task.token_column} and {task.tag_column}; mend the line"
            ) from None
        if not word.strip() or not tag:
            raise InputError(f"{path}, line {number} has no {'tag' if word else 'word'}; mend it")
        if not words:
            began = number
        words.append(word)
        tags.append(tag)


def _from_json(path: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    for row in tables.read_json_lines(path):
        words, tags = row.values.get("tokens"), row.values.get("tags")
        if not isinstance(words, list) or not isinstance(tags, list):
            raise InputError(
                f"{row.place}: lists `tokens` and `tags` are wanted; there are "
                f"{', '.join(row.values)}"
            )
        if len(words) != len(tags) or not words:
            raise InputError(
                f"{row.place}: {len(tags)} tag(s) for {len(words)} word(s); mend the row"
            )
        yield row.place, [str(word) for word in words], [str(tag) for tag in tags]


def _tag_id(tag: str, names: list[str], place: str) -> int:
    if tag not in names:
        raise InputError(
            f"{place}: the training set has no tag {tag!r}, only {', '.join(names)}; "
            "mend the sentence, or give a training set that has it"
        )
    return names.index(tag)


def predicted_tags(
    logits: Sequence[np.ndarray], pieces: list[Piece], sizes: Sequence[int], names: Sequence[str]
) -> list[list[str]]:
    """IOB2 tags of every word of every sentence; a word without a piece is outside."""
    tags = [["O"] * size for size in sizes]
    for piece, logits_L in zip(pieces, logits, strict=True):
        best = np.argmax(logits_L[piece.tokens], -1)
        for word, tag in zip(piece.words.tolist(), best.tolist(), strict=True):
            tags[piece.sentence][word] = names[tag]
    return [iob2(sentence, "the prediction") for sentence in tags]


def _score(
    logits: Any, *, names: list[str], pieces: list[Piece], sentences: list[Sentence]
) -> dict[str, float]:
    """Entity-level figures in percent, as conlleval."""
    right = [sentence.tags for sentence in sentences]
    predicted = predicted_tags(logits, pieces, [len(tags) for tags in right], names)
    return {
        "f1": 100 * float(metrics.f1_score(right, predicted, zero_division=0)),
        "precision": 100 * float(metrics.precision_score(right, predicted, zero_division=0)),
        "recall": 100 * float(metrics.recall_score(right, predicted, zero_division=0)),
    }

"""A tag for every word: named entities from CoNLL columns, or jsonl with `tokens` and `tags`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerBase

from data_prep.core.printable import shortened
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
from scripts.finetuning.labels import named, refuse_look_alikes, tag_of
from scripts.finetuning.settings import InputError, Settings, TaskSettings

IGNORED = -100  # label of tokens other than the first piece of a word
DOCUMENT = "-DOCSTART-"
PREFIXES = ("B-", "I-")

Tagged = list[tuple[str, object, str]]  # words with their tags as in the file and their places


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
    train = list(_sentences(task, "train", notes))
    types = _types(task, train)
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
            sentences = sample_of(_sentences(task, role, notes), settings.max_dev_examples)
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


def iob2(tags: Sequence[str]) -> list[str]:
    """Convert one sentence's tags to IOB2, from IOB2, IOB1 (B- only between neighbors) or types.

    An I- tag after another type, or after O, begins an entity, as in conlleval.
    """
    converted, before = [], "O"
    for tag in tags:
        name = tag[2:] if tag.startswith(PREFIXES) else tag
        begins = tag.startswith("B-") or before != name
        converted.append(tag if tag == "O" else f"{'B' if begins else 'I'}-{name}")
        before = name
    return converted


def _types(task: TaskSettings, train: list[Sentence]) -> list[str]:
    """The sorted types of entities in the training set."""
    places: dict[str, str] = {}
    count = 0
    for sentence in train:
        for tag in sentence.tags:
            if tag != "O":
                places.setdefault(tag[2:], sentence.place)
                count += 1
    if not places or (len(places) > 20 and 2 * len(places) > count):
        found = f"{len(places)} types for {count} words" if places else "only the tag 'O'"
        raise InputError(
            f"the training set of {task.name} has {found}; "
            "is it the right column? task.tag_column=NUMBER names another"
        )
    refuse_look_alikes(places)
    return sorted(places)


def _sentences(task: TaskSettings, role: str, notes: Notes) -> Iterator[Sentence]:
    """The sentences of one set; comments are left out and counted."""
    path = tables.path_of(task, getattr(task, role))
    names = named(task.labels)
    first: dict[str, str] = {}  # place of the first tag with and without a prefix, and of O
    is_json = path.suffix.lower() == ".jsonl"
    for place, tagged in _from_json(path) if is_json else _from_columns(task, path, notes):
        words, tags = [], []
        for word, value, at in tagged:
            tag = tag_of(value, names, at)
            kind = "O" if tag == "O" else "prefix" if tag.startswith(PREFIXES) else "plain"
            first.setdefault(kind, f"{at}: the tag {tag!r}")
            words.append(word)
            tags.append(tag)
            if first.keys() >= {"prefix", "plain"}:
                raise InputError(
                    f"{first['plain']} has neither B- nor I-, unlike others ({first['prefix']}); "
                    f"correct it, or name what it means: task.labels='{{{tag}: O, ...}}'"
                )
        yield Sentence(place, words, iob2(tags))
    if not first:
        raise InputError(f"{path} has no sentence; give a file that has some")
    if "O" not in first and "plain" in first:
        raise InputError(
            f"{path}: no word has the tag O, so that all would be entities; name the tag that "
            "stands for none: task.labels='{TAG: O}'. If every word is to have one (parts of "
            "speech), write B- before each"
        )


def _from_columns(task: TaskSettings, path: Path, notes: Notes) -> Iterator[tuple[str, Tagged]]:
    """Columns are separated by tabs or spaces, sentences by lines without a word."""
    assert task.token_column is not None
    assert task.tag_column is not None
    width, first = 0, 0  # number of columns of all lines, and the first line with them
    for block in _blocks(path):
        tagged: Tagged = []
        num_columns = len(_columns(block[-1][1]))
        for number, line in block:
            columns = _columns(line)
            place = f"{path}, line {number}"
            if not tagged and _is_comment(line, columns, num_columns, task):
                notes.add("comment line(s) left out", place)
                continue
            if not width:
                width, first = len(columns), number
            if len(columns) != width or width < 2:
                wanted = f"line {first} has {width}" if width > 1 else "a word and its tag are two"
                raise InputError(
                    f"{place}: {len(columns)} column(s), but {wanted}; correct the line "
                    "(comments begin with '# ', before a sentence's first word)"
                )
            try:
                word, tag = columns[task.token_column], columns[task.tag_column].strip()
            except IndexError:
                raise InputError(
                    f"{place}: {width} column(s), but a word and its tag must be in columns "
                    f"{task.token_column} and {task.tag_column}, counted from 0; "
                    "task.token_column and task.tag_column name others"
                ) from None
            if not word.strip() or not tag:
                raise InputError(f"{place} has no {'tag' if word else 'word'}; correct it")
            tagged.append((word, tag, place))
        if tagged:
            yield f"{path}, sentence at line {tagged[0][2].rpartition(' ')[2]}", tagged


def _blocks(path: Path) -> Iterator[list[tuple[int, str]]]:
    """The numbered lines between lines that are blank or begin a document."""
    block: list[tuple[int, str]] = []
    for number, line in [*tables.lines_of(path), (0, "")]:
        if line.strip() and not line.startswith(DOCUMENT):
            block.append((number, line))
        elif block:
            yield block
            block = []


def _columns(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]


def _is_comment(line: str, columns: list[str], num_columns: int, task: TaskSettings) -> bool:
    """Whether a line begins with '# ' and is not the word '#' with a tag of its own."""
    if not line.startswith(("# ", "#\t")) and line.strip() != "#":
        return False
    assert task.tag_column is not None
    if len(columns) != num_columns or not -num_columns <= task.tag_column < num_columns:
        return True
    tag = columns[task.tag_column]
    return tag != "O" and not tag.startswith(PREFIXES) and tag not in (task.labels or {})


def _from_json(path: Path) -> Iterator[tuple[str, Tagged]]:
    for row in tables.read_json_lines(path):
        words, tags = row.values.get("tokens"), row.values.get("tags")
        if not isinstance(words, list) or not isinstance(tags, list):
            raise InputError(
                f"{row.place}: it must have lists `tokens` and `tags`; it has "
                f"{shortened(', '.join(row.values))}"
            )
        if len(words) != len(tags) or not words:
            raise InputError(
                f"{row.place}: {len(tags)} tag(s) for {len(words)} word(s); correct the row"
            )
        texts = [tables.text_in(word, row.place, "a word") for word in words]
        if "" in texts:
            raise InputError(f"{row.place}: word {texts.index('') + 1} is empty; correct the row")
        yield row.place, [(word, tag, row.place) for word, tag in zip(texts, tags, strict=True)]


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
    return [iob2(sentence) for sentence in tags]


def _score(
    logits: Any, *, names: list[str], pieces: list[Piece], sentences: list[Sentence]
) -> dict[str, float]:
    """Entity-level metrics in percent, as in conlleval."""
    right = [sentence.tags for sentence in sentences]
    return entity_scores(
        right, predicted_tags(logits, pieces, [len(tags) for tags in right], names)
    )


def entity_scores(
    right: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """F1, precision and recall in percent of the entities in the IOB2 tags of sentences.

    An entity counts as found if its first word, its last and its type are those predicted. What
    there is nothing to divide by is 0.
    """
    pairs = [(_entities(a), _entities(b)) for a, b in zip(right, predicted, strict=True)]
    found = sum(len(a & b) for a, b in pairs)
    num_right, num_predicted = sum(len(a) for a, _ in pairs), sum(len(b) for _, b in pairs)
    return {
        "f1": 200 * found / max(1, num_right + num_predicted),
        "precision": 100 * found / max(1, num_predicted),
        "recall": 100 * found / max(1, num_right),
    }


def _entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """First word, word after the last, and type of each entity."""
    found = set()
    for first, tag in enumerate(tags):
        if tag.startswith("B-"):
            inside = itertools.takewhile(lambda tag: tag.startswith("I-"), tags[first + 1 :])
            found.add((first, first + 1 + len(list(inside)), tag[2:]))
    return found

"""Questions answered by a span of a text: SQuAD 1.1, and 2.0 with questions without an answer."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from data_prep.core.printable import shortened
from scripts.finetuning import tables
from scripts.finetuning.answers import (
    Window,
    best_answers,
    best_threshold,
    scores_of,
    summary,
)
from scripts.finetuning.job import DevSet, Features, Job, Notes, best_windows, sample_of, windows
from scripts.finetuning.settings import InputError, Settings, TaskSettings

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question; `answers` are (text, first character), and empty if the text has none."""

    place: str
    id: str
    text: str
    context: str
    answers: list[tuple[str, int]]


def prepare(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Job:
    """Read and check the task's sets, and cut them into windows. Raises InputError."""
    task, notes = settings.task, Notes()
    assert task.max_question_length
    assert task.stride
    if settings.max_length < task.max_question_length + 8:
        raise InputError(
            f"max_length={settings.max_length} leaves no room for a text after a question of "
            f"task.max_question_length={task.max_question_length}; raise the one or lower the other"
        )
    cut = Windows(tokenizer, settings.max_length, task.stride, task.max_question_length)
    asked = sample_of(_questions(task, "train"), settings.max_train_examples)
    train = [each for one in _kept(asked, notes) for each in cut.for_training(one, notes)]
    if not train:
        raise InputError(
            f"the training set of {task.name} has no usable question: {'; '.join(notes.lines())}"
        )
    dev = sample_of(_questions(task, "dev"), settings.max_dev_examples)
    cuts = [each for question in dev for each in cut.for_answering(question, notes)]
    if not cuts:
        raise InputError(f"the development set of {task.name} has no question with a text")
    score = functools.partial(_score, task=task, windows=[w for _, w in cuts], questions=dev)
    return Job(
        "BertForQuestionAnswering",
        {"has_no_answer": task.has_no_answer},
        train,
        [DevSet("dev", [features for features, _ in cuts], score)],
        DataCollatorWithPadding(tokenizer),
        notes,
    )


class Windows:
    """Cuts a question and its text into windows of at most `max_length` tokens."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        stride: int,
        longest_question: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.stride = stride
        self.longest_question = longest_question
        self._context = functools.lru_cache(1)(self._encoded)  # a text's questions are neighbors

    def for_answering(self, question: Question, notes: Notes) -> list[tuple[Features, Window]]:
        """Every window as features, with the positions of its tokens in the text."""
        asked = self.tokenizer(question.text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(asked) > self.longest_question:
            notes.add(f"question(s) cut at {self.longest_question} tokens", question.place)
            asked = asked[: self.longest_question]
        ids, offsets = self._context(question.context)
        spans = windows(len(ids), self.max_length - len(asked) - 3, self.stride)
        best = best_windows(spans, len(ids))
        head = [self.tokenizer.cls_token_id, *asked, self.tokenizer.sep_token_id]
        found = []
        for number, (start, end) in enumerate(spans):
            features = {
                "input_ids": [*head, *ids[start:end], self.tokenizer.sep_token_id],
                "token_type_ids": [0] * len(head) + [1] * (end - start + 1),
            }
            is_best = best[start:end] == number
            found.append((features, Window(question.id, len(head), offsets[start:end], is_best)))
        return found

    def for_training(self, question: Question, notes: Notes) -> Iterator[Features]:
        """Every window, with the first answer's first and last token; 0 and 0 if it has none."""
        for features, window in self.for_answering(question, notes):
            first = last = 0
            if question.answers:
                text, begins = question.answers[0]
                ends = begins + len(text)
                starts_T, ends_T = window.offsets[:, 0], window.offsets[:, 1]
                inside = np.flatnonzero((ends_T > begins) & (starts_T < ends))
                is_whole = len(inside) and starts_T[0] <= begins and ends_T[-1] >= ends
                if is_whole:
                    first, last = (window.first_token + inside[[0, -1]]).tolist()
            yield {**features, "start_positions": first, "end_positions": last}

    def _encoded(self, context: str) -> tuple[list[int], np.ndarray]:
        """Token ids (n), and the (n, 2) start and end of each token in characters."""
        encoded = self.tokenizer(
            context, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        offsets = np.array(encoded["offset_mapping"], np.int32).reshape(-1, 2)
        return encoded["input_ids"], offsets


def _questions(task: TaskSettings, role: str) -> Iterator[Question]:
    seen: set[str] = set()
    for question in (_from_hub if task.folder is None else _from_file)(task, role):
        if question.id in seen:
            raise InputError(f"{question.place}: an earlier question has this id; change it")
        seen.add(question.id)
        if not question.answers and not task.has_no_answer:
            raise InputError(
                f"{question.place} has no answer; for SQuAD 2.0 use +task=squad2, "
                "or add task.has_no_answer=true"
            )
        yield question


class _Answer(msgspec.Struct):
    text: str
    answer_start: int


class _Asked(msgspec.Struct):
    """A question of SQuAD's JSON with its paragraph's text; other fields are not read."""

    id: str
    question: str
    context: str
    answers: list[_Answer] | None = None
    is_impossible: bool = False


class _Paragraph(msgspec.Struct):
    qas: list[dict[str, Any]]
    context: Any = None


class _Article(msgspec.Struct):
    paragraphs: list[_Paragraph]
    title: Any = ""


class _File(msgspec.Struct):
    data: list[_Article]


def _typed(value: Any, kind: type[T], place: str) -> T:
    """Raises InputError naming the field that is missing or of another type."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        reason, _, field = str(error).partition(" - at `$.")
        found = f"{field.rstrip('`')}: {reason}" if field else reason
        raise InputError(
            f"{place}: {shortened(found.replace('`', ''))}; correct the file, whose form is "
            '{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers": '
            '[{"text", "answer_start"}]}]}]}]}'
        ) from error


def _from_file(task: TaskSettings, role: str) -> Iterator[Question]:
    """SQuAD's JSON: data, paragraphs, qas."""
    path = tables.path_of(task, getattr(task, role))
    try:
        content = json.loads(tables.text_of(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no JSON ({error}); download it again") from error
    for article in _typed(content, _File, str(path)).data:
        title = shortened(repr(article.title), 80)
        for number, paragraph in enumerate(article.paragraphs, start=1):
            for asked in paragraph.qas:
                name = shortened(repr(asked.get("id")), 80)
                place = f"{path}, {title}, paragraph {number}, question {name}"
                yield _question(
                    _typed({**asked, "context": paragraph.context}, _Asked, place), place
                )


def _question(asked: _Asked, place: str) -> Question:
    """A checked question. An answer without text stands for none. Raises InputError."""
    if asked.answers is None and not asked.is_impossible:
        raise InputError(f"{place} lacks answers; add the field, empty if there is none")
    answers = [(one.text, one.answer_start) for one in asked.answers or () if one.text.strip()]
    if asked.is_impossible and answers:
        raise InputError(
            f"{place} has is_impossible=true and the answer {shortened(repr(answers[0][0]), 80)}; "
            "remove one of them"
        )
    for text in (asked.id, asked.question, asked.context, *(text for text, _ in answers)):
        tables.text_in(text, place, "a text")
    return Question(place, asked.id, asked.question, asked.context, answers)


def _from_hub(task: TaskSettings, role: str) -> Iterator[Question]:
    assert task.hub is not None
    for row in tables.read_hub(task.hub, getattr(task.hub, role)):
        place = f"{row.place}, question {shortened(repr(row.values.get('id')), 80)}"
        found = row.values.get("answers")
        if isinstance(found, dict) and len({len(found[name]) for name in found}) == 1:
            listed = [
                dict(zip(found, one, strict=True)) for one in zip(*found.values(), strict=True)
            ]
            found = listed
        yield _question(_typed({**row.values, "answers": found}, _Asked, place), place)


def _kept(questions: Iterable[Question], notes: Notes) -> Iterator[Question]:
    """The questions that can be trained on; the others are counted."""
    for question in questions:
        if not question.text.strip() or not question.context.strip():
            notes.add("question(s) without words or without a text left out", question.place)
        elif any(
            start < 0 or question.context[start : start + len(text)] != text
            for text, start in question.answers[:1]
        ):
            notes.add("question(s) left out whose answer is not at its position", question.place)
        else:
            yield question


def _score(
    logits: Any, *, task: TaskSettings, windows: list[Window], questions: list[Question]
) -> dict[str, float]:
    """Metrics in percent; with unanswerable questions also the best thresholds."""
    assert task.n_best
    assert task.max_answer_length
    contexts = {question.id: question.context for question in questions}
    right = {question.id: [text for text, _ in question.answers] for question in questions}
    starts, ends = logits
    best = best_answers(starts, ends, windows, contexts, task.n_best, task.max_answer_length)
    spans = {question: answers[0].text for question, answers in best.spans.items()}
    if not task.has_no_answer:
        return summary(scores_of(spans, right), right)
    odds = best.null_odds
    answers = {question: "" if odds[question] > 0 else text for question, text in spans.items()}
    metrics = summary(scores_of(answers, right), right)
    scores = scores_of(spans, right)
    for column, name in enumerate(("exact", "f1")):
        alone = {question: score[column] for question, score in scores.items()}
        score, threshold = best_threshold(alone, spans, right, odds)
        metrics |= {f"best_{name}": score, f"best_{name}_threshold": threshold}
    return metrics

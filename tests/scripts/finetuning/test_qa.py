"""Answers as spans: the official score, windows, decoding, a training that learns, refusals."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_data import read_json

from scripts.finetuning import models, qa
from scripts.finetuning.answers import (
    Window,
    best_answers,
    best_threshold,
    scores_of,
    summary,
)
from scripts.finetuning.job import Notes, best_windows, windows
from scripts.finetuning.run import main
from scripts.finetuning.settings import InputError, Kind, load

TEXT = "anna lives in paris. bob lives in rome, and eva was born in london"


def squad(path: Path, *asked: dict[str, Any], context: str = TEXT) -> Path:
    """A file in SQuAD's JSON with one paragraph."""
    paragraph = {"context": context, "qas": list(asked)}
    path.write_text(json.dumps({"data": [{"title": "People", "paragraphs": [paragraph]}]}))
    return path


def asked(name: str, question: str, answer: str | None, start: int | None = None) -> dict[str, Any]:
    answers = [] if answer is None else [
        {"text": answer, "answer_start": TEXT.find(answer) if start is None else start}
    ]  # fmt: skip
    return {"id": name, "question": question, "answers": answers, "is_impossible": not answers}


PEOPLE = [asked(str(n), f"in what city {does}", city) for n, (does, city) in enumerate(
    [("lives anna", "paris"), ("lives bob", "rome"), ("was eva born", "london")]
)]  # fmt: skip


def arguments(folder: Path, bert: Path, task: str = "squad") -> list[str]:
    return [
        f"+task={task}", f"task.folder={folder}", "task.train=train.json", "task.dev=dev.json",
        f"model={bert}", f"out={folder / 'out'}", "max_length=48", "task.max_question_length=16",
        "task.stride=8", "dropout=0",
    ]  # fmt: skip


@functools.cache
def right_answers(name: str) -> dict[str, list[str]]:
    return {
        asked["id"]: [answer["text"] for answer in asked["answers"]]
        for article in read_json(name)["data"]
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    }


@pytest.mark.parametrize(
    ("predictions", "data", "exact", "f1"),
    [
        ("v1.1-bert-ensemble", "dev-v1.1", 86.20624408703878, 92.19557978351145),
        ("v1.1-logistic-regression", "dev-v1.1", 40.14191106906339, 50.98153647324461),
        ("v2.0-bert-single", "dev-v2.0.rebuilt", 78.74168280973637, 81.77528052374723),
        ("v2.0-bert-base", "dev-v2.0.rebuilt", 71.9952834161543, 75.63946351369648),
    ],
)
def test_published_predictions_get_the_official_scripts_scores(
    predictions: str, data: str, exact: float, f1: float
) -> None:
    right = right_answers(f"squad/{data}.json")
    answers = read_json(f"squad/predictions-{predictions}.json")
    metrics = summary(scores_of(answers, right), right)
    assert (metrics["exact"], metrics["f1"]) == (exact, f1)


def test_the_best_thresholds_are_the_official_script_s() -> None:
    right = right_answers("squad/dev-v2.0.rebuilt.json")
    answers = read_json("squad/predictions-v2.0-bert-base.json")
    odds = read_json("squad/null_odds-v2.0-bert-base.json")
    scores = scores_of(answers, right)
    best = [
        best_threshold({q: s[place] for q, s in scores.items()}, answers, right, odds)
        for place in (0, 1)
    ]
    assert best == [
        (72.83753053145793, -5.559882640838623), (76.10335982008996, -4.95320200920105)
    ]  # fmt: skip
    metrics = summary(scores, right)
    assert (metrics["has_answer_exact"], metrics["no_answer_f1"]) == (
        71.49122807017544, 72.49789739276703
    )  # fmt: skip


def test_windows_cover_a_long_text_and_every_token_has_one_best() -> None:
    spans = windows(20, room=8, stride=5)
    assert spans == [(0, 8), (5, 13), (10, 18), (15, 20)]
    assert windows(8, room=8, stride=5) == [(0, 8)]
    best = best_windows(spans, 20)
    assert [best[0], best[6], best[7], best[19]] == [0, 0, 1, 3]


@pytest.mark.parametrize("answer", ["london", "rome, and eva was born"])
def test_an_answer_is_found_at_its_characters_in_each_window_that_holds_all_of_it(
    bert: Path, answer: str
) -> None:
    tokenizer = models.load_tokenizer(bert)
    cut = qa.Windows(tokenizer, max_length=14, stride=4, longest_question=8)
    question = qa.Question("here", "1", "what city", TEXT, [(answer, TEXT.find(answer))])
    features = list(cut.for_training(question, Notes()))
    assert len(features) > 2
    found = [
        tokenizer.decode(one["input_ids"][one["start_positions"] : one["end_positions"] + 1])
        for one in features
    ]
    assert set(found) == {"[CLS]", answer}
    assert max(len(one["input_ids"]) for one in features) == 14


def test_the_best_span_is_decoded_with_its_case_and_by_the_window_of_most_context() -> None:
    offsets = np.array([(0, 3), (4, 9), (10, 12)])
    seen = np.array([True, True, True])
    spans = [Window("q", 2, offsets, seen), Window("q", 2, offsets, ~seen)]
    starts, ends = np.full((2, 9), -9.0), np.full((2, 9), -9.0)
    starts[0, 3], ends[0, 4] = 5.0, 4.0  # "Ships at"
    starts[1, 0] = ends[1, 0] = 1.0
    starts[1, 2] = ends[1, 4] = 99.0  # has less context: does not count
    starts[0, 2], ends[0, 2] = -99.0, 50.0  # the end lies before the start
    found = best_answers(starts, ends, spans, {"q": "The Ships at"}, n_best=2, max_answer_length=30)
    assert found.spans["q"][0].text == "Ships at"
    assert found.spans["q"][0].score == 9.0
    assert found.null_odds["q"] == -18.0 - 9.0  # the lowest over all windows
    short = best_answers(starts, ends, spans, {"q": "The Ships at"}, n_best=2, max_answer_length=1)
    assert short.spans["q"][0].text != "Ships at"


def test_it_learns_questions_and_those_without_an_answer(bert: Path, tmp_path: Path) -> None:
    questions = [*PEOPLE, asked("none", "who was awful", None)]
    for name in ("train", "dev"):
        squad(tmp_path / f"{name}.json", *questions)
    more = ["epochs=25", "learning_rate=5e-3", "batch_size=4", "warmup_fraction=0"]
    more += ["max_length=64", "task.stride=64"]
    assert main(Kind.qa, [*arguments(tmp_path, bert, "squad2"), *more]) == 0
    figures = json.loads((tmp_path / "out/results.json").read_text())["figures"]
    assert figures["dev_best_f1"]["mean"] == 100
    config = json.loads((tmp_path / "out/model/config.json").read_text())
    assert config["no_answer_threshold"] == figures["dev_best_f1_threshold"]["mean"]


def test_an_answer_that_is_not_in_its_context_is_left_out_and_counted(
    bert: Path, tmp_path: Path
) -> None:
    squad(tmp_path / "train.json", *PEOPLE, asked("x", "who", "anna", start=3))
    squad(tmp_path / "dev.json", *PEOPLE)
    job = qa.prepare(load(arguments(tmp_path, bert)), models.load_tokenizer(bert))
    (line,) = job.notes.lines()
    assert line.startswith("1 question(s) left out whose answer is not at its position")
    assert "train.json" in line
    assert "question 'x'" in line


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ([asked("x", "who", None)], ["'x'", "+task=squad2"]),
        ([PEOPLE[0], PEOPLE[0]], ["'0'", "this id"]),
        ([{"id": "x", "question": "who"}], ["'x'", "lacks answers"]),
        ([asked("x", "who", "anna", start=5)], ["no usable question", "'x'"]),
    ],
)
def test_bad_questions_are_refused_with_their_place(
    bert: Path, tmp_path: Path, train: list[dict[str, Any]], words: list[str]
) -> None:
    squad(tmp_path / "train.json", *train)
    squad(tmp_path / "dev.json", *PEOPLE)
    with pytest.raises(InputError) as refused:
        qa.prepare(load(arguments(tmp_path, bert)), models.load_tokenizer(bert))
    assert [word for word in ["train.json", *words] if word not in str(refused.value)] in (
        [], ["train.json"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": 7}, ["question 7: id: Expected str, got int"]),
        ({"id": None}, ["question None: id: Expected str"]),
        ({"question": None}, ["question '0': question: Expected str, got null"]),
        ({"answers": [{"text": "paris", "answer_start": "14"}]}, ["answer_start: Expected int"]),
        ({"answers": [{"text": "paris", "answer_start": True}]}, ["answer_start: Expected int"]),
        ({"answers": [{"text": "paris", "answer_start": 14.5}]}, ["answer_start: Expected int"]),
        ({"answers": [{"text": "paris"}]}, ["missing required field answer_start"]),
        ({"answers": [{"text": ["paris"], "answer_start": 14}]}, ["answers[0].text: Expected str"]),
        ({"answers": {"text": ["paris"], "answer_start": [14]}}, ["answers: Expected array"]),
        ({"answers": None}, ["lacks answers"]),
        ({"answers": "paris"}, ["answers: Expected array"]),
        ({"is_impossible": "false"}, ["is_impossible: Expected bool, got str"]),
        ({"is_impossible": 0}, ["is_impossible: Expected bool, got int"]),
        ({"is_impossible": True}, ["is_impossible=true and the answer 'paris'"]),
        ({"question": "\ud83d"}, ["half of a character"]),
    ],
)
def test_a_field_of_a_question_of_another_type_is_refused_with_the_question(
    tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    squad(tmp_path / "train.json", PEOPLE[1], PEOPLE[0] | change)
    words = [f"train.json, 'People', paragraph 1, question {change.get('id', '0')!r}", *words]
    refused = refusal(tmp_path)
    assert [word for word in words if word not in refused] == [], refused


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], ["train.json: Expected object, got array", '{"data": [{"title"']),
        ({"data": {}}, ["train.json: data: Expected array"]),
        ({"data": [{"title": "T"}]}, ["data[0]: Object missing required field paragraphs"]),
        ({"data": [{"paragraphs": [{"qas": PEOPLE}]}]}, ["question '0': context: Expected str"]),
        ({"data": [{"paragraphs": [{"context": 5, "qas": PEOPLE}]}]}, ["question '0': context"]),
        ({"data": [{"paragraphs": [{"context": "a", "qas": ["x"]}]}]}, ["qas[0]: Expected object"]),
    ],
)
def test_what_is_not_squad_s_json_is_refused_with_its_place_and_form(
    tmp_path: Path, content: Any, words: list[str]
) -> None:
    (tmp_path / "train.json").write_text(json.dumps(content))
    refused = refusal(tmp_path)
    assert [word for word in words if word not in refused] == [], refused


@pytest.mark.parametrize("text", ["{]", "[" * 100_000, '{"data": NaN', '{"data": []}{}'])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.json").write_text(text)
    assert "train.json is no JSON" in refusal(tmp_path)


def refusal(folder: Path) -> str:
    settings = load(arguments(folder, folder, "squad2"))
    with pytest.raises(InputError) as refused:
        list(qa._questions(settings.task, "train"))
    return str(refused.value)


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_answer_without_text_stands_for_no_answer(
    bert: Path, tmp_path: Path, empty: str
) -> None:
    none = asked("x", "who was awful", empty, start=0) | {"is_impossible": False}
    for name in ("train", "dev"):
        squad(tmp_path / f"{name}.json", *PEOPLE, none)
    job = qa.prepare(load(arguments(tmp_path, bert, "squad2")), models.load_tokenizer(bert))
    assert job.notes.lines() == []
    assert job.train[-1]["start_positions"] == job.train[-1]["end_positions"] == 0
    right = np.zeros((2, len(job.train), 48))
    for number, one in enumerate(job.train):
        right[0, number, one["start_positions"]] = right[1, number, one["end_positions"]] = 9
    assert job.dev[0].score(right)["best_f1"] == 100
    settings = load(arguments(tmp_path, bert, "squad"))
    with pytest.raises(InputError, match=r"question 'x' has no answer; .*\+task=squad2"):
        list(qa._questions(settings.task, "train"))


@pytest.mark.parametrize("start", [-1, -6, 10_000, 2**60])
def test_a_position_outside_the_text_is_left_out_and_counted(
    bert: Path, tmp_path: Path, start: int
) -> None:
    squad(tmp_path / "train.json", *PEOPLE, asked("x", "where", "londo", start=start))
    squad(tmp_path / "dev.json", *PEOPLE)
    job = qa.prepare(load(arguments(tmp_path, bert)), models.load_tokenizer(bert))
    assert job.notes.lines()[0].startswith("1 question(s) left out whose answer is not at its")

"""Lines that share an n-gram of words with a task are left out, and documents with many of them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.core.config import SettingsError
from data_prep.filters.decontaminate import decontaminate, task_ngrams
from data_prep.filters.rules import Changes, Dropped

QUESTION = "Which river flows through the old town before it reaches the northern sea at last"


def task_file(folder: Path, text: str = QUESTION) -> Path:
    path = folder / "task.txt"
    path.write_text(text)
    return path


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=6), min_size=1, max_size=5), st.data())
def test_the_lines_left_out_are_those_a_common_n_gram_touches(
    tmp_path_factory, lines, data
) -> None:
    task = data.draw(st.lists(st.sampled_from("abc"), min_size=4, max_size=8))
    path = task_file(tmp_path_factory.mktemp("task"), " ".join(task))
    grams = {tuple(task[n : n + 4]) for n in range(len(task) - 3)}
    words = [(word, number) for number, line in enumerate(lines) for word in line]
    touched = {
        number
        for n in range(len(words) - 3)
        if tuple(word for word, _ in words[n : n + 4]) in grams
        for number in range(words[n][1], words[n + 3][1] + 1)
    }
    text = "\n".join(map(" ".join, lines))
    kept = "\n".join(" ".join(line) for n, line in enumerate(lines) if n not in touched)
    changes: Changes = []
    assert decontaminate(task_ngrams([path], 4), 4)(text, "en", changes) == kept
    assert len(changes) == len(touched)


def test_case_and_marks_make_no_difference(tmp_path: Path) -> None:
    apply = decontaminate(task_ngrams([task_file(tmp_path)], 13), 13)
    other = QUESTION.upper().replace(" ", ", ")
    assert apply(f"A line.\nHe asked: “{other}?”\nAn end.", "en", []) == "A line.\nAn end."


def test_twelve_common_words_are_not_enough(tmp_path: Path) -> None:
    apply = decontaminate(task_ngrams([task_file(tmp_path)], 13), 13)
    text = " ".join(QUESTION.split()[:12])
    assert apply(text, "en", []) == text


def test_a_document_with_more_than_ten_matches_is_dropped(tmp_path: Path) -> None:
    apply = decontaminate(task_ngrams([task_file(tmp_path)], 13), 13)
    ten = "\n".join([QUESTION, "Something else stands between them, and that is long enough."] * 10)
    assert isinstance(apply(ten, "en", []), str)
    assert isinstance(apply(f"{ten}\n{QUESTION}", "en", []), Dropped)


def test_where_no_blanks_separate_words_characters_do(tmp_path: Path) -> None:
    apply = decontaminate(
        task_ngrams([task_file(tmp_path, "他在一九二三年的春天来到北京")], 13), 13
    )
    assert apply("他说：他在一九二三年的春天来到北京。\n真的。", "zh", []) == "真的。"


SQUAD = {"data": [{"paragraphs": [{"context": QUESTION, "qas": [{"question": "Where?"}]}]}]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dev.json", json.dumps(SQUAD)),
        ("dev.jsonl", json.dumps({"id": 3, "question": QUESTION}) + "\n\n"),
        ("dev.tsv", f'id\tquestion\n7\t"{QUESTION}\t1\n'),
        ("dev.csv", f'id,question\n7,"{QUESTION}"\n'),
        ("dev.txt", f"Other words.\n{QUESTION}\n"),
    ],
)
def test_task_files_of_every_kind_are_read(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert len(task_ngrams([tmp_path / name], 13)) == len(QUESTION.split()) - 12


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"{", "cannot be read as .json"),
        ("a.txt", b"\xff\xfe", "cannot be read as .txt"),
        ("a.txt", b"Too few words.", "has no text of 13 words"),
        ("a.json", b"[" * 100_000, "cannot be read as .json"),
    ],
)
def test_a_file_that_is_no_task_is_refused(tmp_path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=said):
        task_ngrams([tmp_path / name], 13)

"""Labels and tags: what is not understood never becomes a class or an entity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.finetuning import classification, labels, models, tagging
from scripts.finetuning.job import Job
from scripts.finetuning.settings import InputError, load

WORDS = ("good film", "bad film", "great city", "poor city")


def classes(bert: Path, folder: Path, train: str, *typed: str, dev: str | None = None) -> Job:
    """The custom task on train and dev, the text of csv files, or of jsonl if it begins with {."""
    names = []
    for role, text in (("train", train), ("dev", train if dev is None else dev)):
        names.append(f"task.{role}={role}.{'jsonl' if text.startswith('{') else 'csv'}")
        (folder / names[-1].split("=")[1]).write_text(text)
    given = ["+task=custom", f"task.folder={folder}", "task.text=text", "task.label=label"]
    settings = load([*given, f"model={bert}", "max_length=32", *names, *typed])
    return classification.prepare(settings, models.load_tokenizer(bert))


def tags(bert: Path, folder: Path, train: str, *typed: str) -> Job:
    """The tags task on the text of CoNLL columns, or of jsonl if it begins with {."""
    name = f"train.{'jsonl' if train.startswith('{') else 'conll'}"
    (folder / name).write_text(train)
    given = ["+task=tags", f"task.folder={folder}", f"task.train={name}", f"task.dev={name}"]
    settings = load([*given, f"model={bert}", "max_length=32", *typed])
    return tagging.prepare(settings, models.load_tokenizer(bert))


def csv_of(*found: str) -> str:
    rows = zip(WORDS * 9, found, strict=False)
    return "text,label\n" + "".join(f"{words},{label}\n" for words, label in rows)


def jsonl_of(*found: Any) -> str:
    rows = zip(WORDS * 9, found, strict=False)
    return "".join(f"{json.dumps({'text': words, 'label': label})}\n" for words, label in rows)


def sentence(*found: Any) -> str:
    return json.dumps({"tokens": ["anna", "lives", "in", "rome"][: len(found)], "tags": found})


@pytest.mark.parametrize(
    ("train", "names", "left_out"),
    [
        (csv_of("pos", "neg", "", "  "), ["neg", "pos"], 2),
        (jsonl_of("pos", "neg", None, float("nan"), " "), ["neg", "pos"], 3),
        (csv_of("pos", "neg", "pos ", "\tneg"), ["neg", "pos"], 0),
        (jsonl_of(1.0, 0, "1", "0.0"), ["0", "1"], 0),
        (jsonl_of(True, False), ["False", "True"], 0),
        ("text, label\ngood, pos\nbad, neg\n", ["neg", "pos"], 0),
    ],
)
def test_labels_are_understood_as_meant_and_missing_ones_counted(
    bert: Path, tmp_path: Path, train: str, names: list[str], left_out: int
) -> None:
    job = classes(bert, tmp_path, train)
    assert list(job.config["label2id"]) == names
    counts = [int(line.split()[0]) for line in job.notes.lines() if "without a label" in line]
    assert counts == ([2 * left_out] if left_out else [])


@pytest.mark.parametrize("train", ["0.0 1.0", "0 1", "0.00 1.00"])
def test_whole_numbers_are_the_same_labels_in_both_sets_however_written(
    bert: Path, tmp_path: Path, train: str
) -> None:
    job = classes(bert, tmp_path, csv_of(*train.split()), dev=jsonl_of(0, 1.0, "1"))
    assert [one["labels"] for one in job.dev[0].features] == [0, 1, 1]


@pytest.mark.parametrize(
    ("train", "line", "words"),
    [
        (csv_of("pos", "neg", "nan"), 4, ["'nan'", "missing", "task.labels="]),
        (csv_of("pos", "neg", "None", "NULL"), 4, ["'None'"]),
        (csv_of("pos", "N/A", "neg"), 3, ["'N/A'"]),
        (jsonl_of("pos", ["neg"]), 2, ["['neg']", "one label"]),
        (jsonl_of("pos", {"name": "neg"}), 2, ["one label"]),
        (csv_of("pos", "neg", "POS"), 4, ["'POS' looks like 'pos'", "line 2", "task.labels="]),
        (csv_of("not good", "good", "not_good"), 4, ["'not_good' looks like 'not good'"]),
        (csv_of("caf\u00e9", "bar", "cafe\u0301"), 4, ["looks like"]),
        (csv_of("pos", "neg", "\u200bpos"), 4, ["looks like"]),
        ('{"text": "good", "label": "pos", "label": "neg"}\n', 1, ["same name"]),
        ("text,label,label\ngood,pos,1\n", 1, ["two columns have the name 'label'"]),
        (jsonl_of("pos", "neg") + '{"text": ["a"], "label": "neg"}', 3, ["must be one text"]),
        ('{"text": "\\ud83d good", "label": "pos"}', 1, ["half of a character"]),
        ("text;label\ngood;pos\n", 2, ["'text;label'", "separated by commas in .csv"]),
    ],
)
def test_labels_that_are_not_understood_are_refused_with_their_line_and_a_cure(
    bert: Path, tmp_path: Path, train: str, line: int, words: list[str]
) -> None:
    with pytest.raises(InputError) as refused:
        classes(bert, tmp_path, train)
    missing = [word for word in [f", line {line}", *words] if word not in str(refused.value)]
    assert not missing, refused.value


def test_labels_that_are_named_are_what_the_names_are(bert: Path, tmp_path: Path) -> None:
    """The cure of the refusals above."""
    train = csv_of("pos", "POS", "nan", "none", "1.0")
    named = "task.labels={pos: good, POS: good, nan: bad, none: bad, 1: good}"
    job = classes(bert, tmp_path, train, named)
    assert [one["labels"] for one in job.train] == [0, 0, 1, 1, 0]
    assert list(job.config["label2id"]) == ["good", "bad"]


@pytest.mark.parametrize("number", ["1_0", "nan", "two", "1,5", "inf", "1e999"])
def test_what_is_no_number_is_refused_where_numbers_are_learned(
    bert: Path, tmp_path: Path, number: str
) -> None:
    numbers = ["task.is_regression=true", "task.metrics=[pearson]"]
    with pytest.raises(InputError, match=r"jsonl, line 2: .* no number"):
        classes(bert, tmp_path, jsonl_of("2.5", number), *numbers)
    assert len(classes(bert, tmp_path, jsonl_of(2.5, None, "-1e-3"), *numbers).train) == 2


@pytest.mark.parametrize(
    ("metrics", "cure"),
    [("f1", "[macro_f1]"), ("accuracy,f1", "[accuracy,macro_f1]"), ("f1,macro_f1", "[macro_f1]")],
)
def test_f1_of_three_labels_is_refused_with_the_metric_that_fits(
    bert: Path, tmp_path: Path, metrics: str, cure: str
) -> None:
    train = csv_of("a", "b", "c")
    with pytest.raises(InputError) as refused:
        classes(bert, tmp_path, train, f"task.metrics=[{metrics}]")
    assert f"has 3 (a, b, c); use task.metrics={cure}" in str(refused.value)
    job = classes(bert, tmp_path, train, f"task.metrics={cure}")
    assert job.dev[0].score([[1, 0, 0], [0, 1, 0], [0, 0, 1]])["macro_f1"] == 100


@pytest.mark.parametrize(
    "tag",
    [
        *"0 _ - o 1.0 none OUTSIDE B B- B-0 B-nan b-PER B_PER B:PER PER-B PER_I".split(),
        *(
            "B-PER|B-LOC",
            "PER;LOC",
            "B-PER, ORG",
            "E-PER",
            "S-PER",
            "U-PER",
            "L-PER",
            "",
            0,
            1,
            None,
            2.5,
            True,
            ["O"],
        ),
    ],
)
def test_what_is_no_tag_is_refused(tag: object) -> None:
    with pytest.raises(InputError, match=r"here: the tag .*task\.labels="):
        labels.tag_of(tag, {}, "here")


@pytest.mark.parametrize(
    "tag", ["O", "B-PER", "I-PER", "PER", "creative-work", "B-creative_work", "B-x", "人名", " O "]
)
def test_tags_and_plain_types_stay(tag: str) -> None:
    assert labels.tag_of(tag, {}, "here") == tag.strip()


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (sentence(1, 0, 0, 5), ["train.jsonl, line 1", "the tag 1", "task.labels="]),
        (sentence("B-PER", "O", "O", None), ["line 1", "the tag None"]),
        (sentence("B-PER", "O", "O", "place"), ["line 1", "'place' has neither B- nor I-"]),
        (sentence("B-PER", "O", "O", "B-per"), ["line 1", "'per' looks like 'PER'"]),
        (sentence("PER", "VERB", "IN", "LOC"), ["no word has the tag O", "task.labels="]),
        (json.dumps({"tokens": [None], "tags": ["O"]}), ["line 1", "word 1 is empty"]),
        (json.dumps({"tokens": [["a"]], "tags": ["O"]}), ["line 1", "one text"]),
        ("anna B-PER\nlives 0\n", ["train.conll, line 2", "the tag '0'"]),
        ("anna B-PER\nNew York B-LOC\n", ["line 2", "3 column(s)", "line 1 has 2"]),
        ("anna B-PER\n# a comment\nlives O\n", ["line 2", "3 column(s)", "begin with '# '"]),
        ("#begin document (a); part 000\nanna B-PER\n", ["line 2", "2 column(s)", "line 1 has 5"]),
    ],
)
def test_tags_that_are_not_understood_are_refused_with_their_line_and_a_cure(
    bert: Path, tmp_path: Path, train: str, words: list[str]
) -> None:
    with pytest.raises(InputError) as refused:
        tags(bert, tmp_path, train)
    assert [word for word in words if word not in str(refused.value)] == [], refused.value


@pytest.mark.parametrize(
    ("train", "named"),
    [
        (sentence(1, 0, 0, 5), "0: O, 1: B-PER, 5: B-LOC"),
        (sentence("S-PER", "o", "_", "U-LOC"), "S-PER: B-PER, o: O, _: O, U-LOC: B-LOC"),
        (sentence("PER", "OTHER", "OTHER", "LOC"), "OTHER: O"),
    ],
)
def test_tags_that_are_named_are_what_the_names_are(
    bert: Path, tmp_path: Path, train: str, named: str
) -> None:
    """The cure of the refusals above."""
    job = tags(bert, tmp_path, train, f"task.labels={{{named}}}")
    assert list(job.config["label2id"]) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert [label for label in job.train[0]["labels"] if label >= 0] == [3, 0, 0, 1]


@pytest.mark.parametrize(
    ("comment", "words", "typed"),
    [
        ("# id 7 domain=train", "anna _ _ B-PER\nlives _ _ O", []),
        ("# id 7\tdomain=train", "anna\t_\t_\tB-PER\nlives\t_\t_\tO", []),
        ("# text = anna lives\n# id = 2\n#", "anna\tB-PER\nlives\tO", []),
        ("#\thttp://example.org/a [2009]", "1\tanna\tB-PER\tO\n2\tlives\tO\tO",
         ["task.token_column=1", "task.tag_column=2"]),
        ("-DOCSTART- -X- O\n\n# newdoc\n", "anna PER\nlives O", []),
    ],
)  # fmt: skip
def test_comments_before_a_sentence_are_left_out_and_counted(
    bert: Path, tmp_path: Path, comment: str, words: str, typed: list[str]
) -> None:
    job = tags(bert, tmp_path, f"{comment}\n{words}\n\n{comment}\n{words}\n", *typed)
    assert list(job.config["label2id"]) == ["O", "B-PER", "I-PER"]
    assert len(job.train) == 2
    assert "comment line(s) left out (first: " in job.notes.lines()[0]


def test_a_word_that_is_a_hash_stays_a_word_with_its_tag(bert: Path, tmp_path: Path) -> None:
    job = tags(bert, tmp_path, "#\tO\nanna\tB-PER\n\n# B-LOC\nrome I-LOC\n")
    found = [[label for label in one["labels"] if label >= 0] for one in job.train]
    assert found == [[0, 3], [1, 2]]
    assert job.notes.lines() == []

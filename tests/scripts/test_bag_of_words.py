"""The baseline of words alone: what it sees, and what it does not."""

import itertools
from pathlib import Path

import pytest
from tiny_bert import tiny_bert

from data_prep.core.files import read_json
from scripts.bag_of_words import bag_of_words, main
from scripts.finetuning.settings import load

CITIES = ("paris", "london", "rome", "anna", "bob")


def typed(folder: Path, rows: list[str], *more: str) -> list[str]:
    """A custom task whose sets both have these rows: first, second, label."""
    (folder / "rows.csv").write_text("\n".join(["first,second,label", *rows, ""]))
    files = [f"task.{name}={folder / 'rows.csv'}" for name in ("train", "dev")]
    bert = tiny_bert(folder / "bert")
    return ["+task=custom", *files, "task.text=first", "task.label=label", f"model={bert}",
            "max_length=16", *more]  # fmt: skip


def test_single_words_that_decide_the_label_are_found(tmp_path: Path) -> None:
    words = {"good": "yes", "great": "yes", "bad": "no", "poor": "no"}
    rows = [f"the {city} was {word},,{label}" for city in CITIES for word, label in words.items()]
    assert bag_of_words(load(typed(tmp_path, rows)))[1] == {"dev_accuracy": 100.0}


def test_the_order_of_words_is_not_seen(tmp_path: Path) -> None:
    rows = [f"{a} {b},,{'yes' if a < b else 'no'}" for a, b in itertools.permutations("pqrst", 2)]
    rows = [row for row in rows for _ in range(2)]
    both_orders = bag_of_words(load(typed(tmp_path, rows)))[1]
    assert both_orders == {"dev_accuracy": 50.0}


def test_the_two_texts_of_a_pair_are_not_interchangeable(tmp_path: Path) -> None:
    rows = [f"{a},{b},{'yes' if a < b else 'no'}" for a, b in itertools.permutations("pqrst", 2)]
    arguments = typed(tmp_path, rows, "task.text_pair=second")
    assert bag_of_words(load(arguments))[1] == {"dev_accuracy": 100.0}


def test_a_number_is_predicted(tmp_path: Path) -> None:
    rows = [f"{' '.join('pqrst'[:count])},,{count}" for count in range(1, 6)]
    arguments = typed(tmp_path, rows, "task.is_regression=true", "task.metrics=[spearman]")
    assert bag_of_words(load(arguments))[1] == pytest.approx({"dev_spearman": 100.0})


def test_results_are_written_where_a_folder_is_named(tmp_path: Path) -> None:
    rows = ["the city was good,,yes", "the city was bad,,no"]
    assert main(typed(tmp_path, rows, f"out={tmp_path / 'words'}")) == 0
    written = read_json(tmp_path / "words/results.json")
    assert written["figures"] == {"dev_accuracy": {"mean": 100.0, "std": None}}
    assert (written["metrics"], written["seeds"]) == (["dev_accuracy"], [{"dev_accuracy": 100.0}])


def test_mistakes_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["+task=sst2", f"model={tmp_path / 'none'}"]) == 2
    assert main(["+task=squad", f"model={tmp_path / 'none'}"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("scripts.bag_of_words: ") == 2
    assert "Traceback" not in errors

"""Tags for words: schemes, columns, windows, a training that learns, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from shared_data import unpacked

from scripts.finetuning import models, tagging
from scripts.finetuning.job import Notes
from scripts.finetuning.run import main
from scripts.finetuning.settings import InputError, Kind, load

PEOPLE = [
    f"{name}\tB-person\nlives\tO\nin\tO\n{city}\tB-location\n"
    for name in ("anna", "bob", "eva")
    for city in ("paris", "london", "rome")
]


def arguments(folder: Path, bert: Path, train: str, dev: str | None = None) -> list[str]:
    (folder / "train.conll").write_text(train)
    (folder / "dev.conll").write_text(train if dev is None else dev)
    return [
        "+task=tags", f"task.folder={folder}", "task.train=train.conll", "task.dev=dev.conll",
        f"model={bert}", f"out={folder / 'out'}", "max_length=32", "dropout=0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC B-LOC", "B-PER I-PER O B-LOC B-LOC"),  # IOB2 stays
        ("I-PER I-PER O I-LOC B-LOC I-LOC", "B-PER I-PER O B-LOC B-LOC I-LOC"),  # IOB1
        ("I-PER I-LOC", "B-PER B-LOC"),
        ("PER PER O creative-work LOC", "B-PER I-PER O B-creative-work B-LOC"),  # plain types
    ],
)
def test_iob1_and_plain_types_become_iob2(tags: str, expected: str) -> None:
    assert tagging.iob2(tags.split()) == expected.split()


@pytest.mark.parametrize(
    ("archive", "task", "sizes"),
    [
        (
            "ner/wnut17", "wnut17",
            {"train": (3_394, 62_730), "dev": (1_009, 15_733), "other_dev": (1_287, 23_394)},
        ),
        ("ner/sec_filings_iob1", "tags", {"train": (1_164, 41_010), "dev": (303, 13_246)}),
    ],
)  # fmt: skip
def test_real_files_are_read_whole(
    tmp_path: Path, archive: str, task: str, sizes: dict[str, tuple[int, int]]
) -> None:
    """The README of the data counts each -DOCSTART- line (5 and 3) as a sentence of one token."""
    folder = unpacked(archive, tmp_path)
    files = ["task.train=FIN5.txt", "task.dev=FIN3.txt"] if task == "tags" else []
    settings = load([f"+task={task}", "model=x", f"task.folder={folder}", *files])
    found = {}
    for role in sizes:
        sentences = list(tagging._sentences(settings.task, role, Notes()))
        found[role] = (len(sentences), sum(len(sentence.words) for sentence in sentences))
    assert found == sizes


def test_a_label_stands_on_the_first_piece_of_its_word_alone(bert: Path) -> None:
    tokenizer = models.load_tokenizer(bert)
    ((features, piece),) = tagging.Pieces(tokenizer, 32, 32).of(["anna", "xyz", "rome"], 0)
    tokens = tokenizer.convert_ids_to_tokens(features["input_ids"])
    assert tokens == ["[CLS]", "anna", "x", "##y", "##z", "rome", "[SEP]"]
    assert piece.tokens.tolist() == [1, 2, 5]


def test_every_word_of_a_long_sentence_is_tagged_once_and_no_word_is_lost(bert: Path) -> None:
    words = ["anna", "b" * 90, *["paris"] * 50]
    found = tagging.Pieces(models.load_tokenizer(bert), 16, 6).of(words, 0)
    assert max(len(features["input_ids"]) for features, _ in found) == 16
    labelled = np.concatenate([piece.words for _, piece in found])
    assert sorted(labelled) == list(range(len(words)))


def test_it_learns_entities(bert: Path, tmp_path: Path) -> None:
    quick = ["epochs=8", "learning_rate=1e-2", "batch_size=4"]
    text = "\n".join(PEOPLE)
    given = arguments(tmp_path, bert, text)
    assert main(Kind.tagging, [*given, *quick]) == 0
    figures = json.loads((tmp_path / "out/results.json").read_text())["figures"]
    assert figures["dev_f1"]["mean"] > 95


@pytest.mark.parametrize(
    ("train", "dev", "words"),
    [
        ("anna\tB-PER\nlives\n", None, ["train.conll, line 2", "1 column"]),
        ("anna\tB-PER\nlives\t\n", None, ["train.conll, line 2", "no tag"]),
        ("anna\tO\n", None, ["only the tag 'O'"]),
        ("\n\n", None, ["train.conll has no sentence"]),
        ("anna\tB-PER\n", "rome\tB-LOC\n", ["dev.conll, sentence at line 1", "'B-LOC'"]),
    ],
)
def test_bad_columns_are_refused_with_their_place(
    bert: Path, tmp_path: Path, train: str, dev: str | None, words: list[str]
) -> None:
    with pytest.raises(InputError) as refused:
        tagging.prepare(load(arguments(tmp_path, bert, train, dev)), models.load_tokenizer(bert))
    assert [word for word in words if word not in str(refused.value)] == []


def test_tags_of_another_length_than_the_words_are_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"tokens": ["a", "b"], "tags": ["O"]}\n')
    given = [*arguments(tmp_path, bert, "anna\tB-PER\n"), "task.train=train.jsonl"]
    with pytest.raises(InputError, match=r"train\.jsonl, line 1: 1 tag\(s\) for 2 word"):
        tagging.prepare(load(given), models.load_tokenizer(bert))


def test_a_word_without_a_piece_is_outside_and_counted(bert: Path, tmp_path: Path) -> None:
    given = arguments(tmp_path, bert, "anna\tB-PER\n\u200b\tO\nrome\tB-LOC\n")
    job = tagging.prepare(load(given), models.load_tokenizer(bert))
    assert "that the tokenizer drops" in job.notes.lines()[0]
    logits = np.zeros((1, 9, 5))
    logits[0, 1, 3] = logits[0, 2, 1] = 1  # O, B-LOC, I-LOC, B-PER, I-PER
    assert job.dev[0].score(logits)["f1"] == 100


def test_an_entity_counts_with_its_words_and_its_type() -> None:
    right = [["B-per", "I-per", "O", "B-loc"], ["B-loc", "B-loc", "O"]]
    predicted = [["B-per", "O", "O", "B-loc"], ["B-loc", "B-per", "B-per"]]
    scores = tagging.entity_scores(right, predicted)
    assert scores == {"f1": 200 * 2 / 9, "precision": 100 * 2 / 5, "recall": 100 * 2 / 4}
    assert tagging.entity_scores([["O"]], [["O"]]) == {"f1": 0, "precision": 0, "recall": 0}


TAGS = st.sampled_from(["O", "B-per", "I-per", "B-loc", "I-loc"])
PAIRS = st.lists(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=8), min_size=1, max_size=4)


@given(PAIRS)
def test_scores_of_entities_are_those_of_seqeval(pairs: list[list[tuple[str, str]]]) -> None:
    right, predicted = (
        [tagging.iob2([both[side] for both in sentence]) for sentence in pairs] for side in (0, 1)
    )
    assert tagging.entity_scores(right, predicted) == pytest.approx(
        {
            name: 100 * metric(right, predicted, zero_division=0)
            for name, metric in (
                ("f1", f1_score),
                ("precision", precision_score),
                ("recall", recall_score),
            )
        }
    )

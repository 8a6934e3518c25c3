"""The bag of words that tries to predict the labels of pairs."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_corpora import random_documents, run_inline, write_corpus

from data_prep import build
from data_prep.core.job import load
from data_prep.executors import run
from data_prep.quality.shortcut import audit_shortcut
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shards import Examples

BOUNDS = load(["data_dir=any"]).audit


def build_corpus(data_dir: Path, documents, monkeypatch) -> Shards:
    monkeypatch.setattr(run, "run_processes", run_inline)
    write_corpus(data_dir, [documents], [documents[:5]])
    build.run(load([f"data_dir={data_dir}", "seq_len=64"]))
    return Shards.open(data_dir / "len64", "train")


class Changed:
    """A split whose examples are changed as they are read."""

    def __init__(self, split: Shards, change) -> None:
        self.split, self.change, self.num_examples = split, change, split.num_examples

    def read(self, chosen) -> Examples:
        return self.change(self.split.read(chosen))


@pytest.fixture
def split(tmp_path: Path, monkeypatch) -> Shards:
    return build_corpus(tmp_path, random_documents(np.random.default_rng(3), 1_000), monkeypatch)


def test_pairs_of_random_words_have_no_shortcut(split: Shards) -> None:
    metrics, faults = audit_shortcut(split, BOUNDS)
    assert faults == []
    assert metrics["examples"] >= 500
    assert metrics["alone_skill"] < 0.4  # lengths tell a little: B's of documents' ends are short
    assert metrics["together_skill"] < 0.4


def mark_random(segment: str, examples: Examples) -> Examples:
    """Where B is random, a segment begins with word 500; no other has it."""
    ids = np.where(examples.input_ids == 500, 501, examples.input_ids)
    shift = 1 if segment == "A" else examples.segment_a_lengths
    ids[(examples.offsets[:-1] + shift)[examples.next_sentence_labels == 1]] = 500
    return replace(examples, input_ids=ids)


@pytest.mark.parametrize("segment", ["A", "B"])
def test_a_word_that_marks_random_pairs_is_refused(split: Shards, segment: str) -> None:
    marked = Changed(split, functools.partial(mark_random, segment))
    metrics, faults = audit_shortcut(marked, BOUNDS)
    assert metrics["alone_accuracy"] > 0.95
    assert "the lengths and words of either segment tell" in faults[0]


def test_a_name_in_every_sentence_is_refused(tmp_path: Path, monkeypatch) -> None:
    documents = [
        [[5 + number] * 4 + sentence for sentence in document if len(sentence) > 4]
        for number, document in enumerate(random_documents(np.random.default_rng(4), 900))
    ]
    rare = [[[w if i < 4 else 950 + w % 40 for i, w in enumerate(s)] for s in d] for d in documents]
    split = build_corpus(tmp_path, [d for d in rare if d], monkeypatch)
    metrics, faults = audit_shortcut(split, BOUNDS)
    assert metrics["alone_skill"] < 0.5
    assert metrics["together_skill"] > 0.98
    assert len(faults) == 1
    assert "the words that the segments share tell" in faults[0]


def test_the_language_tells_the_label_unless_partners_are_of_the_same(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(run, "run_processes", run_inline)
    rng = np.random.default_rng(6)
    long = random_documents(rng, 60, sentences=60.0, vocab_size=500)
    short = random_documents(rng, 600, sentences=4.0, vocab_size=500)
    other = [[[token + 495 for token in s] for s in document] for document in short]
    languages = "x" * len(long) + "y" * len(other)
    write_corpus(tmp_path, [long + other], [long[:2]], languages=([languages], ["xx"]))
    skills = {}
    for where in ("source", "language"):
        build.run(
            load([f"data_dir={tmp_path}", f"random_next={where}", "seq_len=64", "replace=true"])
        )
        split = Shards.open(tmp_path / "len64", "train")
        skills[where] = audit_shortcut(split, BOUNDS)[0]["alone_skill"]
    assert skills["source"] > 0.25
    assert skills["language"] < 0.1


def test_too_few_examples_are_not_judged(tmp_path: Path, monkeypatch) -> None:
    documents = random_documents(np.random.default_rng(5), 60)
    assert audit_shortcut(build_corpus(tmp_path, documents, monkeypatch), BOUNDS) == ({}, [])


def test_an_audit_gives_the_same_metrics_twice(split: Shards) -> None:
    assert audit_shortcut(split, BOUNDS) == audit_shortcut(split, BOUNDS)

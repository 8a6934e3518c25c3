"""The benchmark of data preparation: the published rendering, and one line of JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_prep import collect
from data_prep.core.records import TextForm
from data_prep.executors.run import run_tasks
from data_prep.tokenizer.vocab_file import SPECIAL_TOKENS
from data_prep.tokenizer.wordpiece import Encoder
from pretrain.config.arguments import run_command
from scripts.baselines.google_prep import PublishedTokenizer, prepare
from scripts.bench import prep

TOKENS = [*SPECIAL_TOKENS.values(), *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh"), "."]


def made_documents() -> list[list[str]]:
    rng = np.random.default_rng(1)

    def sentence() -> str:
        words = ("".join(rng.choice(list("abcdefgh"), 3)) for _ in range(rng.integers(3, 20)))
        return " ".join(words) + "."

    return [[sentence() for _ in range(50)] for _ in range(20)]


def test_the_published_rendering_makes_masked_pairs_of_the_same_tokens_as_ours() -> None:
    documents = made_documents()
    rows = prepare(documents, PublishedTokenizer(TOKENS, True), seq_len=128, seed=1)
    ids = np.array([row["input_ids"] for row in rows])
    real = np.array([row["input_mask"] for row in rows]) == 1
    assert ids.shape[1] == 128
    assert (ids[~real] == 0).all()
    assert 0.4 < np.mean([row["next_sentence_labels"] for row in rows]) < 0.65
    masked_as: list[int] = []
    encoder, first_segments = Encoder(TOKENS, TextForm(True)), []
    for row, tokens in zip(rows, ids, strict=True):
        masked = int(sum(row["masked_lm_weights"]))
        positions = row["masked_lm_positions"][:masked]
        assert masked == min(19, round(0.15 * sum(row["input_mask"])))
        masked_as += tokens[positions].tolist()
        tokens[positions] = row["masked_lm_ids"][:masked]
        assert (tokens == 3).sum() == 2  # only now: random entries are drawn from all, as published
        first_segments.append(" ".join(map(str, tokens[1 : list(tokens).index(3)])))
    assert 0.75 < np.mean(np.array(masked_as) == 4) < 0.85
    texts = [" ".join(map(str, encoder.encode(document)[0])) for document in documents]
    assert all(any(segment in text for text in texts) for segment in first_segments)


def test_the_benchmark_ends_with_one_line_of_json_that_has_every_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    words = ["megabytes=0.2", "vocab_size=2000", "heldout_fraction=0.3", "rounds=1"]
    assert run_command(prep.main, words) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(prep.STAGES)
    record = json.loads(last)
    rates = [value for key, value in record.items() if key.endswith("_mb_per_second_per_core")]
    assert len(rates) == len(prep.STAGES)
    assert min(rates) > 0
    ours, theirs = record["median"]["all stages"], record["median"]["published algorithm"]
    assert record["speedup_over_published_algorithm"] == pytest.approx(ours / theirs, abs=0.01)
    assert collect.run_tasks is run_tasks  # the jobs have their processes back

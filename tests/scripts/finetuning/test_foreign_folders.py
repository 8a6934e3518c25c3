"""Every file of a BERT's folder, harmed: fine-tuning and prediction read it or refuse it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import harmed_bytes, harmed_header, harmed_json, refusals
from tiny_bert import tiny_bert

from scripts.finetuning import models
from scripts.finetuning.settings import Start

FAST = 25
Harm = Callable[[np.random.Generator, bytes], bytes]


FILES: dict[str, Harm] = {
    "config.json": harmed_json,
    "tokenizer.json": harmed_json,
    "tokenizer_config.json": harmed_json,
    "vocab.txt": harmed_bytes,
    "model.safetensors": harmed_header,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all files that a tokenizer may have."""
    made = tiny_bert(tmp_path / "bert")
    models.load_tokenizer(made).save_pretrained(made)
    return made


def tried(folder: Path, name: str, tries: int, seed: int) -> int:
    """How many of so many harmed versions of the file were refused."""
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()

    def read() -> object:
        tokenizer = models.load_tokenizer(folder)
        entries = models.num_entries(tokenizer)
        kind = "BertForSequenceClassification"
        model, _ = models.load_model(kind, folder, Start.pretrained, {}, entries)
        encoded = tokenizer("the film was good", "in Paris", return_tensors="pt")
        with torch.inference_mode():
            return model.eval()(**encoded).logits

    torch.set_num_threads(1)  # a child of a fork has no other threads
    return refusals(folder / name, FILES[name], read, tries, seed)


@pytest.mark.parametrize("name", FILES)
def test_fine_tuning_reads_or_refuses_a_few_harmed_files(folder: Path, name: str) -> None:
    assert tried(folder, name, FAST, 0) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_fine_tuning_reads_or_refuses_two_thousand_harmed_files(folder: Path, name: str) -> None:
    assert tried(folder, name, 2_000, 1) > 0

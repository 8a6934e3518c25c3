"""Every file of a BERT's folder, harmed: run.init_from reads it or refuses it in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fuzzing import harmed_bytes, harmed_header, harmed_json, refusals
from test_init_from import TOKENS, drawn, saved

from data_prep.core.config import SettingsError
from data_prep.core.records import TextForm
from pretrain.huggingface.init_from import find

FAST = 40
FILES = {
    "config.json": harmed_json,
    "tokenizer.json": harmed_json,
    "tokenizer_config.json": harmed_json,
    "vocab.txt": harmed_bytes,
    "model.safetensors": harmed_header,
}


def tried(folder: Path, name: str, tries: int, seed: int) -> int:
    """How many of so many harmed versions of the file were refused."""
    saved(folder)
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    model = drawn()

    def read() -> object:
        origin = find(str(folder))
        if origin.tokens != TOKENS:
            raise SettingsError("another vocabulary, which a start refuses")
        weights, _ = origin.weights(model, TOKENS, TextForm(True))
        return {name: value.sum() for name, value in weights.items()}

    torch.set_num_threads(1)  # a child of a fork has no other threads
    return refusals(folder / name, FILES[name], read, tries, seed)


@pytest.mark.parametrize("name", FILES)
def test_init_from_reads_or_refuses_a_few_harmed_files(tmp_path: Path, name: str) -> None:
    assert tried(tmp_path / "bert", name, FAST, 0) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_init_from_reads_or_refuses_five_thousand_harmed_files(tmp_path: Path, name: str) -> None:
    assert tried(tmp_path / "bert", name, 5_000, 1) > 0

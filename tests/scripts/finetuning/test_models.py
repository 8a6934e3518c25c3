"""BERT folders of others: names and rows of their weights; nothing is allocated for a claim."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.core.config import SettingsError
from scripts.finetuning import models
from scripts.finetuning.settings import Start

CLASS = "BertForSequenceClassification"
WORDS = "bert.embeddings.word_embeddings.weight"


def changed(bert: Path, target: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """A copy of the folder with other weights."""
    folder = Path(shutil.copytree(bert, target))
    weights = load_file(folder / "model.safetensors")
    weights = change(weights) or weights
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def loaded(folder: Path, start: Start = Start.pretrained) -> dict[str, Tensor]:
    torch.manual_seed(1)
    entries = models.num_entries(models.load_tokenizer(folder))
    return dict(models.load_model(CLASS, folder, start, {}, entries)[0].state_dict())


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_json_files_of_other_tools_may_hold_anything(bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "x"))
    (folder / "data_config.json").write_text('[{"name": "pairs", "lines": 3}]')
    (folder / "modules.json").write_text("no JSON")
    assert_equal(loaded(folder), loaded(bert))


@pytest.mark.parametrize(
    "wrapped",
    ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "model.{}", "model.module.{}"],
)
def test_what_wrappers_add_to_names_is_taken_off(bert: Path, tmp_path: Path, wrapped: str) -> None:
    rename = changed(
        bert, tmp_path / "x", lambda weights: {wrapped.format(n): t for n, t in weights.items()}
    )
    assert_equal(loaded(rename), loaded(bert))


def test_names_that_a_wrapper_changed_inside_are_taken_too(bert: Path, tmp_path: Path) -> None:
    def rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("layer.1.", "layer.1._orig_mod."): t for name, t in weights.items()}

    folder = changed(bert, tmp_path / "x", rename)
    assert_equal(loaded(folder), loaded(bert))


def test_weights_under_other_names_are_refused_with_these_names(bert: Path, tmp_path: Path) -> None:
    folder = changed(
        bert, tmp_path / "x", lambda weights: {f"student.{n}": t for n, t in weights.items()}
    )
    with pytest.raises(SettingsError, match=r"files lack them; they hold student\."):
        loaded(folder)


@pytest.mark.parametrize("more", [1, 50, 1000])
@pytest.mark.parametrize("claimed", [True, False])
def test_rows_beyond_the_vocabulary_are_left_out(
    bert: Path, tmp_path: Path, more: int, claimed: bool
) -> None:
    def add(weights: dict[str, Tensor]) -> None:
        weights[WORDS] = torch.cat([weights[WORDS], torch.ones(more, 32)])
        weights["cls.predictions.bias"] = torch.cat(
            [weights["cls.predictions.bias"], torch.ones(more)]
        )

    folder = changed(bert, tmp_path / "x", add)
    if claimed:
        config = json.loads((folder / "config.json").read_text())
        config["vocab_size"] += more
        (folder / "config.json").write_text(json.dumps(config))
    assert models.rows_beyond(folder, models.load_tokenizer(folder)) == more
    assert_equal(loaded(folder), loaded(bert))
    (_, new) = models.load_model("BertForPreTraining", folder, Start.pretrained, {}, 134)
    assert new == []


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_become_float32(
    bert: Path, tmp_path: Path, kind: torch.dtype
) -> None:
    folder = changed(
        bert, tmp_path / "x", lambda weights: {n: t.to(kind) for n, t in weights.items()}
    )
    assert {value.dtype for value in loaded(folder).values()} == {torch.float32}


@pytest.mark.parametrize(
    "claim",
    [
        {"hidden_size": 10**9}, {"hidden_size": 2**20}, {"hidden_size": -32}, {"hidden_size": 0},
        {"hidden_size": "32"}, {"hidden_size": None}, {"hidden_size": 32.5},
        {"hidden_size": float("nan")}, {"hidden_size": 64}, {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 900}, {"num_hidden_layers": 3}, {"num_attention_heads": 5},
        {"num_attention_heads": 0}, {"intermediate_size": 10**6}, {"intermediate_size": 2**62},
        {"max_position_embeddings": 10**6}, {"type_vocab_size": 10**6}, {"vocab_size": 10**12},
        {"vocab_size": -1}, {"layer_norm_eps": "small"}, {"hidden_act": "eval"},
        {"hidden_dropout_prob": 2}, {"id2label": {"7": "x"}}, {"id2label": ["a", "b"]},
        {"architectures": "x"}, {"pad_token_id": -1}, {"is_decoder": True},
        {"position_embedding_type": "relative_key"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("start", Start)
def test_claims_that_the_weights_do_not_bear_out_are_refused_and_allocate_nothing(
    bert: Path, tmp_path: Path, claim: dict[str, Any], start: Start
) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "x"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | claim))
    with pytest.raises(SettingsError) as refused:
        loaded(folder, start)
    assert str(refused.value).isprintable()
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize("name", ["../x/model.safetensors", "/etc/passwd", "", 5, None])
def test_an_index_names_files_of_its_folder_alone(bert: Path, tmp_path: Path, name: Any) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "x"))
    (folder / "model.safetensors").unlink()
    index = json.dumps({"weight_map": {WORDS: name}})
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(SettingsError, match=r"index\.json is no index of weights"):
        models.checked(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+task=sts2", "model=x"], "task=sts2 is not known; did you mean stsb or sst2?"),
        (["+task=sst2", "model=x", "learningrate=1"], "did you mean learning_rate"),
        (["+task=sst2", "model=x", "task.metrics=[acuracy]"], "did you mean accuracy?"),
        (["+task=stsb", "model=x", "task.metrics=[pearson,f1]"], "for numbers"),
        (["+task=sst2", "model=x", "task.metrics=[accuracy,pearson]"], "is_regression=true"),
        (["+task=sst2", "model=nowhere"], "there is no folder nowhere"),
    ],
)
def test_slips_are_refused_before_anything_heavy_is_imported(
    arguments: list[str], message: str
) -> None:
    code = (
        "import sys; from scripts.finetuning.run import main; "
        "from scripts.finetuning.settings import Kind; "
        f"assert main(Kind.classification, {arguments}) == 2; "
        "assert not {'torch', 'transformers', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert message in done.stderr

"""The exported folder: read by stock transformers, equal to our model, whole or absent."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from made_manifests import shards_manifest, split_entry
from made_run import made_run
from model_samples import random_batch, random_model, small_settings
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.core.config import SettingsError, compose
from data_prep.core.files import read_json, write_json
from data_prep.core.objectives import Pairing
from data_prep.core.records import Normalization, TextForm
from data_prep.tokenizer.hf_files import save_tokenizer
from data_prep.tokenizer.wordpiece import Encoder
from pretrain.config.settings import Settings
from pretrain.export import main
from pretrain.huggingface.export import check_export, export
from pretrain.huggingface.load import fill_masks, load_exported
from pretrain.huggingface.weights import hugging_face_class
from pretrain.model.bert import BertForPreTraining
from pretrain.training.export_run import export_run

TRANSFORMERS_4 = Path(os.environ.get("TRANSFORMERS_4_FOLDER", "none"))
WORDS = "the a cat dog mouse sat ran ate on in mat house garden and . ,".split()
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"]
VOCAB_SIZE = len(TOKENS)
SPLITS = {
    name: split_entry(rows=rows, tokens=4_000, masked_tokens=600, random_next=rows // 2)
    for name, rows in (("train", 80), ("heldout", 8))
}
MANIFEST = shards_manifest(SPLITS, vocab_size=VOCAB_SIZE, vocab_checksum="0123abcd")


@pytest.fixture(scope="module")
def vocab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "vocab"
    save_tokenizer(folder, TOKENS, TextForm(True))
    return folder


def weights_of(model: BertForPreTraining) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def card() -> dict[str, Any]:
    overrides = ["+model=tiny", "schedule.total_steps=500", "optim.global_batch=16"]
    settings, _ = compose("config", Settings, overrides)
    return {
        "name": "first", "step": 100, "settings": settings, "sources": {"novels": 77},
        "data": [MANIFEST],
        "held_out": {"MLM loss (nats per masked token)": 5.4321, "NSP accuracy": 0.625},
    }  # fmt: skip


def written(model: BertForPreTraining, vocab_folder: Path, target: Path) -> Path:
    export(weights_of(model), model.settings, Pairing.nsp, vocab_folder, target, card())
    return target


@pytest.fixture(scope="module")
def model() -> BertForPreTraining:
    return random_model(small_settings(hidden_act="gelu_new"), VOCAB_SIZE, seed=0).eval()


@pytest.fixture(scope="module")
def exported(
    model: BertForPreTraining, vocab_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return written(model, vocab_folder, tmp_path_factory.mktemp("run") / "export")


def test_the_folder_holds_what_a_hugging_face_folder_holds_and_nothing_is_left_next_to_it(
    exported: Path,
) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "special_tokens_map.json",
        "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    }  # fmt: skip
    assert [path.name for path in exported.parent.iterdir()] == ["export"]


@pytest.mark.parametrize(
    ("name", "new_weights"),
    [
        ("BertForPreTraining", set()),
        ("BertForMaskedLM", set()),
        ("BertForSequenceClassification", {"classifier.weight", "classifier.bias"}),
    ],
)
def test_stock_classes_load_it_and_miss_no_weight_that_should_be_there(
    exported: Path, name: str, new_weights: set[str]
) -> None:
    _, report = getattr(transformers, name).from_pretrained(exported, output_loading_info=True)
    assert set(report["missing_keys"]) == new_weights
    assert not report["mismatched_keys"]
    if name == "BertForPreTraining":
        assert not report["unexpected_keys"]


def test_loading_it_for_pretraining_logs_no_warning(exported, caplog) -> None:
    root = logging.getLogger("transformers")
    root.addHandler(caplog.handler)
    try:
        transformers.BertForPreTraining.from_pretrained(exported)
        transformers.BertForMaskedLM.from_pretrained(exported)
    finally:
        root.removeHandler(caplog.handler)
    about_absent = [r.getMessage() for r in caplog.records if "MISSING" in r.getMessage()]
    assert about_absent == []


def test_a_model_without_pairs_is_stock_bert_for_masked_lm_to_the_last_weight(
    vocab_folder: Path, tmp_path: Path
) -> None:
    model = random_model(small_settings(), VOCAB_SIZE, 0, Pairing.none).eval()
    target, facts = tmp_path / "export", card()
    facts["settings"].data.pairs = Pairing.none
    export(weights_of(model), model.settings, Pairing.none, vocab_folder, target, facts)
    _, report = transformers.BertForMaskedLM.from_pretrained(target, output_loading_info=True)
    assert not any(report.values()), report
    assert read_json(target / "config.json")["architectures"] == ["BertForMaskedLM"]
    text = (target / "README.md").read_text()
    assert "by masked language modelling alone." in text
    assert "BertForMaskedLM.from_pretrained" in text
    assert "80 texts" in text
    again = dict(load_exported(target).named_parameters())
    for name, weight in weights_of(model).items():
        is_padded = name in ("embeddings.word.weight", "mlm_head.decoder.bias")
        assert torch.equal(again[name], weight[:VOCAB_SIZE] if is_padded else weight), name


def test_the_card_of_a_model_of_sentence_order_names_its_labels(
    vocab_folder: Path, model: BertForPreTraining, tmp_path: Path
) -> None:
    facts = card()
    facts["settings"].data.pairs = Pairing.sop
    export(weights_of(model), model.settings, Pairing.sop, vocab_folder, tmp_path / "e", facts)
    text = (tmp_path / "e/README.md").read_text()
    assert "by masked language modelling and sentence order prediction." in text
    assert "1 that the two are swapped" in text


def test_weights_without_pairs_are_not_exported_as_weights_with_pairs(
    vocab_folder: Path, tmp_path: Path
) -> None:
    model = random_model(small_settings(), VOCAB_SIZE, 0, Pairing.none)
    with pytest.raises(SettingsError, match=r"4 missing \['pair_head.bias'.*data\.pairs"):
        written(model, vocab_folder, tmp_path / "e")


IN_TRANSFORMERS_4 = """
import sys
import torch, transformers
from safetensors.torch import save_file

assert transformers.__version__.startswith("4.57."), transformers.__version__
for folder, name in zip(sys.argv[1::2], sys.argv[2::2]):
    model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer("The CAT sat.", "Dogs [MASK]", return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(**batch)[0]
    save_file({**batch, "logits": logits}, folder + ".safetensors")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not (TRANSFORMERS_4 / "transformers").is_dir(),
    reason="for transformers 4.57: .ci/run installs it, TRANSFORMERS_4_FOLDER=FOLDER",
)
def test_transformers_4_57_reads_exports_as_the_installed_version_does(
    vocab_folder: Path, tmp_path: Path
) -> None:
    names = {}
    for pairing in (Pairing.nsp, Pairing.none):
        model = random_model(small_settings(), VOCAB_SIZE, 0, pairing).eval()
        folder = tmp_path / pairing.name
        export(weights_of(model), model.settings, pairing, vocab_folder, folder, card())
        names[folder] = hugging_face_class(pairing)
    arguments = [word for item in names.items() for word in item]
    environment = {**os.environ, "PYTHONPATH": str(TRANSFORMERS_4)}
    command = [sys.executable, "-c", IN_TRANSFORMERS_4, *arguments]
    subprocess.run(command, env=environment, check=True, timeout=280)
    for folder, name in names.items():
        found = load_file(folder.with_suffix(".safetensors"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        batch = tokenizer("The CAT sat.", "Dogs [MASK]", return_tensors="pt")
        with torch.inference_mode():
            logits = getattr(transformers, name).from_pretrained(folder).eval()(**batch)[0]
        torch.testing.assert_close(found.pop("logits"), logits, rtol=1e-5, atol=1e-5)
        assert found.keys() == batch.keys()
        assert all(torch.equal(found[key], batch[key]) for key in found)


def test_the_stock_tokenizer_reads_text_as_the_corpus_was_read(exported, vocab_folder) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    encoded = tokenizer("The CAT sat.", "Dogs [MASK]")
    expected = "[CLS] the cat sat . [SEP] dog ##s [MASK] [SEP]".split()
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == expected
    assert encoded["token_type_ids"] == [0] * 6 + [1] * 4
    assert len(tokenizer) == VOCAB_SIZE
    assert tokenizer.model_max_length == 64  # the model's positions


def test_an_export_of_another_text_form_reads_text_by_it(tmp_path: Path, model) -> None:
    form = TextForm(True, False, Normalization.nfkc)
    save_tokenizer(tmp_path / "vocab", TOKENS, form)
    written(model, tmp_path / "vocab", tmp_path / "export")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    text = "The \uff23\uff21\uff34 sat\u2026 cafe\u0301, [MASK] a=\u0338b"
    plain, _ = Encoder(TOKENS, form).encode([text.replace("[MASK]", "dog")])
    found = tokenizer(text.replace("[MASK]", "dog"), add_special_tokens=False)["input_ids"]
    assert found == plain.tolist()
    encoded = tokenizer(text, "dog")
    assert "[MASK]" in tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert encoded["token_type_ids"][-2:] == [1, 1]
    assert tokenizer.model_max_length == 64


def test_logits_through_transformers_equal_ours(exported: Path, model: BertForPreTraining) -> None:
    worst = check_export(exported, weights_of(model), model.settings, Pairing.nsp)
    assert worst <= 1e-5


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_act", "gelu"), ("layer_norm_eps", 1e-3), ("num_attention_heads", 2)]
)
def test_a_config_that_differs_from_the_training_is_detected(
    vocab_folder: Path, model: BertForPreTraining, tmp_path: Path, key: str, value: object
) -> None:
    target = tmp_path / "export"
    written(model, vocab_folder, target)
    write_json(target / "config.json", {**read_json(target / "config.json"), key: value})
    with pytest.raises(RuntimeError, match="differ from ours"):
        check_export(target, weights_of(model), model.settings, Pairing.nsp)


def test_a_missing_weight_is_detected(vocab_folder, model, tmp_path) -> None:
    target = tmp_path / "export"
    written(model, vocab_folder, target)
    weights = load_file(target / "model.safetensors")
    del weights["bert.pooler.dense.weight"]
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"missing_keys.*bert\.pooler\.dense\.weight"):
        check_export(target, weights_of(model), model.settings, Pairing.nsp)


def test_a_failed_check_leaves_the_earlier_export_as_it_was(
    vocab_folder: Path, model: BertForPreTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "export"
    written(model, vocab_folder, target)
    before = (target / "model.safetensors").read_bytes()

    def refuse(*_: object) -> None:
        raise RuntimeError("differs")

    monkeypatch.setattr("pretrain.huggingface.export.check_export", refuse)
    other = random_model(model.settings, VOCAB_SIZE, seed=1)
    with pytest.raises(RuntimeError, match="differs"):
        written(other, vocab_folder, target)
    assert (target / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    monkeypatch.setattr("pretrain.huggingface.export.check_export", lambda *_: None)
    written(other, vocab_folder, target)
    assert (target / "model.safetensors").read_bytes() != before


def test_a_folder_that_is_no_export_is_not_replaced(vocab_folder, model, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(SettingsError, match="holds files and is no earlier export"):
        written(model, vocab_folder, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_our_own_reader_gives_the_model_back(exported: Path, model: BertForPreTraining) -> None:
    again = load_exported(exported)
    assert not again.training
    batch = random_batch([9, 30, 64], VOCAB_SIZE, seed=3)
    for ours, read in zip(model.logits(batch), again.logits(batch), strict=True):
        torch.testing.assert_close(ours, read, rtol=1e-5, atol=1e-6)


def test_padded_rows_are_not_in_the_file(exported: Path) -> None:
    assert read_json(exported / "config.json")["vocab_size"] == VOCAB_SIZE
    assert load_exported(exported).embeddings.word.weight.shape == (VOCAB_SIZE, 32)


@pytest.mark.parametrize("missing", ["vocab.txt", "tokenizer.json", "special_tokens_map.json"])
def test_a_missing_tokenizer_file_is_named_with_the_cure(model, tmp_path, missing) -> None:
    save_tokenizer(tmp_path / "vocab", TOKENS, TextForm(True))
    (tmp_path / "vocab" / missing).unlink()
    with pytest.raises(SettingsError, match=rf"lacks {missing}; .*data_prep\.vocab data_dir="):
        written(model, tmp_path / "vocab", tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_vocabulary_of_another_size_is_refused(model: BertForPreTraining, tmp_path: Path) -> None:
    more = [*TOKENS, *(f"w{i}" for i in range(60))]
    save_tokenizer(tmp_path / "vocab", more, TextForm(True))
    with pytest.raises(SettingsError, match=f"64 rows and a vocabulary of {VOCAB_SIZE + 60}"):
        written(model, tmp_path / "vocab", tmp_path / "export")
    (tmp_path / "vocab" / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(SettingsError, match=r"vocab.txt has 1 entries and tokenizer.json 82"):
        written(model, tmp_path / "vocab", tmp_path / "export")


def test_masks_are_filled_with_the_tokens_the_model_prefers(model, vocab_folder, tmp_path) -> None:
    state = weights_of(model)
    state["mlm_head.decoder.bias"][TOKENS.index("cat")] += 60.0  # a model with one thought
    target = tmp_path / "export"
    export(state, model.settings, Pairing.nsp, vocab_folder, target, card())
    sentences = ["The [MASK] sat.", "On the mat sat a [MASK] and a dog."]
    for guesses in fill_masks(target, sentences, top_k=3):
        assert len(guesses) == 3
        assert guesses[0][0] == "cat"
        assert guesses[0][1] > 0.99
        assert sum(probability for _, probability in guesses) <= 1 + 1e-6


def test_a_sentence_must_hold_one_mask_and_fit_the_positions(exported: Path) -> None:
    for sentence, count in (("The cat.", 0), ("The [MASK] [MASK].", 2)):
        with pytest.raises(SettingsError, match=f"holds {count} \\[MASK\\]"):
            fill_masks(exported, [sentence], top_k=1)
    with pytest.raises(SettingsError, match="has 73 tokens and the model 64 positions"):
        fill_masks(exported, ["[MASK]" + " the" * 70], top_k=1)


def test_the_card_names_the_model_and_its_data(exported: Path) -> None:
    text = (exported / "README.md").read_text()
    for fact in (
        "# first",
        "BERT (uncased;",
        "novels: 77 documents",
        "80 sentence pairs, 4,000 tokens, 600 of them masked",
        "100 of 500 steps of 16 sequences: 1,600 sequences",
        "20.00 passes",
        "| MLM loss (nats per masked token) | 5.4321 |",
        "| NSP accuracy | 0.6250 |",
        "  global_batch: 16",
    ):
        assert fact in text, fact


@pytest.fixture
def run_folder(tmp_path: Path, model: BertForPreTraining) -> Path:
    return made_run(tmp_path, model, TOKENS)


def test_the_newest_checkpoint_of_a_run_is_exported_from_the_command_line(
    run_folder: Path, model: BertForPreTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"run={run_folder}"]) == 0
    assert str(run_folder / "export") in capsys.readouterr().out
    pooler = load_exported(run_folder / "export").pooler.weight
    assert torch.equal(pooler, model.pooler.weight)
    text = (run_folder / "export" / "README.md").read_text()
    assert "| MLM loss (nats per masked token) | 2.0000 |" in text


def test_a_named_checkpoint_goes_to_a_named_target_with_the_metrics_of_its_step(
    run_folder: Path, model: BertForPreTraining
) -> None:
    checkpoint, target = run_folder / "checkpoints" / "step-00000010", run_folder / "earlier"
    assert export_run(run_folder, checkpoint, target) == target
    pooler = load_exported(target).pooler.weight
    assert torch.equal(pooler, model.pooler.weight * 0.5)
    assert "| MLM loss (nats per masked token) | 1.0000 |" in (target / "README.md").read_text()
    assert not (run_folder / "export").exists()


def test_a_run_without_a_checkpoint_is_refused(run_folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"no whole checkpoint in .*nothing"):
        export_run(run_folder, run_folder / "nothing")

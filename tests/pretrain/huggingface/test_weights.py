"""Weights to Hugging Face's names and back."""

import pytest
import torch
import transformers
from model_samples import hugging_face_config, old_names, random_model, small_settings
from torch import Tensor

from data_prep.core.config import SettingsError
from data_prep.core.objectives import Pairing
from pretrain.huggingface.weights import from_hugging_face, to_hugging_face


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Weights of a small model for 50 entries, the 14 rows that pad them 0."""
    model = random_model(small_settings(), 50, seed)
    with torch.no_grad():
        model.embeddings.word.weight[50:] = 0
        model.mlm_head.decoder.bias[50:] = 0
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_there_and_back_gives_the_same_weights_bit_for_bit() -> None:
    state = weights()
    theirs = to_hugging_face(state, small_settings(), 50, Pairing.nsp)
    back = from_hugging_face(theirs, small_settings(), 50, Pairing.nsp)
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name


def test_names_and_shapes_are_those_that_transformers_saves(tmp_path) -> None:
    config = hugging_face_config(50)
    theirs = transformers.BertForPreTraining(config).state_dict()
    tied = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
    expected = {name: tensor.shape for name, tensor in theirs.items() if name not in tied}
    converted = to_hugging_face(weights(), small_settings(), 50, Pairing.nsp)
    assert {name: tensor.shape for name, tensor in converted.items()} == expected


def test_queries_keys_and_values_are_the_thirds_of_ours_in_this_order() -> None:
    state = weights()
    converted = to_hugging_face(state, small_settings(), 50, Pairing.nsp)
    prefix = "bert.encoder.layer.1.attention.self."
    for kind in ("weight", "bias"):
        thirds = [converted[f"{prefix}{name}.{kind}"] for name in ("query", "key", "value")]
        assert torch.equal(torch.cat(thirds), state[f"layers.1.qkv.{kind}"])


def test_rows_that_pad_the_vocabulary_are_cut() -> None:
    state = weights()
    converted = to_hugging_face(state, small_settings(), 50, Pairing.nsp)
    words = converted["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(words, state["embeddings.word.weight"][:50])
    assert converted["cls.predictions.bias"].shape == (50,)


def test_the_first_released_files_are_read_too() -> None:
    """TensorFlow's LayerNorm names, copies of tied tensors, position ids as a buffer."""
    state = weights()
    old = old_names(to_hugging_face(state, small_settings(), 50, Pairing.nsp))
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    old["bert.embeddings.position_ids"] = torch.arange(64)[None]
    back = from_hugging_face(old, small_settings(), 50, Pairing.nsp)
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name


def test_a_decoder_that_is_not_tied_is_refused() -> None:
    theirs = to_hugging_face(weights(), small_settings(), 50, Pairing.nsp)
    theirs["cls.predictions.decoder.weight"] = torch.zeros(50, 32)
    with pytest.raises(SettingsError, match=r"decoder\.weight differs from .*word_embeddings"):
        from_hugging_face(theirs, small_settings(), 50, Pairing.nsp)


def test_missing_and_left_over_weights_are_named() -> None:
    theirs = to_hugging_face(weights(), small_settings(), 50, Pairing.nsp)
    theirs["stranger"] = theirs.pop("bert.pooler.dense.bias")
    with pytest.raises(SettingsError, match=r"1 missing \['bert.pooler.dense.bias'\].*stranger"):
        from_hugging_face(theirs, small_settings(), 50, Pairing.nsp)
    with pytest.raises(SettingsError, match=r"our weights .* 0 missing .* 12 unknown"):
        to_hugging_face(weights(), small_settings(num_hidden_layers=1), 50, Pairing.nsp)


def test_another_vocabulary_is_refused_with_both_sizes() -> None:
    with pytest.raises(SettingsError, match="has 64 rows and a vocabulary of 70 entries"):
        to_hugging_face(weights(), small_settings(), 70, Pairing.nsp)
    theirs = to_hugging_face(weights(), small_settings(), 50, Pairing.nsp)
    with pytest.raises(SettingsError, match="has 50 rows and the vocabulary 49 entries"):
        from_hugging_face(theirs, small_settings(), 49, Pairing.nsp)

"""Loads an exported folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from data_prep.core.config import SettingsError
from data_prep.core.files import read_json
from data_prep.core.objectives import Pairing
from pretrain.config.settings import ModelSettings
from pretrain.huggingface.weights import from_hugging_face
from pretrain.model.bert import BertForPreTraining
from pretrain.model.fill_mask import Guesses, MaskedSentences

TOKENIZER_FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
# settings that have the same name in config.json
SAME_NAMES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings",
    "type_vocab_size", "initializer_range", "layer_norm_eps",
)  # fmt: skip


def load_exported(folder: Path) -> BertForPreTraining:
    """Our model in eval mode, from a folder that `export` or `save_pretrained` wrote."""
    config = read_json(folder / "config.json")
    values = {name: config[name] for name in SAME_NAMES}
    if values["hidden_act"] == "gelu_pytorch_tanh":  # another name for it
        values["hidden_act"] = "gelu_new"
    settings = ModelSettings(**values, pad_vocab_size_multiple_of=1)
    has_pairs = "BertForPreTraining" in config["architectures"]
    pairing = Pairing.nsp if has_pairs else Pairing.none  # nsp and sop have the same weights
    model = BertForPreTraining(settings, config["vocab_size"], pairing)
    weights = load_file(folder / "model.safetensors")
    model.load_weights(from_hugging_face(weights, settings, config["vocab_size"], pairing))
    return model.eval()


def fill_masks(folder: Path, sentences: Sequence[str], top_k: int) -> list[Guesses]:
    """The `top_k` likeliest tokens for the [MASK] of each sentence, best first, with probabilities.

    By the exported model at `folder`, without `transformers`. Raises SettingsError on a sentence
    with no [MASK] or several, or longer than the model's positions.
    """
    model = load_exported(folder)
    longest = model.settings.max_position_embeddings
    masked = MaskedSentences(sentences, load_tokenizer(folder), longest)
    with torch.inference_mode():
        return masked.read(model.logits(masked.batch)[0], top_k)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`. Raises SettingsError if a file is missing or two disagree."""
    if missing := [name for name in TOKENIZER_FILES if not (folder / name).exists()]:
        raise SettingsError(
            f"{folder} lacks {', '.join(missing)}; make the vocabulary again: "
            f"python -m data_prep.vocab data_dir={folder.parent}"
        )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    num_entries = (folder / "vocab.txt").read_bytes().count(b"\n")
    if tokenizer.get_vocab_size() != num_entries:
        raise SettingsError(
            f"{folder / 'vocab.txt'} has {num_entries} entries and tokenizer.json "
            f"{tokenizer.get_vocab_size()}; make both again with python -m data_prep.vocab"
        )
    return tokenizer

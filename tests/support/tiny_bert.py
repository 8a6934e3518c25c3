"""A BERT of random weights, its vocabulary letters and a few words, as a Hugging Face folder."""

import json
import string
from pathlib import Path

import torch
from transformers import BertConfig, BertForPreTraining

WORDS = (
    "good great fine bad awful poor film the a was is in of and who what city country lives born "
    "paris london rome anna bob eva".split()
)
LETTERS = string.ascii_lowercase + string.digits + string.punctuation


def tiny_bert(folder: Path, positions: int = 64, seed: int = 0) -> Path:
    """Two layers of 32; every word is known, whole or by its letters."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokens += [letter for letter in LETTERS if letter not in WORDS]
    tokens += [f"##{letter}" for letter in string.ascii_lowercase + string.digits]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=positions,
        initializer_range=0.2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    BertForPreTraining(config).save_pretrained(folder)
    return folder

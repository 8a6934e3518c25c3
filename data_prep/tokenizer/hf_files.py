"""Writes the files from which transformers loads the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, processors

from data_prep.core.files import whole_or_absent, write_json
from data_prep.core.records import TextForm
from data_prep.tokenizer.vocab_file import SPECIAL_TOKENS, special_ids
from data_prep.tokenizer.wordpiece import make_tokenizer

TOKENIZER_FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def save_tokenizer(folder: Path, tokens: Sequence[str], form: TextForm) -> None:
    """Write vocab.txt and the files that `AutoTokenizer.from_pretrained(folder)` loads.

    The loaded tokenizer has this text form, adds [CLS] and [SEP] to one or two texts and knows the
    special tokens. The same arguments give the same bytes.
    """
    with whole_or_absent(folder / "vocab.txt") as temporary:
        temporary.write_bytes("".join(f"{token}\n" for token in tokens).encode())
    with whole_or_absent(folder / "tokenizer.json") as temporary:
        _with_special_tokens(tokens, form).save(str(temporary), pretty=True)
    names = {f"{name}_token": token for name, token in SPECIAL_TOKENS.items()}
    kind: dict[str, Any] = {"tokenizer_class": "BertTokenizer"}
    if not is_stock(form):
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs}
    write_json(folder / "special_tokens_map.json", names)
    write_json(
        folder / "tokenizer_config.json",
        {
            **names,
            **kind,
            "do_lower_case": form.lowercase,
            "strip_accents": form.strip_accents,  # null follows do_lower_case
            "tokenize_chinese_chars": form.tokenize_chinese_chars,
            "model_max_length": 512,  # positions of the published models
        },
    )


def is_stock(form: TextForm) -> bool:
    """Whether BertTokenizer has the rules of a text form.

    It makes its rules from tokenizer_config.json, and those of tokenizer.json are lost.
    """
    its = ("lowercase", "strip_accents", "tokenize_chinese_chars")
    return form == TextForm(**{name: getattr(form, name) for name in its})


def _with_special_tokens(tokens: Sequence[str], form: TextForm) -> Any:
    """The tokenizer for users of a model: it knows the special tokens, adds [CLS] and [SEP]."""
    tokenizer = make_tokenizer(tokens, form)
    special = [
        AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS.values()
    ]
    tokenizer.add_special_tokens(special)
    ids = special_ids(tokens)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["cls"]), ("[SEP]", ids["sep"])],
    )
    return tokenizer

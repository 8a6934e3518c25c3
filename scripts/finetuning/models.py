"""BERT folders: checks before anything is loaded, and models with a new head."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data loaders fork
if not torch.cuda.is_available():  # otherwise DeepSpeed, which transformers imports, prints so
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import BertConfig as TheirConfig
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from data_prep.core.bert_folder import (
    BertConfig,
    check_folder,
    check_shapes,
    read_config,
    read_shapes,
    read_weights,
    weight_files,
    without_rows_beyond,
)
from data_prep.core.printable import shortened
from scripts.finetuning.settings import InputError, Start

NEW = ("classifier.", "qa_outputs.", "bert.pooler.", "pooler.")  # pretrained folders may lack them
_NO_ANSWER = ("has_no_answer", "no_answer_threshold")
_PROBES = (("a", "b"), ("\U0001f600 \uffff", "[MASK] 1."))  # known and unknown characters


def checked(folder: Path) -> BertConfig:
    """The config.json of a BERT folder. Raises SettingsError on others, and on pickled weights."""
    config = check_folder(folder)
    if config.hidden_act not in ACT2FN:
        raise InputError(
            f"{folder / 'config.json'}: hidden_act={shortened(repr(config.hidden_act), 80)} is "
            "unknown; take the folder of a BERT"
        )
    return config


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer.

    Raises SettingsError if it is missing or damaged, has more entries than the embeddings or, as
    `transformers` loads it, another normalizer than its tokenizer.json.
    """
    checked(folder)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, use_fast=True, trust_remote_code=False
            )
        # Classes of other models leave the segments out
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        _check_encoding(tokenizer)
        _check_normalizer(folder / "tokenizer.json", tokenizer)
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(
            f"{folder}: its tokenizer cannot be used ({shortened(str(error))}); copy "
            "tokenizer.json, tokenizer_config.json and vocab.txt from the model's source"
        ) from error
    rows_beyond(folder, tokenizer)
    return tokenizer


def num_entries(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of ids of a tokenizer, added entries included."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def rows_beyond(folder: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of the embeddings that are no entry's. Raises SettingsError as `check_shapes`."""
    shapes = read_shapes(weight_files(folder))
    return check_shapes(shapes, read_config(folder), num_entries(tokenizer), folder)


def _check_encoding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError unless texts and pairs become ids of the vocabulary between the marks."""
    marks = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    if None in (*marks, tokenizer.mask_token_id, tokenizer.unk_token_id):
        raise ValueError("it lacks one of [PAD], [UNK], [CLS], [SEP] and [MASK]")
    entries = num_entries(tokenizer)
    for text, pair in _PROBES:
        for texts in ((text,), (text, pair)):
            encoded = tokenizer(*texts, verbose=False)
            ids, segments = encoded["input_ids"], encoded["token_type_ids"]
            if ids[0] != marks[1] or ids[-1] != marks[2] or not 0 <= min(ids) <= max(ids) < entries:
                raise ValueError(f"it makes the ids {ids[:10]} of {texts}")
            if len(segments) != len(ids) or not set(segments) <= {0, 1}:
                raise ValueError(f"it makes the segments {segments[:10]} of {texts}")


def _check_normalizer(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises InputError unless `tokenizer` normalises text as the tokenizer.json at `path` says.

    `transformers` makes a BERT's normalizer from tokenizer_config.json and its own defaults.
    """
    its = json.loads(path.read_text(encoding="utf-8")).get("normalizer") if path.is_file() else None
    if its is None:
        return
    used = json.loads(tokenizer.backend_tokenizer.normalizer.__getstate__())
    for rules in (its, used):
        if rules.get("strip_accents", False) is None:
            rules["strip_accents"] = rules["lowercase"]
    if its == used:
        return
    names = {
        "lowercase": "do_lower_case",
        "strip_accents": "strip_accents",
        "handle_chinese_chars": "tokenize_chinese_chars",
    }
    given = {names[rule]: its[rule] for rule in names if its.get(rule) != used.get(rule)}
    if its["type"] != "BertNormalizer" or its["clean_text"] is not used["clean_text"]:
        given = {"tokenizer_class": "PreTrainedTokenizerFast"}
    raise InputError(
        f"{path} normalises text otherwise than transformers does by the tokenizer_config.json "
        "next to it, so that words would get other ids than in pretraining; write "
        f"{json.dumps(given)} into that file"
    )


def load_model(
    class_name: str, folder: Path, start: Start, changes: Mapping[str, Any], entries: int
) -> tuple[PreTrainedModel, list[str]]:
    """A model of this class of `transformers`, and the names of its new parts.

    `changes` go into its config; `entries` is the size of the vocabulary, beyond which rows are
    left out. Torch's generator, which the caller seeds, draws a new head. The weights are float32.
    Raises SettingsError if the folder lacks more than a head.
    """
    model_class = getattr(transformers, class_name)
    own = checked(folder)
    check_shapes(read_shapes(weight_files(folder)), own, entries, folder)
    config = _their_config(own, entries)
    config.update(changes)
    if start is Start.random:
        return model_class(config), ["everything"]
    state = without_rows_beyond(read_weights(weight_files(folder)), entries)
    state = {name: value.float() for name, value in state.items() if value.is_floating_point()}
    with quiet():
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    new = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if lost := sorted(name for name in new if not name.startswith(NEW)):
        raise InputError(
            f"{folder} lacks {len(lost)} weight(s) of its config.json's BERT, or has them in "
            f"another shape: {', '.join(lost[:3])}; export or download it again"
        )
    return model, sorted({name.rsplit(".", 1)[0] for name in new})


def _their_config(own: BertConfig, entries: int) -> TheirConfig:
    left_out = {"architectures", *(() if own.has_no_answer else _NO_ANSWER)}
    fields = {name: getattr(own, name) for name in own.__struct_fields__ if name not in left_out}
    if own.id2label is None:
        del fields["id2label"]
    if (own.pad_token_id or 0) >= entries:
        fields["pad_token_id"] = None
    return TheirConfig(**fields | {"vocab_size": entries})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep `transformers` from printing; new and missing parts are reported in our words."""
    verbosity = transformers_logging.get_verbosity()
    has_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            transformers_logging.enable_progress_bar()

"""BERT folders: checks before anything is loaded, and models with a new head."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data loaders fork

import transformers
from transformers import AutoTokenizer, BertConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from scripts.finetuning.settings import InputError, Start

SAFE = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt*", "*.pkl", "*.h5", "*.msgpack")
NEW = ("classifier.", "qa_outputs.", "bert.pooler.", "pooler.")  # pretrained folders may lack them


def checked(folder: Path) -> dict[str, Any]:
    """The config.json of a BERT folder. Raises InputError on other folders and pickled weights."""
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}; model= takes a folder, such as runs/x/export. "
            f"Download a model of the hub with: hf download {folder} --local-dir FOLDER"
        )
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"{folder} is no Hugging Face folder: it has no config.json; "
            "export a run with python -m pretrain.export run=runs/x"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); write the folder again") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "bert":
        raise InputError(
            f"{path}: model_type is {kind!r}, but only 'bert' is supported; give a BERT"
        )
    if not any((folder / name).is_file() for name in SAFE):
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        if pickled:
            raise InputError(
                f"{folder} has its weights in {pickled[0]} alone, a format that can run code when "
                "it is read; get model.safetensors of the same model, or convert it on a "
                "disposable machine: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW)"
            )
        raise InputError(f"{folder} has no weights: model.safetensors is missing; export it again")
    return dict(config)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer.

    Raises InputError if it is missing, has more entries than fit or, as `transformers` loads it,
    another normalizer than its tokenizer.json.
    """
    config = checked(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise InputError(
            f"{folder} has no tokenizer: tokenizer.json and vocab.txt are missing; "
            "copy them from the model's source"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    if len(tokenizer) > config["vocab_size"]:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer):,} entries, the model embeddings for "
            f"{config['vocab_size']:,}; copy both from the same model"
        )
    _check_normalizer(folder / "tokenizer.json", tokenizer)
    return tokenizer


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
    class_name: str, folder: Path, start: Start, changes: Mapping[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """A model of this class of `transformers`, and the names of its new parts.

    `changes` go into its config. Torch's generator, which the caller seeds, draws a new head.
    Raises InputError if the folder lacks more than a head.
    """
    checked(folder)
    model_class = getattr(transformers, class_name)
    config = BertConfig.from_pretrained(folder)
    config.update(changes)
    if start is Start.random:
        return model_class(config), ["everything"]
    with quiet():
        model, report = model_class.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
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


def identity(folder: Path) -> str:
    """Checksum of config and weights, which identifies the model of a result."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


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

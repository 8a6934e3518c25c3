"""The weights that a run starts from if they are not random: run.init_from.

A Hugging Face BERT folder, a run (its newest whole checkpoint) or one of its checkpoints. Only the
weights are taken: moments, step and data position start from zero. A misfit is refused by the
folder's small files, before torch is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from data_prep.core.bert_folder import (
    WEIGHTS,
    check_shapes,
    read_config,
    read_shapes,
    read_weights,
    weight_files,
)
from data_prep.core.config import SettingsError, as_dict, choices, compose
from data_prep.core.files import checksum
from data_prep.core.printable import shortened
from data_prep.core.records import TextForm, read_record, typed
from data_prep.stores.shard_records import ShardsManifest, read_shards_manifest
from data_prep.tokenizer.released import Rules, differing, stated_rules
from data_prep.tokenizer.store import VocabManifest
from data_prep.tokenizer.vocab_file import read_vocab
from data_prep.tokenizer.wordpiece import make_tokenizer
from pretrain.checkpoint.files import STATE_FILE, find_fault, newest_whole, read_state
from pretrain.checkpoint.identity import init_from_of, vocab_checksum_of
from pretrain.config.limits import LIMITS
from pretrain.config.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.model.bert import BertForPreTraining

# Model settings that the weights depend on
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
)  # fmt: skip
_SAME = {"gelu_pytorch_tanh": "gelu_new"}  # activations with two names
_HEADS = ("pooler", "pair_head", "mlm_head")


@dataclass(frozen=True)
class InitWeights:
    """A folder with weights, known by its small files: no weight has been read."""

    folder: Path
    files: tuple[Path, ...]  # with the weights
    is_checkpoint: bool  # ours; otherwise a Hugging Face folder
    sizes: dict[str, Any]  # by the names in SIZES
    tokens: list[str]  # its vocabulary
    rules: Rules  # what its tokenizer states

    def identity(self, typed: str) -> dict[str, str]:
        """Its entry in a run's identity. Reads every byte of the weights."""
        sums = "".join(checksum(path) for path in self.files)
        one = sums if len(self.files) == 1 else xxhash.xxh3_128(sums.encode()).hexdigest()
        return {"folder": typed, "checksum": one}

    def check(self, settings: Settings, manifest: ShardsManifest) -> None:
        """Raise SettingsError if the run's model or vocabulary differs from the folder's.

        `manifest`: of the run's shards. The run's vocabulary may have more entries at its end.
        """
        wrong = [*self._other_sizes(settings.model), *self._other_vocabulary(settings, manifest)]
        if wrong:
            raise SettingsError("\n".join(wrong))

    def _other_sizes(self, model: ModelSettings) -> list[str]:
        differing = [
            f"model.{name} is {value} there and {getattr(model, name)} in this run"
            for name, value in self.sizes.items()
            if value != getattr(model, name)
        ]
        if not differing:
            return []
        return [
            f"run.init_from={self.folder} holds another model: {'; '.join(differing)}. Type "
            f"{_overrides(self.sizes)}"
        ]

    def _other_vocabulary(self, settings: Settings, manifest: ShardsManifest) -> list[str]:
        path = settings.data.folder / "vocab" / "vocab.txt"
        own = read_vocab(path)
        there, where = self.tokens, f"that of run.init_from={self.folder}"
        pairs = zip(own, there, strict=False)
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(own), len(there)))
        own_rules, wrong = manifest.rules, differing(self.rules, manifest.form)
        if first == len(there) and not wrong:
            return []
        language = _language_of(path.with_name("manifest.json"))
        same = f" language={language}" if language else ""
        cure = (
            f"prepare the data with its vocabulary: python -m data_prep.vocab data_dir="
            f"{settings.data.dir} vocab_file={_vocabulary_file(self.folder) or 'VOCAB.TXT'} "
            f"{self._to_type(wrong, language)} replace=true, then data_prep.encode{same}, then "
            f"data_prep.build{same} replace=true"
        )
        if first == len(there):
            own_wrong = {name: own_rules[name] for name in wrong}
            return [f"{path} has {typed(own_wrong)}, and {where} has {typed(wrong)}; {cure}"]
        ours = repr(own[first]) if first < len(own) else "nothing"
        return [
            f"{path} ({len(own):,} entries) is not {where} ({len(there):,} entries): entry {first} "
            f"is {ours} here and {there[first]!r} there; {cure}"
        ]

    def _to_type(self, wrong: Rules, language: str | None) -> str:
        """The settings of data_prep.vocab for its text form: those that are not the default."""
        if language:  # its profile has defaults of its own
            return f"language={language} {typed(self.rules)}".strip()
        if "lowercase" not in self.rules:
            return f"lowercase=true or false {typed(wrong)}".strip()
        more = differing(self.rules, TextForm(self.rules["lowercase"]))
        return typed({"lowercase": self.rules["lowercase"], **more, **wrong})

    def weights(
        self, model: BertForPreTraining, tokens: Sequence[str], form: TextForm
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights for all of `model`, by `named_parameters`, and facts about how they were made.

        A part that the folder lacks keeps the model's values. `tokens` is the run's vocabulary and
        `form` its text form: an entry after the folder's gets the mean of the rows of its pieces,
        or [UNK]'s if it has none. Raises SettingsError if a file cannot be read or the weights do
        not fit the model.
        """
        import torch

        from pretrain.huggingface.weights import starting_weights

        state = read_weights(self.files)
        dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
        own = {name: parameter.detach() for name, parameter in model.named_parameters()}
        if self.is_checkpoint:
            weights = {name: value for name, value in state.items() if name in own}
            new, left_out = sorted(set(own) - set(state)), sorted(set(state) - set(own))
            faults = [n for n in (*new, *left_out) if not n.startswith(_HEADS)]
            if faults:
                raise SettingsError(f"{self.folder} is no checkpoint of such a model: {faults[:3]}")
        else:
            try:
                weights, new, left_out = starting_weights(state, model.settings, model.pairing)
            except SettingsError as error:
                raise SettingsError(f"run.init_from={self.folder}: {error}") from error
        splitting = make_tokenizer(self.tokens, form)
        added = tokens[len(self.tokens) :]
        unknown = splitting.token_to_id("[UNK]")
        pieces = [
            splitting.encode(word, add_special_tokens=False).ids or [unknown] for word in added
        ]
        rows_there = weights["embeddings.word.weight"].shape[0]
        if rows_there < len(self.tokens):
            raise SettingsError(
                f"run.init_from={self.folder} has word embeddings of {rows_there:,} rows and a "
                f"vocabulary of {len(self.tokens):,} entries; get the vocabulary of these weights"
            )
        for name in ("embeddings.word.weight", "mlm_head.decoder.bias"):
            if name in weights:
                rows = torch.zeros_like(own[name])
                rows[: len(self.tokens)] = weights[name][: len(self.tokens)]
                for number, ids in enumerate(pieces, start=len(self.tokens)):
                    rows[number] = weights[name][ids].mean(0)
                weights[name] = rows
        for name, tensor in weights.items():
            if tensor.shape != own[name].shape:
                raise SettingsError(
                    f"run.init_from={self.folder}: {name} has the shape {list(tensor.shape)}, and "
                    f"the model {list(own[name].shape)}; get the weights again"
                )
        facts = {
            "folder": str(self.folder),
            "dtypes": dtypes,
            "taken": len(weights),
            "new": new,
            "left_out": left_out,
            "rows_beyond_vocabulary": 0 if self.is_checkpoint else rows_there - len(self.tokens),
            "added_words": len(added),
            "added_words_of_unknown_pieces": sum(unknown in ids for ids in pieces),
        }
        return {**own, **weights}, facts


def begin(settings: Settings, run_folder: Path) -> tuple[dict[str, str] | None, InitWeights | None]:
    """The entry of run.init_from in the run's identity, and its folder if the run begins with it.

    Both None without run.init_from. A run with a checkpoint continues with that one's identity and
    does not look at the folder again: it may be gone. Raises SettingsError as `find` and `check`.
    """
    typed = settings.run.init_from
    if typed is None:
        return None, None
    for path in sorted((run_folder / "checkpoints").glob("step-*"), reverse=True):
        try:
            known = init_from_of(read_state(path).identity)
        except (OSError, ValueError):
            continue  # broken; open_run_folder names it
        if known is not None and known["folder"] == typed:
            return known, None
    origin = find(typed)
    data = settings.data.folder / f"len{settings.data.seq_len}"
    origin.check(settings, read_shards_manifest(data))
    return origin.identity(typed), origin


def summary(identity: Mapping[str, str], facts: Mapping[str, Any], vocab_size: int) -> str:
    """What a run started from, for the log, and which loss to expect."""
    parts = [
        f"starts from the weights of {facts['folder']} (xxh3 {identity['checksum']}): "
        f"{facts['taken']} tensors"
    ]
    if facts["new"]:
        parts.append(f"new, from random weights: {', '.join(facts['new'])}")
    if "mlm_head.transform.weight" in facts["new"]:
        parts.append(
            "the MLM head is random, so that the MLM loss of the first steps is about ln "
            f"{vocab_size:,} = {math.log(vocab_size):.1f}, or a little more"
        )
    if facts["left_out"]:
        parts.append(f"left out: {', '.join(facts['left_out'])}")
    if facts["rows_beyond_vocabulary"]:
        parts.append(f"left out: {facts['rows_beyond_vocabulary']} rows beyond the vocabulary")
    if facts["added_words"]:
        unknown = facts["added_words_of_unknown_pieces"]
        parts.append(
            f"{facts['added_words']:,} added words, each from the mean of its pieces"
            + (f" ({unknown:,} of them from [UNK])" if unknown else "")
        )
    return "; ".join(parts)


def find(typed: str) -> InitWeights:
    """The folder that run.init_from names, known by its small files.

    Raises SettingsError if it is none, holds no BERT, or holds its weights only as pickles.
    """
    folder = Path(typed)
    if not folder.is_dir():
        raise SettingsError(
            f"run.init_from={typed} is no folder; it takes a Hugging Face BERT on this machine (hf "
            f"download google-bert/bert-base-uncased --local-dir bert-base-uncased), a run or a "
            "checkpoint"
        )
    if (folder / "config.json").is_file():
        return _hugging_face(folder)
    if (folder / STATE_FILE).is_file():
        return _checkpoint(folder)
    if (folder / "checkpoints").is_dir():
        newest = newest_whole(folder)
        if newest is None:
            raise SettingsError(f"run.init_from={typed}: that run has no whole checkpoint yet")
        return _checkpoint(newest)
    raise SettingsError(
        f"run.init_from={typed} holds neither config.json (a Hugging Face folder) nor {STATE_FILE} "
        "(a checkpoint) nor checkpoints/ (a run)"
    )


def _hugging_face(folder: Path) -> InitWeights:
    try:
        config, files = read_config(folder), weight_files(folder)
        tokens, rules = _vocabulary_of(folder)
        check_shapes(read_shapes(files), config, len(tokens), folder)
    except ValueError as error:
        raise SettingsError(f"run.init_from={folder}: {error}") from error
    sizes = {name: getattr(config, name) for name in SIZES}
    sizes["hidden_act"] = _SAME.get(sizes["hidden_act"], sizes["hidden_act"])
    if wrong := [fault for name, value in sizes.items() if (fault := _size_fault(name, value))]:
        raise SettingsError(
            f"run.init_from={folder}: {folder / 'config.json'} is not that of a BERT of this "
            f"project: {shortened('; '.join(wrong), 500)}; take the folder of one"
        )
    return InitWeights(folder, files, False, sizes, tokens, rules)


def _size_fault(name: str, value: Any) -> str | None:
    """Why no model of this project can have a size of a config.json; None if one can."""
    is_allowed, words = LIMITS[f"model.{name}"]
    return None if is_allowed(value) else f"{name} is {value!r}, and its models have {words}"


def _language_of(path: Path) -> str | None:
    """The language of the vocabulary with this manifest; None: en, or not known."""
    try:
        return read_record(path, VocabManifest, "").settings.language
    except (OSError, SettingsError):
        return None


def _vocabulary_file(folder: Path) -> Path | None:
    return next((p for n in ("tokenizer.json", "vocab.txt") if (p := folder / n).is_file()), None)


def _vocabulary_of(folder: Path) -> tuple[list[str], Rules]:
    """The vocabulary of a Hugging Face folder, and the rules that its tokenizer states."""
    path = _vocabulary_file(folder)
    if path is None:
        raise SettingsError(
            f"{folder} has neither tokenizer.json nor vocab.txt, without which its "
            "rows mean nothing; copy the tokenizer's files there"
        )
    return read_vocab(path), stated_rules(path)


def _checkpoint(folder: Path) -> InitWeights:
    """A checkpoint of ours, whole by its manifest."""
    if fault := find_fault(folder):
        raise SettingsError(f"run.init_from={folder}: that checkpoint is broken: {fault}")
    try:
        identity = read_state(folder).identity
    except ValueError as error:
        raise SettingsError(f"run.init_from={folder}: {error}") from error
    sizes = {name: identity[f"model.{name}"] for name in SIZES}
    vocab = _checkpoint_vocabulary(folder, vocab_checksum_of(identity))
    tokens, rules = read_vocab(vocab), stated_rules(vocab)
    return InitWeights(folder, (folder / WEIGHTS,), True, sizes, tokens, rules)


def _checkpoint_vocabulary(folder: Path, wanted: str) -> Path:
    """The vocab.txt with this checksum, of the run's export or its data."""
    from pretrain.config.load import settings_of

    run = folder.absolute().parent.parent
    paths = [run / "export" / "vocab.txt"]  # first: the data's may have been made again
    if (run / "config.yaml").is_file():
        paths.append(settings_of(run).data.folder / "vocab" / "vocab.txt")
    for path in paths:
        if path.is_file() and checksum(path) == wanted:
            return path
    raise SettingsError(
        f"run.init_from={folder}: its vocabulary (checksum {wanted}) is in none of "
        f"{', '.join(map(str, paths))}; put the vocab.txt that it was trained with in one of them"
    )


def _overrides(sizes: Mapping[str, Any]) -> str:
    """What to type for a model of these sizes: the nearest model, and what differs."""
    typed = []
    for model in choices("model"):
        given = as_dict(compose("config", Settings, [f"+model={model}"])[0])["model"]
        changes = [f"model.{n}={value}" for n, value in sizes.items() if given[n] != value]
        typed.append((len(changes), " ".join([f"+model={model}", *changes])))
    return min(typed)[1]

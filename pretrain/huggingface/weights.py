"""Converts weights between our names and those of `transformers.BertForPreTraining`, exactly.

A model without pairs is their BertForMaskedLM: the same names without pooler and pair head.

Three things differ: Hugging Face keeps queries, keys and values in three matrices instead of one,
stores no rows that only pad the vocabulary, and has other names. Tied tensors are stored once, as
`save_pretrained` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from data_prep.core.config import SettingsError
from data_prep.core.objectives import Pairing
from pretrain.config.settings import ModelSettings
from pretrain.model.bert import padded_vocab_size

# our module -> theirs, without `.weight` and `.bias`
_MODULES = {
    "embeddings.word": "bert.embeddings.word_embeddings",
    "embeddings.position": "bert.embeddings.position_embeddings",
    "embeddings.segment": "bert.embeddings.token_type_embeddings",
    "embeddings.norm": "bert.embeddings.LayerNorm",
    "mlm_head.transform": "cls.predictions.transform.dense",
    "mlm_head.norm": "cls.predictions.transform.LayerNorm",
}
_PAIR_MODULES = {"pooler": "bert.pooler.dense", "pair_head": "cls.seq_relationship"}
_LAYER_MODULES = {
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward_in": "intermediate.dense",
    "feed_forward_out": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
_QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
_WORDS = "bert.embeddings.word_embeddings.weight"
_WORD_BIAS = "cls.predictions.bias"
# parts that a folder may lack as a whole, by their prefixes
_OPTIONAL = ("bert.pooler.", "cls.seq_relationship.", "cls.predictions.")
# copies of tied tensors, and buffers in old files, which we do not need
_TIED = {"cls.predictions.decoder.weight": _WORDS, "cls.predictions.decoder.bias": _WORD_BIAS}
_BUFFERS = {"bert.embeddings.position_ids", "bert.embeddings.token_type_ids"}


def hugging_face_class(pairing: Pairing) -> str:
    """The class of `transformers` with exactly our weights."""
    return "BertForMaskedLM" if pairing is Pairing.none else "BertForPreTraining"


def to_hugging_face(
    state: Mapping[str, Tensor], settings: ModelSettings, vocab_size: int, pairing: Pairing
) -> dict[str, Tensor]:
    """Our weights, by `named_parameters`, under Hugging Face's names and without padding rows.

    Raises SettingsError if a weight is missing, unknown or has rows for another vocabulary.
    """
    names = list(_names(settings, pairing))
    _expect("our weights", state, {ours for ours, _ in names})
    converted: dict[str, Tensor] = {}
    for ours, theirs in names:
        pieces = state[ours].chunk(len(theirs))
        converted |= {name: piece.contiguous() for name, piece in zip(theirs, pieces, strict=True)}
    rows = padded_vocab_size(vocab_size, settings)
    for name in (_WORDS, _WORD_BIAS):
        if converted[name].shape[0] != rows:
            raise SettingsError(
                f"{name} has {converted[name].shape[0]} rows and a vocabulary of {vocab_size} "
                f"entries, padded, {rows}; take the vocabulary that the model was trained with"
            )
        converted[name] = converted[name][:vocab_size].contiguous()
    return converted


def from_hugging_face(
    state: Mapping[str, Tensor], settings: ModelSettings, vocab_size: int, pairing: Pairing
) -> dict[str, Tensor]:
    """The inverse: our weights by `named_parameters`, with zeros in the padding rows.

    Takes the names of older files, see `_today`. Raises SettingsError if a weight is missing,
    unknown or has another vocabulary's rows, or if a tied tensor is stored twice with two values.
    """
    given = _today(state)
    names = list(_names(settings, pairing))
    _expect("the Hugging Face weights", given, {name for _, theirs in names for name in theirs})
    for name in (_WORDS, _WORD_BIAS):
        if given[name].shape[0] != vocab_size:
            raise SettingsError(
                f"{name} has {given[name].shape[0]} rows and the vocabulary {vocab_size} entries; "
                "take the vocabulary that belongs to these weights"
            )
        padding = padded_vocab_size(vocab_size, settings) - vocab_size
        given[name] = torch.cat(
            [given[name], given[name].new_zeros(padding, *given[name].shape[1:])]
        )
    return {ours: torch.cat([given[name] for name in theirs]) for ours, theirs in names}


def starting_weights(
    state: Mapping[str, Tensor], settings: ModelSettings, pairing: Pairing
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Weights to start a run from: ours by `named_parameters`, vocabulary rows unchanged.

    Pooler, pair head and MLM head may each be absent, as in BertModel and BertForMaskedLM. Takes
    the names of older files, see `_today`. Also returns our names that are absent, and their names
    that are not used: heads of other tasks and, without pairs, pooler and pair head. Raises
    SettingsError if anything else is missing or unknown, or if a tied tensor is stored twice with
    two values.
    """
    given = _today(state)
    weights, new = {}, []
    for ours, theirs in _names(settings, pairing):
        if theirs[0] in given:
            weights[ours] = torch.cat([given[name] for name in theirs if name in given])
        else:
            new.append(ours)
    known = {name for _, theirs in _names(settings, Pairing.nsp) for name in theirs}
    wanted = {name for _, theirs in _names(settings, pairing) for name in theirs}
    absent = {part for part in _OPTIONAL if not any(name.startswith(part) for name in given)}
    missing = {n for n in wanted - set(given) if not n.startswith(tuple(absent))}
    left_out = sorted(set(given) - wanted)
    unknown = [n for n in left_out if n not in known and n.startswith(("bert.", "cls."))]
    if missing or unknown:
        raise SettingsError(_misfit("the Hugging Face weights", sorted(missing), unknown))
    return weights, new, left_out


def _today(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's weights under the names of today's BertForPreTraining, tied ones once.

    LayerNorm weights may have TensorFlow's names (gamma, beta), as in the first released files, and
    the decoder's bias its own. BertModel's names lack `bert.`. Any floating dtype is taken.
    """
    bare = "embeddings.word_embeddings.weight" in state  # BertModel
    given: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for old, new in (("gamma", "weight"), ("beta", "bias")):
            name = name.replace(f"LayerNorm.{old}", f"LayerNorm.{new}")
        name = f"bert.{name}" if bare else name
        if name not in _BUFFERS:
            given[name] = tensor.float() if tensor.is_floating_point() else tensor
    for copy, original in _TIED.items():
        second = given.pop(copy, None)
        if second is not None and not torch.equal(second, given.setdefault(original, second)):
            raise SettingsError(f"{copy} differs from {original}, to which it is tied in BERT")
    return given


def _names(settings: ModelSettings, pairing: Pairing) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each of our parameters, and those of theirs that it concatenates."""
    modules: dict[str, tuple[str, ...]]
    outside_layers = _MODULES | (_PAIR_MODULES if pairing is not Pairing.none else {})
    modules = {ours: (theirs,) for ours, theirs in outside_layers.items()}
    for i in range(settings.num_hidden_layers):
        ours, theirs = f"layers.{i}.", f"bert.encoder.layer.{i}."
        modules[ours + "qkv"] = tuple(theirs + name for name in _QKV)
        modules |= {ours + key: (theirs + value,) for key, value in _LAYER_MODULES.items()}
    for module, parts in modules.items():
        yield f"{module}.weight", tuple(f"{part}.weight" for part in parts)
        if module not in ("embeddings.word", "embeddings.position", "embeddings.segment"):
            yield f"{module}.bias", tuple(f"{part}.bias" for part in parts)
    yield "mlm_head.decoder.bias", (_WORD_BIAS,)


def _expect(what: str, state: Mapping[str, Tensor], names: set[str]) -> None:
    missing, unknown = sorted(names - set(state)), sorted(set(state) - names)
    if missing or unknown:
        raise SettingsError(_misfit(what, missing, unknown))


def _misfit(what: str, missing: list[str], unknown: list[str]) -> str:
    return (
        f"{what} do not fit these model settings: {len(missing)} missing {missing[:3]}, "
        f"{len(unknown)} unknown {unknown[:3]}; compare num_hidden_layers and data.pairs with them"
    )

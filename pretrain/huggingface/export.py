"""Writes the Hugging Face folder and checks it against stock `transformers`."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from data_prep.core.config import SettingsError
from data_prep.core.files import flush_to_disk, read_json, whole_or_absent, write_json
from data_prep.core.objectives import Pairing
from pretrain.config.settings import ModelSettings
from pretrain.huggingface.load import SAME_NAMES, TOKENIZER_FILES, load_tokenizer
from pretrain.huggingface.model_card import model_card
from pretrain.huggingface.weights import hugging_face_class, to_hugging_face
from pretrain.model.bert import BertForPreTraining
from pretrain.model.fill_mask import packed

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5  # between our logits and those of transformers, relative to the largest (or 1)


def export(
    state: Mapping[str, Tensor],
    settings: ModelSettings,
    pairing: Pairing,
    vocab_folder: Path,
    target: Path,
    card: Mapping[str, Any],
) -> None:
    """Write `target`: weights, config, tokenizer and a model card from `card` (see model_card).

    `state` holds fp32 weights by our parameter names, `vocab_folder` the tokenizer's files. An
    earlier export at `target` is replaced; other files are not. Raises SettingsError if vocabulary,
    weights and settings do not fit together, RuntimeError if `transformers` reads something else
    than was written.
    """
    tokenizer = load_tokenizer(vocab_folder)
    vocab_size = tokenizer.get_vocab_size()
    weights = to_hugging_face(state, settings, vocab_size, pairing)
    if target.exists() and not (target / "config.json").exists() and any(target.iterdir()):
        raise SettingsError(f"{target} holds files and is no earlier export; give another target=")
    with whole_or_absent(target, is_folder=True) as temporary:
        save_file(
            {name: tensor.float().contiguous() for name, tensor in weights.items()},
            temporary / "model.safetensors",
            metadata={"format": "pt"},
        )
        write_json(temporary / "config.json", _config(settings, tokenizer, pairing))
        # safetensors lets only the owner read its files
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")
        for name in TOKENIZER_FILES:
            shutil.copyfile(vocab_folder / name, temporary / name)
        tokenizer_config = read_json(vocab_folder / "tokenizer_config.json")
        tokenizer_config["model_max_length"] = settings.max_position_embeddings
        write_json(temporary / "tokenizer_config.json", tokenizer_config)
        write_card(temporary, card)
        check_export(temporary, state, settings, pairing)
        for path in temporary.iterdir():
            flush_to_disk(path)


def write_card(target: Path, card: Mapping[str, Any]) -> None:
    """Write the model card of an exported folder; for `card` see model_card."""
    with safe_open(target / "model.safetensors", "pt") as weights:
        sizes = [math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()]
    is_lowercase = bool(read_json(target / "tokenizer_config.json")["do_lower_case"])
    with whole_or_absent(target / "README.md") as temporary:
        temporary.write_text(model_card(card, sum(sizes), is_lowercase), encoding="utf-8")


def check_export(
    target: Path, state: Mapping[str, Tensor], settings: ModelSettings, pairing: Pairing
) -> float | None:
    """Largest difference between the folder's logits in `transformers` and ours from `state`.

    Relative to the largest logit (or 1), over random sequences; None if `transformers` is not
    installed. Raises RuntimeError if it is above TOLERANCE, or if a weight is missing, left over or
    of another shape.
    """
    if importlib.util.find_spec("transformers") is None:
        logger.info("transformers is not installed: the export is not checked against it")
        return None
    vocab_size = read_json(target / "config.json")["vocab_size"]
    ours = BertForPreTraining(settings, vocab_size, pairing).eval()
    ours.load_weights(state)
    lengths = [5, settings.max_position_embeddings // 2, min(64, settings.max_position_embeddings)]
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(vocab_size, (n,), generator=generator) for n in lengths]
    with _quiet_transformers(), torch.inference_mode():
        import transformers

        theirs, report = getattr(transformers, hugging_face_class(pairing)).from_pretrained(
            target, output_loading_info=True
        )
        if faults := {kind: sorted(names) for kind, names in report.items() if names}:
            raise RuntimeError(f"transformers does not load {target} as it was written: {faults}")
        theirs.eval()
        worst = 0.0
        for sequence in sequences:
            segments = (torch.arange(len(sequence)) >= len(sequence) // 2).long()
            segments.clamp_(max=settings.type_vocab_size - 1)
            everywhere = torch.arange(len(sequence))
            longest = settings.max_position_embeddings
            batch = packed([sequence], [segments], everywhere, longest)
            answer = theirs(input_ids=sequence[None], token_type_ids=segments[None])
            mlm_logits, pair_logits = ours.logits(batch)
            if pair_logits is None:
                worst = max(worst, _difference(mlm_logits, answer.logits[0]))
            else:
                worst = max(
                    worst,
                    _difference(mlm_logits, answer.prediction_logits[0]),
                    _difference(pair_logits, answer.seq_relationship_logits),
                )
    if worst > TOLERANCE:
        raise RuntimeError(
            f"the logits of {target} through transformers differ from ours by {worst:.1e} "
            f"(bound {TOLERANCE:.0e}); config.json and the weights do not fit together"
        )
    logger.info("the export's logits equal those of transformers to %.1e", worst)
    return worst


def _config(settings: ModelSettings, tokenizer: Tokenizer, pairing: Pairing) -> dict[str, Any]:
    """config.json of `transformers.BertConfig`."""
    return {
        **model_config(settings, tokenizer.get_vocab_size(), pairing),
        "pad_token_id": tokenizer.token_to_id("[PAD]"),
    }


def model_config(settings: ModelSettings, vocab_size: int, pairing: Pairing) -> dict[str, Any]:
    """The arguments of `transformers.BertConfig` for such a model, without the tokenizer's ids."""
    return {
        **{name: getattr(settings, name) for name in SAME_NAMES},
        "architectures": [hugging_face_class(pairing)],
        "model_type": "bert",
        "vocab_size": vocab_size,
        "classifier_dropout": None,
        "dtype": "float32",
        "tie_word_embeddings": True,
        "use_cache": True,
    }


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest logit (or 1); infinite if one is NaN."""
    difference = (ours - theirs).abs().max() / theirs.abs().max().clamp_min(1.0)
    return difference.nan_to_num(nan=float("inf")).item()


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep progress bars and messages of `transformers` off the terminal."""
    from transformers.utils import logging as theirs

    verbosity, has_bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if has_bars:
            theirs.enable_progress_bar()

"""The Hugging Face folder of a trained model: written, checked against `transformers`, read again.

    python -m pretrain.export run=runs/x [checkpoint=FOLDER] [target=FOLDER]

The folder holds what `from_pretrained` of stock `transformers` reads. It appears under its name when
all of it is there and, where `transformers` is installed, its logits have been found equal to ours.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from data_prep.core.config import SettingsError
from data_prep.core.files import flush_to_disk, read_json, whole_or_absent, write_json
from data_prep.core.objectives import Pairing
from pretrain.checkpoint.files import newest_whole
from pretrain.config.arguments import asks_for_help, named_words
from pretrain.config.phases import phases_of
from pretrain.config.settings import ModelSettings
from pretrain.data.corpus import folder_of
from pretrain.huggingface.model_card import model_card
from pretrain.huggingface.weights import from_hugging_face, hugging_face_class, to_hugging_face
from pretrain.metrics.monitor import readable_lines
from pretrain.model.bert import BertForPreTraining
from pretrain.model.fill_mask import Guesses, MaskedSentences, packed
from pretrain.run_folder.folder import settings_of

ARGUMENTS = {"run": "FOLDER", "checkpoint": "FOLDER", "target": "FOLDER"}
TOKENIZER_FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
TOLERANCE = 1e-5  # between our logits and those of transformers, in parts of the largest (or of 1)
_SAME_NAMES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
)

logger = logging.getLogger(__name__)


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
    earlier export at `target` is replaced, anything else there is not. Raises SettingsError where
    vocabulary, weights and settings do not belong together, RuntimeError where `transformers` reads
    something else from the folder than was written.
    """
    tokenizer = load_tokenizer(vocab_folder)
    vocab_size = tokenizer.get_vocab_size()
    weights = to_hugging_face(state, settings, vocab_size, pairing)
    if target.exists() and not (target / "config.json").exists() and any(target.iterdir()):
        raise SettingsError(f"{target} holds files and is no earlier export; give another target=")
    with whole_or_absent(target) as temporary:
        temporary.mkdir()
        save_file(
            {name: tensor.float().contiguous() for name, tensor in weights.items()},
            temporary / "model.safetensors",
            metadata={"format": "pt"},
        )
        write_json(temporary / "config.json", _config(settings, tokenizer, pairing))
        # safetensors lets the owner alone read its files
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")
        for name in TOKENIZER_FILES:
            shutil.copyfile(vocab_folder / name, temporary / name)
        tokenizer_config = read_json(vocab_folder / "tokenizer_config.json")
        tokenizer_config["model_max_length"] = settings.max_position_embeddings
        write_json(temporary / "tokenizer_config.json", tokenizer_config)
        num_parameters = sum(tensor.numel() for tensor in weights.values())
        is_lowercase = bool(tokenizer_config["do_lower_case"])
        (temporary / "README.md").write_text(model_card(card, num_parameters, is_lowercase))
        check_export(temporary, state, settings, pairing)
        for path in temporary.iterdir():
            flush_to_disk(path)
        if target.exists():
            shutil.rmtree(target)


def check_export(
    target: Path, state: Mapping[str, Tensor], settings: ModelSettings, pairing: Pairing
) -> float | None:
    """Largest difference between the folder's logits through `transformers` and ours from `state`.

    In parts of the largest logit (or of 1), over random sequences; None where `transformers` is not
    installed. Raises RuntimeError where it is above TOLERANCE, or where a weight is missing,
    left over or of another shape.
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
            f"(bound {TOLERANCE:.0e}); config.json and the weights do not belong together"
        )
    logger.info("the export's logits equal those of transformers to %.1e", worst)
    return worst


def load_exported(folder: Path) -> BertForPreTraining:
    """Our model, in eval mode, from a folder that `export` or `save_pretrained` wrote."""
    config = read_json(folder / "config.json")
    values = {name: config[name] for name in _SAME_NAMES}
    if values["hidden_act"] == "gelu_pytorch_tanh":  # another name of the same
        values["hidden_act"] = "gelu_new"
    settings = ModelSettings(**values, pad_vocab_size_multiple_of=1)
    has_pairs = "BertForPreTraining" in config["architectures"]
    pairing = Pairing.nsp if has_pairs else Pairing.none  # nsp and sop have the same weights
    model = BertForPreTraining(settings, config["vocab_size"], pairing)
    weights = load_file(folder / "model.safetensors")
    model.load_weights(from_hugging_face(weights, settings, config["vocab_size"], pairing))
    return model.eval()


def fill_masks(folder: Path, sentences: Sequence[str], top_k: int) -> list[Guesses]:
    """For each sentence, which holds one [MASK]: the `top_k` likeliest tokens, best first.

    With their probabilities, by the exported model at `folder`, without `transformers`. Raises
    SettingsError on a sentence with no [MASK] or several, or longer than the model's positions.
    """
    model = load_exported(folder)
    longest = model.settings.max_position_embeddings
    masked = MaskedSentences(sentences, load_tokenizer(folder), longest)
    with torch.inference_mode():
        return masked.read(model.logits(masked.batch)[0], top_k)


def export_run(
    run_folder: Path, checkpoint: Path | None = None, target: Path | None = None
) -> Path:
    """Export a run's newest whole checkpoint (or `checkpoint`) to <run>/export (or `target`).

    Returns the folder written. Raises SettingsError where there is no run or no checkpoint.
    """
    settings = settings_of(run_folder)
    checkpoint = checkpoint or newest_whole(run_folder)
    if checkpoint is None or not (checkpoint / "model.safetensors").exists():
        raise SettingsError(
            f"there is no whole checkpoint in {checkpoint or run_folder / 'checkpoints'}; train "
            "until the first is written, or give checkpoint=FOLDER"
        )
    step = read_json(checkpoint / "state.json")["step"]
    data_folder = Path(settings.data.dir)
    card = {
        "name": run_folder.resolve().name,
        "step": step,
        "settings": settings,
        "sources": {
            path.parent.name: read_json(path)["documents"]
            for path in sorted(data_folder.glob("documents/*/manifest.json"))
        },
        "data": [
            read_json(folder_of(phase.settings.data) / "manifest.json")
            for phase in phases_of(settings)
        ],
        "held_out": _held_out(run_folder / "metrics.jsonl", step),
        "start": _start(run_folder / "events.jsonl"),
    }
    target = target or run_folder / "export"
    state = load_file(checkpoint / "model.safetensors")
    export(state, settings.model, settings.data.pairs, data_folder / "vocab", target, card)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Export from the command line: 0, or 2 with a message where the arguments are wrong."""
    typed = sys.argv[1:] if argv is None else argv
    if asks_for_help(typed):
        sys.stdout.write(__doc__ or "")
        return 0
    try:
        words = named_words(typed, ARGUMENTS, needed=["run"])
        folders = {name: Path(value) for name, value in words.items()}
        run_folder = folders.pop("run")
        sys.stdout.write(f"export  {export_run(run_folder, **folders)}\n")
    except SettingsError as error:
        sys.stderr.write(f"pretrain.export: {error}\n")
        return 2
    return 0


def _held_out(metrics: Path, step: int) -> dict[str, float]:
    """The figures of the last held-out evaluation up to `step`; empty where there was none."""
    found: dict[str, float] = {}
    if metrics.exists():
        for line in metrics.read_bytes().splitlines():
            figures = orjson.loads(line)
            if "eval/mlm_loss" in figures and figures["step"] <= step:
                found = {key: value for key, value in figures.items() if key.startswith("eval/")}
    return found


def _start(events: Path) -> dict[str, Any] | None:
    """What the run started from; None: random weights."""
    starts = [e for e in readable_lines(events) if e["event"] == "init_from"]
    return starts[-1] if starts else None


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`. Raises SettingsError where a file is missing or two disagree."""
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


def _config(settings: ModelSettings, tokenizer: Tokenizer, pairing: Pairing) -> dict[str, Any]:
    """config.json of `transformers.BertConfig`."""
    return {
        **model_config(settings, tokenizer.get_vocab_size(), pairing),
        "pad_token_id": tokenizer.token_to_id("[PAD]"),
    }


def model_config(settings: ModelSettings, vocab_size: int, pairing: Pairing) -> dict[str, Any]:
    """What `transformers.BertConfig` takes for such a model, but for the tokenizer's ids."""
    return {
        **{name: getattr(settings, name) for name in _SAME_NAMES},
        "architectures": [hugging_face_class(pairing)],
        "model_type": "bert",
        "vocab_size": vocab_size,
        "classifier_dropout": None,
        "dtype": "float32",
        "tie_word_embeddings": True,
        "use_cache": True,
    }


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference in parts of the largest logit, or of 1; infinite where one is NaN."""
    difference = (ours - theirs).abs().max() / theirs.abs().max().clamp_min(1.0)
    return difference.nan_to_num(nan=float("inf")).item()


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and no notes of `transformers` on the terminal."""
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


if __name__ == "__main__":
    sys.exit(main())

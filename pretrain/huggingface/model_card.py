"""README.md of an exported model, filled from the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.core.config import as_dict, as_yaml
from data_prep.core.objectives import Pairing
from data_prep.core.printable import without_folder
from data_prep.stores.shard_records import ShardsManifest
from pretrain.config.phases import Phase, phases_of
from pretrain.config.settings import OptimSettings, Settings
from pretrain.huggingface.weights import hugging_face_class

CARD = """\
---
library_name: transformers
pipeline_tag: fill-mask
tags:
- bert
- pretraining
---

# {name}

BERT ({casing}; {layers} layers of size {hidden}, {heads} heads; {num_parameters:,} parameters),
pretrained from {start} by {objective}.

## Trained on

{data}

## Training

{training}

## Held-out metrics

{held_out}

## Use

```python
from transformers import AutoTokenizer, {class_name}

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {class_name}.from_pretrained("FOLDER")
```

{labels}

## Settings

```yaml
{settings}
```
"""
OBJECTIVES = {
    Pairing.nsp: "masked language modelling and next sentence prediction",
    Pairing.sop: "masked language modelling and sentence order prediction",
    Pairing.none: "masked language modelling alone",
}
HEADS = {"pooler": "pooler", "pair_head": "pair head", "mlm_head": "MLM head"}
LABELS = {
    Pairing.nsp: "`seq_relationship` is next sentence prediction: label 0 means that the second "
    "segment follows the first, 1 that it comes from another document.",
    Pairing.sop: "`seq_relationship` is sentence order prediction, instead of next sentence "
    "prediction: label 0 means that the second segment follows the first, 1 that the two are "
    "swapped.",
    Pairing.none: "Each input was one segment, `[CLS] text [SEP]`: there is no pooler. What needs "
    "one (`BertForSequenceClassification`) trains it from random weights.",
}


def model_card(card: Mapping[str, Any], num_parameters: int, is_lowercase: bool) -> str:
    """The card's Markdown. `card` holds what is known about the run:

    `name`; `step`, updates made; `settings`, a `Settings`; `sources`, documents per source; `data`,
    the manifest of each phase's shards; `held_out`, metrics of the last evaluation by label, empty
    if there was none; `start`, the event of run.init_from if there is one; `extended`, the events
    of run.extend up to `step`; `averaged`, the steps whose weights were averaged, if any were.
    """
    settings: Settings = card["settings"]
    pairing = settings.data.pairs
    return CARD.format(
        name=card["name"],
        casing="uncased" if is_lowercase else "cased",
        layers=settings.model.num_hidden_layers,
        hidden=settings.model.hidden_size,
        heads=settings.model.num_attention_heads,
        num_parameters=num_parameters,
        start=_start(card.get("start")),
        objective=OBJECTIVES[pairing],
        class_name=hugging_face_class(pairing),
        labels=LABELS[pairing],
        data=_data(card),
        training=_training(card),
        held_out=_held_out(card["held_out"]),
        settings=as_yaml(_without_folders(as_dict(settings))).rstrip(),
    )


def _without_folders(value: Any) -> Any:
    """Plain settings, every absolute path in them by its last part."""
    if isinstance(value, dict):
        return {name: _without_folders(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    return without_folder(value) if isinstance(value, str) else value


def _start(event: Mapping[str, Any] | None) -> str:
    """The weights before the run; a folder by its name, since its path is of this machine."""
    if event is None:
        return "random weights"
    folder = Path(event["folder"])
    is_checkpoint = folder.parent.name == "checkpoints"
    name = f"{folder.parent.parent.name}/{folder.name}" if is_checkpoint else folder.name
    parts = [f"xxh3 {event['checksum']}"]
    new = [
        f"the {head}"
        for part, head in HEADS.items()
        if any(name.startswith(f"{part}.") for name in event["new"])
    ]
    if new:
        parts.append(f"from random weights: {', '.join(new)}")
    if event["added_words"]:
        parts.append(f"{event['added_words']:,} added words from the means of their pieces")
    return f"the weights of `{name}` ({'; '.join(parts)})"


def _training(card: Mapping[str, Any]) -> str:
    """What each phase did up to `step`, a paragraph per phase, and how the run was extended."""
    first, paragraphs = 0, []
    extended = card.get("extended", [])
    for phase, manifest in zip(phases_of(card["settings"]), card["data"], strict=True):
        last_step, train = phase.settings.schedule.last_step, manifest.splits["train"]
        left = card["step"] - first
        steps = left if last_step is None else min(left, last_step)
        of_all = "" if last_step is None else f"of {last_step:,} "
        batches = _batches(phase, extended, first, steps)
        sequences = round(
            sum(n * optim.sequences_per_step(train.tokens / train.rows) for n, optim in batches)
        )
        by_tokens = any(optim.tokens_per_step is not None for _, optim in batches)
        sizes = batches[0][1].step_size
        if len(batches) > 1:
            sizes = ", then ".join(f"{optim.step_size} ({n:,} steps)" for n, optim in batches)
        paragraphs.append(
            f"{steps:,} {of_all}steps of {sizes}: {'about ' * by_tokens}{sequences:,} sequences of "
            f"up to\n{phase.settings.data.seq_len} tokens, {sequences / train.rows:.2f} passes "
            "over the training examples."
        )
        first += steps
    for event in extended:
        lines = "\n".join(f"- {change}" for change in event.changes)
        paragraphs.append(f"Continued after step {event.step:,} with other settings:\n\n{lines}")
    if averaged := card.get("averaged"):
        steps_of = ", ".join(f"{step:,}" for step in averaged)
        paragraphs.append(f"The weights are the mean of those after steps {steps_of}.")
    return "\n\n".join(paragraphs)


def _batches(
    phase: Phase, extended: Sequence[Any], first_step: int, steps: int
) -> list[tuple[int, OptimSettings]]:
    """Steps of a phase and the size of each, from the settings at its end back to its beginning.

    `extended`: as in `model_card`; `first_step`: updates made before the phase.
    """
    optim, end, found = phase.settings.optim, steps, []
    for event in reversed(extended):
        before = {
            change.name.removeprefix("optim."): change.before
            for change in event.changes
            if change.phase == phase.number
            and change.name in ("optim.global_batch", "optim.tokens_per_step")
        }
        if before:
            begin = min(end, max(0, event.step - first_step))
            found.append((end - begin, optim))
            end, optim = begin, dataclasses.replace(optim, **before)
    found.append((end, optim))
    return found[::-1]


def _data(card: Mapping[str, Any]) -> str:
    manifest: ShardsManifest = card["data"][0]
    what = "texts" if card["settings"].data.pairs is Pairing.none else "sentence pairs"
    lines = [f"- {name}: {count:,} documents" for name, count in card["sources"].items()]
    for split, name in (("train", "training"), ("heldout", "held-out")):
        facts = manifest.splits[split]
        lines.append(
            f"- {name} examples: {facts.rows:,} {what}, {facts.tokens:,} tokens, "
            f"{facts.masked_tokens:,} of them masked"
        )
    checksum = manifest.vocab_checksum
    lines.append(f"- vocabulary: {manifest.vocab_size:,} entries (xxh3 {checksum})")
    return "\n".join(lines)


def _held_out(metrics: Mapping[str, float | None]) -> str:
    if not metrics:
        return "None: the run was exported before its first held-out evaluation."
    rows = [
        f"| {label} | {'not finite' if value is None else f'{value:.4f}'} |"
        for label, value in metrics.items()
    ]
    return "\n".join(["| metric | value |", "|---|---|", *rows])

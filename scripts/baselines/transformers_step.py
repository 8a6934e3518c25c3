"""A training step of stock `transformers` and of ours: the same weights, examples and optimizer.

The loss of each variant is the mean over the masked tokens plus the mean over the pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.settings import Precision, Settings
from pretrain.data.packing import PackedBatch
from pretrain.huggingface.load import SAME_NAMES
from pretrain.huggingface.weights import to_hugging_face
from pretrain.model.bert import BertForPreTraining
from pretrain.model.compile import compile_parts
from pretrain.optim.optimizers import build_optimizer, parameter_groups

TOLERANCE = {False: 1e-5, True: 1e-2}  # of the losses, relative: fp32, bf16


@dataclass(frozen=True)
class Variant:
    """One way to compute the loss, with its model and optimizer."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], Tensor]

    def step(self) -> None:
        """Forward, backward, update."""
        torch.autograd.backward(self.loss())
        self.optimizer.step()
        self.optimizer.zero_grad()


def variants(
    settings: Settings, vocab_size: int, batch: PackedBatch, width: int, is_bf16: bool
) -> dict[str, Variant]:
    """Variants by name, `transformers` first; compiled ones and other attentions only on CUDA.

    Those of `transformers` share one model. They are padded to `width` tokens per sequence, or to
    the batch's longest.
    """
    device = batch.input_ids.device
    ours = packed_model(settings, vocab_size).to(device)
    theirs: Any = hugging_face_twin(ours).to(device).train()
    padded_to_width, padded_to_longest = (padded(batch, to) for to in (width, max(batch.lengths)))
    their_optimizer = optimizer_of(theirs, settings)

    def of_theirs(loss: Callable[[], Tensor], attention: str = "sdpa") -> Variant:
        def run() -> Tensor:
            if theirs.config._attn_implementation != attention:
                theirs.set_attn_implementation(attention)
            return loss()

        return Variant(theirs, their_optimizer, _autocast(run, device, is_bf16))

    def of_ours(model: BertForPreTraining) -> Variant:
        loss = _autocast(lambda: packed_loss(model, batch), device, is_bf16)
        return Variant(model, optimizer_of(model, settings), loss)

    found = {
        f"transformers, padded to {width}": of_theirs(lambda: theirs(**padded_to_width).loss),
        "transformers, padded to the longest": of_theirs(lambda: theirs(**padded_to_longest).loss),
        "transformers, head at masked positions": of_theirs(
            masked_head_loss(theirs, padded_to_width)
        ),
        "ours": of_ours(ours),
    }
    if device.type == "cuda":
        from transformers.utils import is_flash_attn_2_available

        compiled: Any = torch.compile(theirs, dynamic=False)
        found["transformers, compiled"] = of_theirs(lambda: compiled(**padded_to_width).loss)
        if is_bf16 and is_flash_attn_2_available():
            found["transformers, flash attention"] = of_theirs(
                lambda: theirs(**padded_to_width).loss, "flash_attention_2"
            )
        found["ours, compiled"] = of_ours(compiled_twin(ours, settings.engine.precision))
    return found


def check_equal_losses(found: dict[str, Variant], is_bf16: bool) -> dict[str, float]:
    """The losses by name, without dropout. Raises SystemExit if they differ."""
    losses = {}
    with torch.no_grad():
        for name, variant in found.items():
            variant.model.eval()
            losses[name] = variant.loss().item()
            variant.model.train()
    name, first = next(iter(losses.items()))
    for other, loss in losses.items():
        if not abs(loss - first) <= TOLERANCE[is_bf16] * abs(first):
            raise SystemExit(
                f"{other} has the loss {loss:.7g} and {name} {first:.7g}, on the same examples and "
                "weights: they compute different things, so their times are not compared"
            )
    return losses


def packed_model(settings: Settings, vocab_size: int) -> BertForPreTraining:
    """Our model, initialized with the run's seed."""
    model = BertForPreTraining(settings.model, vocab_size, settings.data.pairs)
    model.initialize(torch.Generator().manual_seed(settings.run.seed))
    return model.train()


def compiled_twin(model: BertForPreTraining, precision: Precision) -> BertForPreTraining:
    """A copy of the model, with the parts compiled that a run compiles."""
    twin = BertForPreTraining(model.settings, model.vocab_size, model.pairing)
    twin.load_weights(dict(model.named_parameters()))
    twin.to(next(model.parameters()).device)
    compile_parts(twin, precision, next(model.parameters()).device)
    return twin.train()


def packed_loss(model: BertForPreTraining, batch: PackedBatch) -> Tensor:
    """The mean over the masked tokens plus the mean over the pairs."""
    mlm_loss, pair_loss, *_ = model(batch)
    loss: Tensor = mlm_loss / batch.num_masked + pair_loss / batch.num_sequences
    return loss


def hugging_face_twin(model: BertForPreTraining) -> Any:
    """`transformers.BertForPreTraining` with the weights of `model`."""
    import transformers

    sizes = {name: getattr(model.settings, name) for name in SAME_NAMES}
    config = transformers.BertConfig(
        vocab_size=model.vocab_size, attn_implementation="sdpa", **sizes
    )
    theirs = transformers.BertForPreTraining(config)
    state = to_hugging_face(
        dict(model.named_parameters()), model.settings, model.vocab_size, model.pairing
    )
    theirs.load_state_dict(state, strict=False)
    theirs.tie_weights()
    return theirs


def padded(batch: PackedBatch, width: int) -> dict[str, Tensor]:
    """The batch in the form of `transformers`: (N, width) rows, label -100 outside the masks."""
    labels_T = torch.full_like(batch.input_ids, -100, dtype=torch.long)
    labels_T[batch.masked_positions] = batch.labels.long()

    def rows(packed_T: Tensor, fill: int) -> Tensor:
        shape = (len(batch.lengths), width)
        rows_NW = torch.full(shape, fill, device=packed_T.device)
        for row, sequence in zip(rows_NW, torch.split(packed_T, batch.lengths), strict=True):
            row[: len(sequence)] = sequence
        return rows_NW

    return {
        "input_ids": rows(batch.input_ids, 0),
        "token_type_ids": rows(batch.segment_ids, 0),
        "attention_mask": rows(torch.ones_like(batch.input_ids), 0),
        "labels": rows(labels_T, -100),
        "next_sentence_label": batch.next_sentence_labels.long(),
    }


def masked_head_loss(theirs: Any, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    """Their padded encoder with the head at masked positions only, to isolate packing's gain."""
    positions = (inputs["labels"].flatten() != -100).nonzero().flatten()
    labels = inputs["labels"].flatten()[positions]
    encoder_inputs = {k: v for k, v in inputs.items() if not k.endswith(("labels", "label"))}

    def loss() -> Tensor:
        out = theirs.bert(**encoder_inputs)
        logits = theirs.cls.predictions(out.last_hidden_state.flatten(0, 1)[positions])
        pair_logits = theirs.cls.seq_relationship(out.pooler_output)
        pair_loss = F.cross_entropy(pair_logits.float(), inputs["next_sentence_label"])
        return F.cross_entropy(logits.float(), labels) + pair_loss

    return loss


def _autocast(
    loss: Callable[[], Tensor], device: torch.device, is_bf16: bool
) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            return loss()

    return run


def optimizer_of(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer of a run, also for a model of `transformers`."""
    return build_optimizer(parameter_groups(model, settings.optim.weight_decay), settings.optim)

"""Losses and gradients of a training step, to be compared between two ways of computing them."""

import torch
from torch import Tensor

from pretrain.data.packing import PackedBatch
from pretrain.model.bert import BertForPreTraining

Outcome = tuple[Tensor, list[Tensor]]


def outcome(
    model: BertForPreTraining, batch: PackedBatch, seed: int = 0, is_autocast: bool = False
) -> Outcome:
    """The two losses of a training step from one seed, and all gradients."""
    model.zero_grad()
    torch.manual_seed(seed)
    with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=is_autocast):
        mlm_loss, pair_loss, *_ = model(batch)
    (mlm_loss + pair_loss).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return torch.stack([mlm_loss, pair_loss]).detach(), gradients


def assert_near(ours: Outcome, theirs: Outcome, bound: float) -> None:
    """Losses relatively, each gradient relative to its own largest number."""
    torch.testing.assert_close(ours[0].cpu(), theirs[0].cpu(), rtol=bound, atol=0)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert (a.cpu() - b.cpu()).abs().max() <= bound * b.abs().max().cpu()

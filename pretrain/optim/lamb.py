"""LAMB (You et al. 2020, arXiv 1904.00962): Adam with a trust ratio for each tensor.

The ratio is of norms of whole tensors. ZeRO gives the optimizer flat tensors that hold pieces of
many parameters, on many ranks. `attach` passes which pieces they are, and their squares are summed
over the ranks. So the result is that of whole tensors, for any ZeRO stage and number of ranks.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pretrain.config.settings import TrustRatio
from pretrain.optim.adam import ENDLESS_STEPS, adam_state, fused_adamw
from pretrain.optim.norms import squared_norms


@dataclass(frozen=True)
class Piece:
    """The part of one parameter that a flat tensor of this rank holds."""

    name: str  # of the parameter
    start: int  # in the flat tensor
    numel: int  # 0 where this rank holds nothing of it


class Lamb(Optimizer):
    """LAMB. One update of a tensor w with the gradient g, after clipping:

        m = b1 m + (1 - b1) g          without grad_averaging: m = b1 m + g
        v = b2 v + (1 - b2) g²
        u = m^ / (sqrt(v^) + eps) + decay w
                                       m^ = m / (1 - b1^t), v^ = v / (1 - b2^t); without
                                       bias_correction they are m and v
        w = w - lr ratio u             ratio = |w| / |u|, and 1 where either norm is 0

    trust_ratio selects the tensors that take the ratio, the others have 1: `all`, as the paper's
    algorithm 2, or `decayed`, those with a weight decay, as its authors' code (tensorflow/addons)
    and apex's FusedLAMB. State per tensor: see `adam_state`.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0,
        bias_correction: bool = True,
        grad_averaging: bool = True,
        trust_ratio: TrustRatio = TrustRatio.all,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self._bias_correction = bias_correction
        self._grad_averaging = grad_averaging
        self._trust_ratio = trust_ratio
        self._pieces: dict[Tensor, list[Piece]] = {}
        self._sum_over_ranks: Callable[[Tensor], object] | None = None
        # by the names of the parameters that are updated together
        self._ratios: dict[tuple[str, ...], Tensor] = {}
        self._held: dict[tuple[str, ...], Tensor] = {}

    def attach(
        self,
        pieces: Mapping[Tensor, Sequence[Piece]],
        sum_over_ranks: Callable[[Tensor], object] | None,
    ) -> None:
        """Pass the pieces that each tensor holds. Before the first step.

        A flat tensor's pieces name the same parameters in the same order on every rank, including
        those of which this rank holds nothing. `sum_over_ranks` sums a float64 tensor in place;
        None if every rank holds whole parameters.
        """
        self._pieces = {tensor: list(of_tensor) for tensor, of_tensor in pieces.items()}
        self._sum_over_ranks = sum_over_ranks

    def trust_ratios(self) -> dict[str, float]:
        """Ratios of the last update by parameter, if it takes one. Waits for the device."""
        return {
            name: ratio
            for names, ratios in self._ratios.items()
            for name, ratio in zip(names, ratios.tolist(), strict=True)
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all tensors that have a gradient; on a CPU the gradients are overwritten.

        DeepSpeed calls it once per group.
        """
        assert closure is None, "the gradients exist before the step: no closure is called"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates = self._updates(params, group)
            if self._trust_ratio is TrustRatio.all or group["weight_decay"]:
                self._add_scaled(params, updates, group["lr"])
            else:
                torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _updates(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Update the moments; u of each tensor, on a CPU in place of its gradient."""
        states = [adam_state(self, p) for p in params]
        for state in states:
            state["step"] += 1
        step = int(states[0]["step"])
        beta_1, beta_2 = group["betas"]
        gradients = [p.grad for p in params if p.grad is not None]
        if self._grad_averaging and params[0].device.type == "cpu":
            # One pass over the memory instead of nine, and no new memory: torch's fused AdamW,
            # w (1 - lr decay) - lr m^ / (sqrt(v^) + eps) of the gradient as w, with lr = decay = -1
            before = float(step if self._bias_correction else ENDLESS_STEPS) - 1
            fused_adamw(gradients, gradients, states, before, group, lr=-1.0, weight_decay=-1.0)
            if group["weight_decay"]:
                torch._foreach_add_(gradients, params, alpha=group["weight_decay"])
            return gradients
        moments, squares = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq"))
        torch._foreach_mul_(moments, beta_1)
        torch._foreach_add_(moments, gradients, alpha=1 - beta_1 if self._grad_averaging else 1.0)
        torch._foreach_mul_(squares, beta_2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta_2)
        updates = torch._foreach_sqrt(squares)
        if self._bias_correction:
            torch._foreach_div_(updates, (1 - beta_2**step) ** 0.5)
        torch._foreach_add_(updates, group["eps"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, moments)
        if self._bias_correction:
            torch._foreach_div_(updates, 1 - beta_1**step)
        torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        return list(updates)

    def _add_scaled(self, params: list[Tensor], updates: list[Tensor], lr: float) -> None:
        """Subtract lr times each piece of the updates times its parameter's ratio."""
        names: list[str] = []
        held: list[int] = []  # indices of the names of which this rank holds a piece
        of_weights: list[Tensor] = []
        of_updates: list[Tensor] = []
        for weight, update in zip(params, updates, strict=True):
            flat_weight, flat_update = weight.view(-1), update.view(-1)
            for piece in self._pieces.get(weight, [Piece("", 0, weight.numel())]):
                if piece.numel:
                    held.append(len(names))
                    part = slice(piece.start, piece.start + piece.numel)
                    of_weights.append(flat_weight[part])
                    of_updates.append(flat_update[part])
                names.append(piece.name)
        group, device = tuple(names), params[0].device
        if group not in self._held:  # once: copying a list to the device waits for it
            self._held[group] = torch.tensor(held, dtype=torch.long, device=device)
        squares = torch.zeros(2, len(names), dtype=torch.float64, device=device)
        if held:
            of_pieces = squared_norms(of_weights + of_updates).view(2, -1)
            squares.index_copy_(1, self._held[group], of_pieces)
        if self._sum_over_ranks is not None:  # also on a rank that holds nothing
            self._sum_over_ranks(squares)
        weight_norms, update_norms = squares.sqrt()
        has_both = (weight_norms > 0) & (update_norms > 0)
        ratios = torch.where(has_both, weight_norms / update_norms, 1.0)
        self._ratios[group] = ratios
        if not held:
            return
        of_held = ratios[self._held[group]]
        if device.type == "cpu":  # one pass: on a CPU reading the ratios costs nothing
            for weight, update, ratio in zip(of_weights, of_updates, of_held.tolist(), strict=True):
                weight.add_(update, alpha=-lr * ratio)
        else:
            torch._foreach_mul_(of_updates, list(of_held.to(params[0].dtype).unbind()))
            torch._foreach_add_(of_weights, of_updates, alpha=-lr)


def layer_means(ratios: Mapping[str, float]) -> dict[str, float]:
    """Mean ratios of the embeddings, of each layer and of the heads, by the names of the metrics.

    `ratios` are those of parameters, by name. The metrics are optim/trust_ratio/embeddings,
    optim/trust_ratio/layer_00, ..., optim/trust_ratio/heads (MLM head, pair head and its pooler).
    """
    groups: dict[str, list[float]] = {}
    for name, ratio in ratios.items():
        first, *rest = name.split(".")
        label = f"layer_{int(rest[0]):02d}" if first == "layers" else first
        label = label if label.startswith(("layer_", "embeddings")) else "heads"
        groups.setdefault(f"optim/trust_ratio/{label}", []).append(ratio)
    return {label: statistics.fmean(values) for label, values in sorted(groups.items())}

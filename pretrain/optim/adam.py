"""The BERT paper's own Adam, and the parts that it shares with LAMB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

# AdamW's bias correction 1 - beta ** step is exactly 1 here, and adding 1 changes nothing
ENDLESS_STEPS = 1e9


def adam_state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The parameter's exp_avg, exp_avg_sq and step (fp32 scalar: updates made), 0 at first."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state


def fused_adamw(
    weights: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Tensor]],
    step: float,
    group: dict[str, Any],
    **changes: Any,
) -> None:
    """One update by torch's fused AdamW with the hyperparameters of `group`, or `changes` of them.

    `step`: updates made before, for the bias correction.
    """
    hyper = {name: group[name] for name in ("lr", "weight_decay", "eps")} | changes
    adamw(
        weights,
        gradients,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [torch.full((), step, device=weight.device) for weight in weights],
        fused=True,
        amsgrad=False,
        maximize=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        **hyper,
    )


class BertAdam(Optimizer):
    """Adam as in google-research/bert, optimization.py (AdamWeightDecayOptimizer).

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g²;  w = w - lr (m / (sqrt(v) + eps) + decay w). No
    bias correction; eps is outside the root; the decay is decoupled. That is AdamW's formula after
    endless steps, so torch's fused AdamW computes it. State per parameter: see `adam_state`.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        assert closure is None, "the gradients exist before the step: no closure is called"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            states = [adam_state(self, p) for p in params]
            for state in states:
                state["step"] += 1
            fused_adamw(params, [p.grad for p in params], states, ENDLESS_STEPS, group)

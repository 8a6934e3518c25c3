"""Parameter groups and optimizers: AdamW, the BERT paper's own Adam; LAMB is in lamb.py.

Both Adams are elementwise, so they may be given whole tensors or the flat shards that ZeRO cuts
from them: the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw

from pretrain.config.settings import OptimizerName, OptimSettings
from pretrain.optim.lamb import ENDLESS_STEPS, Lamb


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, in this order: decayed (matrices, embeddings) and not (biases, LayerNorm).

    As google-research/bert, optimization.py: its names `LayerNorm`, `layer_norm` and `bias` are
    excluded. Each trainable tensor is in exactly one group, the tied matrix once.
    """
    excluded = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.LayerNorm) or name == "bias":
                excluded.add(parameter)
    trainable = [p for p in model.parameters() if p.requires_grad]
    decay = [p for p in trainable if p not in excluded]
    no_decay = [p for p in trainable if p in excluded]
    assert len({*decay, *no_decay}) == len(decay) + len(no_decay) == len(trainable), (
        "each trainable tensor must be in exactly one parameter group"
    )
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]


def build_optimizer(groups: list[dict[str, Any]], settings: OptimSettings) -> Optimizer:
    """The optimizer `settings.name` over `groups`; the learning rate is set anew for each step."""
    beta_1, beta_2 = settings.betas
    if settings.name is OptimizerName.bert_adam:
        return BertAdam(groups, settings.learning_rate, (beta_1, beta_2), settings.eps)
    if settings.name is OptimizerName.lamb:
        return Lamb(
            groups,
            settings.learning_rate,
            (beta_1, beta_2),
            settings.eps,
            bias_correction=settings.bias_correction,
            grad_averaging=settings.grad_averaging,
            trust_ratio=settings.trust_ratio,
        )
    # fused: one pass over the memory, on the CPU too
    return AdamW(groups, settings.learning_rate, (beta_1, beta_2), settings.eps, fused=True)


class BertAdam(Optimizer):
    """Adam as in google-research/bert, optimization.py (AdamWeightDecayOptimizer).

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g²;  w = w - lr (m / (sqrt(v) + eps) + decay w).
    No bias correction; eps is outside the root; the decay is decoupled. That is AdamW's formula
    where the correction has died out, so torch's fused AdamW computes it, told so. State of a
    parameter: exp_avg, exp_avg_sq, step (fp32 scalar: updates made).
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
        """One update of all parameters that have a gradient."""
        assert closure is None, "the gradients are there before the step: no closure is called"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            states = [self._state(p) for p in params]
            for state in states:
                state["step"] += 1
            beta_1, beta_2 = group["betas"]
            adamw(
                params,
                [p.grad for p in params],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [torch.full((), ENDLESS_STEPS, device=p.device) for p in params],
                fused=True,
                amsgrad=False,
                beta1=beta_1,
                beta2=beta_2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

"""Parameter groups and optimizers: AdamW, the BERT paper's own Adam, LAMB, Muon, plug-ins.

Both Adams are elementwise: whole tensors and the flat shards that ZeRO cuts from them give the same
result.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from pretrain.config.settings import MUON_SETTINGS, OptimizerName, OptimSettings
from pretrain.optim.adam import BertAdam
from pretrain.optim.lamb import Lamb
from pretrain.optim.matrices import is_matrix
from pretrain.optim.muon import MATRICES, Muon
from pretrain.optim.plugin import build_plugin


def parameter_groups(
    model: nn.Module, weight_decay: float, optimizer: OptimizerName = OptimizerName.adamw
) -> list[dict[str, Any]]:
    """Two groups, in this order: decayed (matrices, embeddings) and not (biases, LayerNorm).

    As google-research/bert, optimization.py: its names `LayerNorm`, `layer_norm` and `bias` are
    excluded. Each trainable tensor is in exactly one group, the tied matrix once. For Muon the
    matrices of the layers are a group of their own, the first. Each group has its label.
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
    groups: list[dict[str, Any]] = [
        {"label": "decayed", "params": decay, "weight_decay": weight_decay},
        {"label": "not decayed", "params": no_decay, "weight_decay": 0.0},
    ]
    if optimizer is OptimizerName.muon:
        matrices = {n: p for n, p in model.named_parameters() if is_matrix(n, p.dim())}
        groups[0]["params"] = [p for p in decay if p not in {*matrices.values()}]
        groups.insert(0, {
            "label": MATRICES, "names": [*matrices], "params": [*matrices.values()],
            "weight_decay": weight_decay,
        })  # fmt: skip
    return groups


def build_optimizer(groups: list[dict[str, Any]], settings: OptimSettings) -> Optimizer:
    """The optimizer `settings.name` over `groups`; the engine sets the rate of each step.

    Raises SettingsError for a plug-in that does not keep its contract.
    """
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
    if settings.name is OptimizerName.plugin:
        return build_plugin(groups, settings)
    if settings.name is OptimizerName.muon:
        own = {name: getattr(settings, name) for name in (*MUON_SETTINGS, "equal_rows")}
        assert None not in own.values(), "config.checks.check refuses this"
        return Muon(groups, settings.learning_rate, (beta_1, beta_2), settings.eps, **own)
    # fused: one pass over the memory, on the CPU too
    return AdamW(groups, settings.learning_rate, (beta_1, beta_2), settings.eps, fused=True)

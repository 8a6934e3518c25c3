"""Optimizers of other packages, and the contract that they keep.

A checkpoint holds of each parameter exp_avg, exp_avg_sq and a number of steps, and the engine
updates whole parameters or any part of them. So an optimizer must have no other state, and update
each element by itself. Both, and that it takes the rate of the step, is tried on a few numbers
before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from data_prep.plugins.entry_points import Plugin, load_plugin
from pretrain.config.settings import OptimSettings

Make = Callable[[list[dict[str, Any]], OptimSettings], Optimizer]

_STATE = {"step", "exp_avg", "exp_avg_sq"}
_COUNT = 8  # elements


def build_plugin(groups: list[dict[str, Any]], settings: OptimSettings) -> Optimizer:
    """The optimizer `settings.plugin` over `groups`.

    Raises SettingsError, naming its file and what it breaks, if it does not keep the contract.
    """
    plugin = load_plugin("optimizers", settings.plugin, "optim.plugin")
    device = groups[0]["params"][0].device
    try:
        fault = _fault(plugin, settings, device)
        optimizer = plugin.what(groups, settings)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise plugin.refusal(f"fails ({reason})") from error
    if fault is not None:
        raise plugin.refusal(fault)
    assert isinstance(optimizer, Optimizer), "_fault has seen one"
    return optimizer


def _fault(plugin: Plugin, settings: OptimSettings, device: torch.device) -> str | None:
    """What an optimizer breaks of the contract; None: nothing."""
    whole = _Trial(plugin.what, settings, [_COUNT], device)
    if not isinstance(whole.optimizer, Optimizer):
        return f"returns the type {type(whole.optimizer).__name__}, not a torch.optim.Optimizer"
    start = whole.weights()
    whole.step(1, rate=0.0)
    if not torch.equal(whole.weights(), start):
        return "changes weights at the rate 0; it must take group['lr'] in each step"
    whole.step(2)
    if names := whole.unknown_state():
        return (
            f"keeps {', '.join(names)} in its state, which no checkpoint holds; it must keep "
            "nothing but step, exp_avg and exp_avg_sq"
        )
    resumed = _Trial(plugin.what, settings, [_COUNT], device)
    resumed.load(whole)
    for trial in (whole, resumed):
        trial.step(3)
    if not torch.equal(whole.weights(), resumed.weights()):
        return (
            "does not continue from its step, exp_avg and exp_avg_sq as if it had not stopped; it "
            "must keep nothing else"
        )
    parts = _Trial(plugin.what, settings, [3, _COUNT - 3], device)
    parts.step(1, rate=0.0)
    for number in (2, 3):
        parts.step(number)
    if not torch.allclose(whole.weights(), parts.weights(), rtol=1e-5, atol=1e-7):
        return (
            "updates a tensor in another way than its two parts; ZeRO cuts tensors, so each "
            "element must be updated by itself"
        )
    return None


class _Trial:
    """An optimizer over a few weights in one tensor or several, as the engine uses it."""

    def __init__(
        self, make: Make, settings: OptimSettings, sizes: Sequence[int], device: torch.device
    ) -> None:
        self._sizes, self._rate = list(sizes), settings.learning_rate
        values = torch.linspace(-1, 1, _COUNT, device=device)
        self._params = [torch.nn.Parameter(p.clone()) for p in torch.split(values, self._sizes)]
        decay = settings.weight_decay
        group = {"label": "decayed", "params": self._params, "weight_decay": decay}
        self.optimizer = make([group], settings)
        if isinstance(self.optimizer, Optimizer):
            for param in self._params:
                self.optimizer.state[param] = self._new_state(param)

    def _new_state(self, param: Tensor) -> dict[str, Tensor]:
        is_fused = self.optimizer.defaults.get("fused")
        return {
            "step": torch.zeros((), device=param.device if is_fused else "cpu"),
            "exp_avg": torch.zeros_like(param, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(param, requires_grad=False),
        }

    def step(self, number: int, rate: float | None = None) -> None:
        """The update with this number, at the settings' rate or another."""
        values = torch.linspace(0.1, number, _COUNT, device=self._params[0].device).sin()
        for param, grad in zip(self._params, torch.split(values, self._sizes), strict=True):
            param.grad = grad.clone()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate if rate is None else rate
        self.optimizer.step()

    def weights(self) -> Tensor:
        return torch.cat([param.detach().clone() for param in self._params])

    def unknown_state(self) -> list[str]:
        """The entries of the state that no checkpoint holds."""
        entries = {str(name) for param in self._params for name in self.optimizer.state[param]}
        others = ["more than parameters"] if len(self.optimizer.state) > len(self._params) else []
        return sorted(entries - _STATE) + others

    def load(self, other: _Trial) -> None:
        """Take over the weights and what a checkpoint holds of the state."""
        for param, source in zip(self._params, other._params, strict=True):
            param.data.copy_(source.data)
            for name in _STATE:
                self.optimizer.state[param][name].copy_(other.optimizer.state[source][name])

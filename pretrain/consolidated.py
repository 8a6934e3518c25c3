"""The engine's state on disk: whole tensors by parameter name, and no trace of how it was sharded.

model.safetensors      fp32 master weights
optimizer.safetensors  exp_avg.<parameter> and exp_avg_sq.<parameter>, fp32
engine.json            what has to be the same on both sides, optimizer step, loss scaler
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_prep.configuration import SettingsError
from data_prep.files import read_json, write_json

SCHEMA_VERSION = 1
MODEL_FILE, OPTIMIZER_FILE, ENGINE_FILE = (
    "model.safetensors",
    "optimizer.safetensors",
    "engine.json",
)
WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Layout:
    """What has to be the same in the run that writes a state and in the run that reads it."""

    optimizer: str
    shapes: dict[str, list[int]]  # of each parameter
    groups: dict[str, str]  # the label of the parameter group that each parameter is in

    def check(self, stored: Layout, folder: Path) -> None:
        """Raise SettingsError where the state in `folder` is not for this run."""
        cure = "take the settings and the code with which it was written, or another run.name"
        if stored.optimizer != self.optimizer:
            raise SettingsError(
                f"{folder} was written with optim={stored.optimizer} and this run has "
                f"optim={self.optimizer}; {cure}"
            )
        for what, then, now in (
            ("shape", stored.shapes, self.shapes),
            ("parameter group", stored.groups, self.groups),
        ):
            names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
            if names:
                raise SettingsError(
                    f"{names[0]} (one of {len(names)}) has the {what} {then.get(names[0])!r} in "
                    f"{folder} and {now.get(names[0])!r} in this run; {cure}"
                )


def write(
    folder: Path,
    tensors: dict[str, dict[str, Tensor]],
    layout: Layout,
    optimizer_step: int,
    loss_scaler: dict[str, Any] | None,
) -> None:
    """Write a state into `folder`. `tensors`: {weight or moment: {parameter: value on the CPU}}."""
    save_file(tensors[WEIGHT], folder / MODEL_FILE)
    moments = {f"{key}.{name}": t for key in MOMENTS for name, t in tensors[key].items()}
    save_file(moments, folder / OPTIMIZER_FILE)
    state = {
        "schema_version": SCHEMA_VERSION,
        **dataclasses.asdict(layout),
        "optimizer_step": optimizer_step,
        "loss_scaler": loss_scaler,
    }
    write_json(folder / ENGINE_FILE, state)
    for name in (MODEL_FILE, OPTIMIZER_FILE):  # safetensors lets the owner alone read its files
        shutil.copymode(folder / ENGINE_FILE, folder / name)


def read_small(folder: Path, layout: Layout) -> tuple[int, dict[str, Any] | None]:
    """Optimizer step and loss scaler of the state in `folder`, once it is known to fit `layout`."""
    state = read_json(folder / ENGINE_FILE)
    if state["schema_version"] != SCHEMA_VERSION:
        raise SettingsError(
            f"{folder} has schema version {state['schema_version']} and this code reads version "
            f"{SCHEMA_VERSION}; continue with the code that wrote it"
        )
    layout.check(Layout(state["optimizer"], state["shapes"], state["groups"]), folder)
    return state["optimizer_step"], state["loss_scaler"]


def read_tensors(folder: Path) -> Iterator[tuple[str, str, Tensor]]:
    """(weight or moment, parameter, value) of all there is, one in memory at a time."""
    with safe_open(folder / MODEL_FILE, "pt") as weights:
        for name in weights.keys():
            yield WEIGHT, name, weights.get_tensor(name)
    with safe_open(folder / OPTIMIZER_FILE, "pt") as moments:
        for label in moments.keys():
            key, name = label.split(".", 1)
            yield key, name, moments.get_tensor(label)

"""The engine's state on disk: whole tensors by parameter name, and no trace of how it was sharded.

model.safetensors      fp32 master weights
optimizer.safetensors  exp_avg.<parameter> and exp_avg_sq.<parameter>, fp32
engine.json            what has to be the same on both sides, optimizer step, loss scaler
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_prep.core.config import SettingsError
from data_prep.core.files import read_json, write_json

SCHEMA_VERSION = 1
MODEL_FILE, OPTIMIZER_FILE, ENGINE_FILE = (
    "model.safetensors",
    "optimizer.safetensors",
    "engine.json",
)
WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")


def state_bytes(num_parameters: int) -> int:
    """What the files take, but for some kilobytes: fp32 weights and moments."""
    return 4 * num_parameters * (1 + len(MOMENTS))


@dataclass(frozen=True)
class Layout:
    """What has to be the same in the run that writes a state and in the run that reads it."""

    optimizer: str
    shapes: dict[str, list[int]]  # of each parameter
    groups: dict[str, str]  # the label of the parameter group that each parameter is in

    @property
    def num_parameters(self) -> int:
        """Elements of all of them."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def state_bytes(self) -> int:
        """What a state takes, but for some kilobytes: fp32 weights and moments."""
        return state_bytes(self.num_parameters)

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


@dataclass
class Snapshot:
    """A state in memory of its own, on rank 0: training may go on while it is written."""

    layout: Layout
    tensors: dict[str, dict[str, Tensor]]  # {weight or moment: {parameter: fp32 on the CPU}}
    optimizer_step: int = 0
    loss_scaler: dict[str, Any] | None = None  # None but in fp16

    @classmethod
    def allocate(cls, layout: Layout, device: torch.device) -> Snapshot:
        """Memory for one state, used for every save; page-locked where `device` is a GPU.

        Every byte is touched: what is not there is missed now, and not at the first save. Raises
        RuntimeError where it is not.
        """
        is_cuda = device.type == "cuda"
        try:
            tensors = {
                key: {
                    name: torch.empty(shape, pin_memory=is_cuda).zero_()
                    for name, shape in layout.shapes.items()
                }
                for key in (WEIGHT, *MOMENTS)
            }
        except (MemoryError, RuntimeError) as error:
            raise RuntimeError(
                f"the host of rank 0 has no {layout.state_bytes / 1e9:,.1f} GB for the copy of weights "
                f"and moments from which checkpoints are written ({error}); give the job more memory "
                "(sbatch --mem=), or train a smaller model"
            ) from error
        return cls(layout, tensors)

    def write(self, folder: Path) -> dict[str, str]:
        """Write it into `folder`, which exists; the checksums of the tensors' files, by name."""
        moments = {f"{key}.{name}": t for key in MOMENTS for name, t in self.tensors[key].items()}
        state = {
            "schema_version": SCHEMA_VERSION,
            **dataclasses.asdict(self.layout),
            "optimizer_step": self.optimizer_step,
            "loss_scaler": self.loss_scaler,
        }
        write_json(folder / ENGINE_FILE, state)
        checksums = {}
        for file, tensors in ((MODEL_FILE, self.tensors[WEIGHT]), (OPTIMIZER_FILE, moments)):
            checksums[file] = _write_tensors(folder / file, tensors)
            shutil.copymode(folder / ENGINE_FILE, folder / file)  # else the owner alone reads it
        return checksums


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a safetensors file; the checksum (as `data_prep.core.files.checksum`) that it must have.

    It is that of the tensors in memory, and not of what the disk gives back: what goes wrong on the
    way is found when the file is read. Python's lock is free meanwhile, so that training goes on.
    """
    save_file(tensors, path)
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        size = file.read(8)
        header = file.read(int.from_bytes(size, "little"))
    digest.update(size + header)
    places = {name: entry["data_offsets"] for name, entry in orjson.loads(header).items()}
    for name in sorted(places, key=lambda name: places[name]):
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


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

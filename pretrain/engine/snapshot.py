"""The engine's state on disk: whole tensors by parameter name, whatever the sharding.

model.safetensors      fp32 master weights
optimizer.safetensors  exp_avg.<parameter> and exp_avg_sq.<parameter>, fp32; no exp_avg_sq of
                       matrices that Muon updates
engine.json            layout (must match when it is loaded), optimizer step, loss scaler
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import weakref
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
from torch.cuda._pin_memory_utils import pin_memory, unpin_memory

from data_prep.core.config import SettingsError
from data_prep.core.files import read_json, write_json
from pretrain.optim.muon import MATRICES

SCHEMA_VERSION = 1
MODEL_FILE, OPTIMIZER_FILE, ENGINE_FILE = (
    "model.safetensors",
    "optimizer.safetensors",
    "engine.json",
)
WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")


def state_bytes(num_parameters: int, num_of_muon: int = 0) -> int:
    """Size of the files within some kilobytes: fp32 weights and moments.

    Those parameters that Muon updates have one moment.
    """
    return 4 * (num_parameters * (1 + len(MOMENTS)) - num_of_muon)


@dataclass(frozen=True)
class Layout:
    """What must match between the run that writes a state and the run that reads it."""

    optimizer: str
    shapes: dict[str, list[int]]  # of each parameter
    groups: dict[str, str]  # parameter -> label of its parameter group

    @property
    def num_parameters(self) -> int:
        """Number of elements of all parameters."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def state_bytes(self) -> int:
        """Size of a state on disk, within some kilobytes."""
        second = sum(math.prod(self.shapes[name]) for name in self.names(MOMENTS[1]))
        return state_bytes(self.num_parameters, self.num_parameters - second)

    def names(self, key: str) -> list[str]:
        """The parameters that have this weight or moment; Muon's matrices lack exp_avg_sq."""
        return [n for n in self.shapes if key != MOMENTS[1] or self.groups[n] != MATRICES]

    def allocate(self, key: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Memory for one key of all parameters in one row, and their views, fp32 on the CPU."""
        shapes = {name: self.shapes[name] for name in self.names(key)}
        sizes = [math.prod(shape) for shape in shapes.values()]
        # touched by writing zeros
        flat = torch.empty(sum(sizes)).zero_()
        named = zip(shapes.items(), torch.split(flat, sizes), strict=True)
        return flat, {name: part.view(shape) for (name, shape), part in named}

    def check(self, stored: Layout, folder: Path) -> None:
        """Raise SettingsError if the state in `folder` does not fit this run."""
        cure = "use the settings and the code with which it was written, or another run.name"
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
    """A copy of the state in rank 0's memory: training goes on while it is written."""

    layout: Layout
    tensors: dict[str, dict[str, Tensor]]  # {weight or moment: {parameter: fp32 on the CPU}}
    optimizer_step: int = 0
    loss_scaler: dict[str, Any] | None = None  # None unless in fp16

    @classmethod
    def allocate(cls, layout: Layout, device: torch.device) -> Snapshot:
        """Allocate memory for one state, reused for every save; page-locked if `device` is a GPU.

        Touches every byte, so that missing memory is noticed now and not at the first save. Raises
        RuntimeError if there is too little.
        """
        try:
            memory = {key: layout.allocate(key) for key in (WEIGHT, *MOMENTS)}
            snapshot = cls(layout, {key: views for key, (_, views) in memory.items()})
            if device.type == "cuda":
                snapshot._lock_pages([flat for flat, _ in memory.values()])
        except (MemoryError, RuntimeError) as error:
            raise RuntimeError(
                f"the host of rank 0 lacks {layout.state_bytes / 1e9:,.1f} GB for "
                f"the copy of weights and moments that checkpoints are written from ({error}); "
                "give the job more memory (sbatch --mem=), or train a smaller model"
            ) from error
        return snapshot

    def _lock_pages(self, memory: list[Tensor]) -> None:
        """Lock these pages as long as the snapshot lives, for copies that the GPU makes alone.

        Not by `pin_memory=True`: torch's allocator rounds each tensor up to a power of two, which
        is 2.1 GB for the 1.3 GB of base, and keeps the memory when a phase ends.
        """
        for flat in memory:
            pin_memory(flat.data_ptr(), flat.nbytes)
            weakref.finalize(self, unpin_memory, flat.data_ptr()).atexit = False

    def write(self, folder: Path) -> dict[str, str]:
        """Write into the existing `folder`; returns the checksums of the tensors' files by name."""
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
            shutil.copymode(
                folder / ENGINE_FILE, folder / file
            )  # otherwise only the owner can read it
        return checksums


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a safetensors file; returns the checksum (as `core.files.checksum`) that it must have.

    It is computed from the tensors in memory, not from the file, so that errors of the disk are
    found when the file is read. Python's lock is released meanwhile: training goes on.
    """
    save_file(tensors, path)
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        size = file.read(8)
        header = file.read(int.from_bytes(size, "little"))
    digest.update(size + header)
    offsets = {name: entry["data_offsets"] for name, entry in orjson.loads(header).items()}
    for name in sorted(offsets, key=lambda name: offsets[name]):
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def read_small(folder: Path, layout: Layout) -> tuple[int, dict[str, Any] | None]:
    """Optimizer step and loss scaler of the state in `folder`.

    Raises SettingsError if it does not fit `layout`.
    """
    state = read_json(folder / ENGINE_FILE)
    if state["schema_version"] != SCHEMA_VERSION:
        raise SettingsError(
            f"{folder} has schema version {state['schema_version']} and this code reads version "
            f"{SCHEMA_VERSION}; continue with the code that wrote it"
        )
    layout.check(Layout(state["optimizer"], state["shapes"], state["groups"]), folder)
    return state["optimizer_step"], state["loss_scaler"]


def read_tensors(folder: Path) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (weight or moment, parameter, value).

    A value is a view of the mapped file: only the pages that its reader touches are read.
    """
    with safe_open(folder / MODEL_FILE, "pt") as weights:
        for name in weights.keys():
            yield WEIGHT, name, weights.get_tensor(name)
    with safe_open(folder / OPTIMIZER_FILE, "pt") as moments:
        for label in moments.keys():
            key, name = label.split(".", 1)
            yield key, name, moments.get_tensor(label)

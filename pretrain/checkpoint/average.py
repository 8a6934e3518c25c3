"""The mean of the weights of a run's last checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from data_prep.core.config import SettingsError
from pretrain.checkpoint.files import find_fault, read_state


def last_checkpoints(run_folder: Path, last: int) -> list[Path]:
    """The newest `last` checkpoints of a run, or all if it has fewer; the oldest is the first.

    Reads every byte of them. Raises SettingsError if there are fewer than two, if one is damaged,
    or if they are of more than one phase.
    """
    folder = run_folder / "checkpoints"
    found = sorted(folder.glob("step-*"))[-last:]
    if len(found) < 2:
        raise SettingsError(
            f"{folder} has {len(found)} checkpoint(s), and a mean takes 2 or more; train on with "
            "checkpoint.keep=5, or with checkpoint.keep_every=N to keep every N-th step's"
        )
    for path in found:
        if fault := find_fault(path):
            raise SettingsError(f"checkpoint {path} is damaged ({fault}); move it out of {folder}")
    phases = [read_state(path).phase for path in found]
    if phases[0] != phases[-1]:
        of_last = phases.count(phases[-1])
        cure = f"give last={of_last}" if of_last > 1 else "train on until it has two"
        raise SettingsError(
            f"{found[0]} is of phase {phases[0]} and {found[-1].name} of phase {phases[-1]}; a "
            f"mean takes checkpoints of one phase: {cure}"
        )
    return found


def mean_weights(checkpoints: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of each parameter over the checkpoints, fp32 by our names.

    Summed in float64, with one checkpoint at a time in memory. Raises SettingsError if they have
    other parameters, or of other shapes, than the last one.
    """
    last = load_file(checkpoints[-1] / "model.safetensors")
    sums = {name: tensor.double() for name, tensor in last.items()}
    for path in checkpoints[:-1]:
        weights = load_file(path / "model.safetensors")
        for name in sorted({*weights, *last}):
            shapes = [tuple(of[name].shape) if name in of else None for of in (weights, last)]
            if shapes[0] != shapes[1]:
                raise SettingsError(
                    f"{path}: {name} has the shape {shapes[0]}, and {shapes[1]} in "
                    f"{checkpoints[-1].name}, so it is of another model; move it out of "
                    f"{path.parent}"
                )
            sums[name] += weights[name]
    return {name: (total / len(checkpoints)).to(torch.float32) for name, total in sums.items()}

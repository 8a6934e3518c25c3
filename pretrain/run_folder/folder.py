"""runs/<run.name>/: opened by rank 0, which decides where the run continues."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from data_prep.core.config import SettingsError, as_dict, as_overrides, as_yaml, compose
from data_prep.core.files import read_json, whole_or_absent, write_json
from pretrain.config.phases import phases_of
from pretrain.config.settings import Resume, Settings
from pretrain.huggingface.init_from import IDENTITY

PACKAGES = (
    "torch",
    "deepspeed",
    "numpy",
    "numba",
    "pyarrow",
    "tokenizers",
    "transformers",
    "wandb",
)


# Groups of settings that decide which numbers come out, and that a phase may change
_DECIDING = ("data", "optim", "schedule")


def identity(
    settings: Settings, manifests: list[dict[str, Any]], initial: dict[str, str] | None = None
) -> dict[str, Any]:
    """What may not change while a run continues: whatever decides which numbers come out.

    `manifests` are those of each phase's shards, `initial` what run.init_from holds (initial.begin).
    The number of ranks and the ZeRO stage are free, as they do not; so is the token budget, but where
    it decides how many sequences a step has.
    """
    everything = as_dict(settings)
    budget = {
        f"engine.tokens_per_micro_batch of phase {phase.number}": (
            phase.settings.engine.tokens_per_micro_batch
        )
        for phase in phases_of(settings)
        if phase.settings.optim.tokens_per_step is not None
    }
    return {
        IDENTITY: initial,
        **budget,
        "place in the data": "examples taken",  # earlier versions counted batches
        "run.seed": settings.run.seed,
        "engine.precision": settings.engine.precision.name,
        "data.masking": settings.data.masking.name,
        "data.pairs": settings.data.pairs.name,
        "data.seq_len": settings.data.seq_len,
        "data (checksum of the vocabulary)": manifests[0]["vocab_checksum"],
        "data (training shards)": _together(manifests[0]["splits"]["train"]["shards"]),
        "phases": [
            {
                # earlier versions kept the positions always, and did not say so
                **{n: v for n, v in phase.items() if (n, v) != ("positions", "kept")},
                "changes": {g: v for g, v in phase["changes"].items() if g in _DECIDING},
            }
            for phase in everything["phases"]
        ],
        **{
            f"data (training shards of phase {number})": _together(m["splits"]["train"]["shards"])
            for number, m in enumerate(manifests[1:], start=2)
        },
        **{
            f"{group}.{name}": value
            for group in ("model", "optim", "schedule")
            for name, value in everything[group].items()
        },
    }


def folder_of_run(settings: Settings) -> Path:
    """Where it lies."""
    return Path(settings.run.dir) / str(settings.run.name)


def open_run_folder(folder: Path, settings: Settings, now: dict[str, Any]) -> Path | None:
    """Make the folder, write config.yaml and environment.json; the checkpoint to continue from.

    `now` is the run's identity. None means step 0. Raises SettingsError where run.resume forbids
    what is found, where all checkpoints are broken and where the newest belongs to a run with other
    settings or data.
    """
    from pretrain.checkpoint.files import find_fault, newest_whole

    newest = newest_whole(folder)
    saved = sorted((folder / "checkpoints").glob("step-*"))
    resume = settings.run.resume
    if newest is None and saved and resume is not Resume.never:
        raise SettingsError(
            f"none of the {len(saved)} checkpoints in {folder / 'checkpoints'} is whole:\n"
            + "".join(f"  {path.name}: {find_fault(path)}\n" for path in saved)
            + "Delete that folder to start at step 0, or type another run.name"
        )
    if newest is None and resume is Resume.must:
        raise SettingsError(
            f"run.resume=must, but there is no checkpoint in {folder / 'checkpoints'}; check "
            "run.name and run.dir, or start with run.resume=auto"
        )
    if saved and resume is Resume.never:
        raise SettingsError(
            f"run.resume=never, but {folder / 'checkpoints'} holds {saved[-1].name}, which would "
            "be overwritten; type another run.name, or delete that folder"
        )
    if newest is not None:
        _refuse_another_run(newest, now)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_or_absent(folder / "config.yaml") as temporary:
        temporary.write_text(as_yaml(settings))
    write_json(folder / "environment.json", environment())
    return newest


def settings_of(folder: Path) -> Settings:
    """The settings of the run in `folder`. What its version did not have is as in conf/.

    Raises SettingsError where there is no run, or one of a version that had other settings.
    """
    from omegaconf import OmegaConf

    path = folder / "config.yaml"
    if not path.exists():
        raise SettingsError(f"{path} is missing; run= takes the folder of a run, as in run=runs/x")
    plain = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(plain, dict)
    try:
        overrides = as_overrides({str(group): values for group, values in plain.items()})
        return compose("config", Settings, ["+model=base", *overrides])[0]
    except (ValueError, AttributeError) as error:  # a SettingsError is a ValueError
        raise SettingsError(
            f"{path} cannot be read ({error}); use the version of this project that wrote it"
        ) from error


def _refuse_another_run(checkpoint: Path, now: dict[str, Any]) -> None:
    before = read_json(checkpoint / "state.json")["identity"]
    changed = [
        f"  {name}: {before.get(name)} then, {now.get(name)} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise SettingsError(
            f"{checkpoint} cannot be continued, its run had other settings:\n"
            + "\n".join(changed)
            + "\nType another run.name for a new run, or the settings of that one"
        )


def _together(shards: list[dict[str, Any]]) -> str:
    """One checksum for the shards of a split, in their order."""
    return xxhash.xxh3_128("".join(shard["checksum"] for shard in shards).encode()).hexdigest()


def environment() -> dict[str, Any]:
    """Versions, commit and hardware, for the record."""
    root = Path(__file__).resolve().parents[2]
    return {
        "python": platform.python_version(),
        "packages": package_versions(PACKAGES),
        "commit": _git(root, "rev-parse", "HEAD"),
        "has_uncommitted_changes": bool(_git(root, "status", "--porcelain")),
        "host": platform.node(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
    }


def package_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Versions by package; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _git(root: Path, *words: str) -> str | None:
    """What git answers; None outside a checkout or without git."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()

"""Checkpoints: whole or absent, found by their manifests, the newest of them kept.

A checkpoint is the folder <run>/checkpoints/step-00001000. It is written under another name; its
manifest, with the size and checksum of every other file, comes last; then it is renamed. Whatever
ends the process, under the final name there is a whole checkpoint or none.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from data_prep.files import checksum, flush_to_disk, read_json, write_json

if TYPE_CHECKING:
    from pretrain.engine import Engine
    from pretrain.ranks import Ranks

SCHEMA_VERSION = 1
STATE_FILE, MANIFEST_FILE = "state.json", "manifest.json"

logger = logging.getLogger(__name__)


class NotSavedError(RuntimeError):
    """A checkpoint could not be written. Raised on every rank; those before it are still there."""


def save_checkpoint(
    run_folder: Path,
    step: int,
    state: dict[str, Any],
    engine: Engine,
    ranks: Ranks,
    keep: int,
    keep_every: int | None = None,
) -> Path:
    """Save `state` (JSON) and the engine's state as the checkpoint of `step`; remove old ones.

    The newest `keep` stay, and those of the steps that are multiples of `keep_every`. Collective;
    every rank returns once the checkpoint is whole. Raises NotSavedError on every rank where rank 0
    cannot write, or sees beforehand that the disk has no room.
    """
    folder = run_folder / "checkpoints"
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    failure = None
    try:
        if ranks.rank == 0:
            _remove_leftovers(folder)
            temporary.mkdir(parents=True)
            _refuse_a_small_disk(folder, engine.state_bytes)
    except OSError as error:
        failure = str(error)
    _agree(ranks, failure, temporary)
    try:
        engine.save(temporary)  # rank 0 writes after the last collective: a failure leaves no gap
        if ranks.rank == 0:
            write_json(temporary / STATE_FILE, state)
            _seal(temporary)
            _put_in_place(temporary, final)
            _remove_old(folder, step, keep, keep_every)
    except (OSError, SafetensorError) as error:
        failure = str(error)
    _agree(ranks, failure, temporary)
    return final


def newest_whole(run_folder: Path) -> Path | None:
    """The newest checkpoint whose manifest holds; None where there is none.

    Reads every byte of the ones it looks at: call it on one rank. A broken one is passed over, with
    a warning that names it and what is wrong.
    """
    for path in sorted((run_folder / "checkpoints").glob("step-*"), reverse=True):
        fault = find_fault(path)
        if fault is None:
            return path
        logger.warning("checkpoint %s is broken and passed over: %s", path, fault)
    return None


def load_checkpoint(
    path: Path, engine: Engine, ranks: Ranks, forget: Collection[str] = ()
) -> dict[str, Any]:
    """Put the engine into the state of the checkpoint at `path`; the `state` it was saved with.

    `forget` is as in Engine.load. Collective; every rank reads `path`. Raises SettingsError where it
    does not fit this run.
    """
    engine.load(path, forget)
    ranks.barrier()  # no rank starts a step, or removes a checkpoint, while another still reads
    state: dict[str, Any] = read_json(path / STATE_FILE)
    return state


def find_fault(path: Path) -> str | None:
    """What is wrong with the checkpoint at `path`, by its manifest; None if it is whole."""
    manifest_path = path / MANIFEST_FILE
    if not manifest_path.is_file():
        return f"{MANIFEST_FILE} is missing"
    try:
        manifest = read_json(manifest_path)
        files = manifest["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_FILE} cannot be read"
    if manifest["schema_version"] != SCHEMA_VERSION:
        return f"it has schema version {manifest['schema_version']}, known is {SCHEMA_VERSION}"
    for name, facts in files:
        if not (path / name).is_file():
            return f"{name} is missing"
        if (size := (path / name).stat().st_size) != facts["bytes"]:
            return f"{name} has {size} bytes instead of {facts['bytes']}"
        if checksum(path / name) != facts["checksum"]:
            return f"{name} is not what was written: its checksum differs"
    return None


def _refuse_a_small_disk(folder: Path, need: int) -> None:
    """OSError where so many bytes are not free. A quota is not seen here, but by the write itself."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise OSError(errno.ENOSPC, f"it takes {need / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free")


def _agree(ranks: Ranks, failure: str | None, temporary: Path) -> None:
    """Raise on every rank where rank 0 failed, so that none waits for it; the half-made part goes."""
    if failure is not None:
        shutil.rmtree(temporary, ignore_errors=True)  # it may hold the last free bytes
    failure = ranks.broadcast(failure)
    if failure is not None:
        raise NotSavedError(
            f"checkpoint {temporary.parent / temporary.name[1:-4]} could not be written ({failure}); "
            "make room or mend the disk and start again: the run continues from the checkpoint before"
        )


def _seal(folder: Path) -> None:
    """Flush every file to the disk and write the manifest that vouches for them."""
    files = {}
    for path in sorted(folder.iterdir()):
        flush_to_disk(path)
        files[path.name] = {"bytes": path.stat().st_size, "checksum": checksum(path)}
    write_json(folder / MANIFEST_FILE, {"schema_version": SCHEMA_VERSION, "files": files})


def _put_in_place(temporary: Path, final: Path) -> None:
    """Give a sealed folder its name; a broken checkpoint of that name makes way."""
    if final.exists():
        os.rename(final, final.with_name(f".{final.name}.replaced.tmp"))
    os.rename(temporary, final)
    flush_to_disk(final.parent)
    _remove_leftovers(final.parent)


def _remove_old(folder: Path, step: int, keep: int, keep_every: int | None) -> None:
    """Keep the newest `keep` up to `step`, and each of a step that `keep_every` divides.

    Later ones are broken, or the run would have continued from them; they count for nothing.
    """
    older = sorted(path for path in folder.glob("step-*") if path.name <= f"step-{step:08d}")
    for path in older[:-keep]:
        if keep_every is None or int(path.name.removeprefix("step-")) % keep_every:
            shutil.rmtree(path)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)

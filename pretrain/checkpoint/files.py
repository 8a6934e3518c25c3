"""Checkpoints: whole or absent, found by their manifests; the newest are kept.

A checkpoint is the folder <run>/checkpoints/step-00001000. It is written under another name. Its
manifest, with the size and checksum of every other file, is written last; then the folder is
renamed. So the final name has a whole checkpoint or none, however the process ends.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from data_prep.core.files import checksum, flush_to_disk, remove_folder, write_json
from data_prep.core.records import Record, check_file_name, read_record
from pretrain.checkpoint.progress import CheckpointState

if TYPE_CHECKING:
    from pretrain.distributed.ranks import Ranks
    from pretrain.engine.engine import Engine
    from pretrain.engine.snapshot import Snapshot

SCHEMA_VERSION: Final = 1
STATE_FILE, MANIFEST_FILE = "state.json", "manifest.json"

logger = logging.getLogger(__name__)


class Keep(NamedTuple):
    """Which checkpoints stay: the newest, those of steps that `every` divides, that of `step`."""

    newest: int
    every: int | None = None
    step: int | None = None

    def too_old(self, names: Iterable[str], last: str) -> list[str]:
        """Those of the folders' names that go, now that there is `last`.

        Later ones are not counted: they are broken, or the run would have continued from them.
        """
        older = sorted({name for name in names if name <= last})
        steps = {name: int(name.removeprefix("step-")) for name in older[: -self.newest]}
        return [
            name
            for name, step in steps.items()
            if step != self.step and (self.every is None or step % self.every)
        ]


class FileEntry(Record):
    """One file in the manifest."""

    bytes: int
    checksum: str


class CheckpointManifest(Record):
    """manifest.json, written last: it vouches for every other file."""

    schema_version: Literal[1]
    files: dict[str, FileEntry]


def read_checkpoint_manifest(checkpoint: Path) -> CheckpointManifest:
    """Read the manifest of a checkpoint. Raises ValueError as `read_record` does."""
    cure = "it is broken, or continues only with the version that wrote it"
    path = checkpoint / MANIFEST_FILE
    manifest = read_record(path, CheckpointManifest, cure, follow_links=False)
    for name in manifest.files:
        check_file_name(name)
    return manifest


def read_state(checkpoint: Path) -> CheckpointState:
    """Read state.json of a checkpoint. Raises ValueError if another version wrote it."""
    cure = "continue with the version that wrote it, or type another run.name"
    return read_record(checkpoint / STATE_FILE, CheckpointState, cure, follow_links=False)


def path_of(run_folder: Path, step: int) -> Path:
    """The path of the checkpoint of `step` once it is whole."""
    return run_folder / "checkpoints" / f"step-{step:08d}"


def make_room(path: Path, need: int) -> None:
    """Remove what a killed save left, and make the temporary folder of the checkpoint at `path`.

    Raises OSError if `need` bytes are not free. A quota is only noticed by the write itself.
    """
    _remove_leftovers(path.parent)
    temporary_of(path).mkdir(parents=True)
    free = shutil.disk_usage(path.parent).free
    if free < need:
        raise OSError(errno.ENOSPC, f"it takes {need / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free")


def write_checkpoint(
    path: Path,
    state: CheckpointState,
    snapshot: Snapshot,
    keep: Keep,
    is_in_use: Callable[[Path], bool] = lambda path: False,
) -> int:
    """Write `snapshot` and `state` as the checkpoint at `path`; return its bytes.

    Call `make_room` first. Old checkpoints are then removed, unless `keep` says otherwise or they
    are in use. Raises OSError or SafetensorError.
    """
    temporary = temporary_of(path)
    checksums = snapshot.write(temporary)
    write_json(temporary / STATE_FILE, state)
    num_bytes = _seal(temporary, checksums)
    put_in_place(temporary, path)
    _remove_old(path, keep, is_in_use)
    return num_bytes


def newest_whole(run_folder: Path) -> Path | None:
    """The newest checkpoint that agrees with its manifest; None if there is none.

    Reads every byte: call it on one rank. A broken one is skipped with a warning that names its
    fault.
    """
    for path in sorted((run_folder / "checkpoints").glob("step-*"), reverse=True):
        fault = find_fault(path)
        if fault is None:
            return path
        logger.warning("checkpoint %s is broken and passed over: %s", path, fault)
    return None


def put_aside_after(run_folder: Path, origin: Path) -> Path:
    """Move the checkpoints after `origin` into the run's folder `decayed`, and copy its metrics.

    So the run can go on from `origin`, and what its decay gave is not lost. Returns that folder.
    """
    aside = run_folder / "decayed"
    aside.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(run_folder / "metrics.jsonl", aside)
    for path in sorted((run_folder / "checkpoints").glob("step-*"), reverse=True):
        if path.name > origin.name:
            remove_folder(aside / path.name)
            os.rename(path, aside / path.name)
    return aside


def newest_step(run_folder: Path) -> int:
    """The step of the newest checkpoint, by its name alone; 0 if there is none."""
    paths = (run_folder / "checkpoints").glob(f"step-{'[0-9]' * 8}")
    return max((int(path.name.removeprefix("step-")) for path in paths), default=0)


def load_checkpoint(
    path: Path,
    engine: Engine,
    ranks: Ranks,
    forget: Collection[str] = (),
    tiles: int | None = None,
) -> CheckpointState:
    """Load the checkpoint at `path` into the engine; return the state saved with it.

    `forget` and `tiles` are as in Engine.load. Collective; every rank opens `path`. Raises
    SettingsError if it does not fit this run.
    """
    engine.load(path, forget, tiles)
    ranks.barrier()  # no rank starts a step, or removes a checkpoint, while another still reads
    return read_state(path)


def find_fault(path: Path) -> str | None:
    """The first fault of the checkpoint at `path`, by its manifest; None if it is whole."""
    if not (path / MANIFEST_FILE).is_file():
        return f"{MANIFEST_FILE} is missing"
    try:
        manifest = read_checkpoint_manifest(path)
    except ValueError as error:
        return str(error)
    for name, entry in manifest.files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (size := (path / name).stat().st_size) != entry.bytes:
            return f"{name} has {size} bytes instead of {entry.bytes}"
        if checksum(path / name) != entry.checksum:
            return f"{name} is not what was written: its checksum differs"
    return None


def temporary_of(path: Path) -> Path:
    """The path of the checkpoint `path` until it is whole."""
    return path.with_name(f".{path.name}.tmp")


def _seal(folder: Path, checksums: Mapping[str, str]) -> int:
    """Flush every file to the disk and write the manifest; return the bytes of the files.

    `checksums` has the files whose writer knows their checksum; the others are read again.
    """
    files, total = {}, 0
    for path in sorted(folder.iterdir()):
        flush_to_disk(path)
        known = checksums.get(path.name) or checksum(path)
        size = path.stat().st_size
        files[path.name] = FileEntry(bytes=size, checksum=known)
        total += size
    manifest = CheckpointManifest(schema_version=SCHEMA_VERSION, files=files)
    write_json(folder / MANIFEST_FILE, manifest)
    return total


def put_in_place(temporary: Path, final: Path) -> None:
    """Give a sealed folder its name; replace a broken checkpoint of that name."""
    remove_folder(final)
    os.rename(temporary, final)
    flush_to_disk(final.parent)
    _remove_leftovers(final.parent)


def _remove_old(path: Path, keep: Keep, is_in_use: Callable[[Path], bool]) -> None:
    for name in keep.too_old([other.name for other in path.parent.glob("step-*")], path.name):
        if not is_in_use(path.with_name(name)):
            remove_folder(path.with_name(name))


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for path in folder.glob(".step-*.tmp"):
        remove_folder(path)

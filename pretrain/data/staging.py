"""Shards at a URL, copied to the disk of each node before they are opened: data.dir=s3://...

The manifest and the small files come first, before torch is imported, so that wrong data is refused
within a second. Then one rank of each node fetches the shards. A shard has its name once its bytes
have the manifest's checksum, so the next start fetches only what is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec

from data_prep.core.caches import is_private
from data_prep.core.config import SettingsError
from data_prep.core.files import only_process, remove_abandoned, whole_or_absent
from data_prep.core.printable import printable
from data_prep.core.records import check_file_name
from data_prep.stores import remote
from data_prep.stores.shard_records import ShardEntry, ShardsManifest, read_shards_manifest
from pretrain.config.settings import DataSettings
from pretrain.data.corpus import folder_of
from pretrain.distributed.ranks import Ranks
from pretrain.distributed.signals import StopRequest
from pretrain.distributed.watchdog import Watchdog

PARALLEL = 8  # shards fetched at a time
POLL_S = 1.0  # between two collectives while a node fetches
_LOCK = ".stage.lock"
_NEEDED = ("vocab/vocab.txt", "len{}/token_counts.npy")
_OPTIONAL = (
    "vocab/manifest.json", "vocab/tokenizer.json", "vocab/tokenizer_config.json",
    "vocab/special_tokens_map.json", "audit/{}/audit.json",
)  # fmt: skip


class _Missing(NamedTuple):
    """A shard that is not here."""

    url: str
    path: Path
    entry: ShardEntry


def stage_manifest(data: DataSettings) -> str | None:
    """Fetch the manifest of the shards at data.dir, the vocabulary and the other small files.

    Shards here that have other bytes in the new manifest are removed. If the store does not answer,
    the manifest that is here counts. Returns a line about either. Raises SettingsError if there is
    no such manifest, or it cannot be fetched or read.
    """
    if data.stage is None and not is_private(data.stage_folder):
        raise SettingsError(
            f"{data.stage_folder}, where {data.dir} would be staged, is not a folder that only you "
            "can write; set data.stage=FOLDER"
        )
    folder, url = folder_of(data), f"{data.dir.rstrip('/')}/len{data.seq_len}/manifest.json"
    path = folder / "manifest.json"
    try:
        raw = remote.read(url)
        before = path.read_bytes() if path.is_file() else None
        if raw == before:
            return None
        manifest = _decoded(raw, url)
        _fetch_small_files(data)
        _remove_changed(folder, manifest)
        with whole_or_absent(path) as temporary:
            temporary.write_bytes(raw)
    except FileNotFoundError as error:
        raise SettingsError(
            f"there are no shards of {data.seq_len} tokens at {data.dir} ({remote.why(error)}); "
            f"{remote.CURE}, or upload the folder that data_prep.build has written"
        ) from error
    except OSError as error:
        if not path.is_file():
            raise SettingsError(
                f"{data.dir} cannot be read: {remote.why(error)}; {remote.CURE}"
            ) from error
        return (
            f"warning: {data.dir} cannot be read ({remote.why(error)}): the copy in {folder} is "
            "used, without asking whether it is the newest"
        )
    if before is None:
        return None
    return f"{url} has changed: what differs in {folder} is fetched again"


def stage_shards(
    phases: Sequence[DataSettings],
    ranks: Ranks,
    watchdog: Watchdog,
    stop: StopRequest,
    report: Callable[[str], None],
) -> bool:
    """Fetch the shards of all phases that are not on this node. Collective.

    One rank of each node fetches; all meet once per POLL_S, so that none waits for longer than a
    collective may take. `report` gets a line at the beginning and the end, on each rank that
    fetches. Returns False if a signal came before all were there. Raises SettingsError on every
    rank if a node cannot have them.
    """
    number, _ = ranks.on_this_node()
    work = _Work(phases, report) if number == 0 else None
    began = time.monotonic()
    while True:
        watchdog.begin("staging the shards" + (f", {work.progress}" if work else ""))
        has_ended = work is None or work.wait(POLL_S)
        has_failed = work is not None and work.fault is not None
        ended, failed, stopped = ranks.sum([has_ended, has_failed, stop.requested])
        if ended == ranks.world_size or failed or stopped:
            break
    if work is not None:
        work.cancelled.set()
    faults = [fault for fault in ranks.gather(work.fault if work else None) if fault]
    if faults:
        raise SettingsError(
            f"{phases[0].dir} cannot be staged:\n"
            + "".join(f"  {fault}\n" for fault in sorted({*faults}))
            + "What is whole is not fetched again"
        )
    if work is not None and work.fetched and not stopped:
        seconds = time.monotonic() - began
        report(f"staged in {phases[0].folder}: {work.progress} in {seconds:,.0f} s")
    return not stopped


class _Work:
    """The thread of a node that fetches."""

    def __init__(self, phases: Sequence[DataSettings], report: Callable[[str], None]) -> None:
        self.fault: str | None = None
        self.cancelled = threading.Event()
        self.fetched, self._bytes, self._all = 0, 0, 0
        self._phases, self._report = phases, report
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True, name="staging")
        self._thread.start()

    @property
    def progress(self) -> str:
        """How far it is, in words."""
        return f"{self.fetched} of {self._all} shards, {self._bytes / 1e9:,.3f} GB"

    def wait(self, limit_s: float) -> bool:
        """Whether it has ended, after at most `limit_s` seconds."""
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            folder = self._phases[0].folder  # one for all: no phase changes data.dir
            with _alone(folder / _LOCK, self.cancelled), ThreadPoolExecutor(PARALLEL) as pool:
                remove_abandoned(folder)
                missing = _missing(self._phases)
                need = sum(shard.entry.bytes for shard in missing)
                check_room(self._phases[0], need)
                self._all = len(missing)
                if missing:
                    self._report(
                        f"staging {len(missing)} shards, {need / 1e9:,.3f} GB, from "
                        f"{self._phases[0].dir} to {folder}"
                    )
                for _ in pool.map(self._fetch, missing):
                    pass
        except (OSError, ValueError) as error:
            self.fault = f"{os.uname().nodename}: {remote.why(error)}"

    def _fetch(self, shard: _Missing) -> None:
        if self.cancelled.is_set():
            return
        try:
            remote.fetch(shard.url, shard.path, shard.entry.bytes, shard.entry.checksum)
        except BaseException:
            self.cancelled.set()  # the others are not begun
            raise
        with self._lock:
            self.fetched += 1
            self._bytes += shard.entry.bytes


def check_room(data: DataSettings, need: int) -> None:
    """Raise SettingsError if `need` bytes more are over data.stage_quota_gb or the free space."""
    stage, quota = data.stage_folder, data.stage_quota_gb
    if not need:
        return
    needs = f"{data.dir} needs {need / 1e9:,.3f} GB more in {stage}"
    if quota is not None:
        held = sum(path.stat().st_size for path in stage.rglob("*") if path.is_file())
        if held + need > 1e9 * quota:
            raise SettingsError(
                f"{needs}, which holds {held / 1e9:,.3f} GB, and data.stage_quota_gb={quota:g} is "
                f"the most; set data.stage_quota_gb={(held + need) / 1e9 + 0.001:.3f} or more, or "
                "delete the folders there that no run needs"
            )
    if need > (free := shutil.disk_usage(stage).free):
        raise SettingsError(
            f"{needs}, and {free / 1e9:,.3f} GB are free; make room, or set data.stage to a "
            "folder of a larger disk"
        )


def _missing(phases: Sequence[DataSettings]) -> list[_Missing]:
    """The shards of all phases that are not here, those of the first phase first."""
    found = {}
    for data in phases:
        folder = folder_of(data)
        for split, entries in read_shards_manifest(folder).splits.items():
            for entry in entries.shards:
                path = folder / split / entry.name
                if not path.is_file() or path.stat().st_size != entry.bytes:
                    url = f"{data.dir.rstrip('/')}/{folder.name}/{split}/{entry.name}"
                    found[path] = _Missing(url, path, entry)
    return list(found.values())


def _fetch_small_files(data: DataSettings) -> None:
    """Those next to the shards, optional ones where they are. Raises OSError or ValueError."""
    url = data.dir.rstrip("/")
    names = [name.format(data.seq_len) for name in (*_NEEDED, *_OPTIONAL, *_documents(url))]
    for number, name in enumerate(names):
        path = data.folder / name
        try:
            found = remote.read(f"{url}/{name}")
        except FileNotFoundError:
            if number < len(_NEEDED):
                raise
            path.unlink(missing_ok=True)
            continue
        with whole_or_absent(path) as temporary:
            temporary.write_bytes(found)


def _documents(url: str) -> Iterator[str]:
    """The manifests of the documents, which the model card counts, if they can be listed."""
    with contextlib.suppress(OSError, ValueError):
        for name in remote.names_below(f"{url}/documents"):
            source, _, rest = name.partition("/")
            if rest == "manifest.json":
                check_file_name(source)  # it becomes a path here
                yield f"documents/{source}/{rest}"


def _decoded(raw: bytes, url: str) -> ShardsManifest:
    try:
        return msgspec.json.decode(raw, type=ShardsManifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SettingsError(
            f"{url} is not as this version writes it: {printable(str(error))}; build the shards "
            "again and upload them"
        ) from error


def _remove_changed(folder: Path, manifest: ShardsManifest) -> None:
    """Remove the shards that are not those of a new manifest, by the one that is here."""
    try:
        old = _checksums(read_shards_manifest(folder))
    except ValueError:  # none, or of another version
        old = {}
    new = _checksums(manifest)
    for path in folder.glob("*/*.arrow"):
        key = path.parent.name, path.name
        if key not in new or old.get(key) != new[key]:
            path.unlink()


def _checksums(manifest: ShardsManifest) -> dict[tuple[str, str], str]:
    return {
        (split, shard.name): shard.checksum
        for split, entries in manifest.splits.items()
        for shard in entries.shards
    }


@contextlib.contextmanager
def _alone(lock: Path, cancelled: threading.Event) -> Iterator[None]:
    """Hold a lock, once no other process has it: another run of this node may fetch the same."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(only_process(lock))
            except BlockingIOError:
                if cancelled.wait(POLL_S):
                    raise
                continue
            yield
            return

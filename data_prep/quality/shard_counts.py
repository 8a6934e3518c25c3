"""The tasks of data_prep.audit: the bytes of a group of shards -> a record of what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from data_prep.core.config import SettingsError
from data_prep.core.files import checksum
from data_prep.core.records import Count, Record, write_packed
from data_prep.examples.masking import MaskingRule
from data_prep.quality.counts import BROKEN, content_hashes, count
from data_prep.stores import shard_checks, shard_records, shards

GROUP = 32  # shards of a task: a second or two of work


@dataclass(frozen=True)
class Group:
    """The shards of one task."""

    name: str  # of the task
    folder: Path  # data_dir/len<seq_len>
    manifest: shard_records.ShardsManifest
    manifest_checksum: str
    shards: Sequence[tuple[str, shard_records.ShardEntry]]  # split, shard

    def made_from(self) -> list[Any]:
        """What decides the record: the manifest, and which files lie there."""
        paths = [self.folder / split / entry.name for split, entry in self.shards]
        files = [path.stat() if path.exists() else None for path in paths]
        return [
            self.manifest_checksum,
            [file and (file.st_size, file.st_mtime_ns, file.st_ino) for file in files],
        ]


class CountedShard(Record):
    """What the bytes of one shard hold."""

    damage: str = ""  # why it cannot be read; the rest is empty
    faults: list[str] = msgspec.field(default_factory=list)
    counts: dict[str, Count] = msgspec.field(default_factory=dict)  # see `count`
    length_counts: bytes = b""  # uint32, examples of i tokens at i
    hashes: bytes = b""  # uint64 of the compared examples


class CountedGroup(Record):
    """The record of a task: its shards in their order."""

    shards: list[CountedShard]


def list_groups(data_dir: Path, seq_len: int) -> list[Group]:
    """The shards of one length, and the train shards of the corpus' other lengths, in groups.

    A function of the manifests alone. Of another length only how long its examples are is counted.
    """
    folder = data_dir / f"len{seq_len}"
    groups = list(_groups_of(folder, shard_records.read_shards_manifest(folder), shards.SPLITS))
    for path in sorted(data_dir.glob("len*/manifest.json")):
        if path.parent != folder:
            try:
                manifest = shard_records.read_shards_manifest(path.parent)
            except ValueError:  # of another version: its own audit says so
                continue
            groups += _groups_of(path.parent, manifest, ["train"])
    return groups


def _groups_of(
    folder: Path, manifest: shard_records.ShardsManifest, splits: Sequence[str]
) -> Iterator[Group]:
    items = [(split, entry) for split in splits for entry in manifest.splits[split].shards]
    digest = checksum(folder / "manifest.json")
    for number, first in enumerate(range(0, len(items), GROUP)):
        name = f"{folder.name}-{number:05d}"
        yield Group(name, folder, manifest, digest, items[first : first + GROUP])


def record_path(data_dir: Path, seq_len: int, group: Group) -> Path:
    """The record of a group, in the logs of the audit of `seq_len`."""
    return data_dir / "audit" / str(seq_len) / "logs" / "counts" / f"{group.name}.msgpack"


def count_group(
    data_dir: Path, seq_len: int, one_in: Mapping[str, int], index: int
) -> dict[str, int]:
    """One task: write the record of the group at `index`.

    Examples whose hash is a multiple of one_in[split] are compared with each other.
    """
    group = list_groups(data_dir, seq_len)[index]
    is_own = group.folder.name == f"len{seq_len}"
    if is_own:
        rule = MaskingRule.from_manifest(group.manifest, data_dir / "vocab" / "vocab.txt")
        found = [_count_shard(group, *item, rule, one_in[item[0]]) for item in group.shards]
    else:
        found = [_count_lengths(group, *item) for item in group.shards]
    write_packed(record_path(data_dir, seq_len, group), CountedGroup(found))
    return {"shards": len(found)}


def _count_shard(
    group: Group, split: str, entry: shard_records.ShardEntry, rule: MaskingRule, one_in: int
) -> CountedShard:
    """Every count of one shard, or what is wrong with its bytes."""
    folder, manifest = group.folder, group.manifest
    if damage := shard_checks.shard_fault(folder, manifest, split, entry):
        return CountedShard(damage)
    examples, metadata = shards.read_shard(path := folder / split / entry.name)
    faults = [
        f"{path} was made with {key} {metadata.get(key)}, the manifest says {stated}: a shard of "
        f"another corpus; {shards.CURE}"
        for key in ("vocab_checksum", "seq_len")
        if metadata.get(key) != (stated := str(getattr(manifest, key)))
    ]
    pairing = manifest.pairs
    counts = count(examples, pairing, rule, manifest.special_ids, manifest.seq_len)
    faults += [f"{path}: {counts[kind]:,} {kind}" for kind in BROKEN if counts[kind]]
    for name in filter(None, ("rows", "tokens", "masked_tokens", pairing.label_1)):
        if counts[name] != (count_there := getattr(entry, name)):
            faults.append(f"{path} has {counts[name]:,} {name}, the manifest {count_there:,}")
    hashes = content_hashes(examples.input_ids, examples.offsets)
    return CountedShard(
        faults=faults,
        counts=counts,
        length_counts=_length_counts(examples, manifest),
        hashes=hashes[hashes % np.uint64(one_in) == 0].astype("<u8").tobytes(),
    )


def _count_lengths(group: Group, split: str, entry: shard_records.ShardEntry) -> CountedShard:
    """The lengths in a shard of another length; none where its own audit would name a fault."""
    path = group.folder / split / entry.name
    try:
        if path.stat().st_size != entry.bytes:
            return CountedShard("another size")
        examples, _ = shards.read_shard(path)
        shard_checks.check_rows(path, examples, group.manifest)
    except (OSError, SettingsError) as error:
        return CountedShard(str(error))
    return CountedShard(length_counts=_length_counts(examples, group.manifest))


def _length_counts(examples: shards.Examples, manifest: shard_records.ShardsManifest) -> bytes:
    """(seq_len + 1) examples of each length."""
    size = manifest.seq_len + 1
    return np.bincount(np.diff(examples.offsets), minlength=size)[:size].astype("<u4").tobytes()

"""Checks shards against their manifest, and for values with which compiled code would go astray."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, regular_size
from data_prep.stores.arrow import outside
from data_prep.stores.shard_records import (
    ShardEntry,
    ShardsIdentity,
    ShardsManifest,
    read_shards_manifest,
)
from data_prep.stores.shards import CURE, SPLITS, Examples, read_shard, refuse


def check_counts(
    path: Path, examples: Examples, shard: ShardEntry, manifest: ShardsIdentity
) -> None:
    """Raises SettingsError if a shard has other counts, columns or dtype than the manifest says."""
    ids = examples.input_ids
    found = len(examples), len(ids), len(examples.masked_positions), str(ids.dtype)
    if found != (wanted := (shard.rows, shard.tokens, shard.masked_tokens, manifest.dtype)):
        raise SettingsError(
            f"{path} has (rows, tokens, masks, dtype) = {found}, the manifest says {wanted}; {CURE}"
        )
    has_words = bool(len(examples.continues_word))
    if has_words != bool(manifest.words and len(ids)):
        says = "no" if has_words else "a"
        raise SettingsError(f"{path}: the manifest has {says} column continues_word; {CURE}")


def check_rows(path: Path, examples: Examples, manifest: ShardsIdentity) -> None:
    """Raises SettingsError on a row whose length, segments or label cannot be. Reads no token."""
    lengths = np.diff(examples.offsets)
    fewest = manifest.pairs.num_special + 1
    refuse(
        path,
        outside("the length of input_ids", lengths, fewest, manifest.seq_len)
        or outside("segment_a_length", examples.segment_a_lengths, 1, lengths)
        or outside("next_sentence_label", examples.next_sentence_labels, 0, 1),
    )


def check_tokens(path: Path, examples: Examples, vocab_size: int) -> None:
    """Raises SettingsError if an id is not in the vocabulary, or a mask beyond its row's end.

    Reads every token, in 0.1 ns each.
    """
    masked_counts = np.diff(examples.masked_offsets)
    last = np.repeat((np.diff(examples.offsets) - 1).astype(np.uint16), masked_counts)
    refuse(
        path,
        outside("masked_positions", examples.masked_positions, 0, last, examples.masked_offsets)
        or outside("input_ids", examples.input_ids, 0, vocab_size - 1, examples.offsets)
        or outside(
            "masked_input_ids",
            examples.masked_input_ids,
            0,
            vocab_size - 1,
            examples.masked_offsets,
        ),
    )


def size_faults(folder: Path, manifest: ShardsManifest, split: str) -> list[str]:
    """What of a split's shards is missing or of another size than the manifest says."""
    shards = manifest.splits[split].shards
    faults = [_size_fault(folder / split / shard.name, shard) for shard in shards]
    return [fault for fault in faults if fault is not None]


def _size_fault(path: Path, shard: ShardEntry) -> str | None:
    try:
        size = regular_size(path)
    except FileNotFoundError:
        return f"{path} is missing"
    except SettingsError as error:
        return str(error)
    if size != shard.bytes:
        return f"{path} has {size:,} bytes, the manifest says {shard.bytes:,}"
    return None


def verify(folder: Path, share: int = 0, num_shares: int = 1) -> list[str]:
    """Read every byte of every shard: what does not agree with the manifest or cannot be, each
    named.

    With `num_shares`, only that share of the shards is read: many processes can divide the work.
    Threads read at the same time, since checksums are computed without the interpreter's lock.
    """
    manifest = read_shards_manifest(folder)
    shards = [(split, shard) for split in SPLITS for shard in manifest.splits[split].shards]
    with ThreadPoolExecutor(max_workers=min(8, len(os.sched_getaffinity(0)))) as pool:
        faults = pool.map(
            lambda item: shard_fault(folder, manifest, *item), shards[share::num_shares]
        )
        return [fault for fault in faults if fault is not None]


def shard_fault(
    folder: Path, manifest: ShardsManifest, split: str, shard: ShardEntry
) -> str | None:
    """What is wrong with one shard; None where it is what the manifest says and safe to read."""
    path = folder / split / shard.name
    if (fault := _size_fault(path, shard)) is not None:
        return fault
    try:
        found = checksum(path)
    except OSError as error:
        return f"{path} cannot be read: {error}"
    if found != shard.checksum:
        return f"{path} has checksum {found}, the manifest says {shard.checksum}"
    try:  # the bytes are in memory now
        examples, _ = read_shard(path)
        check_counts(path, examples, shard, manifest)
        check_rows(path, examples, manifest)
        check_tokens(path, examples, manifest.vocab_size)
    except SettingsError as error:
        return str(error)
    return None

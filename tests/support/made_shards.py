"""Folders of shards of random examples, and the same with a manifest that vouches for harm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from made_manifests import shards_manifest, split_entry

from data_prep.core.files import checksum, read_json, write_json
from data_prep.core.objectives import Pairing
from data_prep.stores.shard_records import ShardEntry
from data_prep.stores.shards import Examples, write_shard


def make_examples(size: int, seed: int, dtype: type = np.uint16) -> Examples:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 40, size)
    masked = rng.integers(1, 5, size)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    masked_offsets = np.concatenate([[0], np.cumsum(masked)]).astype(np.int64)
    positions = [np.sort(rng.permutation(n - 1)[:m]) for n, m in zip(lengths, masked, strict=True)]
    return Examples(
        input_ids=rng.integers(0, 30_000, offsets[-1]).astype(dtype),
        offsets=offsets,
        segment_a_lengths=rng.integers(3, 5, size).astype(np.uint16),
        next_sentence_labels=rng.integers(0, 2, size).astype(np.uint8),
        masked_positions=np.concatenate([*positions, []]).astype(np.uint16),
        masked_offsets=masked_offsets,
        masked_input_ids=rng.integers(0, 30_000, masked_offsets[-1]).astype(dtype),
        document_a=rng.integers(0, 2**32, size).astype(np.uint32),
        document_b=rng.integers(0, 2**32, size).astype(np.uint32),
    )


def write_folder(folder: Path, sizes: list[int], dtype: type = np.uint16) -> list[Examples]:
    """A folder of shards of these sizes, all of them train."""
    shards = [make_examples(size, seed, dtype) for seed, size in enumerate(sizes)]
    entries = []
    for number, examples in enumerate(shards):
        path = folder / "train" / f"shard-{number:05d}.arrow"
        write_shard(path, examples, {"seed": "1"})
        entries.append(ShardEntry.of(path, examples, Pairing.nsp))
    manifest = shards_manifest(
        {"train": split_entry(entries)}, dtype=np.dtype(dtype).name, vocab_size=30_000
    )
    write_json(folder / "manifest.json", manifest)
    return shards


def vouch(folder: Path, number: int = 0) -> None:
    """Give the manifest the size and checksum that a train shard has now."""
    manifest = read_json(folder / "manifest.json")
    entry = manifest["splits"]["train"]["shards"][number]
    path = folder / "train" / entry["name"]
    entry["bytes"], entry["checksum"] = path.stat().st_size, checksum(path)
    write_json(folder / "manifest.json", manifest)

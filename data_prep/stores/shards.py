"""Shards: prepared examples on disk, the contract between data preparation and training.

A shard is an Arrow IPC stream file, uncompressed, with one record batch: it is memory-mapped
without a copy, has the same bytes when written twice, and opens with `datasets` and pyarrow alone.
A row is one example, `[CLS] A [SEP] B [SEP]`, unmasked and unpadded, with its static mask next
to it. The manifest has the kind of pairs (`pairs`, see data_prep/core/objectives.py). Without pairs
the row is `[CLS] text [SEP]` in the same columns: all of it is segment A, `next_sentence_label` is
0 and `document_b` is `document_a`. The manifest of the folder, written last, names every shard with
its size and checksum.

Suffixes: N examples, T tokens of all examples end to end, M masked positions of all examples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.core.files import checksum, whole_or_absent
from data_prep.core.objectives import Pairing
from data_prep.core.records import Record, read_manifest
from data_prep.core.settings import MaskingSettings

SCHEMA_VERSION: Final = 2
SPLITS = ("train", "heldout")
MAX_TOKENS = 2**31 - 1  # of one shard: Arrow's list offsets are int32


class ExampleCounts(Record, kw_only=True):
    """Counts of examples; of label 1 there is the count of the pairing's task, if it has one."""

    rows: int
    tokens: int
    masked_tokens: int
    random_next: int | None = None
    swapped: int | None = None

    @property
    def label_1(self) -> int:
        """Examples of `next_sentence_label` 1."""
        return self.random_next or self.swapped or 0


class ShardEntry(ExampleCounts):
    """One shard in the manifest."""

    name: str
    bytes: int
    checksum: str

    @classmethod
    def of(cls, path: Path, examples: Examples, pairing: Pairing) -> ShardEntry:
        """The entry of the shard at `path`, which holds `examples`. Reads every byte."""
        entry = cls(
            name=path.name,
            rows=len(examples),
            tokens=int(examples.offsets[-1] - examples.offsets[0]),
            masked_tokens=int(examples.masked_offsets[-1] - examples.masked_offsets[0]),
            bytes=path.stat().st_size,
            checksum=checksum(path),
        )
        if pairing.label_1:
            setattr(entry, pairing.label_1, int(examples.next_sentence_labels.sum()))
        return entry


class SplitEntry(ExampleCounts):
    """One split in the manifest: its shards in order, their totals, and what is in no example."""

    shards: list[ShardEntry]
    truncated_tokens: int
    long_sentences: int  # cut into pieces
    unpaired_documents: int  # of one sentence

    @classmethod
    def of(
        cls, shards: list[ShardEntry], pairing: Pairing, losses: Mapping[str, int]
    ) -> SplitEntry:
        """The entry of a split with the totals of its shards; `losses` are its own counts."""
        names = ("rows", "tokens", "masked_tokens", *filter(None, [pairing.label_1]))
        totals = {name: sum(getattr(shard, name) for shard in shards) for name in names}
        return cls(shards=shards, **totals, **losses)


class BuildSettings(Record):
    """The settings of data_prep.build that decide the bytes of the shards."""

    seed: int
    seq_len: int
    pairs: Pairing
    copies: int
    short_seq_prob: float
    masking: MaskingSettings


class ShardsIdentity(Record):
    """All that decides the bytes of the shards: the manifest but for its splits."""

    schema_version: Literal[2]
    seq_len: int
    dtype: str  # of the ids
    vocab_size: int
    vocab_checksum: str
    lowercase: bool
    special_ids: dict[str, int]  # of pad, unk, cls, sep, mask
    tokens_checksum: str  # of the token store's manifest
    pairs: Pairing
    masking: MaskingSettings
    settings: BuildSettings


class ShardsManifest(ShardsIdentity):
    """len<seq_len>/manifest.json, written when all shards are there."""

    splits: dict[str, SplitEntry]


@dataclass(frozen=True)
class Examples:
    """N examples as ragged columns: example i is input_ids[offsets[i] : offsets[i + 1]].

    Views of a memory-mapped shard have int32 offsets, everything else int64.
    """

    input_ids: NDArray[Any]  # (T,) uint16, or uint32 above 65,536 entries; unmasked
    offsets: NDArray[Any]  # (N + 1,) into input_ids
    segment_a_lengths: NDArray[np.uint16]  # (N,) tokens up to and with the first [SEP]
    next_sentence_labels: NDArray[np.uint8]  # (N,) 1: random or swapped (Pairing.label_1)
    masked_positions: NDArray[np.uint16]  # (M,) inside the example, ascending
    masked_offsets: NDArray[Any]  # (N + 1,) into masked_positions and masked_input_ids
    masked_input_ids: NDArray[Any]  # (M,) ids at these positions in the masked input
    document_a: NDArray[np.uint32]  # (N,) running number of A's document in its split
    document_b: NDArray[np.uint32]  # (N,) and of B's

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def masked_indices(self) -> NDArray[Any]:
        """(M,) places of the masked positions in `input_ids`, over all examples."""
        masked_counts_N = np.diff(self.masked_offsets)
        return np.repeat(self.offsets[:-1], masked_counts_N) + self.masked_positions

    @property
    def targets(self) -> NDArray[Any]:
        """(M,) the ids that the model has to predict: the unmasked ids at the masked positions."""
        targets_M: NDArray[Any] = self.input_ids[self.masked_indices]
        return targets_M


def write_shard(path: Path, examples: Examples, metadata: Mapping[str, str]) -> None:
    """Write `examples` as one shard, whole or not at all. `metadata` goes into the Arrow schema.

    Raises ValueError when the examples hold more tokens than Arrow's list offsets can count.
    """
    if examples.offsets[-1] > MAX_TOKENS:
        raise ValueError(
            f"{path}: {examples.offsets[-1]:,} tokens in one shard, more than {MAX_TOKENS:,}; "
            "make smaller token parts"
        )
    columns = {
        "input_ids": _list_array(examples.offsets, examples.input_ids),
        "segment_a_length": pa.array(examples.segment_a_lengths),
        "next_sentence_label": pa.array(examples.next_sentence_labels),
        "masked_positions": _list_array(examples.masked_offsets, examples.masked_positions),
        "masked_input_ids": _list_array(examples.masked_offsets, examples.masked_input_ids),
        "document_a": pa.array(examples.document_a),
        "document_b": pa.array(examples.document_b),
    }
    batch = pa.record_batch(columns).replace_schema_metadata(
        {"schema_version": str(SCHEMA_VERSION), **metadata}
    )
    with (
        whole_or_absent(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_stream(file, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def read_shard(path: Path) -> tuple[Examples, dict[str, str]]:
    """Memory-map a shard: its columns as read-only views without a copy, and its metadata.

    Raises RuntimeError on a file that is no shard of this schema version.
    """
    cure = "delete it and run data_prep.build again"
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            batch = reader.read_next_batch()
    except (pa.ArrowInvalid, StopIteration) as error:
        raise RuntimeError(f"{path} is not a readable shard ({error}); {cure}") from error
    metadata = {
        key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()
    }
    if metadata.get("schema_version") != str(SCHEMA_VERSION):
        raise RuntimeError(
            f"{path} has schema version {metadata.get('schema_version')}, not {SCHEMA_VERSION}; "
            f"{cure}"
        )
    offsets, input_ids = _list_views(batch.column("input_ids"))
    masked_offsets, masked_positions = _list_views(batch.column("masked_positions"))
    _, masked_input_ids = _list_views(batch.column("masked_input_ids"))
    examples = Examples(
        input_ids=input_ids,
        offsets=offsets,
        segment_a_lengths=batch.column("segment_a_length").to_numpy(),
        next_sentence_labels=batch.column("next_sentence_label").to_numpy(),
        masked_positions=masked_positions,
        masked_offsets=masked_offsets,
        masked_input_ids=masked_input_ids,
        document_a=batch.column("document_a").to_numpy(),
        document_b=batch.column("document_b").to_numpy(),
    )
    return examples, metadata


def shard_name(tasks: Sequence[tuple[str, int, int]], index: int) -> str:
    """The file of task `index` of (split, pass, part) tasks: numbered inside its split."""
    return f"shard-{index - [split for split, _, _ in tasks].index(tasks[index][0]):05d}.arrow"


def read_shards_manifest(folder: Path) -> ShardsManifest:
    """Read the manifest of a folder of shards. Raises ValueError as `read_manifest` does."""
    command = "python -m data_prep.build with this data_dir and seq_len"
    return read_manifest(folder / "manifest.json", ShardsManifest, command)


def read_token_counts(folder: Path) -> NDArray[np.int64]:
    """(V,) how often each id is a target in the train split: the frequency-only prediction."""
    counts: NDArray[np.int64] = np.load(folder / "token_counts.npy")
    return counts


def size_faults(folder: Path, manifest: ShardsManifest, split: str) -> list[str]:
    """What of a split's shards is missing or of another size than the manifest says."""
    shards = manifest.splits[split].shards
    faults = [_size_fault(folder / split / shard.name, shard) for shard in shards]
    return [fault for fault in faults if fault is not None]


def _size_fault(path: Path, shard: ShardEntry) -> str | None:
    try:
        size = os.stat(path).st_size  # once: there may be ten thousand
    except FileNotFoundError:
        return f"{path} is missing"
    if size != shard.bytes:
        return f"{path} has {size:,} bytes, the manifest says {shard.bytes:,}"
    return None


def verify(folder: Path, share: int = 0, num_shares: int = 1) -> list[str]:
    """Read every byte of every shard: what does not agree with the manifest, each named.

    With `num_shares`, only that share of the shards is read: many processes can divide the work.
    Threads read at the same time, since checksums are computed without the interpreter's lock.
    """
    manifest = read_shards_manifest(folder)
    shards = [(split, shard) for split in SPLITS for shard in manifest.splits[split].shards]
    with ThreadPoolExecutor(max_workers=min(8, len(os.sched_getaffinity(0)))) as pool:
        faults = pool.map(lambda item: _fault(folder, *item), shards[share::num_shares])
        return [fault for fault in faults if fault is not None]


def _fault(folder: Path, split: str, shard: ShardEntry) -> str | None:
    """What is wrong with one shard; None where it is what the manifest says."""
    path = folder / split / shard.name
    if (fault := _size_fault(path, shard)) is not None:
        return fault
    try:
        found = checksum(path)
    except OSError as error:
        return f"{path} cannot be read: {error}"
    if found != shard.checksum:
        return f"{path} has checksum {found}, the manifest says {shard.checksum}"
    return None


def _list_array(offsets: NDArray[np.int64], values: NDArray[Any]) -> Any:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _list_views(column: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """A list column's offsets, int32, and its values: views; the offsets point into the values."""
    if not len(column):  # Arrow allows an empty list column to have no offsets at all
        return np.zeros(1, np.int32), column.values.to_numpy()[:0]
    # `.offsets` heeds a sliced column, `.values` is whole: offsets need not start at 0.
    return column.offsets.to_numpy(), column.values.to_numpy()

"""Shards: prepared examples on disk, the contract between data preparation and training.

A shard is an Arrow IPC stream file, uncompressed, with one record batch: it is memory-mapped
without a copy, has the same bytes when written twice, and opens with `datasets` and pyarrow alone.
A row is one example, `[CLS] A [SEP] B [SEP]`, unmasked and unpadded, with its static mask beside
it. What the pairs are, the manifest says (`pairs`, see data_prep/core/objectives.py). Without pairs the
row is `[CLS] text [SEP]` in the same columns: all of it is segment A, `next_sentence_label` is 0
and `document_b` is `document_a`. The manifest of the folder, written last, names every shard with its size and checksum.

Suffixes: N examples, T tokens of all examples end to end, M masked positions of all examples.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.core.files import checksum, read_json, whole_or_absent

SCHEMA_VERSION = 2
SPLITS = ("train", "heldout")
MAX_TOKENS = 2**31 - 1  # of one shard: Arrow's list offsets are int32


@dataclass(frozen=True)
class Examples:
    """N examples as ragged columns: the tokens of example i are input_ids[offsets[i]:offsets[i + 1]].

    Views of a memory-mapped shard have int32 offsets, everything else int64.
    """

    input_ids: NDArray[Any]  # (T,) uint16, or uint32 above 65,536 entries; unmasked
    offsets: NDArray[Any]  # (N + 1,) into input_ids
    segment_a_lengths: NDArray[np.uint16]  # (N,) tokens up to and with the first [SEP]
    next_sentence_labels: NDArray[np.uint8]  # (N,) 1: random or swapped (Pairing.label_1)
    masked_positions: NDArray[np.uint16]  # (M,) inside the example, ascending
    masked_offsets: NDArray[Any]  # (N + 1,) into masked_positions and masked_input_ids
    masked_input_ids: NDArray[Any]  # (M,) what stands there in the masked input
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
        """(M,) the ids that the model has to find: what stands unmasked at the masked positions."""
        targets_M: NDArray[Any] = self.input_ids[self.masked_indices]
        return targets_M


@dataclass(frozen=True)
class Rows:
    """N examples where they lie, in memory-mapped shards: nothing of them is read yet.

    Kernels reach any row of any shard in one call, by the addresses of the shards' columns.
    """

    addresses: NDArray[np.int64]  # (shards, 9) of the columns, as in `_addresses`; 0: not mapped
    like: NDArray[Any]  # (0,) of the type of token ids
    shards: NDArray[np.int64]  # (N,)
    rows: NDArray[np.int64]  # (N,) inside their shards
    lengths: NDArray[np.int64]  # (N,) tokens, [CLS] and [SEP] included
    masked_counts: NDArray[np.int64]  # (N,) statically masked positions
    owner: object  # of the memory: it lives as long as this

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, examples: Examples) -> Rows:
        """Those of `examples`, which lie in this process's memory."""
        ids = np.dtype(np.uint16 if examples.input_ids.dtype == np.uint16 else np.uint32)
        columns: Any = map(np.ascontiguousarray, vars(examples).values(), _column_types(ids))
        owned = Examples(*columns)
        numbers = np.arange(len(owned))
        return cls(
            addresses=_addresses(owned)[None],
            like=np.zeros(0, ids),
            shards=np.zeros(len(owned), np.int64),
            rows=numbers,
            lengths=np.diff(owned.offsets).astype(np.int64),
            masked_counts=np.diff(owned.masked_offsets).astype(np.int64),
            owner=owned,
        )

    def take(self, places: NDArray[np.integer[Any]]) -> Rows:
        """Those at `places`, in that order."""
        names = ("shards", "rows", "lengths", "masked_counts")
        return dataclasses.replace(self, **{name: getattr(self, name)[places] for name in names})

    def read(self) -> Examples:
        """Copied out of the memory maps."""
        size = len(self)
        offsets, masked_offsets = (
            np.concatenate([[0], np.cumsum(n)]).astype(np.int64)
            for n in (self.lengths, self.masked_counts)
        )
        examples = Examples(
            input_ids=np.empty(offsets[-1], self.like.dtype),
            offsets=offsets,
            segment_a_lengths=np.empty(size, np.uint16),
            next_sentence_labels=np.empty(size, np.uint8),
            masked_positions=np.empty(masked_offsets[-1], np.uint16),
            masked_offsets=masked_offsets,
            masked_input_ids=np.empty(masked_offsets[-1], self.like.dtype),
            document_a=np.empty(size, np.uint32),
            document_b=np.empty(size, np.uint32),
        )
        _copy(self.addresses, self.like, self.shards, self.rows, *vars(examples).values())
        return examples


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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of shards. ValueError with the cure where there is none of ours."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: no finished shards there; "
            "run python -m data_prep.build with this data_dir and seq_len"
        )
    manifest: dict[str, Any] = read_json(path)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {manifest.get('schema_version')}, not {SCHEMA_VERSION}; "
            "run data_prep.build again with this data_dir and seq_len"
        )
    return manifest


def read_token_counts(folder: Path) -> NDArray[np.int64]:
    """(V,) how often each id is a target in the train split: the frequency-only prediction."""
    counts: NDArray[np.int64] = np.load(folder / "token_counts.npy")
    return counts


def size_faults(folder: Path, manifest: Mapping[str, Any], split: str) -> list[str]:
    """What of a split's shards is missing or of another size than the manifest says."""
    shards = manifest["splits"][split]["shards"]
    faults = [_size_fault(folder / split / shard["name"], shard) for shard in shards]
    return [fault for fault in faults if fault is not None]


def _size_fault(path: Path, shard: Mapping[str, Any]) -> str | None:
    try:
        size = os.stat(path).st_size  # once: there may be ten thousand
    except FileNotFoundError:
        return f"{path} is missing"
    if size != shard["bytes"]:
        return f"{path} has {size:,} bytes, the manifest says {shard['bytes']:,}"
    return None


def verify(folder: Path, share: int = 0, num_shares: int = 1) -> list[str]:
    """Read every byte of every shard: what does not agree with the manifest, each named.

    With `num_shares`, of that share of the shards alone: many processes can divide the work. Threads
    read at the same time, since checksums are computed without the interpreter's lock.
    """
    manifest = read_manifest(folder)
    shards = [(split, shard) for split in SPLITS for shard in manifest["splits"][split]["shards"]]
    with ThreadPoolExecutor(max_workers=min(8, len(os.sched_getaffinity(0)))) as pool:
        faults = pool.map(lambda item: _fault(folder, *item), shards[share::num_shares])
        return [fault for fault in faults if fault is not None]


def _fault(folder: Path, split: str, shard: dict[str, Any]) -> str | None:
    """What is wrong with one shard; None where it is what the manifest says."""
    path = folder / split / shard["name"]
    if (fault := _size_fault(path, shard)) is not None:
        return fault
    try:
        found = checksum(path)
    except OSError as error:
        return f"{path} cannot be read: {error}"
    if found != shard["checksum"]:
        return f"{path} has checksum {found}, the manifest says {shard['checksum']}"
    return None


class Shards:
    """One split of a folder of shards, opened for reading: examples by number, in any order.

    Example numbers run over the shards in the manifest's order, never that of a listing. A shard is
    memory-mapped when first touched; lengths and counts come from offsets, without touching ids.
    """

    def __init__(self, folder: Path, split: str, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.split = split
        self.manifest = manifest
        self._shards = manifest["splits"][split]["shards"]
        rows = [shard["rows"] for shard in self._shards]
        self._first_example = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self.num_examples = int(self._first_example[-1])
        self._mapped: dict[int, Examples] = {}
        self._addresses = np.zeros((len(rows), len(dataclasses.fields(Examples))), np.int64)

    @classmethod
    def open(cls, folder: Path, split: str) -> Shards:
        """Open `train` or `heldout` of `folder`; costs one look at each file's size.

        Raises ValueError with the cure when the manifest or a shard is missing or of another size.
        """
        manifest = read_manifest(folder)
        if split not in manifest["splits"]:
            raise ValueError(
                f"{folder} has no split {split!r}; it has {sorted(manifest['splits'])}"
            )
        if faults := size_faults(folder, manifest, split):
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise ValueError(
                f"{faults[0]}{more}; copy the folder again, or delete {folder} and run "
                "data_prep.build again"
            )
        return cls(folder, split, manifest)

    def rows(self, examples: NDArray[np.integer[Any]]) -> Rows:
        """The examples of these numbers, in this order; their shards are mapped if not yet."""
        examples = np.asarray(examples, np.int64)
        if len(examples) and not 0 <= examples.min() <= examples.max() < self.num_examples:
            raise ValueError(
                f"example {examples[(examples < 0) | (examples >= self.num_examples)][0]} asked of "
                f"{self.folder / self.split}, which holds 0 to {self.num_examples - 1}"
            )
        shards = np.searchsorted(self._first_example, examples, side="right") - 1
        unmapped = shards[self._addresses[shards, 0] == 0]
        for shard in np.unique(unmapped) if len(unmapped) else ():
            self._mapped[shard] = self._map_shard(shard)
            self._addresses[shard] = _addresses(self._mapped[shard])
        rows = examples - self._first_example[shards]
        lengths, masked_counts = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        _measure(self._addresses, shards, rows, lengths, masked_counts)
        like = np.zeros(0, self.manifest["dtype"])
        return Rows(self._addresses, like, shards, rows, lengths, masked_counts, self)

    def lengths(self, examples: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """(N,) tokens of each example, [CLS] and [SEP] included."""
        return self.rows(examples).lengths

    def masked_counts(self, examples: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """(N,) statically masked positions of each example."""
        return self.rows(examples).masked_counts

    def read(self, examples: NDArray[np.integer[Any]]) -> Examples:
        """The examples of these numbers, in this order, copied out of the memory maps."""
        return self.rows(examples).read()

    def _map_shard(self, index: int) -> Examples:
        shard = self._shards[index]
        path = self.folder / self.split / shard["name"]
        columns, _ = read_shard(path)
        if len(columns) != shard["rows"]:
            raise RuntimeError(
                f"{path} holds {len(columns)} examples, the manifest says {shard['rows']}; "
                f"delete {self.folder} and run data_prep.build again"
            )
        types = [column.dtype for column in vars(columns).values()]
        if types != (expected := _column_types(np.dtype(self.manifest["dtype"]))):
            raise RuntimeError(
                f"{path} has columns of the types {', '.join(map(str, types))} instead of "
                f"{', '.join(map(str, expected))}; delete {self.folder} and run data_prep.build again"
            )
        return columns


def _list_array(offsets: NDArray[np.int64], values: NDArray[Any]) -> Any:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _list_views(column: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """A list column's offsets, int32, and its values: views; the offsets point into the values."""
    if not len(column):  # Arrow allows an empty list column to have no offsets at all
        return np.zeros(1, np.int32), column.values.to_numpy()[:0]
    # `.offsets` heeds a sliced column, `.values` is whole: offsets need not start at 0.
    return column.offsets.to_numpy(), column.values.to_numpy()


def _addresses(examples: Examples) -> NDArray[np.int64]:
    """(9,) where the columns of `examples` begin, in the order of its fields, all contiguous."""
    columns = vars(examples).values()
    return np.array([column.__array_interface__["data"][0] for column in columns], np.int64)


def _column_types(ids: np.dtype[Any]) -> list[np.dtype[Any]]:
    """Of a mapped shard's columns, in the order of the fields of `Examples`: kernels rely on them."""
    names = ("int32", "uint16", "uint8", "uint16", "int32")
    return [ids, *map(np.dtype, names), ids, np.dtype(np.uint32), np.dtype(np.uint32)]


@numba.extending.intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, address: Any) -> Any:
    """An integer as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(numba.types.voidptr))

    return numba.types.voidptr(numba.types.int64), generate


@numba.njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def cut(address: int, first: int, size: int, dtype: Any) -> Any:
    """Elements [first, first + size) of the column of `dtype` that begins at `address`."""
    return numba.carray(_pointer(address), first + size, dtype)[first:]


@numba.njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def bounds(address: int, row: int) -> Any:
    """Where a row of a list column begins, and its size; `address` is that of its offsets."""
    both = cut(address, row, 2, np.int32)
    return np.int64(both[0]), np.int64(both[1]) - np.int64(both[0])


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _measure(
    addresses: NDArray[np.int64],
    shards: NDArray[np.int64],
    rows: NDArray[np.int64],
    lengths: NDArray[np.int64],
    masked_counts: NDArray[np.int64],
) -> None:
    """Fill lengths and masked counts of rows."""
    for i in range(len(rows)):
        columns = addresses[shards[i]]
        lengths[i] = bounds(columns[1], rows[i])[1]
        masked_counts[i] = bounds(columns[5], rows[i])[1]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _copy(
    addresses: NDArray[np.int64],
    like: NDArray[Any],
    shards: NDArray[np.int64],
    rows: NDArray[np.int64],
    input_ids: NDArray[Any],
    offsets: NDArray[np.int64],
    segment_a_lengths: NDArray[np.uint16],
    next_sentence_labels: NDArray[np.uint8],
    masked_positions: NDArray[np.uint16],
    masked_offsets: NDArray[np.int64],
    masked_input_ids: NDArray[Any],
    document_a: NDArray[np.uint32],
    document_b: NDArray[np.uint32],
) -> None:
    """Fill the columns behind `rows` with those rows; the two offsets are filled already."""
    for i in range(len(rows)):
        columns, row = addresses[shards[i]], rows[i]
        first, size = bounds(columns[1], row)
        input_ids[offsets[i] : offsets[i + 1]] = cut(columns[0], first, size, like.dtype)
        segment_a_lengths[i] = cut(columns[2], row, 1, np.uint16)[0]
        next_sentence_labels[i] = cut(columns[3], row, 1, np.uint8)[0]
        first, size = bounds(columns[5], row)
        to = slice(masked_offsets[i], masked_offsets[i + 1])
        masked_positions[to] = cut(columns[4], first, size, np.uint16)
        masked_input_ids[to] = cut(columns[6], first, size, like.dtype)
        document_a[i] = cut(columns[7], row, 1, np.uint32)[0]
        document_b[i] = cut(columns[8], row, 1, np.uint32)[0]

"""Reads shards: memory-mapped columns of all examples of a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from data_prep.core.config import SettingsError
from data_prep.stores.arrow import num_bytes
from data_prep.stores.shard_checks import check_counts, check_rows, check_tokens, size_faults
from data_prep.stores.shard_records import ShardsManifest, read_shards_manifest
from data_prep.stores.shards import Examples, read_shard, read_source


@dataclass(frozen=True)
class Rows:
    """N examples where they lie, in memory-mapped shards: nothing of them is read yet.

    Kernels reach any row of any shard in one call, by the addresses of the shards' columns.
    """

    addresses: NDArray[np.int64]  # (shards, 10) of the columns, as in `_addresses`; 0: not mapped
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

    @property
    def _have_words(self) -> bool:
        return bool(self.addresses[self.shards, 9].any())

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
            continues_word=np.zeros(num_bytes(offsets[-1] if self._have_words else 0), np.uint8),
        )
        _copy(self.addresses, self.like, self.shards, self.rows, *vars(examples).values())
        return examples


class Shards:
    """One split of a folder of shards, opened for reading: examples by number, in any order.

    Example numbers run over the shards in the manifest's order, never that of a listing. A shard is
    memory-mapped when first touched; lengths and counts come from offsets, without touching ids.
    Compiled code follows what a shard says, so its offsets are checked when it is mapped and its
    ids when its rows are first asked for, once per process: SettingsError if one cannot be.
    """

    def __init__(
        self, folder: Path, split: str, manifest: ShardsManifest, is_verified: bool = False
    ) -> None:
        self.folder = folder
        self.split = split
        self.manifest = manifest
        self._shards = manifest.splits[split].shards
        rows = [shard.rows for shard in self._shards]
        self._first_example = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self.num_examples = int(self._first_example[-1])
        self._mapped: dict[int, Examples] = {}
        self._is_verified = is_verified
        self._is_checked = np.full(len(rows), is_verified)
        self._addresses = np.zeros((len(rows), len(dataclasses.fields(Examples))), np.int64)

    @classmethod
    def open(cls, folder: Path, split: str, is_verified: bool = False) -> Shards:
        """Open `train` or `heldout` of `folder`; costs one look at each file's size.

        `is_verified`: `verify` has found no fault in the folder, so no value is checked again.
        Raises SettingsError with the cure when a shard is missing or of another size, or the
        manifest is broken; ValueError when that is missing.
        """
        manifest = read_shards_manifest(folder)
        if split not in manifest.splits:
            raise ValueError(f"{folder} has no split {split!r}; it has {sorted(manifest.splits)}")
        if faults := size_faults(folder, manifest, split):
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise SettingsError(
                f"{faults[0]}{more}; copy the folder again, or delete {folder} and run "
                "data_prep.build again"
            )
        return cls(folder, split, manifest, is_verified)

    def rows(self, examples: NDArray[np.integer[Any]]) -> Rows:
        """The examples of these numbers, in this order; their shards are mapped if not yet."""
        rows = self._rows(examples)
        self._check_tokens(rows.shards)
        return rows

    def _rows(self, examples: NDArray[np.integer[Any]]) -> Rows:
        examples = np.asarray(examples, np.int64)
        if len(examples) and not 0 <= examples.min() <= examples.max() < self.num_examples:
            raise ValueError(
                f"example {examples[(examples < 0) | (examples >= self.num_examples)][0]} asked of "
                f"{self.folder / self.split}, which holds 0 to {self.num_examples - 1}"
            )
        shards = np.searchsorted(self._first_example, examples, side="right") - 1
        self._map(shards)
        rows = examples - self._first_example[shards]
        lengths, masked_counts = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        _measure(self._addresses, shards, rows, lengths, masked_counts)
        like = np.zeros(0, self.manifest.dtype)
        return Rows(self._addresses, like, shards, rows, lengths, masked_counts, self)

    def lengths(self, examples: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """(N,) tokens of each example, [CLS] and [SEP] included."""
        return self._rows(examples).lengths

    def masked_counts(self, examples: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """(N,) statically masked positions of each example."""
        return self._rows(examples).masked_counts

    def read(self, examples: NDArray[np.integer[Any]]) -> Examples:
        """The examples of these numbers, in this order, copied out of the memory maps."""
        return self.rows(examples).read()

    def sources(self, shards: Sequence[int]) -> list[str]:
        """The source of each of these shards; "" where a shard names none. Reads their heads."""
        folder = self.folder / self.split
        return [read_source(folder / self._shards[index].name) for index in shards]

    def _map(self, shards: NDArray[np.int64]) -> None:
        """Map the shards that are not mapped yet, and check their rows."""
        for index in _distinct(shards[self._addresses[shards, 0] == 0]):
            shard = self._shards[index]
            path = self.folder / self.split / shard.name
            columns, _ = read_shard(path, check_offsets=not self._is_verified)
            check_counts(path, columns, shard, self.manifest)
            if not self._is_verified:
                check_rows(path, columns, self.manifest)
            self._mapped[index] = columns
            self._addresses[index] = _addresses(columns)

    def _check_tokens(self, shards: NDArray[np.int64]) -> None:
        """Check the tokens of the mapped shards whose tokens are not checked yet."""
        for index in _distinct(shards[~self._is_checked[shards]]):
            path = self.folder / self.split / self._shards[index].name
            check_tokens(path, self._mapped[index], self.manifest.vocab_size)
            self._is_checked[index] = True


def _distinct(numbers: NDArray[np.int64]) -> list[int]:
    return np.unique(numbers).tolist() if len(numbers) else []  # most often there is none


def _addresses(examples: Examples) -> NDArray[np.int64]:
    """(10,) where the columns of `examples` begin, in the order of its fields, all contiguous.

    0: there is no column `continues_word`.
    """
    columns = vars(examples).values()
    places = [column.__array_interface__["data"][0] for column in columns]
    return np.array([*places[:-1], places[-1] if len(examples.continues_word) else 0], np.int64)


def _column_types(ids: np.dtype[Any]) -> list[np.dtype[Any]]:
    """The types of a mapped shard's columns, in the order of `Examples`; kernels rely on them."""
    names = ("int32", "uint16", "uint8", "uint16", "int32")
    return [ids, *map(np.dtype, names), ids, *map(np.dtype, ("uint32", "uint32", "uint8"))]


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


@numba.njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def word_bits(columns: NDArray[np.int64], end: int) -> Any:
    """The bytes of `continues_word` up to token `end` of a shard; none where it has no such column.

    `columns` are its addresses.
    """
    return cut(columns[9], 0, (end + 7) >> 3 if columns[9] != 0 else 0, np.uint8)


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
    continues_word: NDArray[np.uint8],
) -> None:
    """Fill the columns behind `rows` with those rows; the two offsets are filled already."""
    for i in range(len(rows)):
        columns, row = addresses[shards[i]], rows[i]
        first, size = bounds(columns[1], row)
        input_ids[offsets[i] : offsets[i + 1]] = cut(columns[0], first, size, like.dtype)
        bits = word_bits(columns, first + size)
        if len(bits) > 0:
            for j in range(size):
                at, to_bit = first + j, offsets[i] + j
                continues_word[to_bit >> 3] |= ((bits[at >> 3] >> (at & 7)) & 1) << (to_bit & 7)
        segment_a_lengths[i] = cut(columns[2], row, 1, np.uint16)[0]
        next_sentence_labels[i] = cut(columns[3], row, 1, np.uint8)[0]
        first, size = bounds(columns[5], row)
        to = slice(masked_offsets[i], masked_offsets[i + 1])
        masked_positions[to] = cut(columns[4], first, size, np.uint16)
        masked_input_ids[to] = cut(columns[6], first, size, like.dtype)
        document_a[i] = cut(columns[7], row, 1, np.uint32)[0]
        document_b[i] = cut(columns[8], row, 1, np.uint32)[0]

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

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import zstandard
from numpy.typing import NDArray

from data_prep.core.config import SettingsError, limit_faults
from data_prep.core.files import checksum, read_bounded, whole_or_absent
from data_prep.core.objectives import Pairing, RandomNext
from data_prep.core.printable import shortened
from data_prep.core.records import (
    Checksum,
    Count,
    IdType,
    Record,
    SeqLen,
    TextForm,
    VocabSize,
    check_file_name,
    check_special_ids,
    read_manifest,
)
from data_prep.core.settings import LIMITS, MaskingSettings, shares_fault
from data_prep.stores.arrow import (
    bits_of,
    boolean_array,
    list_offsets,
    map_batch,
    metadata_of,
    no_bits,
    offsets_fault,
    outside,
)
from data_prep.stores.tokens import WordSettings

SCHEMA_VERSION: Final = 2
SPLITS = ("train", "heldout")
MAX_TOKENS = 2**31 - 1  # of one shard: Arrow's list offsets are int32

CURE = "delete its folder and run data_prep.build again"

# The fewest bytes that a shard takes for each row, token and masked position
ROW_BYTES, TOKEN_BYTES, MASK_BYTES = 3 * 4 + 2 + 1 + 2 * 4, 2, 2 * 2


class ExampleCounts(Record, kw_only=True):
    """Counts of examples; of label 1 there is the count of the pairing's task, if it has one."""

    rows: Count
    tokens: Count
    masked_tokens: Count
    random_next: Count | None = None
    swapped: Count | None = None

    @property
    def label_1(self) -> int:
        """Examples of `next_sentence_label` 1."""
        return self.random_next or self.swapped or 0


class ShardEntry(ExampleCounts):
    """One shard in the manifest."""

    name: str
    bytes: Count
    checksum: Checksum

    def __post_init__(self) -> None:
        check_file_name(self.name)
        least = ROW_BYTES * self.rows + TOKEN_BYTES * self.tokens + MASK_BYTES * self.masked_tokens
        if least > self.bytes:
            raise ValueError(
                f"{self.name}: {self.rows:,} rows of {self.tokens:,} tokens and "
                f"{self.masked_tokens:,} masks do not fit into {self.bytes:,} bytes"
            )
        if self.label_1 > self.rows:
            raise ValueError(f"{self.name}: label 1 in {self.label_1:,} of {self.rows:,} rows")

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
    truncated_tokens: Count
    long_sentences: Count  # cut into pieces
    unpaired_documents: Count  # of one sentence
    lone_documents: Count = 0  # alone of their source or language: random B of another one

    def __post_init__(self) -> None:
        for name in ("rows", "tokens", "masked_tokens", "random_next", "swapped"):
            stated = getattr(self, name) or 0
            if (total := sum(getattr(shard, name) or 0 for shard in self.shards)) != stated:
                raise ValueError(f"{name} is {stated:,}, and {total:,} in its shards together")

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
    random_next: RandomNext = RandomNext.corpus


class ShardsIdentity(TextForm, kw_only=True):
    """All that decides the bytes of the shards: the manifest but for its splits."""

    schema_version: Literal[2]
    seq_len: SeqLen
    dtype: IdType  # of the ids
    vocab_size: VocabSize
    vocab_checksum: Checksum
    special_ids: dict[str, int]  # of pad, unk, cls, sep, mask
    tokens_checksum: Checksum  # of the token store's manifest
    pairs: Pairing
    masking: MaskingSettings
    settings: BuildSettings
    words: WordSettings | None = None  # None: no column continues_word

    def __post_init__(self) -> None:
        check_special_ids(self.special_ids, self.vocab_size)
        faults = limit_faults(
            self, {key: LIMITS[key] for key in ("masking.rate", "masking.max_predictions")}
        )
        if faults or (fault := shares_fault(self.masking)):
            raise ValueError(faults[0] if faults else fault)


class ShardCounts(Record):
    """What the manifest and token_counts.npy have of one shard: its task leaves this record."""

    identity: ShardsIdentity
    entry: ShardEntry
    targets: bytes  # zstd of (V,) uint32, how often each id is a target

    @classmethod
    def of(cls, path: Path, examples: Examples, identity: ShardsIdentity) -> ShardCounts:
        """The counts of the shard at `path`, which holds `examples`. Reads every byte."""
        targets = np.bincount(examples.targets, minlength=identity.vocab_size).astype("<u4")
        packed = zstandard.compress(targets.tobytes())
        return cls(identity, ShardEntry.of(path, examples, identity.pairs), packed)

    def target_counts(self) -> NDArray[np.uint32]:
        """(V,) how often each id is a target."""
        size = 4 * self.identity.vocab_size
        raw = zstandard.ZstdDecompressor().stream_reader(self.targets).read(size)
        return np.frombuffer(raw, "<u4")


class ShardTask(NamedTuple):
    """What a shard is made from: one part of a split of the token store in one pass."""

    split: str
    copy: int  # which pass
    part: int  # number in the split
    name: str  # of the shard


class ShardsManifest(ShardsIdentity, kw_only=True):
    """len<seq_len>/manifest.json, written when all shards are there."""

    splits: dict[str, SplitEntry]

    def __post_init__(self) -> None:
        super().__post_init__()
        if set(self.splits) != set(SPLITS):
            raise ValueError(f"splits are not {' and '.join(SPLITS)}")


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
    # (ceil(T / 8),) bits, lowest first: the token continues the word before it; (0,): not stored
    continues_word: NDArray[np.uint8] = field(default_factory=no_bits)

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
    if len(examples.continues_word):
        flags = boolean_array(examples.continues_word, len(examples.input_ids))
        columns["continues_word"] = _list_array(examples.offsets, flags)
    batch = pa.record_batch(columns).replace_schema_metadata(
        {"schema_version": str(SCHEMA_VERSION), **metadata}
    )
    with (
        whole_or_absent(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_stream(file, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def read_shard(path: Path, check_offsets: bool = True) -> tuple[Examples, dict[str, str]]:
    """Memory-map a shard: its columns as read-only views without a copy, and its metadata.

    Raises SettingsError on a file that is no shard of this schema version, and where offsets do not
    cut the columns from end to end; `check_offsets=False` is for a shard that `verify` has passed.
    """
    batch, metadata = _map_shard(path)
    offsets, input_ids = _list_views(batch.column("input_ids"))
    masked_offsets, masked_positions = _list_views(batch.column("masked_positions"))
    other_offsets, masked_input_ids = _list_views(batch.column("masked_input_ids"))
    continues_word = no_bits()
    if "continues_word" in batch.schema.names:
        flags = batch.column("continues_word").values  # cut by the offsets of input_ids
        if len(flags) != len(input_ids):
            refuse(path, f"continues_word has {len(flags):,} values for {len(input_ids):,} tokens")
        continues_word = bits_of(flags)
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
        continues_word=continues_word,
    )
    if check_offsets:
        refuse(path, _offsets_fault(examples, other_offsets))
    return examples, metadata


def read_source(path: Path) -> str:
    """The source of a shard's documents: `books` of the token part books-00003. No row is read.

    "" if the shard does not name its token part. Raises SettingsError on a file that is no shard of
    this schema version, and on a name that is none.
    """
    source = _map_shard(path)[1].get("token_part", "").rpartition("-")[0]
    try:
        if source:
            check_file_name(source)
    except ValueError as error:
        raise SettingsError(f"{path}, its token_part: {error}; {CURE}") from error
    return source


def _map_shard(path: Path) -> tuple[Any, dict[str, str]]:
    """Memory-map a shard, as `read_shard`: its record batch and its metadata."""
    batch = map_batch(path, _SCHEMAS, CURE)
    metadata = metadata_of(batch)
    if metadata.get("schema_version") != str(SCHEMA_VERSION):
        found = shortened(str(metadata.get("schema_version")))
        raise SettingsError(f"{path} has schema version {found}, not {SCHEMA_VERSION}; {CURE}")
    return batch, metadata


def _schema(ids: Any, words: Mapping[str, Any]) -> Any:
    """The schema of a shard with token ids of this type and these columns of words."""
    return pa.schema({
        "input_ids": pa.list_(ids),
        "segment_a_length": pa.uint16(),
        "next_sentence_label": pa.uint8(),
        "masked_positions": pa.list_(pa.uint16()),
        "masked_input_ids": pa.list_(ids),
        "document_a": pa.uint32(),
        "document_b": pa.uint32(),
        **words,
    })  # fmt: skip


_SCHEMAS = [
    _schema(ids, words)
    for words in ({}, {"continues_word": pa.list_(pa.bool_())})
    for ids in (pa.uint16(), pa.uint32())
]


def refuse(path: Path, fault: str | None) -> None:
    """Raises SettingsError if a shard has this fault."""
    if fault is not None:
        raise SettingsError(f"{path}, {fault}; {CURE}")


def _offsets_fault(examples: Examples, other_offsets: NDArray[Any]) -> str | None:
    """The first row at which offsets do not cut the columns; None if they all do."""
    masks = examples.masked_offsets
    if not np.array_equal(masks, other_offsets):
        row = int(np.argmax(masks != other_offsets))
        return (
            f"row {row:,}: masked_input_ids is cut at {other_offsets[row]:,}, masked_positions at "
            f"{masks[row]:,}"
        )
    if len(examples.masked_positions) != len(examples.masked_input_ids):
        return (
            f"masked_input_ids has {len(examples.masked_input_ids):,} values, masked_positions "
            f"{len(examples.masked_positions):,}"
        )
    return offsets_fault("input_ids", examples.offsets, len(examples.input_ids)) or offsets_fault(
        "masked_positions", masks, len(examples.masked_positions)
    )


def counts_path(folder: Path, split: str, name: str) -> Path:
    """The ShardCounts of the shard `name` below a folder of shards."""
    return folder / "logs" / "counts" / f"{split}-{Path(name).stem}.msgpack"


def read_shards_manifest(folder: Path) -> ShardsManifest:
    """Read the manifest of a folder of shards. Raises ValueError as `read_manifest` does."""
    command = "python -m data_prep.build with this data_dir and seq_len"
    return read_manifest(folder / "manifest.json", ShardsManifest, command)


def read_token_counts(folder: Path, vocab_size: int) -> NDArray[np.int64]:
    """(V,) how often each id is a target in the train split: the frequency-only prediction.

    Raises SettingsError if the file does not hold as many counts.
    """
    path = folder / "token_counts.npy"
    head = io.BytesIO()  # compared and not parsed: numpy would allocate what a head claims
    described = {"descr": "<i8", "fortran_order": False, "shape": (vocab_size,)}
    np.lib.format.write_array_header_1_0(head, described)
    size = len(head.getvalue())
    stored = read_bounded(path, size + 8 * vocab_size)
    if not stored.startswith(head.getvalue()) or len(stored) != size + 8 * vocab_size:
        raise SettingsError(f"{path} does not hold {vocab_size:,} counts of int64; {CURE}")
    counts = np.frombuffer(stored, np.int64, offset=size)
    refuse(path, outside("the count", counts, 0, 2**53))
    return counts


def _list_array(offsets: NDArray[np.int64], values: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _list_views(column: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """A list column's offsets, int32, and its values: views; the offsets point into the values."""
    return list_offsets(column), column.values.to_numpy()

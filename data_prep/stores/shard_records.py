"""What the manifest of a folder of shards says: the records of its shards, splits and settings."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.core.config import SettingsError, limit_faults
from data_prep.core.files import checksum, read_bounded
from data_prep.core.objectives import Pairing, RandomNext
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
from data_prep.stores.arrow import outside
from data_prep.stores.shards import CURE, SPLITS, Examples, refuse
from data_prep.stores.token_records import WordSettings

# The fewest bytes that a shard takes for each row, token and masked position
ROW_BYTES, TOKEN_BYTES, MASK_BYTES = 3 * 4 + 2 + 1 + 2 * 4, 2, 2 * 2

_ZSTD = pa.Codec("zstd", compression_level=3)


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
        packed = _ZSTD.compress(targets.tobytes(), asbytes=True)
        return cls(identity, ShardEntry.of(path, examples, identity.pairs), packed)

    def target_counts(self) -> NDArray[np.uint32]:
        """(V,) how often each id is a target."""
        size = 4 * self.identity.vocab_size
        raw = _ZSTD.decompress(self.targets, size, asbytes=True)
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

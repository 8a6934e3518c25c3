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

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.core.config import SettingsError
from data_prep.core.files import whole_or_absent
from data_prep.core.printable import shortened
from data_prep.core.records import check_file_name
from data_prep.stores.arrow import (
    bits_of,
    boolean_array,
    list_offsets,
    map_batch,
    metadata_of,
    no_bits,
    offsets_fault,
)

SCHEMA_VERSION: Final = 2
SPLITS = ("train", "heldout")
MAX_TOKENS = 2**31 - 1  # of one shard: Arrow's list offsets are int32

CURE = "delete its folder and run data_prep.build again"


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


def _list_array(offsets: NDArray[np.int64], values: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _list_views(column: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """A list column's offsets, int32, and its values: views; the offsets point into the values."""
    return list_offsets(column), column.values.to_numpy()

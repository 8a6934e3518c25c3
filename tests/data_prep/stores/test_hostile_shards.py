"""A shard whose manifest vouches for it, but whose values would lead compiled code astray."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from made_shards import make_examples, vouch, write_folder

from data_prep.core.config import SettingsError
from data_prep.core.files import read_json, write_json
from data_prep.stores.shard_checks import verify
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shards import Examples, read_shard, write_shard

CURE = "delete its folder and run data_prep.build again"


def put(name: str, row: int, value: int) -> Callable[[Examples], Examples]:
    """A harm: one value of a column."""

    def harm(examples: Examples) -> Examples:
        column = getattr(examples, name).copy()
        column[row] = value
        return replace(examples, **{name: column})

    return harm


def shift(name: str, by: int) -> Callable[[Examples], Examples]:
    return lambda examples: replace(examples, **{name: getattr(examples, name) + by})


HARMS = [
    (shift("offsets", 2_000_000_000), "offset out of bounds"),
    (shift("offsets", -2_000_000_000), "Negative offsets"),
    (put("offsets", 0, 1), "row 0: input_ids begins at 1, not at 0"),
    (put("offsets", 2, 10**6), r"row 1: the length of input_ids is 999,\d+, not from 0 to"),
    (put("offsets", 2, 0), r"row 1: the length of input_ids is -\d+, not from 0 to"),
    (put("offsets", -1, 100), "row 7: the length of input_ids is -"),
    (put("masked_offsets", 3, 10**6), "row 2: the length of masked_positions is 999,9"),
    (put("masked_positions", 0, 2000), r"row 0: masked_positions is 2,000, not from 0 to \d+;"),
    (put("masked_positions", -1, 65_535), "row 7: masked_positions is 65,535, not from 0 to"),
    (put("input_ids", -1, 30_000), "row 7: input_ids is 30,000, not from 0 to 29,999"),
    (put("masked_input_ids", 0, 65_535), "row 0: masked_input_ids is 65,535, not from 0 to 29,999"),
    (put("segment_a_lengths", 3, 999), "row 3: segment_a_length is 999, not from 1 to"),
    (put("next_sentence_labels", 4, 2), "row 4: next_sentence_label is 2, not from 0 to 1"),
    (put("offsets", 1, 3), "row 0: the length of input_ids is 3, not from 4 to 128"),
]


def harmed(folder: Path, harm: Callable[[Examples], Examples]) -> Path:
    """A folder of one shard of 8 rows, some bytes of which are others; the manifest vouches."""
    [examples] = write_folder(folder, [8])
    path = folder / "train" / "shard-00000.arrow"
    data = path.read_bytes()
    for column, new in zip(vars(examples).values(), vars(harm(examples)).values(), strict=True):
        old, new = (a.astype(np.int32) if a.dtype == np.int64 else a for a in (column, new))
        data = data.replace(old.tobytes(), new.tobytes())
    path.write_bytes(data)
    vouch(folder)
    return path


@pytest.mark.parametrize(("harm", "reason"), HARMS)
def test_values_that_cannot_be_are_refused_with_row_column_bound_and_cure(
    tmp_path: Path, harm: Callable[[Examples], Examples], reason: str
) -> None:
    path = harmed(tmp_path, harm)
    with pytest.raises(SettingsError, match=f"(?s)^{path}.*{reason}.*{CURE}$"):
        Shards.open(tmp_path, "train").rows(np.arange(8))
    [fault] = verify(tmp_path)
    assert str(path) in fault
    assert "\n" not in fault


def test_lengths_alone_are_refused_before_they_are_returned(tmp_path: Path) -> None:
    harmed(tmp_path, put("offsets", 2, 10**6))
    with pytest.raises(SettingsError, match="row 1: the length of input_ids"):
        Shards.open(tmp_path, "train").lengths(np.arange(8))


def test_each_shard_is_checked_once_per_process_and_only_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_prep.stores import shard_reader

    write_folder(tmp_path, [3, 4, 5])
    checked: list[str] = []
    monkeypatch.setattr(shard_reader, "check_tokens", lambda path, *_: checked.append(path.name))
    shards = Shards.open(tmp_path, "train")
    for asked in ([0, 1], [2, 4], [3, 6]):
        shards.rows(np.array(asked))
    assert checked == ["shard-00000.arrow", "shard-00001.arrow"]


def test_what_verify_has_read_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_prep.stores import shard_reader

    write_folder(tmp_path, [3])
    for name in ("check_tokens", "check_rows"):
        monkeypatch.setattr(shard_reader, name, lambda *_: pytest.fail("read again"))
    Shards.open(tmp_path, "train", is_verified=True).rows(np.arange(3))


def rewrite(path: Path, change: Callable[[Any], Any], **options: Any) -> None:
    """Write the shard's record batch again, changed."""
    with pa.ipc.open_stream(path.read_bytes()) as reader:
        batch = reader.read_next_batch()
    with pa.ipc.new_stream(path, (batch := change(batch)).schema, **options) as writer:
        writer.write_batch(batch)


def with_column(name: str, column: Any) -> Callable[[Any], Any]:
    def change(batch: Any) -> Any:
        return batch.set_column(batch.schema.get_field_index(name), name, column)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_column("document_a", pa.array([*range(7), None], pa.uint32())), "document_a has 1 n"),
        (with_column("input_ids", pa.array([[1]] * 7 + [None], pa.list_(pa.uint16()))), "1 nulls"),
        (with_column("document_a", pa.array(range(8), pa.int64())), "document_a: int64"),
        (lambda batch: batch.drop_columns(["document_b"]), "its columns are"),
    ],
)
def test_nulls_and_other_columns_are_refused(
    tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    path = harmed(tmp_path, lambda examples: examples)
    rewrite(path, change)
    with pytest.raises(SettingsError, match=f"{reason}.*; {CURE}"):
        read_shard(path)


def test_a_compressed_shard_is_refused_before_it_is_decompressed(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", make_examples(8, 0), {})
    rewrite(tmp_path / "a", lambda b: b, options=pa.ipc.IpcWriteOptions(compression="zstd"))
    with pytest.raises(SettingsError, match=f"it is compressed.*{CURE}"):
        read_shard(tmp_path / "a")


def test_a_batch_in_place_of_a_schema_is_refused_where_pyarrow_would_crash(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_shard(path, make_examples(8, 0), {})
    data = path.read_bytes()
    path.write_bytes(data[8 + int.from_bytes(data[4:8], "little") :])  # without the first message
    with pytest.raises(SettingsError, match=f"a record batch in place of a schema.*{CURE}"):
        read_shard(path)


def test_more_rows_than_the_buffers_hold_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", make_examples(8, 0), {})
    data = (tmp_path / "a").read_bytes()
    eight, many = (number.to_bytes(8, "little") for number in (8, 10**6))
    (tmp_path / "a").write_bytes(data.replace(eight, many))
    with pytest.raises(SettingsError, match=CURE):
        read_shard(tmp_path / "a")


NAMES = ["/dev/zero", "../train/shard-00000.arrow", "", "..", "a\0b", "\x1b[31mred", "a/b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_plain_file_name_is_refused_and_printed_with_escapes(
    tmp_path: Path, name: str
) -> None:
    write_folder(tmp_path, [3])
    manifest = read_json(tmp_path / "manifest.json")
    manifest["splits"]["train"]["shards"][0]["name"] = name
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(SettingsError, match=r"is no plain file name - at .*data_prep\.build") as no:
        Shards.open(tmp_path, "train")
    assert str(no.value).isprintable()


def test_a_pipe_or_a_device_in_place_of_a_shard_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [3, 3])
    for number in range(2):
        (tmp_path / "train" / f"shard-{number:05d}.arrow").unlink()
    os.mkfifo(tmp_path / "train" / "shard-00000.arrow")
    (tmp_path / "train" / "shard-00001.arrow").symlink_to("/dev/zero")
    assert len(verify(tmp_path)) == 2
    with pytest.raises(SettingsError, match="is not a regular file"):
        Shards.open(tmp_path, "train")


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path, [3])
    path = tmp_path / "train" / "shard-00000.arrow"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert len(Shards.open(tmp_path, "train").read(np.arange(3))) == 3


@pytest.mark.parametrize(
    ("entry", "change", "reason"),
    [
        ("shard", {"rows": -1}, "Expected `int` >= 0"),
        ("shard", {"rows": 2**60}, "Expected `int` <= 9007199254740992"),
        ("shard", {"rows": 10**12}, "do not fit into"),
        ("shard", {"tokens": 10**12}, "do not fit into"),
        ("shard", {"random_next": 50}, "label 1 in 50 of 3 rows"),
        ("split", {"rows": 10**12}, "rows is 1,000,000,000,000, and 3 in its shards together"),
        ("whole", {"seq_len": 10**9}, "Expected `int` <= 65535"),
        ("whole", {"vocab_size": 2**31}, "Expected `int` <= 2147483647"),
        ("whole", {"vocab_size": 4}, "special_ids.mask is 4, not from 0 to 3"),
        ("whole", {"special_ids": {"pad": 0}}, "special_ids are not those of"),
        ("whole", {"dtype": "object"}, "Invalid enum value 'object'"),
        ("whole", {"checksum": 1}, "unknown field"),
        ("whole", {"vocab_checksum": "\x1b[2J"}, "Expected `str` matching regex"),
        ("whole", {"splits": {}}, "splits are not train and heldout"),
        ("masking", {"rate": -1}, "masking.rate=-1"),
        ("masking", {"mask_share": 5.0}, "masking.mask_share=5.0"),
        ("settings", {"\x1b[2J": 1}, "unknown field"),
    ],
)
def test_numbers_of_a_manifest_that_cannot_be_are_refused_with_the_field(
    tmp_path: Path, entry: str, change: dict[str, Any], reason: str
) -> None:
    write_folder(tmp_path, [3])
    manifest = read_json(tmp_path / "manifest.json")
    split = manifest["splits"]["train"]
    places = {"shard": split["shards"][0], "split": split, "whole": manifest}
    places |= {name: manifest[name] for name in ("masking", "settings")}
    places[entry].update(change)
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(SettingsError, match=f"{reason}.*; delete it and run") as refused:
        Shards.open(tmp_path, "train")
    assert str(refused.value).isprintable()


def test_a_manifest_nested_without_end_or_of_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text('{"splits":' + "[" * 100_000)
    with pytest.raises(SettingsError, match="is not as this version writes it"):
        Shards.open(tmp_path, "train")
    with path.open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(SettingsError, match="has 10,737,418,240 bytes, and 67,108,864 are"):
        Shards.open(tmp_path, "train")

"""Parquet and json files that stand for more than a machine has are refused before that is made."""

import bz2
import gzip
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_reading import read_all, source_of, texts

from data_prep.core.config import SettingsError
from data_prep.sources.inputs import row_bounds


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_bounds, "MOST_GROUP_BYTES", 100_000)
    monkeypatch.setattr(row_bounds, "MOST_BYTES", 20_000)


def _refusal(path: Path) -> str:
    with pytest.raises(SettingsError) as refused:
        read_all(source_of("bookcorpus", path))
    return str(refused.value)


def _write(path: Path, rows: list[str | None], group: int = 1_000, **how: object) -> Path:
    pq.write_table(pa.table({"text": rows}), path, row_group_size=group, **how)
    return path


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize(
    ("rows", "how"),
    [
        (["a" * 10_000] * 50, {}),  # the dictionary holds it once
        (["a" * 10_000] * 50, {"use_dictionary": False, "compression": "zstd"}),
        ([f"{n} " + "a" * 10_000 for n in range(50)], {"compression": "gzip"}),
        (["", None, *["a"] * 200_000], {"compression": "zstd"}),
    ],
    ids=["dictionary", "zstd", "gzip", "many short rows"],
)
def test_a_row_group_that_unpacks_to_too_much_is_refused(tmp_path, rows, how) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    _write(folder / "a.parquet", ["fine"])
    path = _write(folder / "b.parquet", ["fine", *rows], group=1_000_000, **how)
    assert path.stat().st_size < 20_000
    told = _refusal(folder)
    assert f"{path}, row group 0: has more than 100,000 bytes unpacked; write smaller" in told
    assert not (tmp_path / "cache").exists()  # nothing was converted


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("place", [0, 2, 7])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_row_that_is_too_long_is_refused_by_its_place(tmp_path, place, use_dictionary) -> None:
    rows = ["fine"] * 8
    rows[place] = "a" * 20_001
    path = _write(tmp_path / "a.parquet", rows, group=5, use_dictionary=use_dictionary)
    group, row = divmod(place, 5)
    told = _refusal(tmp_path)
    assert f"{path}, row group {group}: row {row}: has " in told
    assert "and 20,000 is the most; cut the text or remove the row" in told


@pytest.mark.usefixtures("small_bounds")
def test_groups_and_rows_within_the_bounds_are_read(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", ["a" * 9_000, None, "b"] * 30, group=9)
    assert len(texts(read_all(source_of("bookcorpus", tmp_path)))) == 60


@pytest.mark.usefixtures("small_bounds")
def test_a_bomb_in_another_column_is_refused(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"] * 50, "html": ["b" * 10_000] * 50, "n": range(50)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert "row group 0: has more than 100,000 bytes unpacked" in _refusal(tmp_path)


@pytest.mark.usefixtures("small_bounds")
def test_nested_columns_are_not_read(tmp_path: Path) -> None:
    table = pa.table({"text": ["One."] * 50, "links": [["c" * 10_000] * 3] * 50})
    pq.write_table(table, tmp_path / "a.parquet")
    source = source_of("bookcorpus", tmp_path)
    assert set(texts(read_all(source)).values()) == {"One."}
    pq.write_table(table.select(["links"]), tmp_path / "a.parquet")
    assert "a.parquet: all its columns are nested: links" in _refusal(tmp_path)


def test_what_does_not_fit_on_the_disk_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000), pa.array(["a" * 1_000_000]))
    pq.write_table(pa.table({"text": same}), tmp_path / "a.parquet")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 30))
    told = _refusal(tmp_path)
    assert "unpacked it takes 2 GB, and the disk of " in told
    assert "has 1 GB free; set data_dir to a folder on a larger disk" in told


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_line_of_json_that_is_too_long_is_refused(tmp_path: Path, name: str) -> None:
    lines = [json.dumps({"text": "a" * size}) for size in (10, 20_001, 10)]
    (tmp_path / name).write_text("\n".join(lines))
    assert f"{tmp_path / name}, line 2: has more than 20,000 bytes; write" in _refusal(tmp_path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lambda data: b"PK\x03\x04" + data])
def test_a_packed_file_under_the_name_of_a_json_file_is_refused(tmp_path, pack) -> None:
    (tmp_path / "a.jsonl").write_bytes(pack(b'{"text": "One."}\n' * 1_000))
    assert "a.jsonl: begins as no JSON does; if it is packed, unpack it" in _refusal(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b'{"text": "One."}\n',
        b'[{"text": "One."}]',
        b'\xef\xbb\xbf{"text": "One."}\n',
        b'\n {"text": "One."}',
    ],
)
def test_json_is_read_however_it_begins(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    assert list(texts(read_all(source_of("bookcorpus", tmp_path))).values()) == ["One."]

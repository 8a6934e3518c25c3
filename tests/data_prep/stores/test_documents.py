"""The documents store: what is written is read, whole, in one order, with the same bytes."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import write_source

from data_prep.core.files import checksum
from data_prep.stores import documents
from data_prep.stores.documents import (
    Document,
    Reject,
    list_parts,
    open_rejects,
    read_part,
    write_part,
)

texts = st.text(st.characters(exclude_categories=["Cs"]))


@settings(deadline=None)  # the first write loads libraries
@given(rows=st.lists(st.builds(Document, texts, texts, texts)), characters=st.integers(1, 30))
def test_documents_are_read_as_written_whatever_the_row_groups(
    rows: list[Document], characters: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("store") / "part-00000.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "ROW_GROUP_CHARACTERS", characters)
        entry = write_part(path, rows)
    assert list(read_part(path)) == rows
    assert (entry.rows, entry.characters) == (len(rows), sum(len(row.text) for row in rows))


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [Document(str(n), "a title", f"text {n}\n" * n) for n in range(100)]
    write_part(tmp_path / "a", rows)
    write_part(tmp_path / "b", iter(rows))
    assert checksum(tmp_path / "a") == checksum(tmp_path / "b")


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        write_part(tmp_path / "part-00000.parquet", [Document("1", "", ""), None])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_part_is_named_with_its_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "ROW_GROUP_CHARACTERS", 10)
    path = tmp_path / "part-00000.parquet"
    write_part(path, [Document(str(n), "", "some text") for n in range(3)])
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(1).column(2)
    data = bytearray(path.read_bytes())
    first, size = column.data_page_offset, column.total_compressed_size
    data[first : first + size] = bytes(size)
    path.write_bytes(data)
    read = read_part(path)
    assert next(read).id == "0"
    with pytest.raises(ValueError, match=r"part-00000\.parquet cannot be read at row group 1 of 3"):
        next(read)


def test_rejects_keep_their_reason(tmp_path: Path) -> None:
    with open_rejects(tmp_path / "a.parquet") as rejects:
        rejects.add(Reject("1", "a title", "what was read", "empty"))
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == [
        {"id": "1", "title": "a title", "text": "what was read", "reason": "empty"}
    ]


def test_parts_are_listed_by_source_and_number_from_the_manifests(tmp_path: Path) -> None:
    row = Document("1", "", "abc")
    write_source(tmp_path, "wiki", [[row], [row, row]])
    write_source(tmp_path, "books", [[row]])
    parts = list_parts(tmp_path)
    assert [(part.source, part.name, part.rows, part.characters) for part in parts] == [
        ("books", "part-00000.parquet", 1, 3),
        ("wiki", "part-00000.parquet", 1, 3),
        ("wiki", "part-00001.parquet", 2, 6),
    ]
    assert all(part.checksum == checksum(part.path) for part in parts)


def test_a_corpus_without_documents_is_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no documents; run python -m data_prep\.collect"):
        list_parts(tmp_path)


def test_a_source_whose_collect_has_not_finished_is_refused(tmp_path: Path) -> None:
    (tmp_path / "documents" / "books").mkdir(parents=True)
    cure = r"manifest\.json is missing: .*; run the command in .*/books/logs/job\.json again, or"
    with pytest.raises(ValueError, match=cure):
        list_parts(tmp_path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "documents" / "books"
    write_source(tmp_path, "books", [[Document("1", "", "abc")]])
    (folder / "part-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"part-00000\.parquet is missing or .* delete .*books"):
        list_parts(tmp_path)

"""Ids that occur more than once: found over all parts, by ranges, and named."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.duplicates import ids
from data_prep.duplicates.ids import repeated_ids
from data_prep.duplicates.signatures import write_signatures
from data_prep.stores.documents import Document, PartEntry, write_part


def write_parts(
    folder: Path, parts: Sequence[Sequence[str]], signed: bool = False
) -> list[PartEntry]:
    entries = []
    for number, names in enumerate(parts):
        path = folder / f"part-{number:05d}.parquet"
        entries.append(write_part(path, [Document(name, "", "") for name in names]))
        if signed:
            write_signatures(path, entries[-1].checksum)
    return entries


@settings(max_examples=30)
@given(
    parts=st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=2))),
    per_range=st.integers(1, 9),
)
def test_they_are_those_that_counting_finds(
    parts: list[list[str]], per_range: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("source")
    counts = Counter(name for names in parts for name in names)
    expected = sorted(name for name, count in counts.items() if count > 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.core.files.flush_to_disk", lambda path: None)
        patch.setattr(ids, "RANGE", per_range)
        found = repeated_ids(folder, write_parts(folder, parts), threads=2, most=3)
    assert found == expected[:3]


def test_the_ids_next_to_the_signatures_serve(tmp_path: Path) -> None:
    entries = write_parts(tmp_path, [["1", "2", "1"], ["3", "2"], []], signed=True)
    for path in tmp_path.glob("*.parquet"):
        path.write_bytes(b"not read")
    assert repeated_ids(tmp_path, entries) == ["1", "2"]


def test_ids_of_one_hash_are_compared_as_they_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ids, "_hashes", lambda names: np.zeros(len(names), np.uint64))
    assert repeated_ids(tmp_path, write_parts(tmp_path, [["1", "2"], ["3", "2"]])) == ["2"]

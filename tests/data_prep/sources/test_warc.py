"""WET files of web crawls: their conversion records, and what is none."""

import gzip
from pathlib import Path

import pytest
from row_tables import PACKINGS
from source_reading import read_all, reasons, source_of

from data_prep.core.config import SettingsError
from data_prep.core.settings import SourceSettings
from data_prep.sources import warc
from data_prep.stores.documents import Damage, Document


def _wet(*pages: tuple[str, bytes], kind: str = "conversion") -> bytes:
    """A WET file with these addresses and texts."""
    records = [("", b"software: test\r\n", "warcinfo"), *((*page, kind) for page in pages)]
    return b"".join(
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {address}\r\n"
        f"WARC-Record-ID: <urn:uuid:{number}>\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(text)}\r\n\r\n".encode()
        + text
        + b"\r\n\r\n"
        for number, (address, text, kind) in enumerate(records)
    )


def _source(path: Path, **more: object) -> SourceSettings:
    return source_of("warc", path, **{"id_column": "WARC-Target-URI", **more})


PAGES = [(f"http://x/{n}", f"Page {n}.\n\nÄ second  line.\n".encode()) for n in range(5)]
DOCUMENTS = [Document(url, url, f"Page {n}.\nÄ second line.") for n, (url, _) in enumerate(PAGES)]


@pytest.mark.parametrize("packing", PACKINGS)
def test_conversion_records_become_documents(tmp_path: Path, packing: str) -> None:
    (tmp_path / f"a.warc.wet{packing}").write_bytes(PACKINGS[packing](_wet(*PAGES)))
    items = read_all(_source(tmp_path))
    assert items[1:] == DOCUMENTS
    assert [*reasons(items).values()] == ["record of type warcinfo, not of WET"]


def test_a_member_of_gzip_per_record_is_read_as_crawls_write_it(tmp_path: Path) -> None:
    members = b"".join(gzip.compress(_wet(page)) for page in PAGES)
    (tmp_path / "a.wet.gz").write_bytes(members)
    items = read_all(_source(tmp_path))
    assert [item for item in items if isinstance(item, Document)] == DOCUMENTS


def test_a_repeated_address_is_named_by_its_record(tmp_path: Path) -> None:
    (tmp_path / "a.wet").write_bytes(_wet(*PAGES[:2], PAGES[0]))
    ids = [item.id for item in read_all(_source(tmp_path))]
    assert ids[1:3] == ["http://x/0", "http://x/1"]
    assert ids[3].startswith("<urn:uuid:")
    by_record = [item.id for item in read_all(_source(tmp_path, id_column="WARC-Record-ID"))]
    assert all(id.startswith("<urn:uuid:") for id in by_record)


def test_what_is_no_text_is_rejected_alone(tmp_path: Path) -> None:
    pages = [("http://x/a", b"Caf\xe9"), ("http://x/b", b" \n"), ("http://x/c", b"A b."), PAGES[0]]
    (tmp_path / "a.wet").write_bytes(_wet(*pages))
    (tmp_path / "b.warc").write_bytes(_wet(("http://x/d", b"<html>"), kind="resource"))
    items = read_all(_source(tmp_path, min_characters=10))
    assert [item for item in items if isinstance(item, Document)] == DOCUMENTS[:1]
    found = reasons(items)
    assert {id: found[id] for id in found if id.startswith("http")} == {
        "http://x/a": "record that is not UTF-8",
        "http://x/b": "empty",
        "http://x/c": "too short",
        "http://x/d": "record of type resource, not of WET",
    }


def test_a_file_that_breaks_off_gives_what_precedes(tmp_path: Path) -> None:
    whole = _wet(*PAGES)
    (tmp_path / "a.wet.gz").write_bytes(gzip.compress(whole)[:-20])
    (tmp_path / "b.wet").write_bytes(b"no WARC at all\n")
    (tmp_path / "bb.wet").write_bytes(whole[:-20])
    (tmp_path / "c.wet").write_bytes(_wet(("http://y", b"Last.")))
    items = read_all(_source(tmp_path))
    assert [item.input for item in items if isinstance(item, Damage)] == [
        "a.wet.gz", "b.wet", "bb.wet",
    ]  # fmt: skip
    assert Document("http://y", "http://y", "Last.") in items


def test_a_missing_package_is_named_with_the_extra(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "warcio", None)
    with pytest.raises(SettingsError, match=r"pip install 'bert-pretraining\[warc\]'"):
        warc.plan(_source(tmp_path), 10)

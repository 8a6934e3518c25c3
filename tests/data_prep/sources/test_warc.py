"""WET and WARC files of web crawls: the records with text, and those without."""

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
    assert [*reasons(items).values()] == ["record of type warcinfo"]


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
        "http://x/d": "record of type resource",
    }


def test_a_file_that_breaks_off_gives_what_precedes(tmp_path: Path) -> None:
    whole = _wet(*PAGES)
    (tmp_path / "a.wet.gz").write_bytes(gzip.compress(whole)[:-20])
    (tmp_path / "b.wet").write_bytes(b"no WARC at all\n")
    (tmp_path / "bb.wet").write_bytes(whole[:-20])
    page = _response(_page("<p>A page.</p>").encode(), "Content-Type: text/html")
    (tmp_path / "bc.warc").write_bytes(_wet(("http://z", page), kind="response")[:-20])
    (tmp_path / "c.wet").write_bytes(_wet(("http://y", b"Last.")))
    items = read_all(_source(tmp_path))
    assert [item.input for item in items if isinstance(item, Damage)] == [
        "a.wet.gz", "b.wet", "bb.wet", "bc.warc",
    ]  # fmt: skip
    assert Document("http://y", "http://y", "Last.") in items


def _response(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """What a server answered."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


def _page(content: str) -> str:
    menu, foot = "<nav><a href=/>Home</a></nav>", "<footer>(c) 2026</footer>"
    return f"<html><body>{menu}{content}{foot}</body></html>"


def _found(tmp_path: Path, *responses: bytes) -> list[str]:
    """For each: its text, or why it was rejected."""
    pages = [(f"http://x/{n}", response) for n, response in enumerate(responses)]
    (tmp_path / "a.warc").write_bytes(_wet(*pages, kind="response"))
    items = read_all(_source(tmp_path))[1:]
    rejected = reasons(items)
    return [item.text if isinstance(item, Document) else rejected[item.id] for item in items]


def test_the_main_text_of_a_page_is_taken_without_menus_and_scripts(tmp_path: Path) -> None:
    content = "<h1>Title</h1><script>alert(1)</script><p>A &amp; b.</p><p>Two<br>lines.</p>"
    assert _found(tmp_path, _response(_page(content).encode(), "Content-Type: text/html")) == [
        "Title\nA & b.\nTwo\nlines."
    ]


def test_a_page_is_decoded_as_its_header_or_itself_names_it_or_as_it_looks(tmp_path: Path) -> None:
    page = _page("<p>Ça a été écrit à Orléans, près de la forêt.</p>")
    named = page.replace("<body>", "<head><meta charset='ISO-8859-1'></head><body>")
    html = "Content-Type: text/html"
    found = _found(
        tmp_path,
        _response(page.encode("latin-1"), f"{html}; charset=iso-8859-1"),
        _response(named.encode("latin-1"), html),
        _response(page.encode(), html),
        _response(page.encode(), f"{html}; charset=none-such"),
        _response(gzip.compress(page.encode()), html, "Content-Encoding: gzip"),
    )
    assert found == ["Ça a été écrit à Orléans, près de la forêt."] * 5


def test_a_response_without_text_is_rejected_with_the_reason(tmp_path: Path) -> None:
    html = "Content-Type: text/html"
    found = _found(
        tmp_path,
        _response(b"<p>Not found.</p>", html, status="404 Not Found"),
        _response(b"%PDF-1.7", "Content-Type: application/pdf"),
        _response(b"", html),
        _response(b"<div>" * 200_000, html),
        _response(_page("<p>Cut <b>off").encode(), html),
    )
    assert found == [
        "response with status 404", "page of type application/pdf", "empty",
        "page of more than 5,000 nested elements", "Cut off",
    ]  # fmt: skip


def test_paragraphs_and_cells_without_an_end_do_not_nest(tmp_path: Path) -> None:
    rows = "<table>" + "<tr><td>word" * 20_000 + "</table>" + "<p>Text.<br>" * 20_000
    (text,) = _found(tmp_path, _response(_page(rows).encode(), "Content-Type: text/html"))
    assert text.count("Text.") == 20_000


@pytest.mark.parametrize("name", ["warcio", "resiliparse"])
def test_a_missing_package_is_named_with_the_extra(tmp_path: Path, monkeypatch, name) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(SettingsError, match=rf"needs {name}: pip .*'bert-pretraining\[warc\]'"):
        warc.plan(_source(tmp_path), 10)

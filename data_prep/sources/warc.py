"""WET and WARC files of web crawls: a document per page.

WET has the text of pages, in conversion records. WARC has the pages themselves, in response
records: the main text of HTML is extracted by resiliparse. Other records are rejects.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from data_prep.core.config import SettingsError
from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.packed import endings_of, fault_of
from data_prep.sources.inputs.pieces import Broken, Piece, open_piece, plan_pieces
from data_prep.sources.inputs.places import find_inputs
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.sources.inputs.text_files import MOST_BYTES, shown
from data_prep.stores.documents import Damage, Document, Reject
from data_prep.text.cleaning import clean_paragraphs, split_lines

_HTML = ("text/html", "application/xhtml+xml")
_CHARSET = re.compile(r"charset=[\"']?([\w.:-]+)", re.IGNORECASE)
# Extraction takes the square of the depth: 2 s for this one. Browsers nest 512 elements at most.
MOST_DEPTH = 5_000
# Elements that need no end tag, and shapes of drawings: they do not nest
_NO_END = (
    "area|base|br|circle|col|dd|dt|ellipse|embed|hr|image|img|input|li|line|link|meta|option|p|param"
    "|path|polygon|polyline|rect|source|stop|tbody|td|th|thead|tr|track|use|wbr"
)
_TAG = re.compile(rf"(</?)(?!(?:{_NO_END})\b)[a-zA-Z]")
_WHAT = "WET or WARC file (.wet or .warc; also .gz, .zst, .bz2, .xz)"


def plan(source: SourceSettings, characters_per_part: int) -> SourcePlan:
    """Tasks of whole files. Raises SettingsError without the packages that read them."""
    try:
        import resiliparse  # noqa: F401
        import warcio  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"the source warc needs {error.name}: pip install 'bert-pretraining[warc]'"
        ) from error
    files, others = find_inputs(source, _WHAT, _is_wanted)
    plan = plan_pieces(files, characters_per_part)
    return replace(plan, inputs={**plan.inputs, **others})


def read(source: SourceSettings, task: list[Any]) -> Iterator[Document | Reject | Damage]:
    """A document or a reject for each record, and a Damage where a file breaks off."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    seen: set[str] = set()
    for piece in (Piece(*fields) for fields in task):
        try:
            with open_piece(piece) as file:
                for record in ArchiveIterator(_Stream(file, piece)):
                    yield _document(source, record, seen, shown(piece.name))
        except Broken as broken:
            yield broken.damage
        except ArchiveLoadFailed as error:
            yield Damage(shown(piece.name), f"is no WARC, or breaks off: {error}")


class _Stream:
    """The content of a file for warcio, which would take EOFError as the end of a whole file."""

    def __init__(self, file: BinaryIO, piece: Piece) -> None:
        self._file, self._piece = file, piece

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except EOFError as error:
            raise Broken(Damage(shown(self._piece.name), str(fault_of(error)))) from error


def _document(source: SourceSettings, record: Any, seen: set[str], file: str) -> Document | Reject:
    """A record's document, or a reject with the reason; its id is added to those `seen`.

    Raises Broken if the file ends in the record.
    """
    headers = record.rec_headers
    address, number = headers.get_header("WARC-Target-URI"), headers.get_header("WARC-Record-ID")
    id = headers.get_header(source.id_column) or number or ""
    if id in seen:
        id = number or ""
    seen.add(id)
    if record.rec_type not in ("conversion", "response"):
        return Reject(id, address or "", "", f"record of type {record.rec_type}")
    data = record.content_stream().read(MOST_BYTES + 1)
    if len(data) < min(_length(record), MOST_BYTES):
        raise Broken(Damage(file, f"breaks off in the record {id}"))
    if len(data) > MOST_BYTES:
        return Reject(id, address or "", "", f"record of more than {MOST_BYTES >> 20} MiB")
    try:
        raw = data.decode() if record.rec_type == "conversion" else _page_text(record, data)
    except UnicodeDecodeError:
        return Reject(id, address or "", data.decode(errors="replace"), "record that is not UTF-8")
    except NoText as error:
        return Reject(id, address or "", "", str(error))
    text = clean_paragraphs(split_lines(raw))
    if not text:
        return Reject(id, address or "", "", "empty")
    if source.min_characters is not None and len(text) < source.min_characters:
        return Reject(id, address or "", text, "too short")
    return Document(id, address or "", text)


def _length(record: Any) -> int:
    """Bytes that the content must have; 0 if that is not known."""
    headers = record.http_headers
    if headers is None:
        return record.length or 0
    is_packed = headers.get_header("Content-Encoding") or headers.get_header("Transfer-Encoding")
    return 0 if is_packed else record.payload_length


class NoText(Exception):
    """A page has no text to take."""


def _page_text(record: Any, data: bytes) -> str:
    """The main text of a page. Raises NoText with the reason if it has none."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    status = record.http_headers.get_statuscode() if record.http_headers else ""
    if status != "200":
        raise NoText(f"response with status {status or 'unknown'}")
    kind, _, more = (record.http_headers.get_header("Content-Type") or "").partition(";")
    if kind.strip().lower() not in _HTML:
        raise NoText(f"page of type {kind.strip().lower() or 'unknown'}")
    named = _CHARSET.search(more)
    encoding = map_encoding_to_html5(named[1], fallback_utf8=False) if named else None
    encoding = encoding or detect_encoding(data, from_html_meta=True) or "utf-8"
    page = bytes_to_str(data, encoding, "replace")
    if _depth(page) > MOST_DEPTH:
        raise NoText(f"page of more than {MOST_DEPTH:,} nested elements")
    text: str = extract_plain_text(page, main_content=True, alt_texts=False, list_bullets=False)
    return text


def _depth(page: str) -> int:
    """How deep elements are nested at most, or more."""
    steps = [-1 if mark == "</" else 1 for mark in _TAG.findall(page)]
    return max(itertools.accumulate(steps), default=0)


def _is_wanted(name: str) -> bool:
    return endings_of(name.partition("?")[0])[0] in (".wet", ".warc")

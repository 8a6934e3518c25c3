"""WET files of web crawls: the text of each page, in the conversion records of WARC's format.

Records of other types are rejects: the pages of WARC files themselves are HTML, which is not read.
"""

from __future__ import annotations

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

_WHAT = "WET file (.wet or .warc; also .gz, .zst, .bz2, .xz)"


def plan(source: SourceSettings, characters_per_part: int) -> SourcePlan:
    """Tasks of whole files. Raises SettingsError without the package that reads them."""
    try:
        import warcio  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "the source warc needs warcio: pip install 'bert-pretraining[warc]'"
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
    if record.rec_type != "conversion":
        return Reject(id, address or "", "", f"record of type {record.rec_type}, not of WET")
    data = record.content_stream().read(MOST_BYTES + 1)
    if record.length is not None and len(data) < min(record.length, MOST_BYTES):
        raise Broken(Damage(file, f"breaks off in the record {id}"))
    if len(data) > MOST_BYTES:
        return Reject(id, address or "", "", f"record of more than {MOST_BYTES >> 20} MiB")
    try:
        text = clean_paragraphs(split_lines(data.decode()))
    except UnicodeDecodeError:
        return Reject(id, address or "", data.decode(errors="replace"), "record that is not UTF-8")
    if not text:
        return Reject(id, address or "", "", "empty")
    if source.min_characters is not None and len(text) < source.min_characters:
        return Reject(id, address or "", text, "too short")
    return Document(id, address or "", text)


def _is_wanted(name: str) -> bool:
    return endings_of(name.partition("?")[0])[0] in (".wet", ".warc")

"""Wikipedia's own dumps: MediaWiki XML, plain, .bz2 (also multistream) or .xz, one task a file.

Pages of the main namespace that are neither redirects nor disambiguation pages become documents;
every other page is a reject. A document's id is its file and the page's number in it: page numbers
of MediaWiki repeat between languages. A dump that breaks off is read as far as it goes.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lxml import etree
from mwparserfromhell.parser import ParserError

from data_prep.core.config import SettingsError
from data_prep.core.settings import SourceSettings
from data_prep.sources import SourcePlan
from data_prep.sources.text_files import list_files, stat_of
from data_prep.sources.wikipedia_articles import article
from data_prep.stores.documents import Damage, Document, Reject
from data_prep.text.wikitext import HIDDEN_NAMESPACES, is_disambiguation, is_redirect, to_text

_DUMP_NAME = re.compile(r".+\.xml(?:-p\d+p\d+)?(?:[-.].*(?:bz2|xz))?")
_CHUNK = 1 << 18  # bytes of XML
_CHECKSUMS = {32: "md5", 40: "sha1", 64: "sha256"}  # by their hexadecimal digits
_HIDDEN_KEYS = ("-2", "6", "14")  # media, file, category


def plan(source: SourceSettings, characters_per_part: int, cache: Path) -> SourcePlan:
    """A task for each dump, with the checksum that lies beside it, if one does."""
    assert source.path is not None
    path = Path(source.path)
    files = [path]
    if path.is_dir():
        files = list_files(path, lambda file: _DUMP_NAME.fullmatch(file.name) is not None)
    if not files:
        raise SettingsError(
            f"source.path={path} holds no .xml, .xml.bz2 or .xml.xz file, nor do its subfolders"
        )
    root = path if path.is_dir() else path.parent
    names = [file.relative_to(root).as_posix() for file in files]
    published = [published_checksum(file) for file in files]
    stats = [stat_of(file) for file in files]
    return SourcePlan(
        tasks=[
            {"root": str(root), "name": name, "checksum": expected}
            for name, expected in zip(names, published, strict=True)
        ],
        inputs={
            "files": len(files),
            "bytes": sum(stat.st_size for stat in stats),
            "files with a published checksum": sum(expected is not None for expected in published),
        },
        states=[
            [name, stat.st_size, stat.st_mtime_ns, expected]
            for name, stat, expected in zip(names, stats, published, strict=True)
        ],
    )


def read(source: SourceSettings, task: dict[str, Any]) -> Iterator[Document | Reject | Damage]:
    """A document, or a reject, for each page; and a Damage where the file breaks off.

    Raises RuntimeError for a file that is not the one its published checksum is of.
    """
    path = Path(task["root"]) / task["name"]
    if task["checksum"] is not None:
        _verify(path, task["checksum"])
    hidden = set(HIDDEN_NAMESPACES)
    number = 0
    for kind, element in _events(path):
        if kind == "damage":
            yield Damage(task["name"], element)
        elif kind == "namespace":
            if element.get("key") in _HIDDEN_KEYS and element.text:
                hidden.add(element.text.strip().lower())
        else:
            number += 1
            id = f"{task['name']}/{number}"
            yield _page(source, id, element, hidden, is_whole=kind == "page")


def published_checksum(path: Path) -> str | None:
    """The checksum published for a file: <name>.md5 or .sha1, or its line in a *sums.txt beside it.

    Hexadecimal, lower case; the longest where there are several.
    """
    own = [path.with_name(f"{path.name}.{kind}") for kind in _CHECKSUMS.values()]
    lists = sorted(path.parent.glob("*sums.txt"))
    found = []
    for file in [*filter(Path.is_file, own), *lists]:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            digits, *names = line.split()[:2] or [""]
            is_own = file in own and not names
            is_named = bool(names) and names[0].lstrip("*") == path.name
            if (is_own or is_named) and re.fullmatch("[0-9a-fA-F]+", digits):
                found.append(digits.lower())
    return max((digits for digits in found if len(digits) in _CHECKSUMS), key=len, default=None)


def _verify(path: Path, expected: str) -> None:
    kind = _CHECKSUMS[len(expected)]
    with path.open("rb") as file:
        digits = hashlib.file_digest(file, kind).hexdigest()
    if digits != expected:
        raise RuntimeError(
            f"{path} has the {kind} {digits}, and the checksum file beside it says {expected}: the "
            "download is broken or of another date; fetch the dump again, or remove the checksum "
            "file to read it as it is"
        )


def _events(path: Path) -> Iterator[tuple[str, Any]]:
    """What a dump holds, in order: its "namespace" and "page" elements.

    Where the file breaks off: the "cut page" it breaks off in, as far as it goes, if it is in one,
    and "damage", which is a text. An element is emptied when the next is asked for, and taken from
    its parent: the memory is that of one chunk and one page.
    """
    parser = etree.XMLPullParser(
        ("start", "end"), tag=("{*}page", "{*}namespace"), huge_tree=True, resolve_entities=False
    )
    chunks = _chunks(path)
    chunk, damage, open_page, num_pages = b" ", "", None, 0
    while chunk and not damage:
        try:
            if chunk := next(chunks, b""):
                parser.feed(chunk)
            else:
                parser.close()
        except (etree.XMLSyntaxError, EOFError, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's, not the file's
            damage = str(error)
        for event, element in parser.read_events():
            kind = etree.QName(element).localname
            if event == "end":
                yield kind, element
                _forget(element)
                open_page = None
            elif kind == "page":
                open_page = element
                num_pages += 1
    if open_page is not None:
        yield "cut page", open_page
    if damage:
        where = "after" if open_page is None else "in"
        yield "damage", f"breaks off {where} page {num_pages}: {damage}"
    elif not num_pages:
        yield "damage", "holds no page; is it MediaWiki's XML?"


def _chunks(path: Path) -> Iterator[bytes]:
    """The XML of a file in pieces, unpacked by what its first bytes say.

    Raises EOFError where compressed data breaks off, OSError or LZMAError where it is corrupt, both
    after all that could be unpacked.
    """
    with path.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        if start.startswith(b"BZh"):
            file: Any = bz2.BZ2File(raw)
        elif start == b"\xfd7zXZ\0":
            file = lzma.LZMAFile(raw)
        else:
            file = raw
        while chunk := file.read1(_CHUNK):  # `read` would lose what came before an error
            yield chunk


def _forget(element: Any) -> None:
    """Free an element and those before it, which their parent holds."""
    element.clear()
    parent = element.getparent()
    while parent is not None and element.getprevious() is not None:
        del parent[0]


def _page(
    source: SourceSettings, id: str, page: Any, hidden: set[str], *, is_whole: bool
) -> Document | Reject:
    title = _field(page, "title")
    revisions = page.findall(
        "{*}revision"
    )  # dumps with a page's history have several, oldest first
    markup = _field(revisions[-1], "text") if revisions else ""
    if not is_whole:
        return Reject(id, title, markup, "dump breaks off in this page")
    if (namespace := _field(page, "ns") or "0") != "0":
        return Reject(id, title, "", f"namespace {namespace}")
    if page.find("{*}redirect") is not None or is_redirect(markup):
        return Reject(id, title, markup, "redirect")
    if not markup.strip():
        return Reject(id, title, "", "empty")
    if (_field(revisions[-1], "model") or "wikitext") != "wikitext":
        return Reject(id, title, markup, "not wikitext")
    if is_disambiguation(title, markup):
        return Reject(id, title, markup, "disambiguation")
    try:
        text = to_text(markup, hidden)
    except (ParserError, RecursionError) as error:
        return Reject(id, title, markup, f"unreadable markup: {type(error).__name__}")
    return article(source, id, title, text)


def _field(parent: Any, name: str) -> str:
    element = parent.find(f"{{*}}{name}")
    # All of its text: where "<!--" was not escaped, a comment stands in the middle of it.
    return "" if element is None else "".join(element.itertext()).strip()

"""Wikipedia's own dumps: MediaWiki XML, plain, .bz2 (also multistream) or .xz, one task per file.

Pages of the main namespace that are neither redirects nor disambiguation pages become documents;
every other page is a reject. A document's id is its file and the index of the page in it, because
MediaWiki's page numbers repeat between languages. A dump that breaks off is read up to there.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lxml import etree
from mwparserfromhell.parser import ParserError

from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.sources.inputs.text_files import NO_FILE, find_files, not_read, root_of, shown
from data_prep.sources.wikipedia_articles import article
from data_prep.stores.documents import Damage, Document, Reject
from data_prep.text import wiki_nesting
from data_prep.text.wiki_leftovers import readable, without_leads
from data_prep.text.wikitext import HIDDEN_NAMESPACES, is_disambiguation, is_redirect, paragraphs

_WHAT = ".xml, .xml.bz2 or .xml.xz file"
_DUMP_NAME = re.compile(r".+\.xml(?:-p\d+p\d+)?(?:[-.].*(?:bz2|xz))?")
_CHECKSUM_NAME = re.compile(r"\.(?:md5|sha1|sha256)$|sums\.txt$")
_CHUNK = 1 << 18  # bytes of XML
_MOST_XML = 16 << 20  # bytes without the end of a revision; a text of 2 MiB may need 12
_CHECKSUMS = {32: "md5", 40: "sha1", 64: "sha256"}  # by number of hexadecimal digits
_HIDDEN_KEYS = ("-2", "6", "14")  # media, file, category


def plan(source: SourceSettings, characters_per_part: int) -> SourcePlan:
    """A task for each dump, with the published checksum next to it, if there is one."""
    root = root_of(source)
    files, others = find_files(source, _WHAT, _is_dump)
    others = [path for path in others if not _CHECKSUM_NAME.search(path.name)]
    published = [published_checksum(root / file.name) for file in files]
    return SourcePlan(
        tasks=[
            {"root": str(root), "name": file.name, "checksum": expected}
            for file, expected in zip(files, published, strict=True)
        ],
        inputs={
            "files": len(files),
            "bytes": sum(file.size for file in files),
            "files with a published checksum": sum(expected is not None for expected in published),
            **not_read(source, others),
        },
        states=[[*file.state, expected] for file, expected in zip(files, published, strict=True)],
    )


def read(source: SourceSettings, task: dict[str, Any]) -> Iterator[Document | Reject | Damage]:
    """A document or a reject for each page, and a Damage where the file breaks off.

    Raises RuntimeError if the file differs from its published checksum.
    """
    path = Path(task["root"]) / task["name"]
    name = shown(task["name"])
    if not path.is_file():
        yield Damage(name, NO_FILE)
        return
    if task["checksum"] is not None:
        _verify(path, task["checksum"])
    hidden = set(HIDDEN_NAMESPACES)
    number = 0
    for kind, element in _events(path):
        if kind == "damage":
            yield Damage(name, element)
        elif kind == "namespace":
            if element.get("key") in _HIDDEN_KEYS and element.text:
                hidden.add(element.text.strip().lower())
        else:
            number += 1
            id = f"{name}/{number}"
            yield _page(source, id, element, hidden, is_whole=kind == "page")


def published_checksum(path: Path) -> str | None:
    """The published checksum of a file: in <name>.md5 or .sha1, or its line in a *sums.txt.

    In lower-case hexadecimal digits; the longest if there are several.
    """
    own = [path.with_name(f"{path.name}.{kind}") for kind in _CHECKSUMS.values()]
    lists = sorted(path.parent.glob("*sums.txt"))
    found = []
    for file in filter(Path.is_file, [*own, *lists]):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            digits, *names = line.split()[:2] or [""]
            is_own = file in own and not names
            is_named = bool(names) and names[0].lstrip("*") == path.name
            if (is_own or is_named) and re.fullmatch("[0-9a-fA-F]+", digits):
                found.append(digits.lower())
    return max((digits for digits in found if len(digits) in _CHECKSUMS), key=len, default=None)


def _is_dump(path: Path) -> bool:
    return _DUMP_NAME.fullmatch(path.name) is not None


def _verify(path: Path, expected: str) -> None:
    kind = _CHECKSUMS[len(expected)]
    with path.open("rb") as file:
        digits = hashlib.file_digest(file, kind).hexdigest()
    if digits != expected:
        raise RuntimeError(
            f"{path} has the {kind} {digits}, and the checksum file next to it has {expected}: "
            "the download is broken or of another date; fetch the dump again, or remove the "
            "checksum file to read it as it is"
        )


def _events(path: Path) -> Iterator[tuple[str, Any]]:
    """The "namespace" and "page" elements of a dump, in order.

    A file that breaks off ends with the "cut page" in which it does so, if it is in one, and with a
    "damage", which is a text. Each element is freed when the next one is requested, and of a page
    the older revisions are, so the memory is that of one chunk and one revision.

    Without huge_tree libxml2 refuses elements nested 256 deep, a text of 10 MB, and entities that
    stand for much more than they take.
    """
    parser = etree.XMLPullParser(
        ("start", "end"), tag=("{*}page", "{*}namespace", "{*}revision"), resolve_entities=False
    )
    chunks = _chunks(path)
    chunk, damage, open_page, num_pages, unread = b" ", "", None, 0, 0
    while chunk and not damage:
        try:
            if chunk := next(chunks, b""):
                parser.feed(chunk)
            else:
                parser.close()
        except (etree.XMLSyntaxError, EOFError, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # a fault of the disk, not of the file
            damage = str(error)
        unread += len(chunk)
        for event, element in parser.read_events():
            kind = etree.QName(element).localname
            unread = 0
            if kind == "revision":
                if event == "start":
                    _forget_older(element)
            elif event == "end":
                yield kind, element
                _forget(element)
                open_page = None
            elif kind == "page":
                open_page = element
                num_pages += 1
        if unread > _MOST_XML:
            damage = damage or f"{_MOST_XML >> 20} MiB of XML without the end of a revision"
    if open_page is not None:
        yield "cut page", open_page
    if damage:
        where = "after" if open_page is None else "in"
        yield "damage", f"breaks off {where} page {num_pages}: {damage}"
    elif not num_pages:
        yield "damage", "holds no page; is it MediaWiki's XML?"


def _chunks(path: Path) -> Iterator[bytes]:
    """The XML of a file in pieces, unpacked according to its first bytes.

    Raises EOFError where compressed data breaks off, and OSError or LZMAError where it is corrupt;
    both after everything that could be unpacked.
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
        while chunk := file.read1(_CHUNK):  # `read` would lose the data before an error
            yield chunk


def _forget(element: Any) -> None:
    """Free an element and those before it, which its parent still holds."""
    element.clear()
    parent = element.getparent()
    while parent is not None and element.getprevious() is not None:
        del parent[0]


def _forget_older(revision: Any) -> None:
    """Free the revisions before this one, of which only the newest is read."""
    older = revision.getprevious()
    while older is not None and etree.QName(older).localname == "revision":
        older.getparent().remove(older)
        older = revision.getprevious()


def _page(
    source: SourceSettings, id: str, page: Any, hidden: set[str], *, is_whole: bool
) -> Document | Reject:
    title = _field(page, "title")
    revisions = page.findall("{*}revision")  # oldest first; dumps with history have several
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
    if fault := wiki_nesting.fault_of(markup):
        return Reject(id, title, markup, f"unreadable markup: {fault}")
    try:
        found = paragraphs(markup, hidden)
    except (ParserError, RecursionError) as error:
        return Reject(id, title, markup, f"unreadable markup: {type(error).__name__}")
    text = "\n".join(line for line, _ in found)
    return article(source, id, title, text, partial(_tidied, found))


def _tidied(found: Sequence[tuple[str, bool]], _: str, removed: Counter[str]) -> str:
    """The paragraphs without leads of lists; counts what it removes."""
    lines = [readable(line, removed) for line, _ in found]
    return "\n".join(without_leads(lines, [is_before for _, is_before in found], removed))


def _field(parent: Any, name: str) -> str:
    element = parent.find(f"{{*}}{name}")
    # itertext, because an unescaped "<!--" makes a comment in the middle of the text.
    return "" if element is None else "".join(element.itertext()).strip()

"""The output of WikiExtractor: <doc id= url= title=>, title, blank line, paragraphs, </doc>.

With --json a page is a line, an object of id, title and text; its text may begin with the title.
Section headings are lines that end in a full stop; they and the leads of dropped lists are removed
and counted. What WikiExtractor leaves behind is removed:
placeholders of formulas and code, emptied brackets, tags, escaped entities, lines of galleries and
of templates that it did not expand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import orjson

from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.packed import FAULTS
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.sources.inputs.text_files import plan_files, read_file, shown
from data_prep.sources.wikipedia_articles import article
from data_prep.stores.documents import Damage, Document, Reject
from data_prep.text.cleaning import clean_paragraphs, remove_hollows, split_lines, unescape
from data_prep.text.wiki_leftovers import readable, without_headings, without_leads

_ID = re.compile(r' id="([^"]*)"')
# A title may hold quotation marks, so it ends where nothing but attributes follows: some versions
# write language and revision after it.
_TITLE = re.compile(r' title="(.*?)"(?>(?: \w+="[^"]*"){0,4})>\s*$')

_REFERENCE = re.compile(r"<ref\b[^<>]*+>|<!--", re.IGNORECASE)
_REFERENCE_END = re.compile(r"</ref\s*+>", re.IGNORECASE)
_COMMENT_END = re.compile("-->")
# Tags by name: "a < b and c > d" is text, and so is "<the prisoner>".
_TAG = re.compile(
    r"</?(?:abbr|b|big|blockquote|br|caption|center|cite|code|dd|del|dfn|div|dl|dt|em|font|gallery|"
    r"h[1-6]|hr|i|imagemap|includeonly|ins|kbd|li|math|mapframe|nobr|noinclude|nowiki|ol|"
    r"onlyinclude|p|poem|pre|q|ref|references|s|samp|score|section|small|source|span|strike|"
    r"strong|sub|sup|syntaxhighlight|table|td|th|timeline|tr|tt|u|ul|var|wbr)\b[^<>]*/?>",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"formula_\d+|codice_\d+|__[A-Z]+__|\{\{[^{}]*\}\}|\{\{|\}\}")
# "|language =", "!colspan=9|B", "#if: Cousin", "File:A.jpg|B", "[[Category:C]]", "px; width:px"
_MARKUP_LINE = re.compile(
    r"^[ \t]*(?:\||![^\n|]*\||#\w+:|Citation/|px;|(?:File|Image):[^\n|]*\||"
    r"\[\[\w+:[^\n]*\]\][ \t]*$|(?>\S+?://)\S++[ \t]*+$)[^\n]*",
    re.MULTILINE,
)
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_UPDATE = re.compile(r"\[ ?\[update\]\]|\[update\]")  # {{as of|2013}}: "As of 2013[ [update]]"
_AS_OF = re.compile(r"(?<![^\s(])s of (?=(?:\w+ )?\d{4}\[ ?\[update)")
# Pronunciations leave "(],])"; "(0, 1]" is an interval.
_UNOPENED = re.compile(r"\[[^\[\]\n]*\]|\([^()\[\],\n]{1,8},[^()\[\],\n]{1,8}\]|\]")
_NO_WORDS = re.compile(r'\(""\)')
_LIST_MARK = re.compile(r"^(?:BULLET|Section)::::[-\s]*", re.MULTILINE)


def plan(source: SourceSettings, characters_per_part: int) -> SourcePlan:
    """Tasks of whole files; WikiExtractor writes files of 1 MB."""
    return plan_files(source, characters_per_part, "file", lambda path: True)


def read(source: SourceSettings, task: list[str]) -> Iterator[Document | Reject | Damage]:
    """A document or a reject for each <doc>, and a reject for text outside of all."""
    for file in task:
        name = shown(file)
        try:
            data = read_file(source, file)
            text = data if isinstance(data, Damage) else data.decode("utf-8-sig")
        except (UnicodeDecodeError, *FAULTS, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            yield Reject(name, "", "", f"unreadable file: {type(error).__name__}")
            continue
        if isinstance(text, Damage):
            yield text
        else:
            yield from _split(source, name, text)


def clean(text: str) -> str:
    """The paragraphs of a page, without what WikiExtractor leaves behind."""
    text = unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", _without_references(text))
    if "::::" in text:
        text = _LIST_MARK.sub("", text)
    if "_" in text or "{{" in text or "}}" in text:
        text = _PLACEHOLDER.sub("", text)
    if "|" in text or "#" in text or "://" in text or "px;" in text or "[[" in text:
        text = _MARKUP_LINE.sub("", text)
    if "]" in text:
        text = _LINK.sub(r"\1", _UPDATE.sub("", _AS_OF.sub("As of ", text)))
        text = _UNOPENED.sub(lambda match: "" if match[0] == "]" else match[0], text)
    text = _NO_WORDS.sub("", text)
    return clean_paragraphs(split_lines(remove_hollows(text)))


def tidy(text: str, removed: Counter[str]) -> str:
    """A page's paragraphs without headings and leads of lists; counts what it removes."""
    lines, before_list = without_headings(readable(text, removed).split("\n"), removed)
    return "\n".join(without_leads(lines, before_list, removed))


def _without_references(text: str) -> str:
    """Remove references and comments, each up to its end; one without an end stays.

    In linear time: an end that the rest of the text lacks is searched once.
    """
    kept: list[str] = []
    start = 0  # of the text to keep
    position = 0
    missing: set[re.Pattern[str]] = set()
    while opened := _REFERENCE.search(text, position):
        position = opened.end()
        end = _COMMENT_END if opened[0] == "<!--" else _REFERENCE_END
        if not opened[0].endswith("/>"):
            closed = None if end in missing else end.search(text, position)
            if closed is None:
                missing.add(end)
                continue
            position = closed.end()
        kept.append(text[start : opened.start()])
        start = position
    return "".join([*kept, text[start:]])


def _split(source: SourceSettings, name: str, text: str) -> Iterator[Document | Reject]:
    """The pages of one file."""
    page: tuple[str, str] | None = None  # id and title
    lines: list[str] = []
    outside: list[str] = []
    for line in text.split("\n"):
        opened, written = _opened(line), _json_page(line)
        if page is not None and (opened or written):
            yield Reject(*page, "\n".join(lines), "page without an end")
            page = None
        if opened:
            page, lines = opened, []
        elif written:
            yield _page(source, *written)
        elif page is None and line.startswith('{"'):
            yield Reject(name, "", line, "line of JSON that is no page")
        elif page is None:
            outside.append(line)
        elif line.strip() == "</doc>":
            yield _page(source, *page, lines)
            page = None
        else:
            lines.append(line)
    if page is not None:
        yield Reject(*page, "\n".join(lines), "page without an end")
    if any(line.strip() for line in outside):
        yield Reject(name, "", "\n".join(outside), "text outside of a page")


def _opened(line: str) -> tuple[str, str] | None:
    """The id and title in a line that opens a page, empty if it lacks them; None in any other."""
    if not line.startswith("<doc ") or not line.endswith(">", 0, len(line.rstrip())):
        return None
    id = _ID.search(line)
    title = _TITLE.match(line, max(0, line.find(' title="')))
    if id is None and title is None:
        return None
    return id[1] if id else "", unescape(title[1]) if title else ""


def _json_page(line: str) -> tuple[str, str, list[str]] | None:
    """The id, title and lines of a page that --json wrote; None if the line is none."""
    if not line.startswith("{"):
        return None
    try:
        page = orjson.loads(line)
        id, title, text = page["id"], page["title"], page["text"]
    except (orjson.JSONDecodeError, KeyError):
        return None
    if not isinstance(title, str) or not isinstance(text, str):
        return None
    return str(id), unescape(title), text.split("\n")


def _page(source: SourceSettings, id: str, title: str, lines: list[str]) -> Document | Reject:
    """A page's document or reject.

    The first line repeats the title; a page of this line alone is the stub of a redirect.
    """
    if not id:
        return Reject(id, title, "\n".join(lines), "page without an id")
    if not title and len(lines) > 1 and not lines[1].strip():
        title = unescape(lines[0]).strip()
    if lines and unescape(lines[0]).strip() == title.strip():
        lines = lines[1:]
    raw = "\n".join(lines)
    if not raw.strip():
        return Reject(id, title, raw, "title only")
    return article(source, id, title, clean(raw), tidy)

"""Tells, in linear time, a page that would hold the parser of MediaWiki's markup.

The parser reads the rest of a page again for each mark that the page opens and never closes:
thousands of them would hold it for hours. Of 494 real pages the worst has 6 such marks.
"""

from __future__ import annotations

import re

from mwparserfromhell.definitions import is_parsable, is_single

# MediaWiki's own limit on a page, in bytes. The parser needs up to 1 kB for each character.
MOST_CHARACTERS = 2 << 20
# Characters times marks without an end. The slowest shapes take 1.4 s per million; the worst real
# page has one million.
MOST_READ_AGAIN = 20_000_000
_DEEP = 100  # marks inside each other; the parser gives up deeper ones, and reads them again

_ENDS = {"{{": "}}", "{{{": "}}}", "[[": "]]", "{|": "|}", "[": "]"}
_IN_TAG = " >"  # after the name of a tag whose start is not complete
_MARK = re.compile(
    r"\{\{\{?|\[\[|^[ \t:]*+\{\||\[(?=//|[a-zA-Z]{2,12}:)|<!--|</?[a-zA-Z][\w-]{0,30}+|=\s*+[\"']"
    r"|^[*#:;]{50,}+"  # 50 lists inside each other; discussions have 20
    r"|\}\}\}?|\]\]|^[ \t]*+\|\}|\]|\n|/?>|[\"']",
    re.MULTILINE,
)


def fault_of(markup: str) -> str | None:
    """Why a page must not be given to the parser; None if it may be."""
    if len(markup) > MOST_CHARACTERS:
        return "larger than MediaWiki's limit of 2 MiB"
    if unclosed_marks(markup) * len(markup) > MOST_READ_AGAIN:
        return "too many marks without an end"
    return None


def unclosed_marks(markup: str) -> int:
    """The number of templates, links, tables, tags and comments without an end, in linear time.

    Marks pair as the parser pairs them: an end counts only for the mark that was opened last.
    """
    page = _Page(markup)
    position = 0
    while mark := _MARK.search(markup, position):
        position = page.step(mark[0], mark.end())
    return len(page.waiting) + page.failed


class _Page:
    def __init__(self, markup: str) -> None:
        self.waiting: list[str] = []  # the end of each open mark, the last one innermost
        self.failed = 0  # marks that an outer end or a line end has cut off
        self._markup = markup
        self._endless: set[str] = set()  # ends that the rest of the page does not have

    def step(self, mark: str, position: int) -> int:
        """Take the mark that ends at `position`; return where to look for the next one."""
        waiting = self.waiting
        if mark[-2:] in ("{|", "|}"):  # with the blanks before it
            mark = mark[-2:]
        elif mark[0] == "<":
            mark = mark.lower()
        last = waiting[-1] if waiting else ""
        in_tag = last.endswith(_IN_TAG)
        if mark == last:
            waiting.pop()
        elif mark in _ENDS:
            waiting.append(_ENDS[mark])
            self.failed += len(waiting) > _DEEP
        elif mark == "}}" == last[:2]:  # the argument {{{ was a brace and a template
            waiting.pop()
            self.failed += 1
        elif mark[:2] == last and mark in ("}}}", "]]"):
            waiting.pop()
            return position - len(mark) + 2
        elif mark == "]]" and last == "]":
            waiting.pop()
        elif mark == "\n":
            self._end_line()
        elif mark == "<!--":
            return self._skip("-->", position)
        elif mark[0] in "*#:;":
            self.failed += len(mark)
        elif mark[0] == "=" and in_tag:
            waiting.append(mark[-1])
        elif mark in (">", "/>") and in_tag:
            return self._end_start(waiting.pop().removesuffix(_IN_TAG), mark, position)
        elif mark[0] == "<" and mark[1] != "/":
            waiting.append(mark[1:] + _IN_TAG)
        return position

    def _end_line(self) -> None:
        """Drop external links: they end with their line. All but one were read several times."""
        links = 0
        while self.waiting and self.waiting[-1] == "]":
            self.waiting.pop()
            links += 1
        self.failed += max(0, links - 1)

    def _end_start(self, name: str, mark: str, position: int) -> int:
        if mark == "/>" or is_single(name):
            return position
        if not is_parsable(name):
            return self._skip(f"</{name}", position)
        self.waiting.append(f"</{name}")
        return position

    def _skip(self, end: str, position: int) -> int:
        """The position after `end`, or `position` if there is none."""
        found = -1 if end in self._endless else self._markup.find(end, position)
        if found >= 0:
            return found + len(end)
        self._endless.add(end)
        self.waiting.append(end)
        return position

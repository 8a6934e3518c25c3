"""Decides which pages of Wikipedia, without their markup, are articles."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from data_prep.core.settings import SourceSettings
from data_prep.stores.documents import Document, Reject
from data_prep.text.wikitext import is_disambiguation

# "Clone may refer to:", "Fraile is Spanish for friar and may refer to", "CNO is an initialism. It
# can mean:", "Durham commonly refers to:", "A may refer to the following places in Bavaria:".
_LISTS_MEANINGS = re.compile(
    r"\b(?:(?:may|can|could|might)\b.{0,20}\b(?:refer|mean|stand)|refers|stands)\b(?: to| for)?"
    r"(?:.{0,100}:|\W*)$"
)
# Mean characters of a line in a list; paragraphs of articles are several times as long.
_LIST = 150


def article(
    source: SourceSettings,
    id: str,
    title: str,
    text: str,
    tidy: Callable[[str, Counter[str]], str] | None = None,
) -> Document | Reject:
    """A page's document, or a reject if it has no text, lists meanings or is too short.

    `tidy` removes from the text, and counts, what only served to judge the page.
    """
    if not text:
        return Reject(id, title, text, "no prose")
    if lists_meanings(title, text):
        return Reject(id, title, text, "disambiguation")
    removed: Counter[str] = Counter()
    if tidy is not None:
        text = tidy(text, removed)
    if not text:
        return Reject(id, title, text, "no prose")
    if source.min_characters is not None and len(text) < source.min_characters:
        return Reject(id, title, text, "too short")
    return Document(id, title, text, removed=+removed)


def lists_meanings(title: str, text: str) -> bool:
    """Whether a page only lists meanings of its title.

    Judged by the title in any language, or, as English pages have it, by the first or second line
    followed by nothing but a list.
    """
    if is_disambiguation(title, ""):
        return True
    lines = text.split("\n")
    return len(text) < _LIST * len(lines) and any(map(_LISTS_MEANINGS.search, lines[:2]))

"""MediaWiki's markup to paragraphs of prose.

Dropped: templates except those that carry prose, tables, references, formulas, galleries, files,
categories, links to other languages, lists, headings. A link leaves its text; the end of a section
ends a paragraph.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import mwparserfromhell
from mwparserfromhell.nodes import (
    ExternalLink,
    Heading,
    HTMLEntity,
    Node,
    Tag,
    Template,
    Text,
    Wikilink,
)
from mwparserfromhell.wikicode import Wikicode

from data_prep.text.cleaning import clean_line, remove_hollows, split_lines
from data_prep.text.wiki_names import DISAMBIGUATION
from data_prep.text.wiki_templates import RAISED, raised, shown_text

# MediaWiki accepts the English names in every language; a dump's header has the others.
HIDDEN_NAMESPACES = frozenset({"file", "image", "media", "category"})

_DROPPED_TAGS = frozenset(
    "ref references table gallery math chem ce timeline score imagemap mapframe maplink graph "
    "hiero syntaxhighlight source pre templatestyles templatedata indicator inputbox categorytree "
    "section ul ol dl li dt dd td tr th caption hr noinclude".split()
)
_BLOCK_TAGS = frozenset({"br", "p", "div", "center", "blockquote", "poem", "h1", "h2", "h3", "h4"})
_LIST_TAGS = frozenset({"li", "dt", "dd"})
_LIST_MARK = "\0"  # which no XML holds

# Each language has its own word: "#REDIRECT [[Target]]", "#WEITERLEITUNG [[Ziel]]". Some scripts
# have vowel signs in it, which are no letters.
_REDIRECT = re.compile(r"\s*+#[^\s\[\]#*:;]++\s*+:?\s*+\[\[")
_TEMPLATE_NAME = re.compile(r"\{\{\s*+([^{}|\n]++)(?=[|\n}])")
# Templates of such a page itself, not of pages that point to one: "Disambiguation needed".
_DISAMBIGUATION = re.compile(
    r"(?:(?:[\w-]+ )*disambiguation|disambig\w*|dab|[\w-]*disambig|hndis|geodis)"
    r"(?:[ -](?:page|cleanup))?",
    re.IGNORECASE,
)
_DISAMBIGUATION_NAMES = {name for names in DISAMBIGUATION.values() for name in names.split("|")}

_HIDDEN_COLON = re.compile(r"[a-z]{2,3}(?:-[a-z]{2,})*|simple")  # codes of languages
_MEDIA_NAME = re.compile(r"[^:]+:.+\.(?:jpe?g|png|svg|gif|tiff?|webp|og[agv]|webm|mp[34]|pdf|djvu)")
# [[Kategorie:A]] alone on a line, whatever the language calls it, is no prose.
_LINK_LINE = re.compile(r"^[ \t]*+(?>(?:\[\[[^\[\]:|\n]++:[^\[\]\n]*+\]\][ \t]*+)+)$", re.MULTILINE)

_QUOTES = re.compile("'{2,}")
_SWITCH = re.compile(r"__(?:(?![a-z_])\w){2,}(?:_(?:(?![a-z_])\w)+)*__")  # __KEIN_INHALT__
_RAISED = re.compile(rf"(?:(?<=[\w)\]])({RAISED})|{RAISED})")
# Variants of Chinese; the first one is kept.
_CONVERSION = re.compile(r"-\{(?>(?:[^{}|]*+\|)?)(?>(?:zh[\w-]*+:)?)([^{}|:;]*+)[^{}]*+\}-")
# What the parser leaves of marks that have no partner.
_UNPAIRED_TABLE = re.compile(r"^[ \t]*\{\|.*?(?:^[ \t]*\|\}|\Z)", re.MULTILINE | re.DOTALL)
_UNPAIRED = re.compile(r"\{\{|\}\}|\[\[|\]\]|</?[a-z]++\b[^<>\n]{0,300}>|<ref\b", re.IGNORECASE)
_NO_PROSE = re.compile(r"^\s*+(?:[|!]|\{\||=++[^=]++=++\s*+$|[\W\d_]*+$)")


def is_redirect(markup: str) -> bool:
    """Whether a page is a redirect, in any language."""
    return _REDIRECT.match(markup) is not None


def is_disambiguation(title: str, markup: str) -> bool:
    """Whether a page only lists meanings of its title, judged by its title or its templates."""
    in_brackets = title.rpartition("(")[2].removesuffix(")")
    if title.endswith(")") and _names_disambiguation(in_brackets):
        return True
    if "__DISAMBIG__" in markup:
        return True
    names = (match[1].replace("_", " ").strip() for match in _TEMPLATE_NAME.finditer(markup))
    return any(map(_names_disambiguation, names))


def _names_disambiguation(name: str) -> bool:
    """Whether it is the name of such a template, or stands in brackets after such a title."""
    return _DISAMBIGUATION.fullmatch(name) is not None or name.lower() in _DISAMBIGUATION_NAMES


def to_text(markup: str, hidden: Collection[str] = HIDDEN_NAMESPACES) -> str:
    """The prose of a page, one paragraph per line; empty if there is none. See `paragraphs`."""
    return "\n".join(line for line, _ in paragraphs(markup, hidden))


def paragraphs(markup: str, hidden: Collection[str] = HIDDEN_NAMESPACES) -> list[tuple[str, bool]]:
    """The paragraphs of a page's prose, and whether a list or a table stood behind each.

    `hidden` are the lower-case names of namespaces whose links show no text: files, categories.
    Raises mwparserfromhell.parser.ParserError on markup that the parser cannot read.
    """
    markup = _LINK_LINE.sub("", markup.replace(_LIST_MARK, "").replace(RAISED, ""))
    # _QUOTES removes bold and italics: the parser is slow at pairing their quotes.
    parsed = mwparserfromhell.parse(markup, skip_style_tags=True)
    text = "".join(_shown(parsed, hidden))
    text = _UNPAIRED_TABLE.sub("", _SWITCH.sub("", _CONVERSION.sub(r"\1", text)))
    text = _QUOTES.sub(lambda match: "'" if len(match[0]) == 4 else "", text)
    text = remove_hollows(_UNPAIRED.sub("", text))
    text = _RAISED.sub(lambda match: "^" if match[1] else "", text)
    found: list[tuple[str, bool]] = []
    for line in split_lines(text):
        before, mark, _ = line.partition(_LIST_MARK)
        shown = "" if _NO_PROSE.match(before) else clean_line(before)
        if shown:
            found.append((shown, bool(mark)))
        elif mark and found:
            found[-1] = found[-1][0], True
    return found


def _shown(markup: Wikicode | None, hidden: Collection[str]) -> Iterator[str]:
    """The visible text of markup, piece by piece; a list's mark is in front of each item."""
    for node in markup.nodes if markup is not None else ():
        yield from _shown_of(node, hidden)


def _shown_of(node: Node, hidden: Collection[str]) -> Iterator[str]:
    """The visible text of one node."""
    if isinstance(node, Text):
        yield node.value
    elif isinstance(node, Wikilink):
        if not _is_hidden(node, hidden):
            if node.text is None:
                yield "".join(_shown(node.title, hidden)).strip().removeprefix(":")
            else:
                yield from _shown(node.text, hidden)
    elif isinstance(node, ExternalLink):
        yield from _shown(node.title, hidden)
    elif isinstance(node, Template):
        yield shown_text(node, lambda argument: "".join(_shown(argument, hidden)))
    elif isinstance(node, HTMLEntity):
        yield node.normalize()
    elif isinstance(node, Heading):
        yield "\n"
    elif isinstance(node, Tag):
        name = str(node.tag).strip().lower()
        if node.wiki_markup and name in _LIST_TAGS:
            yield _LIST_MARK
        elif name in _BLOCK_TAGS:
            yield "\n"
            yield from _shown(node.contents, hidden)
            yield "\n"
        elif name == "sup":
            yield raised("".join(_shown(node.contents, hidden)))
        elif name in ("table", "gallery"):
            yield f"\n{_LIST_MARK}\n"
        elif name not in _DROPPED_TAGS:
            yield from _shown(node.contents, hidden)


def _is_hidden(link: Wikilink, hidden: Collection[str]) -> bool:
    title = str(link.title).strip()
    prefix, colon, _ = title.partition(":")
    if not colon or not prefix:  # [[:Category:A]] is shown
        return False
    return (
        prefix.strip().lower() in hidden
        or (link.text is None and _HIDDEN_COLON.fullmatch(prefix) is not None)
        or _MEDIA_NAME.fullmatch(title.lower()) is not None
    )

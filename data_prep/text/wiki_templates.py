"""MediaWiki's templates that carry prose, and the text that a page shows of them.

All others are dropped: boxes, references, editors' notes, pronunciations. The choice is based on
counts in the sentences of English dumps. Names of other languages are in wiki_names.py.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, takewhile

from mwparserfromhell.nodes import Template
from mwparserfromhell.wikicode import Wikicode

from data_prep.text import wiki_names

RAISED = "\1"  # in front of a raised number; no XML holds it
_PARAGRAPHS = {"quote", "blockquote", "cquote", "quotation"}.union(
    *(names.split("|") for names in wiki_names.PARAGRAPHS.values())
)
_SIGNS = {
    **dict.fromkeys(["nbsp", "spaces", "space", "thinsp", "hair space", "nnbsp"], " "),
    **dict.fromkeys(["snd", "spnd", "spaced ndash"], " – "),
    **dict.fromkeys(["mdash", "mdashb", "spaced mdash"], "—"),
    "ndash": "–",
    **dict.fromkeys(["dot", "·", "middot"], " · "),
    **{"'": "'", "'s": "'s", "' \"": "'\"", '-"': '"', "okina": "ʻ", "!": "|"},
}
_NUMBER = re.compile(r"[-−+]?[\d.,/+]+(?:e[-+]?\d+)?")
_RANGE = frozenset("to and or by x × - – +/- ± & ,".split())  # between two numbers of {{convert}}
_ROMAN = re.compile(r"[IVXLC]+")
_LONG_NUMBER = re.compile(r"\d{5,}")  # whose digits are grouped: 1 234 567
_THOUSANDS = re.compile(r"(?<=\d)(?=(?:\d{3})+$)")
_RAISED = re.compile(r"[-−–+]?\d+")
# {{1re}}, {{3e}}, {{XXe siècle}}: the name is the text
_ORDINAL = re.compile(r"(?:\d+|[ivxlc]+)(?:er?|re|nde?|ème)(?: siècles?)?(?: av\. j\.-c\.)?")
_DASH = re.compile(r" ([-–]) ")
_UNITS = {"C": "°C", "F": "°F", "sqmi": "sq mi", "sqft": "sq ft", "USgal": "US gal"}


class _Arguments:
    """The arguments of one template, as shown on a page."""

    def __init__(self, template: Template, show: Callable[[Wikicode], str]) -> None:
        self._show = show
        # By name, because a template's own look-up reads all arguments; the last of a name counts.
        self._values = {str(each.name).strip(): each.value for each in template.params}
        numbers = takewhile(self.has, map(str, count(1)))  # written or not
        self.positional = [self.named(number) for number in numbers]

    def has(self, name: str) -> bool:
        """Whether the template has an argument of this name or number."""
        return name in self._values

    def named(self, name: str) -> str:
        """The argument of this name or number; empty if it is missing."""
        return self._show(self._values[name]).strip() if self.has(name) else ""

    def at(self, number: int) -> str:
        """The positional argument `number`, from 1, or -1 for the last; empty if it is missing."""
        index = number - 1 if number > 0 else number
        in_range = -len(self.positional) <= index < len(self.positional)
        return self.positional[index] if in_range else ""


def shown_text(template: Template, show: Callable[[Wikicode], str]) -> str:
    """The text that a page shows of a template, if it is prose; `show` renders an argument."""
    name = re.sub(r"[\s_]+", " ", str(template.name)).strip().lower()
    if name in _SIGNS:
        return _SIGNS[name]
    function, colon, value = str(template.name).partition(":")
    if colon:
        return value.strip() if function.strip().lower() == "formatnum" else ""
    arguments = _Arguments(template, show)
    if name in _PARAGRAPHS:
        return f"\n{arguments.at(1) or arguments.named('text')}\n"
    if not arguments.positional:
        return str(template.name).strip() if _ORDINAL.fullmatch(name) else ""
    if name in _RENDERED:
        return _RENDERED[name](arguments)
    return arguments.at(1) if name.startswith("lang-") else ""


def raised(text: str) -> str:
    """A raised text; a number has a mark in front of it, for the sign of a power."""
    return RAISED + text if _RAISED.fullmatch(text.strip()) else text


def _prefixed(prefix: str, arguments: _Arguments) -> str:
    return prefix + arguments.at(1)


def _measure(arguments: _Arguments) -> str:
    """The numbers of {{convert}} and their unit, without the converted value.

    3|to|5|mi|km is "3 to 5 mi", 7|-|10|kg "7-10 kg", 6|ft|2|in|m "6 ft 2 in", 5|km|mi|0 "5 km".
    """
    given = arguments.positional
    shown = len(list(takewhile(lambda a: a in _RANGE or _NUMBER.fullmatch(a), given))) + 1
    second = given[shown : shown + 2]
    if shown == 2 and len(second) == 2 and _NUMBER.fullmatch(second[0]):
        shown += 2
    text = " ".join(_UNITS.get(argument, argument) for argument in given[:shown])
    return _DASH.sub(r"\1", text)


def _fraction(arguments: _Arguments) -> str:
    """{{frac|2}} is 1/2, {{frac|3|4}} 3/4, {{frac|1|3|4}} 1 3/4."""
    if len(arguments.positional) == 1:
        return f"1/{arguments.at(1)}"
    *whole, over, under = arguments.positional
    return " ".join([*whole, f"{over}/{under}"])


def _as_of(arguments: _Arguments) -> str:
    """{{as of|2009|5|lc=y}} is "as of May 2009"."""
    if alternative := arguments.named("alt"):
        return alternative
    year, month = arguments.at(1), arguments.at(2)
    if month.isdecimal() and 1 <= int(month) <= 12:
        month = calendar.month_name[int(month)]
    words = ["as of" if arguments.has("lc") else "As of", month, year]
    return " ".join(filter(None, words))


def _quoted(opening: str, closing: str, arguments: _Arguments) -> str:
    """A quotation with its marks, of a template with a text alone."""
    text = arguments.at(1)
    return f"{opening}{text}{closing}" if text and len(arguments.positional) == 1 else ""


def _number(arguments: _Arguments) -> str:
    """{{unité|1234567|m|2}} is 1 234 567 m^2."""
    number = _LONG_NUMBER.sub(lambda match: _THOUSANDS.sub(" ", match[0]), arguments.at(1))
    unit = arguments.at(2) + raised(arguments.at(3))
    return " ".join(filter(None, [number, unit]))


def _date(months: str, between: str, arguments: _Arguments) -> str:
    """{{дата|1|5|1900}} is 1 мая 1900; a month may be named."""
    day, month, year = (arguments.at(number) for number in (1, 2, 3))
    if month.isdecimal() and 1 <= int(month) <= 12:
        month = months.split()[int(month) - 1]
    return between.join(filter(None, [day, month, year]))


def _century(form: str, arguments: _Arguments) -> str:
    """{{s-|XIX}} is XIXe siècle; in Russian {{s|1 мая}} is 1 мая."""
    text = arguments.at(1)
    if not _ROMAN.fullmatch(text):
        return text
    return form.format(text).replace("Ie s", "Ier s") if text == "I" else form.format(text)


def _value(arguments: _Arguments) -> str:
    """{{val|6.02|e=23|u=kg}} is 6.02×10^23 kg."""
    power = f"×10{raised(arguments.named('e'))}" if arguments.has("e") else ""
    return " ".join(filter(None, [arguments.at(1) + power, arguments.named("u")]))


_SHIPS = "hms uss ss rms hmas hmcs mv usat usns".split()
_PREFIXES = {"circa": "c. ", "c.": "c. ", "us$": "US$", "£": "£", "€": "€", "inr": "₹"}
_RENDERED: dict[str, Callable[[_Arguments], str]] = {
    # one of the arguments, such as the second of {{lang|grc|logos}}
    **dict.fromkeys(["lang", "rtl-lang", "langx", "color", "font color"], lambda a: a.at(2)),
    **dict.fromkeys(["transl", "transliteration", "tlit"], lambda a: a.at(-1)),
    **dict.fromkeys(
        "nowrap nobr nobold nowrap small smaller big larger sc smallcaps em strong abbr tooltip "
        "angbr nihongo flag flagcountry ill iast unicode script sic sub vanchor railgauge "
        "oldstyledate".split(),
        lambda a: a.at(1),
    ),
    **dict.fromkeys(
        ["interlanguage link", "not a typo", "proper name", "visible anchor"], lambda a: a.at(1)
    ),
    # several arguments
    **dict.fromkeys(["chem", "chem2", "linktext"], lambda a: "".join(a.positional)),
    **dict.fromkeys(["ship", "sclass", "sclass-"], lambda a: " ".join(a.positional[:2])),
    "val": _value,
    **dict.fromkeys(["sup", "exp"], lambda a: raised(a.at(1))),
    "e": lambda a: f"×10{raised(a.at(1))}",
    # a word and an argument: {{USS|Hornet|CV-12}}
    **{name: partial(_prefixed, prefix) for name, prefix in _PREFIXES.items()},
    **{name: partial(_prefixed, f"{name.upper()} ") for name in _SHIPS},
    **dict.fromkeys(["convert", "cvt"], _measure),
    **dict.fromkeys(["frac", "sfrac", "fraction"], _fraction),
    "as of": _as_of,
}


def _of_languages() -> Iterator[tuple[str, Callable[[_Arguments], str]]]:
    """The templates of wiki_names.py, by name."""
    for names in wiki_names.FIRST.values():
        yield from ((name, lambda a: a.at(1)) for name in names.split("|"))
    for opening, closing, names in wiki_names.QUOTED.values():
        yield from ((name, partial(_quoted, opening, closing)) for name in names.split("|"))
    for names in wiki_names.NUMBERS.values():
        yield from ((name, _number) for name in names.split("|"))
    for names, months, between in wiki_names.DATES.values():
        yield from ((name, partial(_date, months, between)) for name in names.split("|"))
    for names, form in wiki_names.CENTURIES.values():
        yield from ((name, partial(_century, form)) for name in names.split("|"))
    for name, language in wiki_names.LANGUAGES.items():
        yield name, partial(_prefixed, f"{language} ")


_RENDERED |= dict(_of_languages())

"""MediaWiki's templates that carry prose, and what of them a page shows.

All others are dropped: they are boxes, references, notes of editors, pronunciations. Which ones
matter was counted in the sentences of English dumps; names are those of the English Wikipedia.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Iterator
from itertools import takewhile

from mwparserfromhell.nodes import Template
from mwparserfromhell.wikicode import Wikicode

# By name, the positional argument that the page shows: 2 in {{lang|grc|logos}}; -1 is the last.
_SHOWN_ARGUMENT = {
    **dict.fromkeys(["lang", "rtl-lang", "langx", "color", "font color"], 2),
    **dict.fromkeys(["transl", "transliteration", "tlit"], -1),
    **dict.fromkeys(
        "nowrap nobr nobold nowrap small smaller big larger sc smallcaps em strong abbr tooltip "
        "angbr nihongo flag flagcountry ill iast unicode script sic sup sub vanchor railgauge "
        "oldstyledate".split(),
        1,
    ),
    "interlanguage link": 1,
    "not a typo": 1,
    "proper name": 1,
    "visible anchor": 1,
}
_PARAGRAPHS = frozenset({"quote", "blockquote", "cquote", "quotation"})
_JOINED = frozenset({"chem", "chem2", "linktext"})  # all arguments, without anything between them
_SIGNS = {
    **dict.fromkeys(["nbsp", "spaces", "space", "thinsp", "hair space", "nnbsp"], " "),
    **dict.fromkeys(["snd", "spnd", "spaced ndash"], " – "),
    **dict.fromkeys(["mdash", "mdashb", "spaced mdash"], "—"),
    "ndash": "–",
    **dict.fromkeys(["dot", "·", "middot"], " · "),
    **{"'": "'", "'s": "'s", "' \"": "'\"", '-"': '"', "okina": "ʻ", "!": "|"},
}
_PREFIXES = {"circa": "c. ", "c.": "c. ", "us$": "US$", "£": "£", "€": "€", "inr": "₹"}
_SHIPS = frozenset("hms uss ss rms hmas hmcs mv usat usns".split())  # {{USS|Hornet|CV-12}}
_NUMBER = re.compile(r"[-−+]?[\d.,/+]+(?:e[-+]?\d+)?")
_RANGE = frozenset("to and or by x × - – +/- ± & ,".split())  # between two numbers of {{convert}}
_DASH = re.compile(r" ([-–]) ")
_UNITS = {"C": "°C", "F": "°F", "sqmi": "sq mi", "sqft": "sq ft", "USgal": "US gal"}


def shown_text(template: Template, show: Callable[[Wikicode], str]) -> str:
    """What a page shows of a template, as far as it is prose; `show` does it for an argument."""
    name = re.sub(r"[\s_]+", " ", str(template.name)).strip().lower()
    if name in _SIGNS:
        return _SIGNS[name]
    function, colon, value = str(template.name).partition(":")
    if colon:
        return value.strip() if function.strip().lower() == "formatnum" else ""
    arguments = list(_positional(template, show))
    if name in _PARAGRAPHS:
        return f"\n{_argument(arguments, 1) or _named(template, 'text', show)}\n"
    if not arguments:
        return ""
    if name in _SHOWN_ARGUMENT or name.startswith("lang-"):
        return _argument(arguments, _SHOWN_ARGUMENT.get(name, 1))
    if name in _JOINED:
        return "".join(arguments)
    if name in _PREFIXES:
        return _PREFIXES[name] + _argument(arguments, 1)
    if name in _SHIPS:
        return f"{name.upper()} {_argument(arguments, 1)}"
    if name in ("ship", "sclass", "sclass-"):
        return " ".join(arguments[:2])
    if name in ("convert", "cvt"):
        return _measure(arguments)
    if name == "val":
        return " ".join(filter(None, [_argument(arguments, 1), _named(template, "u", show)]))
    if name in ("frac", "sfrac", "fraction"):
        return _fraction(arguments)
    if name == "as of":
        return _as_of(arguments, template, show)
    return ""


def _positional(template: Template, show: Callable[[Wikicode], str]) -> Iterator[str]:
    """Arguments 1, 2, 3 and so on, whether their numbers are written or not."""
    number = 1
    while template.has(str(number)):
        yield show(template.get(str(number)).value).strip()
        number += 1


def _argument(arguments: list[str], number: int) -> str:
    """Argument `number`, counted from 1, or -1 for the last; empty where there is none."""
    index = number - 1 if number > 0 else number
    return arguments[index] if -len(arguments) <= index < len(arguments) else ""


def _named(template: Template, name: str, show: Callable[[Wikicode], str]) -> str:
    return show(template.get(name).value).strip() if template.has(name) else ""


def _measure(arguments: list[str]) -> str:
    """The numbers of {{convert}} and their unit, not what it converts them to.

    3|to|5|mi|km is "3 to 5 mi", 7|-|10|kg "7-10 kg", 6|ft|2|in|m "6 ft 2 in", 5|km|mi|0 "5 km".
    """
    count = len(list(takewhile(lambda a: a in _RANGE or _NUMBER.fullmatch(a), arguments))) + 1
    second = arguments[count : count + 2]
    if count == 2 and len(second) == 2 and _NUMBER.fullmatch(second[0]):
        count += 2
    text = " ".join(_UNITS.get(argument, argument) for argument in arguments[:count])
    return _DASH.sub(r"\1", text)


def _fraction(arguments: list[str]) -> str:
    """{{frac|2}} is 1/2, {{frac|3|4}} 3/4, {{frac|1|3|4}} 1 3/4."""
    if len(arguments) == 1:
        return f"1/{arguments[0]}"
    *whole, over, under = arguments
    return " ".join([*whole, f"{over}/{under}"])


def _as_of(arguments: list[str], template: Template, show: Callable[[Wikicode], str]) -> str:
    """{{as of|2009|5|lc=y}} is "as of May 2009"."""
    if alternative := _named(template, "alt", show):
        return alternative
    year, month = _argument(arguments, 1), _argument(arguments, 2)
    if month.isdecimal() and 1 <= int(month) <= 12:
        month = calendar.month_name[int(month)]
    words = ["as of" if template.has("lc") else "As of", month, year]
    return " ".join(filter(None, words))

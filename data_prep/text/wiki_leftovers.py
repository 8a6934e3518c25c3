"""What is left in Wikipedia's paragraphs where lists, templates and sections were taken out.

Headings of WikiExtractor, which are lines such as "Early life."; leads of dropped lists, such as
"It has three parts:"; units as templates name them, "52419 sqmi"; amounts without a number, "($
today)".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_HEADING = re.compile(r"[\"'“«(\[¡¿]*+[^\W_](?>(?:[^.!?;。！？]|\.(?=\S)){0,68})\.")
_CJK_HEADING = re.compile(r"[^.。！？]{0,30}[\u3040-\u30ff\u3400-\u9fff)）]\.")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_MOST_WORDS = 8
_MOST_FOREIGN_WORDS = 3  # of a page that is not English: its verbs are not known
_SUBJECTS = frozenset("He She It They We I You There This These Those That".split())
# Words that make a line a sentence. A heading may end with one: "Practical uses."
_VERBS = frozenset(
    "is was are were be been being am has have had do does did can could may might shall should "
    "will would must became become becomes began begins broke brought built came comes cost died "
    "fell felt flew fought found gave gets goes got grew held hit kept knew lay led left lies "
    "lost made makes meant met paid plays put ran rose said sang sat saw sent serves set shot "
    "sold spent stands stood takes taught told took uses went wins won wore wrote writes lives "
    "contains consists includes refers remains means shows runs".split()
)

# Up to the last sentence of a paragraph. No end: a full stop after a short word, "St. Louis".
_ENDED = re.compile(
    r".*(?:(?:[^\W\d_]{3}|\d{3}|[)\]%])[.!?…][\"'”’»)\]]{0,3}(?=\s)|[。！？][」』”）]?)", re.DOTALL
)
_QUOTE = tuple("\"'“‘«„「『")

_UNITS = {
    **{"sqmi": "sq mi", "sqft": "sq ft", "sqin": "sq in", "sqyd": "sq yd", "sqkm": "km2"},
    **{"cuft": "cu ft", "cuin": "cu in", "cuyd": "cu yd", "cumi": "cu mi"},
    **{"USgal": "US gal", "impgal": "imp gal", "USoz": "US fl oz"},
    **{"oilbbl": "bbl", "koilbbl": "thousand bbl", "Moilbbl": "million bbl"},
    **{"Goilbbl": "billion bbl", "C": "°C", "F": "°F"},
}
# "27 F.2d", "40 F-15", "11 F Mk.8" are no temperatures
_UNIT = re.compile(rf"(?<=\d )(?:{'|'.join(_UNITS)})\b(?![.'’-]\w| [A-Z])")
_AMOUNT = re.compile(
    r" ?\((?:equal to |equivalent to |about |approximately |around |worth ){0,3}\$"
    r"(?: (?:today|in|as of)\b[^()$]{0,40})?\)"
    r"|,? (?:equal|equivalent) to \$ (?:today|in (?:today|present)[^,.;()$]{0,20})"
)


def readable(text: str, removed: Counter[str]) -> str:
    """The text with units as people write them, without amounts that lack their number."""
    if "$" in text:
        text, count = _AMOUNT.subn("", text)
        removed["amounts without a number"] += count
    return _UNIT.sub(lambda match: _UNITS[match[0]], text)


def without_headings(lines: Sequence[str], removed: Counter[str]) -> tuple[list[str], list[bool]]:
    """WikiExtractor's lines but for headings; and whether a list may have stood behind each.

    The first line is text. A line that ends with a colon lost its list, unless a quotation follows.
    """
    is_english = any(" the " in line for line in lines)
    kept, before_list = [], []
    for number, (line, after) in enumerate(zip(lines, [*lines[1:], ""], strict=True)):
        if number > 0 and _is_heading(line, is_english):
            removed["headings"] += 1
            continue
        kept.append(line)
        before_list.append(not after.startswith(_QUOTE))
    return kept, before_list


def without_leads(
    lines: Sequence[str], before_list: Sequence[bool], removed: Counter[str]
) -> list[str]:
    """The lines without the sentences that lead to a list, which is not there."""
    kept = []
    for line, is_before in zip(lines, before_list, strict=True):
        if is_before and line.endswith((":", "：")):
            removed["leads of lists"] += 1
            ended = _ENDED.match(line)
            line = ended[0] if ended else ""
        if line:
            kept.append(line)
    return kept


def _is_heading(line: str, is_english: bool) -> bool:
    """Whether a line that ends in a full stop has no verb, as far as is known."""
    if _CJK_HEADING.fullmatch(line):
        return True
    if not _HEADING.fullmatch(line):
        return False
    first, *words = _WORD.findall(line)
    if first[0].islower():
        return False
    if len(words) >= (_MOST_WORDS if is_english else _MOST_FOREIGN_WORDS):
        return False
    if line.endswith("다.") or (words and first in _SUBJECTS):  # a Korean sentence; an English one
        return False
    inside = words[:-1]
    return not any(word in _VERBS or (word.islower() and word[-2:] == "ed") for word in inside)

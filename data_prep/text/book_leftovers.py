"""What printing leaves in the paragraphs of a book: chapter headings, page numbers, hyphens at line
ends.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain, pairwise

_LONGEST = 100  # characters of a heading
_NUMBER = (
    r"(?:the )?(?:[ivxlc]{1,8}|\d{1,3}|one|two|three|four|five|six|seven|eight|nine|ten|eleven|"
    r"twelve|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last)"
)
_CHAPTER = re.compile(
    r"[^\w\"'“‘«„]*(?:the )?(?:chapter|book|part|volume|letter|canto|act|scene|"
    r"section|chapitre|livre|partie|tome|kapitel|buch|teil|band|cap[ií]tulo|libro|parte|capitolo|hoofdstuk|deel|rozdział|"
    rf"глава|часть|розділ|частина|bölüm|κεφάλαιο|κεφαλαιο) {_NUMBER}"
    r"(?:\W*$|[.:;]|\s*[-–—]| (?=[\"'“‘«(]*(?-i:[^\W\d_a-zà-ÿа-я])))",
    re.IGNORECASE,
)
_EAST_ASIAN = re.compile(r"第[一二三四五六七八九十百千〇零\d]{1,6}[章回節节卷部話话][^。]{0,30}")
_NUMBER_ALONE = re.compile(r"[\W_]*(?:\d{1,4}|[IVXLC]{1,8})?[\W_]*")
_SPEECH = tuple("\"'“‘«„")

_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_BEFORE_BREAK = re.compile(r"(?<![\w-])[^\W\d_]+\Z")
_AFTER_BREAK = re.compile(r"(?!(?:and|or|to|nor|und|oder|et|ou) )[^\W\d_]+")


def without_headings(paragraphs: list[str], removed: Counter[str]) -> list[str]:
    """The paragraphs but for headings, page numbers and ornaments, which are counted."""
    kept = [paragraph for paragraph in paragraphs if not _is_heading(paragraph)]
    removed["headings and page numbers"] += len(paragraphs) - len(kept)
    return kept


def _is_heading(text: str) -> bool:
    if len(text) > _LONGEST:
        return False
    if _NUMBER_ALONE.fullmatch(text) or _CHAPTER.match(text) or _EAST_ASIAN.fullmatch(text):
        return True
    # In capitals: a title. "HELP!", "MY DEAR SIR," and "'THE END?'" are text.
    return text.isupper() and not text.startswith(_SPEECH) and text[-1] not in "!?,;-—"


def join_broken_words(text: str) -> str:
    """The text with words whole that a line end had broken: "undoubt- edly" is "undoubtedly".

    If the text has the whole word elsewhere and not the hyphenated one. Others keep the hyphen.
    """
    pieces = text.split("- ")
    borders = [
        (number, before[0], after[0])
        for number, (left, right) in enumerate(pairwise(pieces))
        if (after := _AFTER_BREAK.match(right))
        and (before := _BEFORE_BREAK.search(left.rpartition(" ")[2]))
    ]
    if not borders:
        return text
    words = set(_WORD.findall(" ".join(set(text.lower().split()))))
    signs = ["- "] * (len(pieces) - 1) + [""]
    for number, first, second in borders:
        pair = first.lower(), second.lower()
        is_whole = "".join(pair) in words and "-".join(pair) not in words
        signs[number] = "" if is_whole else "-" if second[0].islower() else "- "
    return "".join(chain.from_iterable(zip(pieces, signs, strict=True)))

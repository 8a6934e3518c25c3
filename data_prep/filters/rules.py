"""What a filter is, and which languages its rules can read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Dropped:
    """A filter's verdict on a document that it does not let pass."""

    rule: str  # in few words; counted
    sample: str = ""  # the text that decided; empty: the document's beginning


# The rule and the text of every line that is left out and every text that is replaced
Changes = list[tuple[str, str]]

# From a document's text and the code of its language to the text that stays; adds its changes
Filter = Callable[[str, str, Changes], str | Dropped]

# ISO 639 codes of languages that put no blanks between words
_WITHOUT_BLANKS = frozenset("zh ja th lo km my bo dz yue wuu".split())
# ... and of those that have no mark at the end of a sentence
_WITHOUT_MARKS = frozenset("th lo".split())


def has_blanks(code: str) -> bool:
    """Whether blanks separate the words of a language."""
    return code.lower().split("-")[0] not in _WITHOUT_BLANKS


def has_marks(code: str) -> bool:
    """Whether sentences of a language end with a mark."""
    return code.lower().split("-")[0] not in _WITHOUT_MARKS

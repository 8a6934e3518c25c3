"""Filters that leave out single lines: C4's rules, and lines that a document repeats.

A document's lines are its paragraphs. A document of which no line is left is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from data_prep.filters.rules import Changes, Dropped, Filter, has_blanks, has_marks

LONGEST_WORD = 1_000  # characters; in C4's code
# C4 has the first four; then marks of other scripts, and typographic quotes
END_MARKS = (*".?!\"'", *"”’“‘»«」』。！？｡．؟۔।॥։።፧܀။៕᙮᠃᠉‼⁇⁈⁉‽")
ELLIPSES = ("...", "…")
CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
SHORTEST_REPEATED = 30  # characters; see `line_duplicates`

# From a line and its language to its sentences
SentencesOf = Callable[[str, str], list[str]]


def c4_lines(fewest_words: int, fewest_sentences: int, sentences_of: SentencesOf) -> Filter:
    """The line rules of C4 (Raffel et al. 2020, section 2.2, and its code c4_utils.py).

    Leaves out a line that does not end in a terminal mark or ends in an ellipsis, has fewer than
    `fewest_words` (3) words or one of more than 1,000 characters, names javascript, or speaks of
    cookies, privacy policies or terms of use. Citation marks as [1] and [edit] are cut. Drops a
    document with "lorem ipsum", a curly bracket, or fewer than `fewest_sentences` (5) sentences.

    The terminal marks are those of all scripts; Thai and Lao have none, and pass that rule. Where
    no blanks separate words, a character counts as a word and none is too long. C4's list of bad
    words is not applied.
    """

    def apply(text: str, code: str, changes: Changes) -> str | Dropped:
        kept: list[str] = []
        sentences = 0
        for line in text.split("\n"):
            cut = CITATION.sub("", line).rstrip() if "[" in line else line
            if rule := _line_fault(line, cut, fewest_words, code):
                changes.append((rule, line))
                continue
            lower = cut.lower()
            if "lorem ipsum" in lower:
                return Dropped("lorem ipsum", line)
            if "javascript" in lower:
                changes.append(("names javascript", line))
                continue
            if "{" in cut:
                return Dropped("curly bracket", line)
            if any(phrase in lower for phrase in POLICY):
                changes.append(("cookies or policy", line))
                continue
            if cut != line:
                changes.append(("citation mark cut", line))
            if sentences < fewest_sentences:  # splitting is slow, and more need not be counted
                sentences += len(sentences_of(cut, code))
            kept.append(cut)
        if sentences < fewest_sentences:
            return Dropped(f"fewer than {fewest_sentences} sentences")
        return "\n".join(kept)

    return apply


def _line_fault(line: str, cut: str, fewest_words: int, code: str) -> str:
    """Why C4's rules leave a line out, `cut` being without citation marks; empty: they do not."""
    if has_blanks(code):
        words = line.split()
        if any(len(word) > LONGEST_WORD for word in words):
            return "word too long"
        number = len(words)
    else:
        number = len("".join(line.split()))
    ends = cut.rstrip()
    if has_marks(code) and (not ends.endswith(END_MARKS) or ends.endswith(ELLIPSES)):
        return "no terminal mark"
    return "" if number >= fewest_words else f"fewer than {fewest_words} words"


def line_duplicates() -> Filter:
    """Leaves out a line that the document has had before, its first occurrence stays.

    As Gopher and RefinedWeb do with paragraphs (Penedo et al. 2023, appendix G), but for the lines
    themselves instead of the document. Lines are compared as they are, without blanks at the ends.
    Those of fewer than 30 characters pass: in novels they are speech ("Yes, sir."), and Gopher's
    repetition rules judge documents full of them.
    """

    def apply(text: str, code: str, changes: Changes) -> str | Dropped:
        seen: set[str] = set()
        kept = []
        for line in text.split("\n"):
            bare = line.strip()
            if len(bare) >= SHORTEST_REPEATED:
                if bare in seen:
                    changes.append(("repeated in the document", line))
                    continue
                seen.add(bare)
            kept.append(line)
        return "\n".join(kept)

    return apply

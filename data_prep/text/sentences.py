"""Paragraphs to sentences. The unit is a paragraph: a line end in it is a blank.

English prose: Punkt (Kiss & Strunk 2006) as trained by nupunkt. Its abbreviations and sentence
starters come with the package: no download. One switch differs from the default: after "!" or "?" a
lower-case word continues the sentence (`"Why?" he asked.`), as novels do.

Other languages: sentencex, whose rules know 240 languages, and below them rules of our own that
join what it cuts too often: speech and its tag, ordinal numbers, initials.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

Splitter = Callable[[str], list[str]]

# A paragraph with its only sentence end at its end is one sentence, as a third of those in novels
# are. Skipping nupunkt for them makes splitting a tenth faster.
_ONE_SENTENCE = re.compile(r"""[^.!?…]*+[.!?…]*+["')\]}”’»*]*+\s*+""")

# nupunkt takes quadratic time for a run of signs, so a run as long as no text has is cut.
_LONGEST_RUN = 1_000
_RUN = re.compile(rf"[^\w\s]{{{_LONGEST_RUN}}}")

# sentencex takes quadratic time for the quotes of a paragraph, so a long one is read in windows.
_WINDOW = 4_000  # characters

_OPENING = "\"'“‘«„‚「『（(〈《【[¿¡‹"
_CLOSING = "\"'”’»“‘」』）)〉》】]›"
_DASHES = "-–—― "

# Digits of the longest number that "." makes an ordinal; Korean dates end each number so: 2020. 3.
_ORDINAL_DIGITS = {"ko": 4} | dict.fromkeys(
    "bs cs da de et fi fo hr hu is lb lv nb nn no pl sk sl sr tr".split(), 2
)
_NUMBER = re.compile(r"(?<![\w.])(\d+)\.")
_ROMAN = re.compile(r"[IVXL]+\.")
_LAST_WORD = re.compile(r"[^\s.\u3040-\u30ff\u4e00-\u9fff]+\.")  # Han and Kana end a word, too
_SHORT_WORD = 4  # letters of an abbreviation before a number, such as p. or fig.
_JAPANESE_PARTICLE = re.compile(r"[をの][\u30a0-\u30ff\u4e00-\u9fff「『]")  # begins no sentence
# Thai writes no mark but a blank where a sentence or a clause ends, and also around numbers, names
# and items of lists. A blank between two longer phrases ends one, unless a conjunction follows.
_THAI = "\u0e01-\u0e2e\u0e30-\u0e3a\u0e40-\u0e45\u0e47-\u0e4e"  # letters and marks, no ฯ or ๆ
_THAI_PHRASE = 12  # of them: three short words
_THAI_JOINS = "และ|หรือ|ซึ่ง|ที่|โดย|เพื่อ|เพราะ|กับ|ว่า|เช่น|ได้แก่"
# Ends that sentencex misses: before a number or a Latin word; and in Chinese, which writes the end
# of a thought and a hesitation alike, an ellipsis after a few characters.
_MISSED = {
    "ja": re.compile(r"[。！？](?=[0-9０-９A-Za-z])"),
    "zh": re.compile(r"[。！？](?=[0-9０-９A-Za-z])|(?<=[^\W_]{4})……(?=[^\W_])"),
    "th": re.compile(
        rf"(?<=[{_THAI}]{{{_THAI_PHRASE}}}) +(?=[{_THAI}]{{{_THAI_PHRASE}}})(?!{_THAI_JOINS})"
    ),
}


def splitter(name: str, language: str) -> Splitter:
    """The function that cuts a paragraph into its sentences, in order; none is blank.

    `name` is nupunkt, sentencex or lines, to which each paragraph is one sentence; `language` is an
    ISO 639 code, and an unknown one gets the rules that hold for most. The text is unchanged except
    for blanks between sentences. A lower-case word starts no sentence. A paragraph of blanks has no
    sentences.
    """
    if name == "nupunkt":
        return split_paragraph
    if name == "lines":
        return lambda paragraph: [paragraph.strip()] if paragraph.strip() else []
    return functools.partial(_split_by_rules, language.lower().split("-")[0])


@functools.cache
def _punkt() -> Any:
    """The splitter of this process, loaded for the first paragraph (0.1 s)."""
    import nupunkt

    model = nupunkt.load_default_model()  # a new instance: others keep the default
    model.EXCL_QUEST_LOWERCASE_CONTINUES = True
    return model


def split_paragraph(paragraph: str) -> list[str]:
    """The sentences of a paragraph of English."""
    if _ONE_SENTENCE.fullmatch(paragraph):
        return [paragraph.strip()] if paragraph.strip() else []
    ends = [match.end() for match in _RUN.finditer(paragraph)]
    pieces = [paragraph[a:b] for a, b in pairwise([0, *ends, len(paragraph)])]
    sentences = (sentence for piece in pieces for sentence in _punkt().tokenize(piece))
    return [stripped for sentence in sentences if (stripped := sentence.strip())]


def _split_by_rules(language: str, paragraph: str) -> list[str]:
    """The sentences of a paragraph of any language."""
    sentences: list[str] = []
    for piece in _pieces(language, paragraph.replace("\n", " ")):
        if not piece.strip():
            continue
        if sentences and _goes_on(language, sentences[-1].rstrip(), piece.lstrip()):
            sentences[-1] += piece
        else:
            sentences.append(piece)
    return [sentence.strip() for sentence in sentences]


def _pieces(language: str, text: str) -> Iterator[str]:
    """The text cut where sentencex ends a sentence."""
    import sentencex

    size = _WINDOW
    while text:
        pieces = sentencex.segment(language, text[:size]) or [text[:size]]
        if size < len(text):
            pieces.pop()  # the window may have cut it
            size = _WINDOW if pieces else 2 * size
        for piece in pieces:
            missed = _MISSED.get(language)
            cuts = [match.end() for match in missed.finditer(piece)] if missed else []
            yield from (piece[a:b] for a, b in pairwise([0, *cuts, len(piece)]))
        text = text[sum(map(len, pieces)) :]


def _goes_on(language: str, before: str, after: str) -> bool:
    """Whether the sentence of which `before` is the beginning goes on with `after`."""
    first = after.lstrip(_DASHES)[:1]
    if first.islower() or not any(map(str.isalnum, after)):  # a word, or marks alone
        return True
    if before[-1] in _CLOSING and before[0] in _OPENING and after[0] not in _OPENING:
        # A quotation alone goes on with its tag. In scripts with case a capital begins a sentence.
        return first.isalpha() and first.upper() == first.lower()
    if language == "ja" and _JAPANESE_PARTICLE.match(after):  # a name such as モーニング娘。
        return True
    return before[-1] == "." and _is_short_form(language, before, after)


def _is_short_form(language: str, before: str, after: str) -> bool:
    """Whether the full stop at the end of `before` belongs to a number or a short word."""
    if number := _NUMBER.search(before, before.rfind(" ") + 1):
        return len(number[1]) <= _ORDINAL_DIGITS.get(language, 0)
    words = _LAST_WORD.findall(before, before.rfind(" ") + 1)
    word = words[-1].lstrip(_OPENING)[:-1] if words and before.endswith(words[-1]) else ""
    letters = [letter for letter in word if unicodedata.category(letter)[0] == "L"]
    if len(letters) == 1 and not letters[0].islower():
        return True  # an initial, with its vowel signs
    if language in _ORDINAL_DIGITS and _ROMAN.fullmatch(f"{word}."):
        return True
    return after[0].isdigit() and word.islower() and len(word) <= _SHORT_WORD

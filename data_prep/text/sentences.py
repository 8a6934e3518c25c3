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

# nupunkt decides every sentence end in Python. Most ends of English prose are plain: what is around
# them decides by a rule of nupunkt that needs no more of the text. Such an end is cut here, and
# nupunkt reads only what has another one. The sentences are the same, in a third of the time.
_CLOSERS = r"""["')\]}”’»*]"""
# After a word, before one space and a capital. Group 2 is the next word if it is a whole token. An
# enumerator such as "IV." would be one at the start of a piece, too, which it must not be.
_PLAIN_END = re.compile(
    rf"""([.!?])(?<=[\w")”][.!?]){_CLOSERS}*+[ ](?=([A-Z][a-z]*+),?[ ]|["'“‘(]?[A-Z]|-[ ])"""
    r"(?!\(?(?:[A-Z]|[ivxlcIVXLC]{2,6})\)?\.)"
)
# What precedes a full stop: group 1 is the last part of the word, by which abbreviations are known.
_PLAIN_WORD = re.compile(r"""["“(]*+(?>(?:[^\W\d_]+['’-]+)*)([^\W\d_]{2,})["”)]?""")
_ROMAN_DIGITS = frozenset("ivxlc")
# No end but at its end: a mark inside a word; before a lower-case word; of a title before a name.
_ONE_SENTENCE = re.compile(
    rf"""(?>(?:[^.!?…]++|[.!?…](?=[\w,—-])|[.!?…]{_CLOSERS}++[ ](?=[a-z])|[!?][ ](?=[a-z])"""
    r"""|\.(?:(?<=[MD]r\.)(?<![^ "(]..\.)|(?<=Mrs\.)(?<![^ "(]...\.))[ ](?=[A-Z]))*)"""
    rf"[.!?…]*+{_CLOSERS}*+\s*+"
)

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


@functools.cache
def _abbreviations() -> frozenset[str]:
    """Last parts, lower-cased, of what a full stop need not end a sentence after."""
    model = _punkt()
    known = model.abbreviations | {first for first, _ in model.parameters.collocations}
    return frozenset(re.split("['’-]", word)[-1] for word in known)


@functools.lru_cache(1 << 14)
def _ends_before(abbreviation: str, word: str) -> bool:
    """Whether a full stop between the two ends a sentence."""
    return len(_punkt().tokenize(f"{abbreviation}. {word} so")) > 1


def split_paragraph(paragraph: str) -> list[str]:
    """The sentences of a paragraph of English."""
    ends = [match.end() for match in _PLAIN_END.finditer(paragraph) if _is_certain(match)]
    sentences: list[str] = []
    for start, end in pairwise([0, *ends, len(paragraph)]):
        piece = paragraph[start:end]
        sentences += [piece] if _ONE_SENTENCE.fullmatch(piece) else _split_by_punkt(piece)
    return [stripped for sentence in sentences if (stripped := sentence.strip())]


def _is_certain(end: re.Match[str]) -> bool:
    """Whether nupunkt ends a sentence at a match of _PLAIN_END."""
    if end[1] != ".":
        return True
    first = end.start()
    start = end.string.rfind(" ", 0, first) + 1
    word = _PLAIN_WORD.fullmatch(end.string, start, first)
    if word is None or _ROMAN_DIGITS.issuperset(last := word[1].lower()):
        return False
    if last not in _abbreviations():
        return True
    return end[2] is not None and word[0] == word[1] and _ends_before(last, end[2])


def _split_by_punkt(text: str) -> list[str]:
    ends = [match.end() for match in _RUN.finditer(text)]
    pieces = (text[a:b] for a, b in pairwise([0, *ends, len(text)]))
    return [sentence for piece in pieces for sentence in _punkt().tokenize(piece)]


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

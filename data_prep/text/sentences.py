"""Paragraphs to sentences, for English prose: Punkt (Kiss & Strunk 2006) as trained by nupunkt.

Its abbreviations and sentence starters come with the package: no download. One switch differs from
the default: after "!" or "?" a lower-case word continues the sentence (`"Why?" he asked.`), as
novels do. The unit is a paragraph: a line end in it is a blank.
"""

from __future__ import annotations

import functools
import re
from itertools import pairwise
from typing import Any

import nupunkt

# A paragraph with its only sentence end at its end is one sentence, as a third of those in novels
# are. Skipping nupunkt for them makes splitting a tenth faster.
_ONE_SENTENCE = re.compile(r"""[^.!?…]*+[.!?…]*+["')\]}”’»*]*+\s*+""")

# nupunkt takes quadratic time for a run of signs, so a run as long as no text has is cut.
_LONGEST_RUN = 1_000
_RUN = re.compile(rf"[^\w\s]{{{_LONGEST_RUN}}}")


@functools.cache
def _splitter() -> Any:
    """The splitter of this process, loaded for the first paragraph (0.1 s)."""
    splitter = nupunkt.load_default_model()  # a new instance: others keep the default
    splitter.EXCL_QUEST_LOWERCASE_CONTINUES = True
    return splitter


def split_paragraph(paragraph: str) -> list[str]:
    """The sentences of one paragraph, in order; none is blank.

    The text is unchanged except for blanks between sentences. Speech and its tag are one sentence,
    and a lower-case word starts none. A paragraph of blanks has no sentences.
    """
    if _ONE_SENTENCE.fullmatch(paragraph):
        return [paragraph.strip()] if paragraph.strip() else []
    ends = [match.end() for match in _RUN.finditer(paragraph)]
    pieces = [paragraph[a:b] for a, b in pairwise([0, *ends, len(paragraph)])]
    sentences = (sentence for piece in pieces for sentence in _splitter().tokenize(piece))
    return [stripped for sentence in sentences if (stripped := sentence.strip())]

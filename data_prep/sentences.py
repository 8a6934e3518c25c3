"""Paragraphs into sentences, for English prose: Punkt (Kiss & Strunk 2006) as nupunkt has trained it.

Its abbreviations and sentence starters come with the package; nothing is fetched. One switch differs
from its default: after "!" or "?" a lower-case word continues the sentence (`"Why?" he asked.`),
which is the rule of novels. A paragraph is the unit: a line end in it counts as a blank only.
"""

from __future__ import annotations

import functools
from typing import Any

import nupunkt


@functools.cache
def _splitter() -> Any:
    """The splitter of this process, loaded at the first paragraph (0.1 s)."""
    splitter = nupunkt.load_default_model()  # a new instance: the switch changes no one else's
    splitter.EXCL_QUEST_LOWERCASE_CONTINUES = True
    return splitter


def split_paragraph(paragraph: str) -> list[str]:
    """The sentences of one paragraph, in order, none of them blank; their text is unchanged.

    Only blanks between two sentences are left out. Speech and its tag are one sentence, and a
    lower-case continuation starts none. A paragraph of blanks has no sentences.
    """
    sentences = _splitter().tokenize(paragraph)
    return [stripped for sentence in sentences if (stripped := sentence.strip())]

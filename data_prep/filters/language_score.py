"""The filter that drops documents of which too little is in their language."""

from __future__ import annotations

from data_prep.filters.rules import Changes, Dropped, Filter
from data_prep.text.language import language_share


def language_score(least_share: float) -> Filter:
    """Drops a document of which CLD2 finds less than `least_share` to be in its language.

    The language is that of the job's profile, or, with language=multi, the document's main one.
    FineWeb keeps a fastText score of 0.65 or more (Penedo et al. 2024, section 3.3). CLD2 counts
    the share of the text instead, so that a page half in another language has 0.5.
    """

    def apply(text: str, code: str, changes: Changes) -> str | Dropped:
        if language_share(text, code) >= least_share:
            return text
        return Dropped(f"less than {least_share:.0%} in its language")

    return apply

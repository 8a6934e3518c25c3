"""Filters that datatrove implements (extra `filters`): Gopher's rules and FineWeb's.

Penedo et al. 2024, https://github.com/huggingface/datatrove. Its own word splitters need further
packages, so words are what blanks separate, as in Gopher's paper; languages without them pass and
are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_prep.core.config import SettingsError
from data_prep.filters.rules import Changes, Dropped, Filter, has_blanks


def gopher_quality() -> Filter:
    """Gopher's quality rules (Rae et al. 2021, appendix A1.1).

    Drops a document of fewer than 50 or more than 100,000 words; with a mean word length outside 3
    to 10 characters; more than one "#" or ellipsis per ten words; more than 90 % of lines beginning
    with a bullet or 30 % ending in an ellipsis; fewer than 80 % of words with a letter; and, in
    English, fewer than two of the words the, be, to, of, and, that, have, with.
    """
    from_package = _datatrove()
    kind, words = from_package["GopherQualityFilter"], from_package["words"]
    english, others = kind(language=words), kind(language=words, min_stop_words=None)
    return _verdict(lambda code: english if code == "en" else others)


def gopher_repetition() -> Filter:
    """Gopher's repetition rules (Rae et al. 2021, table A1).

    Drops a document in which repeated lines are more than 30 % of the lines or 20 % of the
    characters, or in which the commonest 2- to 4-gram or all repeated 5- to 10-grams have more of
    its characters than 20 % to 10 %.
    """
    from_package = _datatrove()
    rule = from_package["GopherRepetitionFilter"](language=from_package["words"])
    return _verdict(lambda _: rule)


def fineweb_quality() -> Filter:
    """FineWeb's quality rules (Penedo et al. 2024, section 3.6).

    Drops a document of which fewer than 12 % of the lines end in a terminal mark, more than 67 %
    have at most 30 characters, or more than 1 % of the characters are in repeated lines, and one
    with more than three lines per ten words.
    """
    from_package = _datatrove()
    rule = from_package["FineWebQualityFilter"](language=from_package["words"])
    return _verdict(lambda _: rule)


def _verdict(rule_of: Callable[[str], Any]) -> Filter:
    """A filter of datatrove, chosen by language, as one of ours."""
    from datatrove.data import Document

    def apply(text: str, code: str, changes: Changes) -> str | Dropped:
        if not has_blanks(code):
            changes.append(("not judged: no blanks between words", text[:200]))
            return text
        verdict = rule_of(code).filter(Document(text=text, id=""))
        if verdict is True:
            return text
        _, rule = verdict
        return Dropped(rule.removeprefix("gopher_").replace("_", " "))

    return apply


def require() -> None:
    """Raises SettingsError if the extra is not installed."""
    _datatrove()


def _datatrove() -> dict[str, Any]:
    """Classes of datatrove. Raises SettingsError if the extra is not installed."""
    try:
        from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
        from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
        from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
        from datatrove.utils.word_tokenizers import WordTokenizer
    except ImportError as error:
        raise SettingsError(
            f"the filters gopher_quality, gopher_repetition and fineweb_quality need datatrove "
            f"({error}); install it: pip install 'bert-pretraining[filters]'"
        ) from error

    class Blanks(WordTokenizer):  # type: ignore[misc]
        """Words are what blanks separate."""

        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    return {
        "words": Blanks(),
        "GopherQualityFilter": GopherQualityFilter,
        "GopherRepetitionFilter": GopherRepetitionFilter,
        "FineWebQualityFilter": FineWebQualityFilter,
    }

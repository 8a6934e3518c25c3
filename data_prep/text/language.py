"""The language of a document, by CLD2, whose tables are in the package: no download."""

from __future__ import annotations

from typing import Any

MULTI = "multi"  # the code of a corpus of many languages
_PIECES = 8
# Characters. A longer text is judged by pieces spread over all of it.
_PIECE = 2_000

# ISO 639 codes that CLD2 names otherwise, or that stand for several of its codes
_CLD2 = {
    "fil": ("tl",),
    "he": ("iw",),
    "jv": ("jw",),
    "nb": ("no",),
    "zh": ("zh", "zh-Hant"),
    "zh-hans": ("zh",),
    "zh-hant": ("zh-Hant",),
}


class NoDetectorError(RuntimeError):
    """CLD2 is not installed; the message has the cure."""


def known_languages() -> set[str]:
    """The codes that source.language accepts, such as en or zh. Raises NoDetectorError."""
    return {code for _, code in _cld2().LANGUAGES} | set(_CLD2)


def is_language(found: str, wanted: str) -> bool:
    """Whether `found`, of `language_of`, is the language of an ISO 639 code."""
    return found in _CLD2.get(wanted.lower(), (wanted,))


def iso_code(found: str) -> str:
    """The ISO 639 code of what `language_of` found."""
    return next((code for code, names in _CLD2.items() if names == (found,)), found)


def language_of(text: str) -> str:
    """CLD2's code of a text's main language, or "unknown" if CLD2 is not sure."""
    is_sure, found = _detect(text)
    code: str = found[0][1]
    return code if is_sure and code != "un" else "unknown"


def language_share(text: str, wanted: str) -> float:
    """The share of a text that CLD2 finds to be in the language of an ISO 639 code, in [0, 1]."""
    _, found = _detect(text)
    return float(sum(percent for _, code, percent, _ in found if is_language(code, wanted)) / 100)


def _detect(text: str) -> tuple[bool, list[tuple[str, str, int, float]]]:
    """Whether CLD2 is sure, and its three main languages: name, code, percent, score."""
    pycld2 = _cld2()
    if len(text) > _PIECES * _PIECE:
        step = len(text) // _PIECES
        text = "\n".join(text[n * step : n * step + _PIECE] for n in range(_PIECES))
    try:
        is_sure, _, found = pycld2.detect(text, bestEffort=False, isPlainText=True)
    except (pycld2.error, UnicodeEncodeError):  # control characters, surrogates
        text = "".join(c if c.isprintable() else " " for c in text)
        is_sure, _, found = pycld2.detect(text, bestEffort=False, isPlainText=True)
    return is_sure, list(found)


def _cld2() -> Any:
    """The module pycld2, which some platforms have no wheel of. Raises NoDetectorError."""
    try:
        import pycld2
    except ModuleNotFoundError as error:
        raise NoDetectorError(
            "languages are told by the package pycld2, which is not installed: pip install pycld2 "
            "(it has no wheel for aarch64 or Python 3.14, and builds there with g++), or keep "
            "documents of every language with source.language=null"
        ) from error
    return pycld2

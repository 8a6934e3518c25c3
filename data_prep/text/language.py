"""The language of a document, by CLD2, whose tables are in the package: no download."""

from __future__ import annotations

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


def known_languages() -> set[str]:
    """The codes that source.language accepts, such as en or zh."""
    import pycld2

    return {code for _, code in pycld2.LANGUAGES} | set(_CLD2)


def is_language(found: str, wanted: str) -> bool:
    """Whether `found`, of `language_of`, is the language of an ISO 639 code."""
    return found in _CLD2.get(wanted.lower(), (wanted,))


def iso_code(found: str) -> str:
    """The ISO 639 code of what `language_of` found."""
    return next((code for code, names in _CLD2.items() if names == (found,)), found)


def language_of(text: str) -> str:
    """CLD2's code of a text's main language, or "unknown" if CLD2 is not sure."""
    import pycld2

    if len(text) > _PIECES * _PIECE:
        step = len(text) // _PIECES
        text = "\n".join(text[n * step : n * step + _PIECE] for n in range(_PIECES))
    try:
        is_sure, _, found = pycld2.detect(text, bestEffort=False, isPlainText=True)
    except (pycld2.error, UnicodeEncodeError):  # control characters, surrogates
        text = "".join(c if c.isprintable() else " " for c in text)
        is_sure, _, found = pycld2.detect(text, bestEffort=False, isPlainText=True)
    code: str = found[0][1]
    return code if is_sure and code != "un" else "unknown"

"""The language of a document, by CLD2, whose tables are in the package: no download."""

from __future__ import annotations

_PIECES = 8
# Characters. A longer text is judged by pieces spread over all of it.
_PIECE = 2_000


def known_languages() -> set[str]:
    """The codes that source.language accepts, such as en or zh."""
    import pycld2

    return {code for _, code in pycld2.LANGUAGES}


def language_of(text: str) -> str:
    """The code of a text's main language, or "unknown" if CLD2 is not sure."""
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

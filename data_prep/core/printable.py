"""Text that comes from outside, made safe to print: names, values and messages of other people.

A control character in it could move the cursor, hide a line or change the terminal's settings; a
line break could forge a line of ours.
"""

from __future__ import annotations

from pathlib import PurePath


def printable(text: str) -> str:
    """`text` on one line, each character that is not printable as an escape, as in repr()."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """`text` with its line breaks, and otherwise as `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def without_folder(path: str) -> str:
    """An absolute path by its last part, for what is passed on; any other text as it is.

    The rest tells of a machine and its user.
    """
    return PurePath(path).name if path.startswith("/") else path


def shortened(text: str, most: int = 200) -> str:
    """`printable` text of at most `most` characters of the original."""
    return printable(text) if len(text) <= most else f"{printable(text[:most])}..."

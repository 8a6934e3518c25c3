"""What a message says to type, so that a test can type it."""

import re

_PAIR = r"[\w.]+=[^\s,;]+"


def cures(message: str) -> list[list[str]]:
    """The alternatives after each "set" in a message: settings to type together."""
    found = re.findall(rf"\bset ({_PAIR}(?:,? (?:and|or) {_PAIR})*)", message)
    return [re.findall(_PAIR, part) for sentence in found for part in sentence.split(" or ")]

"""The `name=value` words of the small commands, which compose no settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_prep.core.config import SettingsError


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether one of the words is --help or -h."""
    return "--help" in argv or "-h" in argv


def named_words(
    argv: Sequence[str], known: Mapping[str, str], needed: Sequence[str] = ()
) -> dict[str, str]:
    """The values by name; `known` says what each name takes: {"run": "FOLDER"}.

    Raises SettingsError on a word that is none of these or has no value, and where one that is needed
    is missing.
    """
    found = {}
    for word in argv:
        name, _, value = word.partition("=")
        if name not in known or not value:
            *others, last = [f"{name}={kind}" for name, kind in known.items()]
            words = f"there are {', '.join(others)} and {last}" if others else f"there is {last}"
            raise SettingsError(f"{word!r} is no argument; {words}; --help says more")
        found[name] = value
    for name in needed:
        if name not in found:
            raise SettingsError(
                f"no {name} is named; add {name}={known[name]}, as in {name}=runs/x; --help says more"
            )
    return found

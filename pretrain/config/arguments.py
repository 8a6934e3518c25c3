"""The small commands: a function whose parameters are the `name=value` arguments of the command."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from data_prep.core.command import as_typed
from data_prep.core.config import SettingsError, as_text
from data_prep.core.printable import printable_lines

_KINDS = {Path: "PATH", str: "TEXT", int: "N", float: "X", bool: "true|false"}
_BOOLEANS = {"true": True, "false": False}


def run_command(command: Callable[..., int | None], argv: Sequence[str] | None = None) -> int:
    """Call `command` with the arguments typed and return its exit status (None is 0).

    A SettingsError is one line on stderr and status 2. The parameters are as in `parse_arguments`.
    """
    typed = sys.argv[1:] if argv is None else argv
    try:
        return command(**parse_arguments(command, typed)) or 0
    except SettingsError as error:
        module = sys.modules[command.__module__]
        name = module.__spec__.name if module.__spec__ else module.__name__
        print(as_typed(printable_lines(f"{name}: {error}")), file=sys.stderr)
        return 2


def parse_arguments(command: Callable[..., object], typed: Sequence[str]) -> dict[str, Any]:
    """Values of the `name=value` words in `typed`, of which the last of one name counts.

    The parameters of `command` are the names known, `__` standing for a dot: annotated Path, str,
    int, float or bool (or one of these and None), and required where they have no default. What
    Annotated adds to a type stands for its values in messages. Raises SettingsError on a word that
    is none of these, on a value of another type, and on a missing one.
    """
    hints = typing.get_type_hints(command, include_extras=True).items()
    kinds = {name.replace("__", "."): _kind(hint) for name, hint in hints}
    takes = {
        name.replace("__", "."): getattr(hint, "__metadata__", [_KINDS.get(_kind(hint))])[0]
        for name, hint in hints
    }
    signature = inspect.signature(command).parameters
    parameters = {name.replace("__", "."): value for name, value in signature.items()}
    found: dict[str, Any] = {}
    for word in typed:
        name, _, value = word.partition("=")
        if name not in parameters or not value:
            known = " ".join(f"{known}={takes[known]}" for known in parameters)
            raise SettingsError(f"{word!r} is not an argument of this command; it takes {known}")
        try:
            found[name] = _BOOLEANS[value] if kinds[name] is bool else kinds[name](as_text(value))
        except (KeyError, ValueError):
            raise SettingsError(f"{word}: {name} takes {takes[name]}") from None
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in found:
            raise SettingsError(f"{name} is missing; add {name}={takes[name]}")
    return {name.replace(".", "__"): value for name, value in found.items()}


def _kind(hint: Any) -> Any:
    """The type of an annotation without its None."""
    return next((kind for kind in typing.get_args(hint) if kind is not NoneType), hint)

"""Plug-ins by their names: entry points of installed packages, in groups such as
bert_pretraining.sources.

A setting only names a plug-in. Which code that is, the packages decide that the user has installed:
no file that is read can name code.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass
from typing import Any

from data_prep.core.config import SettingsError

_GROUP = "bert_pretraining."


@dataclass(frozen=True)
class Plugin:
    """What an installed package has under a name."""

    what: Any
    text: str  # for messages: its setting, object, package and file
    version: str  # its package and that one's version

    def refusal(self, fault: str) -> SettingsError:
        """The error for a plug-in that breaks its contract, which `fault` says."""
        return SettingsError(f"{self.text} {fault}; docs/extending.md has the contract")


def plugin_names(kind: str) -> list[str]:
    """The names of the installed plug-ins of a kind: sources, optimizers or trackers."""
    return sorted({point.name for point in importlib.metadata.entry_points(group=_GROUP + kind)})


def load_plugin(kind: str, name: str | None, setting: str) -> Plugin:
    """Import the plug-in that `setting` names. Raises SettingsError, with the cure, if no or more
    than one package has it, or it cannot be imported."""
    point = find_plugin(kind, name, setting)
    assert point.dist is not None, "find_plugin has its name"
    version = f"{point.dist.name} {point.dist.version}"
    text = f"{setting}={name}: {point.value} of {version}"
    try:
        what = point.load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SettingsError(
            f"{text}{_file(point.module)} cannot be imported ({reason}); correct it, or uninstall "
            f"it: pip uninstall {point.dist.name}"
            + of_current_folder()
            * isinstance(error, ModuleNotFoundError)
        ) from error
    return Plugin(what, text + _file(point.module), version)


def find_plugin(kind: str, name: str | None, setting: str) -> importlib.metadata.EntryPoint:
    """The entry point that `setting` names, without importing anything. Raises as `load_plugin`."""
    points = importlib.metadata.entry_points(group=_GROUP + kind).select(name=name or "")
    # one package may be found twice: in the current folder, and where it is installed
    found = {point.dist.name: point for point in points if point.dist is not None}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise SettingsError(
            f"{setting}={name} is a plug-in of {' and '.join(sorted(found))}; uninstall all but "
            "one: pip uninstall NAME"
        )
    known = ", ".join(plugin_names(kind)) or "none"
    raise SettingsError(
        f"{setting}={'null' if name is None else name} is no installed plug-in; installed are: "
        f"{known}. Install the package that has it, with the entry point {_GROUP}{kind} "
        f"(docs/extending.md){of_current_folder()}"
    )


def of_current_folder() -> str:
    """The cure for modules in the current folder, which console commands do not search; or ""."""
    cure = "; modules in the current folder are found with PYTHONPATH=. before the command"
    return cure if sys.flags.safe_path else ""


def _file(module: str) -> str:
    """Where a module is, for a message; empty if that is not known."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):  # of its package
        spec = None
    return "" if spec is None or spec.origin is None else f" ({spec.origin})"

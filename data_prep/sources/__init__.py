"""One module per kind of source: it cuts the input into tasks and yields documents.

May import: data_prep.core, data_prep.plugins, data_prep.sources.inputs, data_prep.stores,
    data_prep.text.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Protocol, cast

from data_prep.core.config import SettingsError
from data_prep.core.settings import SourceKind, SourceSettings
from data_prep.plugins.entry_points import load_plugin
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.stores.documents import Damage, Document, Reject


class Source(Protocol):
    """The interface of a module in this folder."""

    def plan(self, source: SourceSettings, characters_per_part: int) -> SourcePlan:
        """Cut the input into tasks. Raises SettingsError if there is nothing to read."""

    def read(self, source: SourceSettings, task: Any) -> Iterator[Document | Reject | Damage]:
        """The contents of one task, in order: documents, and rejects with a reason.

        A Damage means that the rest of an input file cannot be read.
        """


def module_of(source: SourceSettings) -> Source:
    """The module that reads a source, here or in another package.

    It is imported here because `datasets` takes a second to load. Raises SettingsError for a
    plug-in that is not installed or has no `plan` and `read`, and if the parser of wiki markup is
    needed and not installed.
    """
    if source.kind is SourceKind.plugin:
        plugin = load_plugin("sources", source.plugin, "source.plugin")
        if missing := [n for n in ("plan", "read") if not callable(getattr(plugin.what, n, None))]:
            raise plugin.refusal(f"has no function {' and '.join(missing)}")
        return cast(Source, plugin.what)
    try:
        return cast(Source, importlib.import_module(f"data_prep.sources.{source.kind.value}"))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "mwparserfromhell":
            raise
        raise SettingsError(
            f"the source {source.kind.value} needs the package mwparserfromhell, which is not "
            "installed: pip install mwparserfromhell (it has no wheel for Python 3.14, and builds "
            "there with a C compiler, or slower code with WITH_EXTENSION=0 in the environment)"
        ) from error

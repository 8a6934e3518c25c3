"""YAML files that somebody else may have written, read as plain data.

Mappings, lists, text, numbers, booleans and null, and nothing of YAML that does more: no tags, no
anchors, no interpolation. So reading runs no code, reads no environment variable, and takes time
and memory in proportion to the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from data_prep.core.config import INTERPOLATION
from data_prep.core.files import read_bounded
from data_prep.core.printable import shortened

MOST_BYTES = 1 << 20
MOST_DEPTH = 12  # of mappings and lists in each other; settings have six

# The scalars of YAML 1.2's core schema in base 10. YAML 1.1, which PyYAML's loaders read, takes
# 1e-6 for text, and 1:30 for a number.
_SCALARS: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (re.compile(r"|~|null|Null|NULL"), lambda text: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"[-+]?[0-9]{1,19}"), int),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,9})?"), float),
    (
        re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        lambda text: float(text.replace(".", "")),
    ),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of at most MOST_BYTES that is no link.

    Raises ValueError naming the file and the line of what is not plain data, OSError if the file
    cannot be opened.
    """
    raw = read_bounded(path, MOST_BYTES, follow_links=False)
    try:
        found = _plain(yaml.parse(raw.decode(), Loader=getattr(yaml, "CLoader", yaml.Loader)))
    except (yaml.YAMLError, UnicodeDecodeError, _NotPlain) as error:
        reason = shortened(" ".join(str(error).split()))
        raise ValueError(f"{path} is not plain YAML ({reason}); get the file again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not plain YAML (it is no mapping); get the file again")
    return found


class _NotPlain(ValueError):
    """Something of YAML that is more than plain data."""


def _plain(events: Iterator[yaml.Event]) -> Any:
    """The one document of a stream of events, as plain data. Raises _NotPlain."""
    document: list[Any] = []
    open_nodes: list[dict[Any, Any] | list[Any]] = [document]
    keys: list[Any] = [_NO_KEY]  # of each open mapping, the key whose value comes next
    for event in events:
        _check_event(event, len(open_nodes) - 1)
        if isinstance(event, yaml.CollectionEndEvent):
            open_nodes.pop()
            keys.pop()
        elif isinstance(event, yaml.NodeEvent):
            node = _node(event)
            parent = open_nodes[-1]
            if isinstance(parent, list):
                parent.append(node)
            elif keys[-1] is _NO_KEY:
                keys[-1] = _new_key(node, parent, event)
            else:
                parent[keys[-1]], keys[-1] = node, _NO_KEY
            if isinstance(node, dict | list):
                open_nodes.append(node)
                keys.append(_NO_KEY)
    if len(document) != 1:
        raise _NotPlain(f"it holds {len(document)} documents instead of one")
    return document[0]


_NO_KEY = object()


def _check_event(event: yaml.Event, depth: int) -> None:
    where = f"line {event.start_mark.line + 1}"
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
        raise _NotPlain(f"{where} has an anchor or an alias (& or *)")
    if getattr(event, "tag", None) is not None:
        raise _NotPlain(f"{where} has the tag {event.tag!r}")
    if isinstance(event, yaml.CollectionStartEvent) and depth >= MOST_DEPTH:
        raise _NotPlain(f"{where} is more than {MOST_DEPTH} levels deep")
    if isinstance(event, yaml.ScalarEvent) and INTERPOLATION in event.value:
        raise _NotPlain(f"{where} has the interpolation {event.value[:80]!r}")


def _node(event: yaml.NodeEvent) -> Any:
    """A new mapping or list, or the value of a scalar."""
    if isinstance(event, yaml.MappingStartEvent):
        return {}
    if isinstance(event, yaml.SequenceStartEvent):
        return []
    if event.implicit[0]:  # plain, without quotes
        for pattern, value_of in _SCALARS:
            if pattern.fullmatch(event.value):
                return value_of(event.value)
    return event.value


def _new_key(node: Any, parent: dict[Any, Any], event: yaml.Event) -> str | int:
    """A key that `parent` does not have. Raises _NotPlain."""
    where = f"line {event.start_mark.line + 1}"
    if not isinstance(node, str | int) or isinstance(node, bool):
        raise _NotPlain(f"{where} has a key that is neither a name nor a number")
    if node in parent:
        raise _NotPlain(f"{where} has the key {node!r} a second time")
    return node

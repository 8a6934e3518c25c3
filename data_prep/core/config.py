"""Settings: conf/ composed by Hydra from typed overrides, checked against a dataclass.

Files in the folder of --config-dir come before those of conf/ with the same name.

This uses Hydra's compose call, not its `main` decorator: it makes no folder, keeps the working
directory and ignores arguments of launchers. Every mistake becomes one SettingsError whose text
ends with the cure; only rank 0 prints it.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from data_prep.core.entry import conf_folders
from data_prep.core.printable import shortened

INTERPOLATION = "${"  # Hydra and OmegaConf would replace it
LARGEST = 10**15  # of any number: what is computed from a few of them still fits 64 bits

T = TypeVar("T")
# By dotted keys: whether a value is allowed, and the limits in words; null always is
Limits = Mapping[str, tuple[Callable[[Any], bool], str]]

# Groups without a default need a plus
_ADDED = ("model=", "source=", "recipe=", "task=")


class SettingsError(ValueError):
    """A mistake in the settings; the message names the setting, the bound and the cure."""


def choices(group: str) -> list[str]:
    """The names that `group=` takes, sorted."""
    return sorted(
        {path.stem for folder in conf_folders() for path in Path(folder, group).glob("*.yaml")}
    )


def conf_file(name: str) -> Path:
    """The file of conf/ with this name, such as task/sst2.yaml: the user's own, if there is one."""
    paths = [Path(folder, name) for folder in conf_folders()]
    return next((path for path in paths if path.is_file()), paths[-1])


def _groups() -> set[str]:
    return {
        path.name for folder in conf_folders() for path in Path(folder).iterdir() if path.is_dir()
    }


def compose(entry: str, schema: type[T], overrides: Sequence[str]) -> tuple[T, dict[str, str]]:
    """Compose conf/<entry>.yaml with Hydra overrides into an instance of the dataclass `schema`.

    Returns it with the chosen name of each configuration group. Raises SettingsError for an
    override that Hydra refuses, an unknown key, a value of the wrong type and a number that is not
    finite or out of all bounds.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    typed = [
        word for override in _last_of_each(overrides) for word in _in_grammar(override, schema)
    ]
    *own, conf = conf_folders()
    if own:
        _search_own_folder_first()
    try:
        with initialize_config_dir(conf, version_base="1.3"):
            composed = hydra_compose(entry, typed, return_hydra_config=True)
        chosen = {
            group: str(name)
            for group, name in composed.hydra.runtime.choices.items()
            if name is not None and not group.startswith("hydra/")
        }
        OmegaConf.set_struct(composed, False)
        del composed["hydra"]
        _use_names(composed, schema)
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), composed))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise SettingsError(_explain(error, schema)) from error
    assert isinstance(settings, schema)
    _check_numbers(settings)
    return settings, chosen


@functools.cache  # Hydra keeps it
def _search_own_folder_first() -> None:
    """Make Hydra take a file from the folder of --config-dir where that has it."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class OwnFolder(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in conf_folders()[:-1]:
                search_path.prepend("--config-dir", f"file://{folder}", anchor="main")

    Plugins.instance().register(OwnFolder)


def updated(settings: T, changes: Mapping[Any, Any]) -> T:
    """`settings`, an instance of a dataclass, with plain values merged in, level by level.

    The values may be from a file that somebody else wrote: they are data, checked against the types
    of the fields, and never composed or interpolated. Raises SettingsError naming the key that is
    unknown or has a value of another type, or a number that is not finite or out of all bounds.
    """
    schema = type(settings)
    try:
        plain = _merged(schema, as_dict(settings), changes)
        _use_names(plain, schema)
        found = msgspec.convert(plain, schema)
    except KeyError as error:
        raise SettingsError(_unknown(error.args[0], schema)) from error
    except msgspec.ValidationError as error:
        reason, _, key = str(error).rpartition(" - at `$.")
        raise SettingsError(f"{key.rstrip('`')}: {shortened(reason.replace('`', ''))}") from error
    _check_numbers(found)
    return found


def limit_faults(settings: object, limits: Limits) -> list[str]:
    """A line for each key of `limits` whose value is outside of them."""
    return [
        f"{key}={value}; it takes {words}"
        for key, (is_allowed, words) in limits.items()
        if (value := _value(settings, key)) is not None and not is_allowed(value)
    ]


def _value(settings: object, key: str) -> Any:
    """The value of a dotted key; None below a group that is None."""
    for name in key.split("."):
        settings = getattr(settings, name, None)
    return settings


def _check_numbers(settings: object) -> None:
    """Raise SettingsError for numbers, at any depth, with which no check or sum could work."""
    if wrong := [
        f"{key}={value}; it takes a finite number, of at most {LARGEST:.0e}"
        for key, value in _numbers(as_dict(settings))
        if not abs(value) <= LARGEST  # nor is nan
    ]:
        raise SettingsError("\n".join(wrong))


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in plain settings, with their dotted keys."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _numbers(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _numbers(part, f"{key}[{number}]")
    elif isinstance(value, int | float):
        yield key, value


def as_text(typed: str) -> str:
    """The text that was typed for a string setting: `~` expanded, or without quotes around it.

    The quotes are those of people who know that Hydra needs them elsewhere. As in a shell, `~` in
    them is no home, and what is between them is taken as it is.
    """
    is_quoted = len(typed) > 1 and typed[0] == typed[-1] and typed[0] in "'\""
    return typed[1:-1] if is_quoted else os.path.expanduser(typed)


def as_dict(settings: object) -> dict[str, Any]:
    """Settings as plain nested dictionaries of strings, numbers, booleans and None."""
    plain = msgspec.to_builtins(settings)
    assert isinstance(plain, dict)
    return plain


def as_yaml(settings: object) -> str:
    """The settings as YAML, all values resolved."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(as_dict(settings)))


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """The overrides that give these plain settings, one for every value in every group."""
    return [
        f"{group}.{name}={_word(value)}" if name else f"{group}={_word(value)}"
        for group, values in settings.items()
        for name, value in (values if isinstance(values, dict) else {"": values}).items()
    ]


def _word(value: Any) -> str:
    """A value as it is typed after `=`."""
    return f"'{value}'" if isinstance(value, str) else _typed(value)


def _typed(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {_typed(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_typed, value)) + "]"
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def _merged(
    schema: type, values: dict[Any, Any], changes: Mapping[Any, Any], prefix: str = ""
) -> dict[Any, Any]:
    """Plain `values` of a dataclass with `changes` in them. Raises KeyError on an unknown key."""
    merged, kinds = dict(values), _fields(schema)
    for name, value in changes.items():
        if name not in kinds:
            raise KeyError(f"{prefix}{name}")
        kind, before = kinds[name], merged.get(name) or {}
        of_items = next(iter(get_args(kind)), None) if get_origin(kind) is list else None
        if _is_group(kind) and isinstance(value, Mapping):
            value = _merged(kind, before, value, f"{prefix}{name}.")
        elif _is_group(of_items) and isinstance(value, list):
            value = [
                _merged(of_items, {}, item, f"{prefix}{name}[{number}].")
                if isinstance(item, Mapping)
                else item
                for number, item in enumerate(value)
            ]
        merged[name] = value
    return merged


def _use_names(values: Any, schema: type) -> None:
    """Turn what YAML reads as a boolean or a number into a name where the schema wants one.

    These are `true` and `false` of an enum (auto|true|false), and the keys of a dict of names.
    """
    for name, kind in _fields(schema).items():
        if name not in values or values[name] is None:
            continue
        is_group = isinstance(values[name], Mapping)
        if _is_group(kind):
            if is_group:
                _use_names(values[name], kind)
        elif isinstance(kind, enum.EnumType) and isinstance(values[name], bool):
            values[name] = str(values[name]).lower()
        elif is_group and get_origin(kind) is dict and get_args(kind)[0] is str:
            values[name] = {str(key): value for key, value in values[name].items()}


def _last_of_each(overrides: Sequence[str]) -> list[str]:
    """The last override of each key, with the plus sign that some groups need.

    So a batch script can pass its own overrides followed by those that were typed. A recipe comes
    last, wherever it was typed: it takes precedence over the model's values.
    Raises SettingsError for an argument that is not an override.
    """
    last: dict[str, str] = {}
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+")
        if "=" not in override or override.startswith("~"):
            raise SettingsError(f"{override!r} is no setting; settings are typed as name=value")
        last.pop(key, None)
        last[key] = f"+{override}" if override.startswith(_ADDED) else override
    return sorted(last.values(), key=lambda override: override.startswith("+recipe="))


def _in_grammar(override: str, schema: type) -> list[str]:
    """An override in Hydra's grammar, in which a text that was typed must be quoted.

    Raises SettingsError for a key or a choice that is not known.
    """
    typed, value = override.split("=", 1)
    key = typed.lstrip("+")
    if INTERPOLATION in value:
        raise SettingsError(
            f"{key}: no value of a setting may hold the text {INTERPOLATION!r}; leave it out"
        )
    if key in _groups():
        if as_text(value) not in choices(key):
            raise SettingsError(_unknown_choice(key, value))
        return [override]
    kind, is_optional = _kind_of(key, schema)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and value[:1] != "{":
        names = ", ".join(f"{key}.{name}" for name in _fields(kind))
        raise SettingsError(f"{override}: {key} is a group of settings; they are {names}")
    if get_origin(kind) is dict and value[:1] != "{" and value != "null":
        raise SettingsError(
            f"{shortened(override)}: it takes names with values, as in {key}='{{a: 1, b: 2}}'"
        )
    is_text = kind is str and not (is_optional and value == "null")
    # With ++ because a file of conf/ may leave out what has a default in the schema
    added = f"++{key}={_typed(as_text(value)) if is_text else value}"
    # Null first, because Hydra would merge what is typed for a dict into the one there
    return [f"++{key}=null", added] if get_origin(kind) is dict else [added]


def _kind_of(key: str, schema: type) -> tuple[Any, bool]:
    """The type of a dotted key, and whether it may be null; below a list or dict it is Any.

    Raises SettingsError for a key that `schema` lacks.
    """
    kind: Any = schema
    is_optional = False
    for name in key.split("."):
        if not dataclasses.is_dataclass(kind):
            if get_origin(kind) not in (dict, list):
                raise SettingsError(_unknown(key, schema))
            return Any, False
        hint = get_type_hints(kind).get(name)
        if hint is None:
            raise SettingsError(_unknown(key, schema))
        is_optional = isinstance(hint, types.UnionType)
        kind = get_args(hint)[0] if is_optional else hint
    return kind, is_optional


def _unknown_choice(group: str, name: str) -> str:
    return f"{group}={name} is not known; there are {', '.join(choices(group))}"


def _explain(error: Exception, schema: type) -> str:
    """One or two sentences instead of Hydra's and OmegaConf's paragraphs."""
    from hydra.errors import OverrideParseException

    text = " ".join(str(error).split())
    key = getattr(error, "full_key", None)
    if missing := re.search(r"Could not (?:find|load) '(\w+)/([^']*)'", text):
        return _unknown_choice(*missing.groups())
    if sweep := re.match(r"Ambiguous value for argument '\++(.*?)=(.*?)'", text):
        name, values = sweep.groups()
        if get_origin(_kind_of(name, schema)[0]) is list:
            return f"{name}={values}: it takes a list; type {name}=[{values}]"
        return f"{name}={values}: a setting takes one value"
    if "is not a ListConfig" in text:
        return f"{key}: takes a list, as in {key}=[]"
    if isinstance(error, OverrideParseException):
        override = error.override.lstrip("+")
        return (
            f"{shortened(override)}: the value cannot be read; a list is typed '[1,2]', and a text "
            'in it with special characters in quotes: \'["a, b","c"]\''
        )
    if re.match(r"Key '.*' not in ", text):
        return _unknown_in_list(error, schema) or _unknown(str(key), schema)
    if of_kind := re.search(r"Value '(.*?)' .*could not be converted to (Integer|Float)", text):
        what = "whole number, as in 1000" if of_kind[2] == "Integer" else "number"
        return f"{key}={shortened(of_kind[1])}: it takes a {what}"
    text = re.sub(r"(full_key|object_type|reference_type|See https).*", "", text).strip()
    return f"{key}: {text}" if key else text


def _unknown(key: str, schema: type) -> str:
    """What is refused about a key that `schema` lacks, and which keys are near."""
    known, last = _keys(schema), key.split(".")[-1]
    near = [name for name in known if last in (name.split(".")[-1], _initials(name))]
    near = near or _similar(key[:80], known)
    hint = f"did you mean {' or '.join(near)}?" if near else "--cfg prints all there are"
    return f"there is no setting {shortened(repr(key), 80)}; {hint}"


def _similar(key: str, known: Sequence[str]) -> list[str]:
    """Up to three known keys whose last part is spelt like that of `key`, or has it as a word."""
    last, lasts = key.rpartition(".")[2], {name: name.rpartition(".")[2] for name in known}
    close = difflib.get_close_matches(last, lasts.values(), n=1, cutoff=0.7)
    near = [name for name in known if lasts[name] in close]
    near = [name for name in near if name.count(".") == key.count(".")] or near
    near = near or difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    return (near or [name for name in known if last in lasts[name].split("_")])[:3]


def _unknown_in_list(error: Exception, schema: type) -> str | None:
    """What is refused about a key in an entry of a list of groups, such as phases; None elsewhere.

    OmegaConf names neither the list nor the place in it.
    """
    for name, kind in _fields(schema).items():
        inner = next(iter(get_args(kind)), None)
        if getattr(error, "object_type", None) is inner and _is_group(inner):
            key = getattr(error, "full_key", None)
            return f"an entry of {name} has no {key!r}; it takes {', '.join(_fields(inner))}"
    return None


def _initials(key: str) -> str:
    """`lr` for `optim.learning_rate`."""
    return "".join(word[0] for word in key.split(".")[-1].split("_"))


def _keys(schema: type, prefix: str = "") -> list[str]:
    """All dotted names in a dataclass of dataclasses."""
    keys: list[str] = []
    for name, kind in _fields(schema).items():
        is_group = _is_group(kind)
        keys += _keys(kind, f"{prefix}{name}.") if is_group else [prefix + name]
    return keys


def _is_group(kind: Any) -> TypeGuard[type]:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _fields(schema: type) -> dict[str, Any]:
    """The type of each field of a dataclass; of `X | None` it is X."""
    return {
        name: get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
        for name, hint in get_type_hints(schema).items()
    }

"""Labels and tags as they stand in data: what they mean, or why they are refused.

What is not understood never becomes a class or an entity. `task.labels` names what a label or a tag
means where no rule does.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping

from data_prep.core.printable import shortened
from scripts.finetuning.settings import InputError

# Words for a missing value that programs write, in lower case
MISSING = frozenset("nan -nan null none na n/a <na> #na #n/a nat nil undefined".split())
_WHOLE = re.compile(r"([+-]?\d+)\.0+")
_OUTSIDE = MISSING | {"out", "outside"}  # perhaps O, and no type
# One letter before another separator or scheme (b-PER, B_PER, E-PER), or after the type (PER-B)
_JOINED = re.compile(r"[|,;\s]")  # several tags in one, as nested entities are written
_OTHER_SCHEME = re.compile(r"[^\W\d_]([\W_].*)?|.*[-_][BIESLUO]", re.S)


def written(value: object) -> str | None:
    """A cell as text, without blanks at its ends; None if it is empty, null or NaN.

    A whole number is the same text however it is written: 1, 1.0, "1.0".
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(value).strip()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text or None


def named(labels: Mapping[str, str] | None) -> dict[str, str]:
    """`task.labels` by what `written` makes of its keys."""
    return {written(key) or "": name for key, name in (labels or {}).items()}


def label_of(value: object, names: Mapping[str, str], place: str) -> str | None:
    """A label as text, one of `names` or any; None if it is missing.

    Raises InputError for a value that is no text or number, and for a word for a missing value.
    """
    if isinstance(value, list | dict):
        raise InputError(
            f"{place}: the label {shortened(repr(value), 80)} is not one text or number; give each "
            "row one label"
        )
    label = written(value)
    if (label or "") in names:
        return label or ""
    if label is not None and label.casefold() in MISSING:
        raise InputError(
            f"{place}: the label {label!r} may stand for a missing one; remove the row or leave "
            "its label empty. If it is a label, name all: task.labels='{"
            f"{label}: NAME, ...}}'"
        )
    return label


def tag_of(value: object, names: Mapping[str, str], place: str) -> str:
    """A tag that is O, B-TYPE, I-TYPE or a plain TYPE, by its name in `names` if it has one.

    A type has a letter. Raises InputError for everything else: numbers, other words for O, other
    schemes (IOBES, BILOU), other spellings of the prefixes.
    """
    text = written(value) or ""
    tag = names.get(text, text if isinstance(value, str) else "")
    prefix, name = (tag[:2], tag[2:]) if tag[:2] in ("B-", "I-") else ("", tag)
    is_type = any(map(str.isalpha, name)) and name.casefold() not in _OUTSIDE and name != "O"
    is_type = is_type and not _JOINED.search(name)
    if tag == "O" or (is_type and (prefix or not _OTHER_SCHEME.fullmatch(name))):
        return tag
    cure = "convert E- and L- to I-, S- and U- to B-" if re.match(r"[ELSU]-", tag) else "correct it"
    raise InputError(
        f"{place}: the tag {shortened(repr(value), 80)} is neither O, B-TYPE, I-TYPE (IOB1, IOB2) "
        f"nor a plain type; {cure}, or name what each such tag means: task.labels='{{"
        f"{shortened(text, 80) or repr(text)}: O, ...}}'"
    )


def refuse_look_alikes(places: Mapping[str, str]) -> None:
    """Raise InputError if two of the names, the keys, differ only in how they are written.

    That is: in case, blanks, hyphens, underscores, invisible characters or Unicode's variants.
    """
    seen: dict[str, str] = {}
    for name, place in places.items():
        shown = "".join(c for c in name if unicodedata.category(c) != "Cf")
        key = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", shown).casefold())
        other = seen.setdefault(key, name)
        if other != name:
            raise InputError(
                f"{place}: {name!r} looks like {other!r} ({places[other]}); write both alike, or "
                f"name what each means: task.labels='{{{other}: NAME, {name}: NAME, ...}}'"
            )

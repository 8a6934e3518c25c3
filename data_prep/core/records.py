"""Typed records: the content of a JSON file, read and checked against its fields in one place.

`data_prep.core.files.write_json` writes a record. A field's name in the file may differ from the
attribute's: `msgspec.field(name=...)`. The files come from anyone, so names, numbers and checksums
are bounded by their types: `Count`, `TokenId`, `Checksum`, `check_file_name`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from data_prep.core.config import SettingsError
from data_prep.core.files import MOST_JSON_BYTES, read_bounded, whole_or_absent
from data_prep.core.printable import printable, shortened

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]  # as a float it is still exact
SeqLen = Annotated[int, msgspec.Meta(ge=1, le=2**16 - 1)]  # positions are uint16
VocabSize = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Checksum = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-z]{1,64}\Z")]
IdType = Literal["uint16", "uint32"]

SPECIAL = ("pad", "unk", "cls", "sep", "mask")


class Record(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A JSON object with these fields and no others; one that has its default is not written."""


class Normalization(enum.Enum):
    """A form of Unicode."""

    none = "none"  # as the text is
    nfc = "nfc"  # a letter and its marks are one character where there is one
    nfkc = "nfkc"  # also: ligatures, full-width and other variants become plain characters


class TextForm(Record):
    """What text becomes before it is cut into words.

    The fields have the names of the settings; the manifests that depend on them have them, too.
    """

    lowercase: bool
    strip_accents: bool | None = None  # None: as lowercase, as in Google's code
    normalization: Normalization = Normalization.none
    clean_text: bool = True
    tokenize_chinese_chars: bool = True
    turkish_i: bool = False

    @property
    def form(self) -> TextForm:
        """The text form of a manifest by itself."""
        return TextForm(**{name: getattr(self, name) for name in TextForm.__struct_fields__})

    @property
    def rules(self) -> dict[str, Any]:
        """The settings by their names, each as it acts."""
        rules = {name: getattr(self, name) for name in TextForm.__struct_fields__}
        if self.strip_accents is None:
            rules["strip_accents"] = self.lowercase
        rules["turkish_i"] = self.turkish_i and self.lowercase
        return rules

    def __str__(self) -> str:
        """What to type for this form: lowercase, and what differs from its default."""
        usual = TextForm(self.lowercase).rules
        return typed({n: v for n, v in self.rules.items() if n == "lowercase" or v != usual[n]})


def typed(rules: Mapping[str, Any]) -> str:
    """What to type for rules of a text form: "lowercase=true normalization=nfc"."""
    words = {
        name: value.value if isinstance(value, Normalization) else str(value).lower()
        for name, value in rules.items()
    }
    return " ".join(f"{name}={word}" for name, word in words.items())


def check_file_name(name: str) -> None:
    """Raises ValueError unless a name is that of a file in its folder, whatever the folder."""
    if not name.isprintable() or "/" in name or name in ("", ".", "..") or len(name) > 200:
        raise ValueError(f"name '{shortened(name)}' is no plain file name")


def check_special_ids(special_ids: Mapping[str, int], vocab_size: int) -> None:
    """Raises ValueError unless each special token has one id inside the vocabulary."""
    if set(special_ids) != set(SPECIAL):
        raise ValueError(f"special_ids are not those of {', '.join(SPECIAL)}")
    for name, number in special_ids.items():
        if not 0 <= number < vocab_size:
            raise ValueError(f"special_ids.{name} is {number}, not from 0 to {vocab_size - 1}")


def read_record(path: Path, kind: type[T], cure: str, *, follow_links: bool = True) -> T:
    """Read a JSON file as a `kind`: a record, or a dict or list of records.

    Raises SettingsError naming the file, the field that is missing, unknown, of another type or
    out of bounds, and the cure.
    """
    raw = read_bounded(path, MOST_JSON_BYTES, follow_links=follow_links)
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        reason = printable(str(error))
        raise SettingsError(f"{path} is not as this version writes it: {reason}; {cure}") from error


def read_manifest(path: Path, kind: type[T], command: str) -> T:
    """Read the manifest of a store that `command` makes. Raises ValueError as `read_record`."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: the store is not finished; run {command}")
    return read_record(path, kind, f"delete it and run {command}")


def write_packed(path: Path, record: Record) -> None:
    """Write a record as MessagePack, whole or not at all: for binary fields, which JSON bloats."""
    with whole_or_absent(path) as temporary:
        temporary.write_bytes(msgspec.msgpack.encode(record))


def read_packed(path: Path, kind: type[T]) -> T | None:
    """Read a record of `write_packed`; None where there is none as this version writes it.

    For what can be made again: whoever calls this does so.
    """
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeError, RecursionError):
        return None

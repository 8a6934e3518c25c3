"""The casing of a tokenizer, and what a released one states about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from data_prep.core.config import SettingsError
from data_prep.core.files import read_bounded
from data_prep.core.printable import printable
from data_prep.tokenizer.vocab_file import MOST_BYTES, read_tokenizer


class _Manifest(Protocol):
    lowercase: bool
    strip_accents: bool | None


@dataclass(frozen=True)
class Casing:
    """What text becomes before it is cut into words."""

    lowercase: bool | None  # None: not stated
    strip_accents: bool | None = None  # None: as lowercase, as in Google's code

    @classmethod
    def of(cls, manifest: _Manifest) -> Casing:
        """The casing that the vocabulary or the shards of a manifest have."""
        return cls(manifest.lowercase, manifest.strip_accents)

    @property
    def strips_accents(self) -> bool | None:
        return self.lowercase if self.strip_accents is None else self.strip_accents

    def differs(self, other: Casing) -> bool:
        """Whether both state a casing, and not the same."""
        rules = (
            (self.lowercase, other.lowercase),
            (self.strips_accents, other.strips_accents),
        )
        return any(None not in pair and pair[0] != pair[1] for pair in rules)

    def __str__(self) -> str:
        more = "" if self.strip_accents is None else f", strip_accents={self.strip_accents}".lower()
        return f"lowercase={self.lowercase}".lower() + more


class _Config(msgspec.Struct):
    """A tokenizer_config.json; other fields are not read."""

    do_lower_case: bool | None = None
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool | None = None


def stated_casing(path: Path) -> Casing:
    """The casing that a released tokenizer states for the vocabulary file at `path`.

    A vocab.txt or tokenizer.json belongs to the tokenizer.json and tokenizer_config.json in its
    folder; what one of them leaves out or has as null, the other one states. Raises SettingsError
    where the two differ, and for rules that are not followed here.
    """
    by_name = {name: path.with_name(name) for name in ("tokenizer.json", "tokenizer_config.json")}
    if path.name not in ("vocab.txt", "tokenizer.json"):  # its neighbours may be of other files
        by_name = {"tokenizer.json": path} if path.suffix == ".json" else {}
    stated: dict[str, tuple[bool, Path]] = {}
    for name, file in by_name.items():
        for rule, value in (_rules(file, name) if file.is_file() else {}).items():
            if value is not None and stated.setdefault(rule, (value, file))[0] is not value:
                other = stated[rule][1]
                raise SettingsError(
                    f"{file} and {other} differ in {rule} ({str(value).lower()} there); a model "
                    "was trained with one of them: put it right in the other file"
                )
    values = {rule: value for rule, (value, _) in stated.items()}
    return Casing(values.get("lowercase"), values.get("strip_accents"))


def _rules(path: Path, name: str) -> dict[str, bool | None]:
    """What a tokenizer.json or tokenizer_config.json states; None: nothing."""
    if name == "tokenizer.json":
        found = read_tokenizer(path).normalizer
        return {"lowercase": found.lowercase, "strip_accents": found.strip_accents} if found else {}
    try:
        config = msgspec.json.decode(read_bounded(path, MOST_BYTES), type=_Config)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SettingsError(
            f"{path} is not a tokenizer's settings ({printable(str(error))}); get the file again"
        ) from error
    if config.tokenize_chinese_chars is False:
        raise SettingsError(
            f"{path} has tokenize_chinese_chars=false, which is not done here; take a BERT's "
            "tokenizer that sets CJK characters apart"
        )
    return {"lowercase": config.do_lower_case, "strip_accents": config.strip_accents}

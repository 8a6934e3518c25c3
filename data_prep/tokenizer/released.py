"""The text form that a released tokenizer states: taken over whole, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from data_prep.core.config import SettingsError
from data_prep.core.files import read_bounded
from data_prep.core.printable import printable, shortened
from data_prep.core.records import TextForm, typed
from data_prep.tokenizer.vocab_file import MOST_BYTES, SPECIAL_TOKENS, read_tokenizer

Rules = dict[str, Any]  # the values of a TextForm's fields that are stated

# Classes of transformers, without "Fast", with BertTokenizer's rules; of those in the second line
# tokenizer.json has the rules
BERTS = ("Bert", "DistilBert", "Electra", "MobileBert", "SqueezeBert", "ConvBert", "Lxmert")
GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")


class _Token(msgspec.Struct):
    content: str


class _Config(msgspec.Struct):
    """A tokenizer_config.json; other fields do not change what text becomes."""

    tokenizer_class: str | None = None
    do_lower_case: bool | None = None
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool | None = None
    do_basic_tokenize: bool | None = None
    never_split: list[str] | None = None
    word_tokenizer_type: str | None = None  # of BertJapaneseTokenizer
    subword_tokenizer_type: str | None = None
    pad_token: str | _Token | None = None
    unk_token: str | _Token | None = None
    cls_token: str | _Token | None = None
    sep_token: str | _Token | None = None
    mask_token: str | _Token | None = None


def stated_rules(path: Path) -> Rules:
    """What a released tokenizer states for the vocabulary file at `path`.

    A vocab.txt or tokenizer.json belongs to the tokenizer.json and tokenizer_config.json in its
    folder; what one of them leaves out or has as null, the other one states. Raises SettingsError
    where the two differ, and for rules that are not followed here.
    """
    by_name = {name: path.with_name(name) for name in ("tokenizer.json", "tokenizer_config.json")}
    if path.name not in ("vocab.txt", "tokenizer.json"):  # its neighbours may be of other files
        by_name = {"tokenizer.json": path} if path.suffix == ".json" else {}
    files = {name: file for name, file in by_name.items() if file.is_file()}
    found: Rules = {}
    origins: dict[str, Path] = {}
    for name, file in files.items():
        is_json = name == "tokenizer.json"
        rules = read_tokenizer(file).rules if is_json else _config_rules(file, len(files) == 1)
        for rule, value in rules.items():
            if value is not None and found.setdefault(rule, value) != value:
                raise SettingsError(
                    f"{file} and {origins[rule]} differ in {rule} "
                    f"({typed({rule: found[rule]})} there); a model was trained with one of them: "
                    "put it right in the other file"
                )
            origins.setdefault(rule, file)
    if "lowercase" in found:
        found.setdefault("strip_accents", found["lowercase"])
    return found


def differing(stated: Mapping[str, Any], form: TextForm) -> Rules:
    """The stated rules that are not those of `form`."""
    return {name: value for name, value in stated.items() if form.rules[name] != value}


def _config_rules(path: Path, is_alone: bool) -> Rules:
    """What a tokenizer_config.json states; None: nothing. Alone, its class has the other rules."""
    try:
        config = msgspec.json.decode(read_bounded(path, MOST_BYTES), type=_Config)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SettingsError(
            f"{path} is not a tokenizer's settings ({printable(str(error))}); get the file again"
        ) from error
    if reason := _refusal(config, is_alone):
        raise SettingsError(f"{path} has {reason}")
    usual = TextForm(lowercase=True)
    implied = {n: getattr(usual, n) for n in ("normalization", "clean_text", "turkish_i")}
    return {
        "lowercase": config.do_lower_case,
        "strip_accents": config.strip_accents,
        "tokenize_chinese_chars": config.tokenize_chinese_chars,
        **(implied if is_alone else {}),
    }


def _refusal(config: _Config, is_alone: bool) -> str | None:
    """What of a tokenizer_config.json is not followed here, and the cure; None: nothing."""
    cure = (
        "take a BERT's tokenizer (tokenizer_class=BertTokenizer), or train a vocabulary on the "
        "documents: leave vocab_file out"
    )
    kind = (config.tokenizer_class or "BertTokenizer").removesuffix("Fast")
    words, pieces = config.word_tokenizer_type, config.subword_tokenizer_type
    if kind == "BertJapaneseTokenizer" or words not in (None, "basic"):
        cut = f"words are cut by {words or 'mecab'}" + (
            f" and pieces by {pieces}" if pieces not in (None, "wordpiece") else ""
        )
        return (
            f"tokenizer_class={printable(kind)}: {shortened(cut, 100)} before the vocabulary is "
            f"looked up, which is not done here; {cure}"
        )
    if kind in GENERIC and is_alone:
        return (
            f"tokenizer_class={config.tokenizer_class}, whose rules are in tokenizer.json, and "
            "there is none beside it; copy it there"
        )
    if kind not in (*GENERIC, *(f"{name}Tokenizer" for name in BERTS)):
        return f"tokenizer_class={shortened(kind, 100)}, whose rules are not followed here; {cure}"
    if config.do_basic_tokenize is False or config.never_split:
        rule = "never_split" if config.never_split else "do_basic_tokenize=false"
        return f"{rule}, which is not done here; {cure}"
    for name, token in SPECIAL_TOKENS.items():
        other = getattr(config, f"{name}_token")
        other = other.content if isinstance(other, _Token) else other
        if other not in (None, token):
            return (
                f"{name}_token={shortened(other, 100)}, and a BERT's is {token}; rename it in this "
                "file and in the vocabulary"
            )
    return None

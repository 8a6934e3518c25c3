"""WordPiece: training a vocabulary, encoding text with it, and the tokenizer's files.

The rules are those of google-research/bert tokenization.py as Hugging Face's BertTokenizer has
them: control characters dropped, blanks round CJK characters, lower case and no accents where
`lowercase` (else neither), words cut at punctuation, then the greedy longest match. One figure
differs from Google's code: a word over 100 characters (Google: 200) is unknown, as in every
tokenizer that Hugging Face loads, so that an exported model reads text just as it was trained.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer

from data_prep.core.files import read_json, whole_or_absent, write_json

SPECIAL_TOKENS = {
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
}
LONGEST_WORD = 100  # characters; the default of Hugging Face's WordPiece
MOST_CHARACTERS = 1000  # of a trained vocabulary's alphabet, as in Hugging Face's trainer
LEAST_COUNT = 2  # of a character or a pair that becomes an entry; the same
NUM_CODE_POINTS = 0x110000
MOST_WORDS = 1 << 18  # kept with their ids: 50 MB of English, 16 million characters have 150,000
LONGEST_KEPT = 100  # characters of such a word: bounds the memory on any text
_PARTS = re.compile(r"[!-/:-@\[-`{-~]|[^!-/:-@\[-`{-~]+")  # ASCII punctuation, and what is between
TOKENIZER_FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


# ---------------------------------------------------------------- the vocabulary file


def read_vocab(path: Path) -> list[str]:
    """The entries of a vocab.txt: one a line, UTF-8, line ends LF, the line number is the id.

    Or of a tokenizer.json of the WordPiece kind, entries added to it later included. Raises ValueError
    naming the line and the cure on anything that would give a wrong id: an empty file, a byte order
    mark, CR, a blank line or blanks round an entry, a duplicate, a missing special token.
    """
    if path.suffix == ".json":
        tokens = _json_entries(path)
        _check_entries(path, tokens)
        return tokens
    raw = path.read_bytes()
    if not raw:
        raise ValueError(f"{path} is empty; a vocabulary has one entry a line")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise ValueError(
            f"{path}, line 1, begins with a byte order mark, which would be part of the entry; "
            f"remove its first three bytes"
        )
    if b"\r" in raw:
        line = raw[: raw.index(b"\r")].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}, ends in CR; convert the line ends to LF")
    try:
        tokens = raw.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8; convert the file to UTF-8") from error
    _check_entries(path, tokens)
    return tokens


def _json_entries(path: Path) -> list[str]:
    """The entries of a tokenizer.json by their ids, which must have no gap."""
    tokenizer = read_json(path)
    model = tokenizer.get("model") or {}
    if model.get("type", "WordPiece") != "WordPiece" or "continuing_subword_prefix" not in model:
        raise ValueError(
            f"{path} is of kind {model.get('type')}; BERT's is WordPiece: take the tokenizer of a BERT"
        )
    numbers = {**model["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    tokens = sorted(numbers, key=numbers.__getitem__)
    if gap := next((i for i, token in enumerate(tokens) if numbers[token] != i), None):
        raise ValueError(f"{path} has no entry, or two, with id {gap}; get the file again")
    return tokens


def add_words(tokens: Sequence[str], path: Path, lowercase: bool) -> list[str]:
    """Entries for the words of the file at `path`, one a line, that `tokens` lacks, in its order.

    Words are lower-cased and lose their accents as text does; blank lines are passed over. Raises
    ValueError naming the line where a word would be cut before WordPiece sees it, so that its entry
    would never be used: one with a blank or punctuation inside, a CJK word, one over 100 characters.
    """
    known, new = set(tokens), dict[str, None]()
    rules = make_tokenizer(tokens, lowercase)
    for line, word in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        normal = rules.normalizer.normalize_str(word).strip()
        parts = [part for part, _ in rules.pre_tokenizer.pre_tokenize_str(normal)]
        if not normal or normal in known:
            continue
        if len(parts) > 1 or len(normal) > LONGEST_WORD:
            why = (
                f"is cut to {' '.join(parts)}"
                if len(parts) > 1
                else f"has {len(normal)} characters"
            )
            raise ValueError(
                f"{path}, line {line}: {word!r} {why} before its pieces are looked up, and would never "
                f"be found whole; take it out, or give its parts (words of up to {LONGEST_WORD} letters)"
            )
        new[normal] = None
    return list(new)


def _check_entries(path: Path, tokens: Sequence[str]) -> None:
    """Refuse blank entries, duplicates and the lack of a special token."""
    first_line: dict[str, int] = {}
    for line, token in enumerate(tokens, start=1):
        if not token or token != token.strip():
            raise ValueError(
                f"{path}, line {line}, {token!r}, is blank or has blanks at an end; take the line "
                f"out if nothing was trained with this file, else get the file again"
            )
        if token in first_line:
            raise ValueError(
                f"{path}, line {line}, repeats {token!r} of line {first_line[token]}; an entry has "
                f"one id: give the second another name, such as [unused{line}]"
            )
        first_line[token] = line
    missing = [token for token in SPECIAL_TOKENS.values() if token not in first_line]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; BERT needs {', '.join(SPECIAL_TOKENS.values())}, "
            f"each on a line of its own: add them or take the vocabulary of a BERT model"
        )


def check_casing(tokens: Sequence[str], lowercase: bool) -> None:
    """Raise ValueError where a vocabulary is of the other casing than `lowercase` says.

    A tokenizer that lower-cases never makes an entry with a capital; one that does not finds no
    entry for a word with a capital if there are none. Both would train a model on [UNK]s.
    """
    special = set(SPECIAL_TOKENS.values())
    capitals = sum(token not in special and token != token.lower() for token in tokens)
    share = capitals / len(tokens)
    if lowercase and share > 0.01:
        raise ValueError(
            f"{capitals:,} of {len(tokens):,} vocabulary entries ({share:.0%}) have capitals and "
            f"would never be used with lowercase=true: a cased vocabulary; set lowercase=false"
        )
    if not lowercase and not capitals:
        raise ValueError(
            f"none of {len(tokens):,} vocabulary entries has a capital, so that every capitalised "
            f"word would be unknown: an uncased vocabulary; set lowercase=true"
        )


def special_ids(tokens: Sequence[str]) -> dict[str, int]:
    """The ids of pad, unk, cls, sep and mask in a vocabulary."""
    return {name: tokens.index(token) for name, token in SPECIAL_TOKENS.items()}


# ---------------------------------------------------------------- encoding


def make_tokenizer(tokens: Sequence[str], lowercase: bool) -> Any:
    """A `tokenizers` tokenizer that knows no special tokens: a literal "[MASK]" stays text."""
    model = WordPiece(
        {token: number for number, token in enumerate(tokens)},
        unk_token=SPECIAL_TOKENS["unk"],
        max_input_chars_per_word=LONGEST_WORD,
    )
    tokenizer = Tokenizer(model)
    # strip_accents unset follows lowercase, as in Google's code
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


class _WordIds(dict[str, bytes]):
    """Words as they stand between two spaces -> their ids, uint32; known once they were asked for.

    `tokenizers` encodes the parts of a word, cut at ASCII punctuation. That neighbours do not matter
    is exact for these characters: each ends a word by BERT's rules, none has a case, is dropped or
    takes up a combining mark, and no mark is reordered over one. Of other blanks and other
    punctuation that is not said: they stay inside a part.
    """

    def __init__(self, tokenizer: Any, lowercase: bool) -> None:
        self._tokenizer = tokenizer
        self._model = tokenizer.model  # the greedy match alone, without the rules before it
        self._lowercase = lowercase

    def __missing__(self, word: str) -> bytes:
        parts = _PARTS.findall(word)
        if len(parts) > 1:
            ids = b"".join(map(self.__getitem__, parts))
        elif word.isascii() and word.isalnum():  # no rule applies but that of the case
            pieces = self._model.tokenize(word.lower() if self._lowercase else word)
            ids = array("I", [piece.id for piece in pieces]).tobytes()
        else:
            ids = array("I", self._tokenizer.encode(word, add_special_tokens=False).ids).tobytes()
        if len(word) <= LONGEST_KEPT:
            if len(self) >= MOST_WORDS:
                self.clear()  # what is frequent is soon back
            self[word] = ids
        return ids


class Encoder:
    """Text to ids, without special tokens.

    The ids equal those of stock BertTokenizer with add_special_tokens=False on text that holds no
    special token by name; such a name is cut into "[", "mask", "]" here, as in Google's code.
    """

    def __init__(self, tokens: Sequence[str], lowercase: bool) -> None:
        self.vocab_size = len(tokens)
        self.special_ids = special_ids(tokens)
        self._word_ids = _WordIds(make_tokenizer(tokens, lowercase), lowercase)

    def encode(self, sentences: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """N sentences to (T,) ids end to end, and the (N,) lengths; a length may be 0."""
        ids_of = self._word_ids.__getitem__
        ids = [b"".join(map(ids_of, sentence.split(" "))) for sentence in sentences]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids)) // np.dtype(np.uint32).itemsize
        return np.frombuffer(b"".join(ids), np.uint32), lengths


# ---------------------------------------------------------------- training


def train_vocab(
    batches: Callable[[], Iterable[list[str]]], vocab_size: int, lowercase: bool
) -> list[str]:
    """Train exactly `vocab_size` entries: the special tokens, the characters, then the merges.

    `batches` is called twice and yields the same paragraphs each time, many at once. The same
    text gives the same entries in the same order, whatever the number of threads and however it
    is batched. Raises ValueError where the text is too small for so many entries.
    """
    characters, inner = _alphabet(batches(), vocab_size, lowercase)
    # The trainer numbers "##" forms in the order of a hash map, and its ties follow these numbers:
    # another vocabulary every run. Named as special tokens they have their ids before it begins.
    fixed = [*SPECIAL_TOKENS.values(), *characters, *(f"##{character}" for character in inner)]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=LEAST_COUNT,
        show_progress=False,
        special_tokens=fixed,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
    )
    tokenizer = make_tokenizer(list(SPECIAL_TOKENS.values()), lowercase)
    tokenizer.train_from_iterator(batches(), trainer)
    numbers: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(numbers, key=numbers.__getitem__)
    assert tokens[: len(fixed)] == fixed, "the trainer renumbered the entries fixed beforehand"
    if len(tokens) != vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} asks for more entries than the documents give, {len(tokens)}; "
            f"collect more text or set vocab_size={len(tokens)}"
        )
    return tokens


def _alphabet(
    batches: Iterable[list[str]], vocab_size: int, lowercase: bool
) -> tuple[list[str], list[str]]:
    """The characters that become entries, in code-point order, and those also found inside a word.

    The most frequent are taken, of equal counts the lower code points: at most 1,000, and their
    forms fill at most half the vocabulary. Words with another character become [UNK].
    """
    raw_counts = np.zeros(NUM_CODE_POINTS, np.int64)
    for batch in batches:
        codes = np.frombuffer("".join(batch).encode("utf-32-le"), np.uint32)
        raw_counts += np.bincount(codes, minlength=NUM_CODE_POINTS)
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    counts: dict[str, int] = {}
    # Normalising works character by character, so distinct ones are enough: 100 times as fast
    for code in np.flatnonzero(raw_counts):
        for character in normalizer.normalize_str(chr(code)):
            if not character.isspace():
                counts[character] = counts.get(character, 0) + int(raw_counts[code])
    frequent = sorted(
        (character for character, count in counts.items() if count >= LEAST_COUNT),
        key=lambda character: (-counts[character], character),
    )
    room = (vocab_size - len(SPECIAL_TOKENS)) // 2
    chosen: list[str] = []
    inner: list[str] = []
    for character in frequent[:MOST_CHARACTERS]:
        forms = 2 if (is_inner := _stands_inside_words(character, normalizer)) else 1
        if len(chosen) + len(inner) + forms > room:
            break
        chosen.append(character)
        if is_inner:
            inner.append(character)
    return sorted(chosen), sorted(inner)


def _stands_inside_words(character: str, normalizer: Any) -> bool:
    """False for punctuation and CJK characters, which are words of their own: no "##" form."""
    text = normalizer.normalize_str(f"a{character}a")
    return len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)) == 1


# ---------------------------------------------------------------- the tokenizer's files


def save_tokenizer(folder: Path, tokens: Sequence[str], lowercase: bool) -> None:
    """Write vocab.txt and the files from which `AutoTokenizer.from_pretrained(folder)` reads it.

    That tokenizer has the casing given here, puts [CLS] and [SEP] round one or two texts and knows
    the special tokens by name. Same arguments, same bytes.
    """
    with whole_or_absent(folder / "vocab.txt") as temporary:
        temporary.write_bytes("".join(f"{token}\n" for token in tokens).encode())
    with whole_or_absent(folder / "tokenizer.json") as temporary:
        _with_special_tokens(tokens, lowercase).save(str(temporary), pretty=True)
    names = {f"{name}_token": token for name, token in SPECIAL_TOKENS.items()}
    write_json(folder / "special_tokens_map.json", names)
    write_json(
        folder / "tokenizer_config.json",
        {
            **names,
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": lowercase,
            "strip_accents": None,  # follows do_lower_case
            "tokenize_chinese_chars": True,
            "model_max_length": 512,  # positions of the published models
        },
    )


def _with_special_tokens(tokens: Sequence[str], lowercase: bool) -> Any:
    """The tokenizer for users of a model: it knows the special tokens and adds [CLS] and [SEP]."""
    tokenizer = make_tokenizer(tokens, lowercase)
    special = [
        AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS.values()
    ]
    tokenizer.add_special_tokens(special)
    ids = special_ids(tokens)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["cls"]), ("[SEP]", ids["sep"])],
    )
    return tokenizer

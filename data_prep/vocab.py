"""Make the vocabulary: python -m data_prep.vocab data_dir=FOLDER vocab_size=30522.

It is trained on the documents of all sources, of a large corpus on a sample of its parts; or, with vocab_file=vocab.txt, a released one is
checked and taken over, entry for entry, with words of one's own behind them (add_words=FILE). data_dir/vocab then holds a whole tokenizer, which stock
`AutoTokenizer.from_pretrained` loads, and a manifest, written last.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
import xxhash

from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, read_json, write_json
from data_prep.core.job import start
from data_prep.core.settings import DataPrepSettings
from data_prep.dedup import duplicates
from data_prep.stores.documents import DocumentPart, list_parts, read_part
from data_prep.tokenizer.hf_files import TOKENIZER_FILES, save_tokenizer
from data_prep.tokenizer.training import add_words, train_vocab
from data_prep.tokenizer.vocab_file import check_casing, read_vocab, special_ids

SCHEMA_VERSION = 1
BATCH_CHARACTERS = 1_000_000  # of paragraphs handed to the trainer at once


def run(settings: DataPrepSettings) -> dict[str, Any]:
    """Train or take over the vocabulary; return the manifest of data_dir/vocab.

    A finished one of the same settings and documents is left alone. Raises SettingsError where
    vocab_file is missing, broken or of the other casing, ValueError where the documents are
    missing or too few for vocab_size.
    """
    data_dir = Path(settings.data_dir)
    folder = data_dir / "vocab"
    parts = [] if settings.vocab_file else list_parts(data_dir)
    left_out = {} if settings.vocab_file else duplicates.left_out(settings, parts)
    num_parts = len(parts)
    parts = _sample(parts, settings.vocab_characters)
    left_out = {part.key: left_out[part.key] for part in parts if part.key in left_out}
    identity = _identity(settings, parts, left_out)
    manifest_path = folder / "manifest.json"
    if _is_finished(folder, identity):
        manifest: dict[str, Any] = read_json(manifest_path)
        return manifest
    if settings.vocab_file:
        tokens, added = _released(Path(settings.vocab_file), settings)
    else:
        added = []
        batches = partial(_batches, data_dir, parts, left_out)
        tokens = train_vocab(batches, settings.vocab_size, settings.lowercase)
        check_casing(tokens, settings.lowercase)
    manifest_path.unlink(missing_ok=True)  # no manifest may stand beside files of another one
    save_tokenizer(folder, tokens, settings.lowercase)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "vocab_size": len(tokens),
        "lowercase": settings.lowercase,
        "special_ids": special_ids(tokens),
        "checksum": checksum(folder / "vocab.txt"),
        "settings": identity,
        "added_words": added,
        "parts": num_parts,  # that there were; those it was trained on are settings.documents
    }
    write_json(manifest_path, manifest)
    return manifest


def main(argv: Sequence[str] | None = None) -> int:
    """Make the vocabulary and print a table."""
    began = time.monotonic()

    def job(settings: DataPrepSettings) -> None:
        manifest = run(settings)
        added = len(manifest.get("added_words", []))  # a manifest of an earlier version has none
        made = f"taken from {settings.vocab_file}"
        if settings.add_words:
            made += f", and {added:,} words of {settings.add_words} behind its entries"
        if not settings.vocab_file:
            used = len(manifest["settings"]["documents"])
            left_out = sum(e["documents"] for e in manifest["settings"]["duplicates"].values())
            made = (
                f"trained on {used:,} of {manifest['parts']:,} parts of the documents, without their "
                f"{left_out:,} duplicates"
            )
        sys.stdout.write(
            f"vocabulary  {Path(settings.data_dir) / 'vocab'}, {made}\n"
            f"entries     {manifest['vocab_size']:,}\n"
            f"casing      {'uncased' if manifest['lowercase'] else 'cased'}\n"
            f"checksum    {manifest['checksum']}\n"
            f"seconds     {time.monotonic() - began:.1f}\n"
        )

    return start(job, argv, has_shares=False)


def read_vocab_store(data_dir: Path) -> tuple[list[str], dict[str, Any]]:
    """The entries of data_dir/vocab and its manifest, its checksum checked.

    Raises ValueError, with the cure, where it is missing, of another version or changed.
    """
    folder = data_dir / "vocab"
    path = folder / "manifest.json"
    command = f"python -m data_prep.vocab data_dir={data_dir}"
    if not path.is_file():
        raise ValueError(f"{path} is missing: there is no vocabulary yet; run {command}")
    manifest: dict[str, Any] = read_json(path)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} is of version {manifest.get('schema_version')}, this program reads version "
            f"{SCHEMA_VERSION}; delete {folder} and run {command}"
        )
    vocab_path = folder / "vocab.txt"
    if not vocab_path.is_file() or checksum(vocab_path) != manifest["checksum"]:
        raise ValueError(
            f"{vocab_path} is not the file that {path} describes: it was changed or removed since; "
            f"delete {folder} and run {command}"
        )
    return read_vocab(vocab_path), manifest


def _identity(
    settings: DataPrepSettings, parts: Sequence[DocumentPart], left_out: dict[str, Any]
) -> dict[str, Any]:
    """What decides on the bytes of the vocabulary."""
    identity: dict[str, Any] = {
        "lowercase": settings.lowercase,
        "tokenizers": tokenizers.__version__,
        "duplicates": left_out,
        "vocab_file": None,
        "vocab_size": None,
    }
    if settings.vocab_file:
        path = Path(settings.vocab_file)
        if not path.is_file():
            raise SettingsError(
                f"vocab_file={path} is no file; give the path of a vocab.txt, or leave vocab_file "
                f"out to train a vocabulary on the documents"
            )
        if settings.add_words and not Path(settings.add_words).is_file():
            raise SettingsError(
                f"add_words={settings.add_words} is no file; give the path of one with a word a line"
            )
        if settings.add_words:  # else no such key, so that a vocabulary of earlier versions is kept
            identity["add_words"] = checksum(Path(settings.add_words))
        return {**identity, "vocab_file": checksum(path)}
    documents = {part.key: part.checksum for part in parts}
    return {**identity, "vocab_size": settings.vocab_size, "documents": documents}


def _is_finished(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether all files are there, written for the same settings and text, and unchanged."""
    path = folder / "manifest.json"
    if not path.is_file() or not all((folder / name).is_file() for name in TOKENIZER_FILES):
        return False
    manifest = read_json(path)
    same = manifest.get("schema_version") == SCHEMA_VERSION and manifest["settings"] == identity
    return same and bool(checksum(folder / "vocab.txt") == manifest["checksum"])


def _released(path: Path, settings: DataPrepSettings) -> tuple[list[str], list[str]]:
    """The entries of a vocabulary that someone else trained and, behind them, the words to be added;
    and these words.
    """
    try:
        tokens = read_vocab(path)
        check_casing(tokens, settings.lowercase)
    except ValueError as error:
        raise SettingsError(f"vocab_file={path}: {error}") from error
    if settings.add_words is None:
        return tokens, []
    try:
        added = add_words(tokens, Path(settings.add_words), settings.lowercase)
    except ValueError as error:
        raise SettingsError(f"add_words: {error}") from error
    return [*tokens, *added], added


def _sample(parts: Sequence[DocumentPart], most_characters: int) -> list[DocumentPart]:
    """Parts in their order, as many as hold `most_characters`, drawn by a hash of their names; at
    least one.
    """
    drawn: set[str] = set()
    characters = 0
    for part in sorted(parts, key=lambda part: xxhash.xxh3_64_intdigest(part.key.encode())):
        if drawn and characters + part.characters > most_characters:
            break
        drawn.add(part.key)
        characters += part.characters
    return [part for part in parts if part.key in drawn]


def _batches(
    data_dir: Path, parts: Sequence[DocumentPart], left_out: dict[str, Any]
) -> Iterator[list[str]]:
    """The paragraphs of the parts' documents but duplicates, about a million characters at once."""
    batch: list[str] = []
    characters = 0
    for part in parts:
        dropped = duplicates.dropped_ids(data_dir, part, left_out)
        for document in read_part(part.path):
            if document.id in dropped:
                continue
            batch += document.text.split("\n")
            characters += len(document.text)
            if characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch


if __name__ == "__main__":
    sys.exit(main())

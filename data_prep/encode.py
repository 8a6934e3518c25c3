"""Encode the documents: python -m data_prep.encode data_dir=FOLDER.

Splits every document's paragraphs into sentences, and these into WordPiece ids with the vocabulary
and casing of data_dir/vocab. With masking.unit=whole_word the words of languages that write no
spaces are stored, too. A hash of a document's name decides whether it is held out, so its
split does not depend on the other documents. One task encodes one part of the documents into one
part of each split.

Settings are typed as name=value or group.name=value:

{data_prep.yaml}
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import msgspec
import nupunkt
import tokenizers

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.files import write_json
from data_prep.core.job import Rows, segmenters, start
from data_prep.core.objectives import MaskingUnit
from data_prep.core.records import IdType, read_record
from data_prep.core.settings import DataPrepSettings, LanguageSettings
from data_prep.core.settings import Splitter as SplitterName
from data_prep.dedup import left_out
from data_prep.duplicates.dropped import LeftOut
from data_prep.encoding.encode_part import (
    Dropped,
    EncodeRule,
    encode_part,
    entry_path,
    has_languages,
    task_name,
)
from data_prep.encoding.held_out import FEWEST_DOCUMENTS, fitting_fraction
from data_prep.executors.run import amend_command, run_tasks
from data_prep.executors.tasks import TaskEntry, fingerprint
from data_prep.quality.corpus import counts_path, read_counts
from data_prep.quality.corpus_counts import (
    SENTENCE_CHARACTERS,
    choose_one_in,
    count_corpus,
)
from data_prep.quality.language_counter import sample_one_in
from data_prep.stores.documents import DocumentPart, list_parts
from data_prep.stores.token_records import (
    SCHEMA_VERSION,
    SPLITS,
    EncodeSettings,
    SentenceSettings,
    TokenPartEntry,
    TokensManifest,
    WordSettings,
    WrittenPart,
    manifest_entries,
    read_tokens_manifest,
)
from data_prep.stores.tokens import TokenPart, token_dtype
from data_prep.text.words import PACKAGES
from data_prep.tokenizer.store import VocabManifest, read_vocab_store

MOST_UNKNOWN = 0.05  # of the tokens; 0.0002 for English text and its own vocabulary


def main(argv: Sequence[str] | None = None) -> int:
    """Encode all documents and print a table."""
    return start(run, argv, summary=_summary, has_shares=True)


def run(settings: DataPrepSettings) -> TokensManifest:
    """Encode all documents into data_dir/tokens/; return its manifest.

    Raises ValueError if documents or vocabulary are missing; SettingsError if a split would have
    too few documents; RuntimeError if tasks fail or the vocabulary does not fit the text.
    """
    data_dir = Path(settings.data_dir)
    folder = data_dir / "tokens"
    tokens, vocab = read_vocab_store(data_dir)
    if store := _store_to_count(settings, vocab):
        write_json(counts_path(data_dir), count_corpus(folder, store, settings.workers))
        return store
    parts = list_parts(data_dir)
    dropped = left_out(settings, parts)
    _check_language(settings, vocab)
    sentences, words = _sentence_settings(settings.language), _word_settings(settings)
    identity: dict[str, Any] = {
        "vocab_checksum": vocab.checksum,
        **msgspec.to_builtins(vocab.form),
        "heldout_fraction": settings.heldout_fraction,
        "nupunkt": nupunkt.__version__,
        "tokenizers": tokenizers.__version__,
        "schema_version": SCHEMA_VERSION,
    }
    if sentences:
        identity["sentences"] = msgspec.to_builtins(sentences)
    if words:
        identity["words"] = msgspec.to_builtins(words)
    if has_languages(sentences):
        identity["languages"] = True
    tasks = [_task_entry(folder, part, identity, dropped) for part in parts]
    characters = sum(part.characters for part in parts)
    samples = choose_one_in(characters // SENTENCE_CHARACTERS), sample_one_in(characters)
    rule = EncodeRule(vocab.form, settings.heldout_fraction, sentences, words, *samples)
    task = partial(encode_part, data_dir, tokens, rule)
    counts = run_tasks("encode", folder / "logs", tasks, task, settings)
    again = f"delete {folder} and run python -m data_prep.encode data_dir={data_dir}"
    written = [
        read_record(entry_path(folder, task.name), dict[str, WrittenPart], again) for task in tasks
    ]
    languages, splits = manifest_entries(
        {split: [entries[split] for entries in written] for split in SPLITS}
    )
    _check_splits(folder, splits, settings.heldout_fraction)
    manifest = TokensManifest(
        schema_version=SCHEMA_VERSION,
        dtype=cast(IdType, token_dtype(len(tokens)).name),
        vocab_checksum=vocab.checksum,
        vocab_size=len(tokens),
        lowercase=vocab.lowercase,
        special_ids=vocab.special_ids,
        settings=EncodeSettings(
            **identity
            | {**msgspec.structs.asdict(vocab.form), "sentences": sentences, "words": words},
            documents={part.key: part.checksum for part in parts},
            duplicates=dropped,
        ),
        splits=splits,
        dropped={name: counts[name] for name in sorted(Dropped.__dataclass_fields__)},
        languages=languages,
    )
    if read_counts(data_dir, manifest) is None:
        write_json(counts_path(data_dir), count_corpus(folder, manifest, settings.workers))
    write_json(folder / "manifest.json", manifest)  # last: it vouches for the rest
    return manifest


def _store_to_count(settings: DataPrepSettings, vocab: VocabManifest) -> TokensManifest | None:
    """A finished token store that lacks only its counts, and whose documents have been deleted."""
    data_dir = Path(settings.data_dir)
    if (
        any((data_dir / "documents").glob("*/"))
        or not (data_dir / "tokens/manifest.json").is_file()
    ):
        return None
    store = read_tokens_manifest(data_dir)
    is_same = (store.vocab_checksum, store.settings.heldout_fraction) == (
        vocab.checksum, settings.heldout_fraction,
    )  # fmt: skip
    return store if is_same and read_counts(data_dir, store) is None else None


def _task_entry(
    folder: Path, part: DocumentPart, identity: dict[str, Any], dropped: LeftOut
) -> TaskEntry:
    """The task of one part of the documents."""
    name, own = task_name(part), {key: dropped[key] for key in (part.key,) if key in dropped}
    determined_by = {
        **identity,
        "document": name,
        "checksum": part.checksum,
        "duplicates": own.get(part.key),
    }
    if part.one_sentence_per_line:
        determined_by["splitter"] = "lines"
    outputs = *(folder / split / f"{name}.arrow" for split in SPLITS), entry_path(folder, name)
    return TaskEntry(name, fingerprint(determined_by), outputs, (part, own))


def _check_language(settings: DataPrepSettings, vocab: VocabManifest) -> None:
    """Raises SettingsError if the vocabulary was made for another language."""
    code = vocab.settings.language or "en"
    if code != settings.language.code:
        raise SettingsError(
            f"the vocabulary of {settings.data_dir} was made with language={code}: set "
            f"language={code} here, too (or make it again with language={settings.language.code})"
        )


def _sentence_settings(language: LanguageSettings) -> SentenceSettings | None:
    if language.splitter is SplitterName.nupunkt:
        return None
    version = metadata.version(language.splitter.value)
    return SentenceSettings(language.code, language.splitter.value, version)


def _word_settings(settings: DataPrepSettings) -> WordSettings | None:
    """How words are segmented; None if they are not.

    Raises SettingsError if a package is missing: words by "##" alone would be other masks.
    """
    if settings.masking.unit is not MaskingUnit.whole_word:
        return None
    found = segmenters(settings.language)
    try:
        packages = (package for name in found.values() for package in PACKAGES[name])
        versions = {package: metadata.version(package) for package in packages}
    except metadata.PackageNotFoundError as error:
        raise SettingsError(
            f"masking.unit=whole_word with language={settings.language.code} needs the package "
            f"{error.name}, which segments words: pip install 'bert-pretraining[words]', or set "
            'language.words=none for words by "##" alone'
        ) from error
    return WordSettings(found, versions) if found else None


def _totals(entries: Sequence[TokenPartEntry]) -> dict[str, int]:
    """Sums over the parts of one split."""
    names = ("documents", "sentences", "tokens", "unknown_tokens")
    return {name: sum(getattr(entry, name) for entry in entries) for name in names}


def _check_splits(
    folder: Path, splits: dict[str, list[TokenPartEntry]], heldout_fraction: float
) -> None:
    """Refuse a split of fewer than two documents, and text that the vocabulary does not fit."""
    totals = {split: _totals(entries) for split, entries in splits.items()}
    documents = {split: total["documents"] for split, total in totals.items()}
    together = sum(documents.values())
    if together < 2 * FEWEST_DOCUMENTS:
        raise ValueError(
            f"{together} documents have text; training and held-out documents need "
            f"{FEWEST_DOCUMENTS} each: collect more"
        )
    if min(documents.values()) < FEWEST_DOCUMENTS:
        names = (
            name
            for split, entries in splits.items()
            for entry in entries
            for name in TokenPart.open(folder / split / entry.name).documents.to_pylist()
        )
        fitting = f"heldout_fraction={fitting_fraction(names)}"
        amend_command(folder / "logs", fitting)  # for data_prep.status
        raise SettingsError(
            f"heldout_fraction={heldout_fraction} leaves {documents['heldout']} of {together} "
            f"documents held out and {documents['train']} for training; each needs at least "
            f"{FEWEST_DOCUMENTS}: set {fitting}"
        )
    unknown = sum(total["unknown_tokens"] for total in totals.values())
    tokens = sum(total["tokens"] for total in totals.values())
    if unknown > MOST_UNKNOWN * tokens:
        raise RuntimeError(
            f"{unknown:,} of {tokens:,} tokens ({unknown / tokens:.1%}) are [UNK], more than "
            f"{MOST_UNKNOWN:.0%}: the vocabulary does not fit the text; train one on these "
            f"documents (data_prep.vocab without vocab_file) or collect text of its language"
        )


def _summary(settings: DataPrepSettings, manifest: TokensManifest) -> Rows:
    rows = [("tokens", str(Path(settings.data_dir) / "tokens"))]
    for split in SPLITS:
        total = _totals(manifest.splits[split])
        counts = (f"{total[name]:,} {name}" for name in ("documents", "sentences", "tokens"))
        unknown = f"{total['unknown_tokens'] / total['tokens']:.4%} unknown"
        rows.append((split, ", ".join([*counts, unknown])))
    for name, count in manifest.dropped.items():
        rows.append(("dropped", f"{count:,} {name.replace('_', ' ')}"))
    return rows


if __name__ == "__main__":
    sys.exit(status_of(main))

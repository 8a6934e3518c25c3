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

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
import nupunkt
import tokenizers
import xxhash
from numpy.typing import NDArray

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.files import write_json
from data_prep.core.job import Rows, segmenters, start
from data_prep.core.objectives import MaskingUnit
from data_prep.core.records import IdType, TextForm, read_record
from data_prep.core.settings import DataPrepSettings, LanguageSettings
from data_prep.core.settings import Splitter as SplitterName
from data_prep.dedup import LeftOut, dropped_ids, left_out
from data_prep.executors.run import run_tasks
from data_prep.executors.tasks import TaskEntry, fingerprint
from data_prep.quality.corpus import counts_path, read_counts
from data_prep.quality.corpus_counts import (
    SENTENCE_CHARACTERS,
    choose_one_in,
    count_corpus,
    write_counts,
)
from data_prep.quality.language_counter import language_counter, sample_one_in
from data_prep.stores.documents import Document, DocumentPart, list_parts, read_part
from data_prep.stores.tokens import (
    SCHEMA_VERSION,
    SPLITS,
    EncodeSettings,
    SentenceSettings,
    TokenPart,
    TokenPartEntry,
    TokensManifest,
    WordSettings,
    read_tokens_manifest,
    token_dtype,
    write_part,
)
from data_prep.text.language import MULTI, iso_code, language_of
from data_prep.text.sentences import Splitter, splitter
from data_prep.text.words import PACKAGES, continues_word, segmenter
from data_prep.tokenizer.store import VocabManifest, read_vocab_store
from data_prep.tokenizer.wordpiece import Encoder

FEWEST_DOCUMENTS = 2  # per split: a random next segment comes from another document
MOST_UNKNOWN = 0.05  # of the tokens; 0.0002 for English text and its own vocabulary


def main(argv: Sequence[str] | None = None) -> int:
    """Encode all documents and print a table."""
    return start(run, argv, summary=_summary, has_shares=True)


def run(settings: DataPrepSettings) -> TokensManifest:
    """Encode all documents into data_dir/tokens/; return its manifest.

    Raises ValueError if documents or vocabulary are missing, or a split would have too few
    documents; RuntimeError if tasks fail or the vocabulary does not fit the text.
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
    tasks = [_task_entry(folder, part, identity, dropped) for part in parts]
    fraction = settings.heldout_fraction
    characters = sum(part.characters for part in parts)
    samples = choose_one_in(characters // SENTENCE_CHARACTERS), sample_one_in(characters)
    task = partial(
        _encode_part,
        *(data_dir, parts, dropped, tokens, vocab.form, fraction, sentences, words, samples),
    )
    counts = run_tasks("encode", folder / "logs", tasks, task, settings)
    again = f"delete {folder} and run python -m data_prep.encode data_dir={data_dir}"
    written = [
        read_record(_entry_path(folder, task.name), dict[str, TokenPartEntry], again)
        for task in tasks
    ]
    splits = {split: [entries[split] for entries in written] for split in SPLITS}
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
    name = task_name(part)
    determined_by = {
        **identity,
        "document": name,
        "checksum": part.checksum,
        "duplicates": dropped.get(part.key),
    }
    if part.one_sentence_per_line:
        determined_by["splitter"] = "lines"
    outputs = *(folder / split / f"{name}.arrow" for split in SPLITS), _entry_path(folder, name)
    return TaskEntry(name, fingerprint(determined_by), outputs)


def task_name(part: DocumentPart) -> str:
    """books-00003 of documents/books/part-00003.parquet."""
    return f"{part.source}-{Path(part.name).stem.removeprefix('part-')}"


def is_heldout(name: str, heldout_fraction: float) -> bool:
    """Whether the document "source/id" is held out; a function of its name and the fraction.

    A larger fraction holds out the same documents and more.
    """
    return xxhash.xxh3_64_intdigest(name.encode()) < int(heldout_fraction * 2**64)


def fitting_fraction(names: Iterable[str]) -> float:
    """A round heldout_fraction, as small as can be, with FEWEST_DOCUMENTS or more in each split.

    `names` are those of all documents, twice FEWEST_DOCUMENTS or more.
    """
    smallest: list[float] = []
    largest: list[float] = []
    for name in names:  # of a large corpus more than fit the memory
        share = xxhash.xxh3_64_intdigest(name.encode()) / 2**64
        smallest = sorted([*smallest, share])[:FEWEST_DOCUMENTS]
        largest = sorted([*largest, share])[-FEWEST_DOCUMENTS:]
    least, most = smallest[-1], largest[0]
    tenths = [tenth / 10 for tenth in range(1, 10)]
    exact = [round((least + most) / 2, digits) for digits in range(2, 18)]
    return next(f for f in (0.01, 0.02, 0.05, *tenths, *exact) if least < f <= most)


class Encoded(NamedTuple):
    """A document of S sentences."""

    ids: NDArray[np.uint32]  # (T,) end to end
    lengths: NDArray[np.int64]  # (S,) tokens of each sentence
    continues_word: NDArray[np.bool_] | None  # (T,) that of the token before; None: not asked for


@dataclass
class Dropped:
    """Counts of text that is left out, by reason."""

    documents_without_tokens: int = 0
    duplicates: int = 0  # documents
    sentences_without_tokens: int = 0  # of control characters alone, for example


@dataclass
class Split:
    """The documents of one part of one split, collected in memory."""

    documents: list[str] = field(default_factory=list)
    ids: list[NDArray[np.uint32]] = field(default_factory=list)
    sentence_lengths: list[NDArray[np.int64]] = field(default_factory=list)
    document_lengths: list[int] = field(default_factory=list)  # sentences of each
    continues_word: list[NDArray[np.bool_]] = field(default_factory=list)  # if words are stored

    def add(self, name: str, encoded: Encoded) -> None:
        """Add a document."""
        self.documents.append(name)
        self.ids.append(encoded.ids)
        self.sentence_lengths.append(encoded.lengths)
        self.document_lengths.append(len(encoded.lengths))
        if encoded.continues_word is not None:
            self.continues_word.append(encoded.continues_word)

    def write(self, path: Path, encoder: Encoder, has_words: bool) -> TokenPartEntry:
        """Write the part; return its entry in the manifest."""
        ids = np.concatenate([np.zeros(0, np.uint32), *self.ids])
        special = [number for name, number in encoder.special_ids.items() if name != "unk"]
        assert not np.isin(ids, special).any(), f"{path}: a special id among the text's ids"
        assert not len(ids) or ids.max() < encoder.vocab_size, (
            f"{path}: an id beyond the vocabulary"
        )
        lengths = np.concatenate([np.zeros(1, np.int64), *self.sentence_lengths])
        return write_part(
            path,
            self.documents,
            ids.astype(token_dtype(encoder.vocab_size)),
            np.cumsum(lengths),
            np.cumsum([0, *self.document_lengths]),
            unknown_tokens=int(np.count_nonzero(ids == encoder.special_ids["unk"])),
            continues_word=(
                np.concatenate([np.zeros(0, np.bool_), *self.continues_word]) if has_words else None
            ),
        )


def _encode_part(
    data_dir: Path,
    parts: Sequence[DocumentPart],
    left_out: LeftOut,
    tokens: Sequence[str],
    form: TextForm,
    heldout_fraction: float,
    sentences: SentenceSettings | None,
    words: WordSettings | None,
    samples: tuple[int, int],
    index: int,
) -> dict[str, int]:
    """One task: read one part of the documents, write and count one part of each split."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tasks run in parallel already
    folder, part = data_dir / "tokens", parts[index]
    duplicate_ids = dropped_ids(data_dir, part, left_out)
    encoder = Encoder(tokens, form)
    counter = language_counter(encoder, tokens, form, samples[1])
    language_of_document, encode = _languages(sentences), _encoding(words, tokens, encoder)
    splits = {split: Split() for split in SPLITS}
    dropped = Dropped()
    for document in read_part(part.path, part.rows):
        if document.id in duplicate_ids:
            dropped.duplicates += 1
            continue
        name = f"{part.source}/{document.id}"
        language, split = language_of_document(document)
        if part.one_sentence_per_line:
            split = splitter("lines", language)
        texts, encoded = _encode_document(document, split, partial(encode, language), dropped)
        if len(encoded.lengths):
            counter.add(language, name, texts, encoded.lengths)
            splits["heldout" if is_heldout(name, heldout_fraction) else "train"].add(name, encoded)
    task = task_name(part)
    entries = {
        name: split.write(folder / name / f"{task}.arrow", encoder, words is not None)
        for name, split in splits.items()
    }
    write_counts(folder, entries, encoder, samples[0], counter.finish())
    write_json(_entry_path(folder, task), entries)
    return vars(dropped)


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


def _languages(
    settings: SentenceSettings | None,
) -> Callable[[Document], tuple[str, Splitter]]:
    """A function from a document to its language and what splits its paragraphs."""
    if settings is None:
        return lambda _: ("en", splitter("nupunkt", "en"))
    if settings.language != MULTI:
        return lambda _: (settings.language, splitter(settings.splitter, settings.language))

    def of_document(document: Document) -> tuple[str, Splitter]:
        code = document.language or iso_code(language_of(document.text))
        return code, splitter("nupunkt" if code == "en" else settings.splitter, code)

    return of_document


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


def _encoding(
    settings: WordSettings | None, tokens: Sequence[str], encoder: Encoder
) -> Callable[[str, Sequence[str]], Encoded]:
    """A function from a document's language and its sentences to what they are encoded to."""
    if settings is None:
        return lambda _, sentences: Encoded(*encoder.encode(sentences), None)
    is_piece_V = np.array([token.startswith("##") for token in tokens])
    names = settings.segmenters

    def encoded(language: str, sentences: Sequence[str]) -> Encoded:
        own = names.get(language.lower().split("-")[0])  # of zh-TW: that of zh
        name = own if len(names) > 1 else next(iter(names.values()))
        ids, lengths, spans = encoder.encode_spans(sentences)
        segment = segmenter(name) if name else None
        words = continues_word(sentences, lengths, spans, is_piece_V[ids], segment)
        return Encoded(ids, lengths, words)

    return encoded


def _encode_document(
    document: Document,
    split: Splitter,
    encode: Callable[[Sequence[str]], Encoded],
    dropped: Dropped,
) -> tuple[list[str], Encoded]:
    """A document's sentences, and what they are encoded to, without those of length 0."""
    sentences = [
        sentence for paragraph in document.text.split("\n") for sentence in split(paragraph)
    ]
    encoded = encode(sentences)
    kept = encoded.lengths[encoded.lengths > 0]
    dropped.sentences_without_tokens += len(encoded.lengths) - len(kept)
    dropped.documents_without_tokens += not len(kept)
    return sentences, encoded._replace(lengths=kept)


def _entry_path(folder: Path, name: str) -> Path:
    """The task's entries in the manifest, by split."""
    return folder / "logs" / "parts" / f"{name}.json"


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
        raise ValueError(
            f"heldout_fraction={heldout_fraction} leaves {documents['heldout']} of {together} "
            f"documents held out and {documents['train']} for training; each needs at least "
            f"{FEWEST_DOCUMENTS}: set heldout_fraction={fitting_fraction(names)}"
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

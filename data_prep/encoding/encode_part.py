"""The task of data_prep.encode: one part of the documents -> one part of each split."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.core.files import write_json
from data_prep.core.records import TextForm
from data_prep.duplicates.dropped import LeftOut, dropped_ids
from data_prep.encoding.held_out import is_heldout
from data_prep.quality.corpus_counts import write_counts
from data_prep.quality.language_counter import language_counter
from data_prep.stores.documents import Document, DocumentPart, read_part
from data_prep.stores.token_records import SPLITS, SentenceSettings, WordSettings, WrittenPart
from data_prep.stores.tokens import token_dtype, write_part
from data_prep.text.language import MULTI, iso_code, language_of
from data_prep.text.sentences import Splitter, splitter
from data_prep.text.words import continues_word, segmenter
from data_prep.tokenizer.wordpiece import Encoder


@dataclass(frozen=True)
class EncodeRule:
    """What decides the tokens of a document, next to the vocabulary, and its split."""

    form: TextForm
    heldout_fraction: float
    sentences: SentenceSettings | None  # None: English, by nupunkt
    words: WordSettings | None  # None: words are not stored
    compared_one_in: int  # of the sentences' hashes, those compared to find repeated ones
    counted_one_in: int  # of the sentences, those whose words are counted by language


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
    languages: list[str] = field(default_factory=list)

    def add(self, name: str, language: str, encoded: Encoded) -> None:
        """Add a document."""
        self.documents.append(name)
        self.languages.append(language)
        self.ids.append(encoded.ids)
        self.sentence_lengths.append(encoded.lengths)
        self.document_lengths.append(len(encoded.lengths))
        if encoded.continues_word is not None:
            self.continues_word.append(encoded.continues_word)

    def write(self, path: Path, encoder: Encoder, rule: EncodeRule) -> WrittenPart:
        """Write the part; return its entry in the manifest."""
        no_words = np.zeros(0, np.bool_)
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
                np.concatenate([no_words, *self.continues_word]) if rule.words else None
            ),
            languages=self.languages if has_languages(rule.sentences) else None,
        )


def has_languages(sentences: SentenceSettings | None) -> bool:
    """Whether the language of each document is stored: that of a corpus of many languages."""
    return sentences is not None and sentences.language == MULTI


def task_name(part: DocumentPart) -> str:
    """books-00003 of documents/books/part-00003.parquet."""
    return f"{part.source}-{Path(part.name).stem.removeprefix('part-')}"


def entry_path(folder: Path, name: str) -> Path:
    """The task's entries in the manifest, by split."""
    return folder / "logs" / "parts" / f"{name}.json"


def encode_part(
    data_dir: Path, tokens: Sequence[str], rule: EncodeRule, item: tuple[DocumentPart, LeftOut]
) -> dict[str, int]:
    """One task: read one part of the documents, write and count one part of each split.

    The item is the part and, if copies are dropped from it, their record.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tasks run in parallel already
    (part, left_out), folder = item, data_dir / "tokens"
    duplicate_ids = dropped_ids(data_dir, part, left_out)
    encoder = Encoder(tokens, rule.form)
    counter = language_counter(encoder, tokens, rule.form, rule.counted_one_in)
    language_of_document = _languages(rule.sentences)
    encode = _encoding(rule.words, tokens, encoder)
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
            own = "heldout" if is_heldout(name, rule.heldout_fraction) else "train"
            splits[own].add(name, language, encoded)
    task = task_name(part)
    entries = {
        name: split.write(folder / name / f"{task}.arrow", encoder, rule)
        for name, split in splits.items()
    }
    write_counts(folder, entries, encoder, rule.compared_one_in, counter.finish())
    write_json(entry_path(folder, task), entries)
    return vars(dropped)


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

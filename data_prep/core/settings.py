"""Typed settings of the jobs of data_prep, and their checks, each with its cure.

The values are in conf/data_prep.yaml and conf/source/, with a comment on each line.
"""

from __future__ import annotations

import enum
import os
import re
from dataclasses import dataclass

from data_prep.core.config import SettingsError
from data_prep.core.objectives import MaskingUnit, Pairing
from data_prep.text.language import known_languages


class SourceKind(enum.Enum):
    sample = "sample"
    books = "books"
    wikipedia = "wikipedia"
    bookcorpus = "bookcorpus"
    wikiextractor = "wikiextractor"
    wikipedia_dump = "wikipedia_dump"
    book_rows = "book_rows"


class Executor(enum.Enum):
    local = "local"
    slurm = "slurm"
    ray = "ray"


class Duplicates(enum.Enum):
    drop = "drop"
    keep = "keep"


@dataclass
class SourceSettings:
    """Where documents come from. A kind leaves the settings it does not use at None."""

    name: str  # folder below documents/, first part of every document's name
    kind: SourceKind
    path: str | None = None  # file or folder to read
    dataset: str | None = None  # name on the Hugging Face hub, used if path is None
    subset: str | None = None  # configuration of the data set
    split: str | None = None  # of the data set
    revision: str | None = None  # branch, tag or commit of the data set
    text_column: str | None = None  # column with the text
    rows_per_document: int | None = None  # rows per document; None: one
    language: str | None = None  # code of the only language to keep; None: all
    min_characters: int | None = None  # shorter documents are dropped
    keep_verse: bool | None = None  # False: documents of verse are dropped


@dataclass
class MaskingSettings:
    rate: float  # share of an example's tokens to predict
    max_predictions: int | None  # most per example; None: no limit
    mask_share: float  # share of the predicted that become [MASK]
    random_share: float  # share that become a random entry; the rest stays
    unit: MaskingUnit


@dataclass
class AuditSettings:
    random_next_least: float  # limits on the share of random pairs of nsp
    random_next_most: float
    most_unknown: float  # share of the tokens that are [UNK]
    fewest_documents: int  # in the train split
    most_one_sentence: float  # share of the documents that are one sentence
    most_repeated: float  # share of the tokens in sentences that occurred before
    most_told_alone: float  # share of the majority's mistakes avoided without comparing A with B
    most_told_together: float  # the same with the words that A and B share


@dataclass
class DataPrepSettings:
    data_dir: str  # root folder of one prepared corpus
    seed: int
    executor: Executor  # runs the tasks
    num_workers: int | None  # None: the cores this process may use
    array_size: int  # elements of a Slurm job array
    share: str | None  # "K/N": only tasks K, K + N, ... from 1, and no manifest
    characters_per_part: int  # how a source is cut into tasks
    duplicates: Duplicates  # what to do with copies of other documents
    heldout_fraction: float  # share of the documents
    lowercase: bool
    vocab_size: int
    vocab_characters: int
    vocab_file: str | None  # released vocabulary to use instead of a trained one
    add_words: str | None  # file with one word per line, added after vocab_file's entries
    seq_len: int  # tokens, special tokens included
    pairs: Pairing
    copies: int  # passes over the corpus with different pairs and masks
    short_seq_prob: float
    masking: MaskingSettings
    audit: AuditSettings
    source: SourceSettings | None = None  # only for collect

    @property
    def workers(self) -> int:
        """Number of processes: num_workers, or the cores this process may use."""
        return self.num_workers or len(os.sched_getaffinity(0))

    @property
    def share_of(self) -> tuple[int, int]:
        """(K, N) of share=K/N; (1, 1) without it."""
        first, step = (self.share or "1/1").split("/")
        return int(first), int(step)


def check(settings: DataPrepSettings) -> None:
    """Raises SettingsError listing every setting that cannot work."""
    wrong = [*_check_numbers(settings), *_check_masking(settings)]
    least, most = settings.audit.random_next_least, settings.audit.random_next_most
    if not 0 <= least <= most <= 1:
        wrong.append(
            f"audit.random_next_least={least} and audit.random_next_most={most} must be ascending "
            "and in [0, 1]"
        )
    for name in (
        "most_unknown",
        "most_one_sentence",
        "most_repeated",
        "most_told_alone",
        "most_told_together",
    ):
        if not 0 <= (share := getattr(settings.audit, name)) <= 1:
            wrong.append(f"audit.{name}={share}; it takes [0, 1]")
    if settings.source is not None:
        wrong += _check_source(settings.source)
    if wrong:
        raise SettingsError("\n".join(wrong))


def _check_numbers(settings: DataPrepSettings) -> list[str]:
    wrong = []
    for key, least, most in (
        ("seed", 0, 2**32 - 1),  # one word of the counter-based generator's key
        ("characters_per_part", 1, None),
        ("vocab_size", 256, 2**31 - 1),
        ("vocab_characters", 1, None),
        ("seq_len", 8, 65_535),  # positions are stored as uint16
        ("copies", 1, 65_535),
        ("array_size", 1, None),
    ):
        value = getattr(settings, key)
        if value < least or (most is not None and value > most):
            bound = f"from {least} to {most}" if most is not None else f"{least} or more"
            wrong.append(f"{key}={value}; it takes {bound}")
    if settings.num_workers is not None and settings.num_workers < 1:
        wrong.append(f"num_workers={settings.num_workers}; it takes 1 or more, or null for all")
    if settings.share is not None:
        wrong += _check_share(settings.share, settings.executor)
    if settings.add_words is not None and settings.vocab_file is None:
        wrong.append(
            f"add_words={settings.add_words} adds to a released vocabulary: set vocab_file, too (a "
            "trained one has the text's own words)"
        )
    if not 0 <= settings.heldout_fraction < 1:
        wrong.append(f"heldout_fraction={settings.heldout_fraction}; it takes [0, 1)")
    if not 0 <= settings.short_seq_prob <= 1:
        wrong.append(f"short_seq_prob={settings.short_seq_prob}; it takes [0, 1]")
    return wrong


def _check_share(share: str, executor: Executor) -> list[str]:
    numbers = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", share)
    if not numbers or int(numbers[1]) > int(numbers[2]):
        return [f"share={share}; it takes K/N, the K-th of N shares, such as 2/8"]
    if executor is not Executor.local:
        return [f"share={share} is for executor=local, not {executor.value}: leave one of them out"]
    return []


def _check_masking(settings: DataPrepSettings) -> list[str]:
    wrong = []
    masking = settings.masking
    if not 0 < masking.rate < 1:
        wrong.append(f"masking.rate={masking.rate}; it takes more than 0 and less than 1")
    if masking.max_predictions is not None and masking.max_predictions < 1:
        wrong.append(
            f"masking.max_predictions={masking.max_predictions}; it takes 1 or more, or null"
        )
    shares = (masking.mask_share, masking.random_share)
    if min(shares) < 0 or sum(shares) > 1:
        wrong.append(
            f"masking.mask_share={shares[0]} and masking.random_share={shares[1]}: neither may be "
            "negative, and their sum may not exceed 1; the paper has 0.8 and 0.1"
        )
    return wrong


def _check_source(source: SourceSettings) -> list[str]:
    wrong = []
    if not source.name or "/" in source.name or source.name.startswith("."):
        wrong.append(f"source.name={source.name!r} must be the name of one folder")
    local = (SourceKind.books, SourceKind.wikiextractor, SourceKind.wikipedia_dump)
    if source.kind in local and source.path is None:
        wrong.append("source.path is not set; it is the folder to read: add source.path=FOLDER")
    rows = (SourceKind.wikipedia, SourceKind.bookcorpus, SourceKind.book_rows)
    if source.path is None and source.kind in rows:
        if source.dataset is None:
            wrong.append("neither source.path nor source.dataset is set; set source.path=FOLDER")
    elif source.path is not None and not os.path.exists(source.path):
        wrong.append(f"source.path={source.path} does not exist")
    if source.rows_per_document is not None and source.rows_per_document < 1:
        wrong.append(f"source.rows_per_document={source.rows_per_document}; it takes 1 or more")
    if source.min_characters is not None and source.min_characters < 1:
        wrong.append(f"source.min_characters={source.min_characters}; it takes 1 or more, or null")
    if source.language is not None and source.language not in known_languages():
        wrong.append(
            f"source.language={source.language} is not known; it takes a code such as en, de or "
            "zh, or null to keep all languages"
        )
    return wrong

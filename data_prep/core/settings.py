"""Typed settings of the jobs of data_prep, and their checks, each with its cure.

The values are in conf/data_prep.yaml and conf/source/, with a comment on each line.
"""

from __future__ import annotations

import csv
import enum
import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from data_prep.core.config import Limits, SettingsError, as_text, limit_faults
from data_prep.core.objectives import MaskingUnit, Pairing, RandomNext
from data_prep.core.records import Normalization
from data_prep.text.language import known_languages


class SourceKind(enum.Enum):
    sample = "sample"
    books = "books"
    wikipedia = "wikipedia"
    bookcorpus = "bookcorpus"
    wikiextractor = "wikiextractor"
    wikipedia_dump = "wikipedia_dump"
    book_rows = "book_rows"
    rows = "rows"
    lines = "lines"
    warc = "warc"
    plugin = "plugin"  # of another package: source.plugin


class Executor(enum.Enum):
    local = "local"
    slurm = "slurm"
    ray = "ray"


class Duplicates(enum.Enum):
    drop = "drop"
    keep = "keep"


class Splitter(enum.Enum):
    nupunkt = "nupunkt"
    sentencex = "sentencex"


class Words(enum.Enum):
    none = "none"
    rjieba = "rjieba"
    fugashi = "fugashi"
    pythainlp = "pythainlp"
    each = "each"


@dataclass
class LanguageSettings:
    """A profile of conf/language/: what a job does for text of one language."""

    code: str  # ISO 639, or multi
    splitter: Splitter  # of sentences
    words: Words  # segmenter for whole-word masks; none: "##" shows words
    lowercase: bool  # the defaults of settings of the same name
    strip_accents: bool | None
    normalization: Normalization
    turkish_i: bool
    vocab_language_exponent: float | None
    shortest_book: int  # characters; the defaults of source.min_characters
    shortest_page: int


@dataclass
class SourceSettings:
    """Where documents come from. A kind leaves the settings it does not use at None."""

    name: str  # folder below documents/, first part of every document's name
    kind: SourceKind
    path: str | None = None  # file, folder, pattern or URL to read, or several as [A,B]
    dataset: str | None = None  # name on the Hugging Face hub, used if path is None
    subset: str | None = None  # configuration of the data set
    split: str | None = None  # of the data set
    revision: str | None = None  # branch, tag or commit of the data set
    text_column: str | None = None  # column with the text
    # Columns of rows with a unique id, a title, the code of a language; of warc a header
    id_column: str | None = None
    title_column: str | None = None
    language_column: str | None = None
    rows_per_document: int | None = None  # rows per document; None: one
    language: str | None = None  # code of the only language to keep; None: all
    min_characters: int | None = None  # shorter documents are dropped
    keep_verse: bool | None = None  # False: documents of verse are dropped
    one_sentence_per_line: bool | None = None  # True: `encode` splits no line
    plugin: str | None = None  # the name that another package gives its source
    options: dict[str, Any] | None = None  # that source's own

    @property
    def paths(self) -> list[str]:
        """The files and folders of `path`."""
        return [] if self.path is None else paths_in(self.path)


class FilterName(enum.Enum):
    boilerplate = "boilerplate"
    line_duplicates = "line_duplicates"
    c4_lines = "c4_lines"
    gopher_quality = "gopher_quality"
    gopher_repetition = "gopher_repetition"
    fineweb_quality = "fineweb_quality"
    language_score = "language_score"
    pii = "pii"
    decontaminate = "decontaminate"


@dataclass
class FilterSettings:
    sources: list[str]  # those to filter; []: all
    fewest_words: int  # c4_lines: of a line
    fewest_sentences: int  # c4_lines: of a document
    most_documents: int  # boilerplate: a line in more documents of its source is left out
    least_language_share: float  # language_score
    decontaminate_against: str | None  # task file, or several as [A,B]
    ngram: int  # decontaminate: words


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
    fewest_documents: int  # in the train split; a warning below
    most_one_sentence: float  # share of the documents that are one sentence
    most_repeated: float  # share of the tokens in sentences that occurred before
    most_unknown_characters: float  # by language: share that is in words that are [UNK]
    most_stripped_words: float  # share that loses accents or vowel signs
    most_missed_ends: float  # marks that end sentences, inside of a sentence on average
    most_sentence_tokens: int  # on average
    most_told_alone: float  # share of the majority's mistakes avoided without comparing A with B
    most_told_together: float  # the same with the words that A and B share


@dataclass
class PlanSettings:
    nodes: int  # of num_workers cores each
    bytes: float | None  # of the input; None: those of the source
    seq_lens: list[int]  # lengths to build and audit


@dataclass
class DataPrepSettings:
    language: LanguageSettings
    data_dir: str  # root folder of one prepared corpus
    seed: int
    executor: Executor  # runs the tasks
    num_workers: int | None  # None: the cores this process may use
    array_size: int  # elements of a Slurm job array
    share: str | None  # "K/N": only tasks K, K + N, ... from 1, and no manifest
    replace: bool  # collect: the documents of another input; build: other shards; vocab: theirs
    characters_per_part: int  # how a source is cut into tasks
    filters: list[str]  # of FilterName, in the order in which they run
    filter: FilterSettings
    duplicates: Duplicates  # what to do with copies of other documents
    heldout_fraction: float  # share of the documents
    lowercase: bool
    strip_accents: bool | None  # None: as lowercase
    normalization: Normalization  # form of Unicode
    clean_text: bool  # drop control characters
    tokenize_chinese_chars: bool  # set CJK characters apart
    turkish_i: bool  # lower case of I and İ as in Turkish
    vocab_size: int
    alphabet_coverage: float  # share of the text's characters
    vocab_characters: int
    vocab_language_exponent: float | None  # of the languages' shares; None: as the text is
    vocab_file: str | None  # released vocabulary to use instead of a trained one
    add_words: str | None  # file with one word per line, added after vocab_file's entries
    seq_len: int  # tokens, special tokens included
    pairs: Pairing
    random_next: RandomNext  # of nsp
    copies: int  # passes over the corpus with different pairs and masks
    short_seq_prob: float
    masking: MaskingSettings
    audit: AuditSettings
    plan: PlanSettings  # only for plan
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


def paths_in(text: str) -> list[str]:
    """The files and folders of source.path: itself, or those of a list such as [a,b,"c, d"].

    A path that exists is never a list, whatever its name.
    """
    if os.path.exists(text) or not re.fullmatch(r"\[[^\r\n]+\]", text):
        return [text]
    (words,) = csv.reader([text[1:-1]], skipinitialspace=True)
    return [as_text(word.strip()) for word in words]


def is_url(path: str) -> bool:
    """Whether a path is a URL that fsspec opens, such as s3://bucket/folder."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path, re.IGNORECASE) is not None


def holds_key(url: str) -> bool:
    """Whether a URL seems to hold a password, a token or a signature."""
    try:
        parts = urlsplit(url)
    except ValueError:  # of brackets
        return False
    return "@" in parts.netloc or any(
        _KEY_NAME.search(name) or len(value) > _LONGEST_VALUE
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    )


_KEY_NAME = re.compile(r"key|token|sig|secret|pass|auth|cred", re.IGNORECASE)
_LONGEST_VALUE = 15  # characters of a part of a query that is no key, as in ?download=true
_SHARE = (lambda value: 0 <= value <= 1, "[0, 1]")
_POSITIVE = (lambda value: value >= 1, "1 or more")
_POSITIVE_OR_NULL = (lambda value: value >= 1, "1 or more, or null")
_UINT16 = 65_535

LIMITS: Limits = {
    # One word of the counter-based generator's key
    "seed": (lambda value: 0 <= value < 2**32, f"from 0 to {2**32 - 1}"),
    "num_workers": (lambda value: value >= 1, "1 or more, or null for all"),
    "array_size": _POSITIVE,
    "characters_per_part": _POSITIVE,
    "filter.fewest_words": _POSITIVE,
    "filter.fewest_sentences": _POSITIVE,
    "filter.most_documents": _POSITIVE,
    "filter.least_language_share": _SHARE,
    "filter.ngram": (lambda value: 2 <= value <= 100, "from 2 to 100"),
    "heldout_fraction": (lambda value: 0 <= value < 1, "[0, 1)"),
    "vocab_size": (lambda value: 256 <= value < 2**31, f"from 256 to {2**31 - 1}"),
    "alphabet_coverage": _SHARE,
    "vocab_characters": _POSITIVE,
    "vocab_language_exponent": (lambda value: 0 <= value <= 1, "[0, 1], or null"),
    # Positions are stored as uint16
    "seq_len": (lambda value: 8 <= value <= _UINT16, f"from 8 to {_UINT16}"),
    "copies": (lambda value: 1 <= value <= _UINT16, f"from 1 to {_UINT16}"),
    "short_seq_prob": _SHARE,
    "masking.rate": (lambda value: 0 < value < 1, "more than 0 and less than 1"),
    "masking.max_predictions": _POSITIVE_OR_NULL,
    "audit.most_unknown": _SHARE,
    "audit.most_one_sentence": _SHARE,
    "audit.most_repeated": _SHARE,
    "audit.most_unknown_characters": _SHARE,
    "audit.most_stripped_words": _SHARE,
    "audit.most_missed_ends": (lambda value: value >= 0, "0 or more"),
    "audit.most_sentence_tokens": _POSITIVE,
    "audit.most_told_alone": _SHARE,
    "audit.most_told_together": _SHARE,
    "plan.nodes": _POSITIVE,
    "plan.bytes": _POSITIVE_OR_NULL,
    "source.rows_per_document": _POSITIVE_OR_NULL,
    "source.min_characters": _POSITIVE_OR_NULL,
}


def check(settings: DataPrepSettings) -> None:
    """Raises SettingsError listing every setting that cannot work."""
    wrong = limit_faults(settings, LIMITS)
    wrong += [*_folder_faults(settings.data_dir), *_share_faults(settings)]
    wrong += [*_other_faults(settings), *_filter_faults(settings)]
    if settings.source is not None:
        wrong += _source_faults(settings.source)
    if wrong:
        raise SettingsError("\n".join(wrong))


def _folder_faults(data_dir: str) -> Iterator[str]:
    """A data_dir that is no folder and cannot become one."""
    path = Path(data_dir).absolute()
    there = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
    if not there.is_dir():
        what = "a file" if there.exists() else "a link that leads nowhere"
        yield f"data_dir={data_dir}: {there} is {what}, not a folder; choose another folder"


def _share_faults(settings: DataPrepSettings) -> Iterator[str]:
    share, executor = settings.share, settings.executor
    if share is None:
        return
    numbers = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", share)
    if not numbers or int(numbers[1]) > int(numbers[2]):
        yield f"share={share}; it takes K/N, the K-th of N shares, such as 2/8"
    elif executor is not Executor.local:
        yield f"share={share} is for executor=local, not {executor.value}: leave one of them out"


def _filter_faults(settings: DataPrepSettings) -> Iterator[str]:
    known, against = [name.value for name in FilterName], settings.filter.decontaminate_against
    for name in settings.filters:
        if name not in known:
            yield f"filters: {name} is not known; there are {', '.join(known)}"
    if len(set(settings.filters)) < len(settings.filters):
        yield f"filters=[{','.join(settings.filters)}]: each filter runs once; name it once"
    if FilterName.decontaminate.value in settings.filters and against is None:
        yield (
            "filters has decontaminate, which needs the files of the tasks: add "
            "filter.decontaminate_against=[FILE,FILE]"
        )
    for path in paths_in(against) if against else ():
        if not os.path.isfile(path):
            yield f"filter.decontaminate_against={path} is not a file; give the path of a task file"


def _other_faults(settings: DataPrepSettings) -> Iterator[str]:
    """Settings that do not fit each other."""
    if settings.add_words is not None and settings.vocab_file is None:
        yield (
            f"add_words={settings.add_words} adds to a released vocabulary: set vocab_file, too (a "
            "trained one has the text's own words)"
        )
    for length in settings.plan.seq_lens:
        if not LIMITS["seq_len"][0](length):
            yield f"plan.seq_lens: {length}; it takes {LIMITS['seq_len'][1]}"
    if fault := shares_fault(settings.masking):
        yield fault
    least, most = settings.audit.random_next_least, settings.audit.random_next_most
    if not 0 <= least <= most <= 1:
        yield (
            f"audit.random_next_least={least} and audit.random_next_most={most} must be ascending "
            "and in [0, 1]"
        )


def shares_fault(masking: MaskingSettings) -> str | None:
    """Why the shares of the masked tokens cannot be; None if they can."""
    shares = masking.mask_share, masking.random_share
    if min(shares) >= 0 and sum(shares) <= 1:
        return None
    return (
        f"masking.mask_share={shares[0]} and masking.random_share={shares[1]}: neither may be "
        "negative, and their sum may not exceed 1; the paper has 0.8 and 0.1"
    )


USED_BY_ALL = ("name", "kind", "language")
_ROW_FILES = ("path", "dataset", "subset", "split", "revision")
USED_BY: dict[SourceKind, tuple[str, ...]] = {  # besides USED_BY_ALL; a plug-in: any
    SourceKind.sample: (),
    SourceKind.books: ("path", "min_characters", "keep_verse"),
    SourceKind.wikipedia: (*_ROW_FILES, "min_characters"),
    SourceKind.bookcorpus: (*_ROW_FILES, "rows_per_document"),
    SourceKind.wikiextractor: ("path", "min_characters"),
    SourceKind.wikipedia_dump: ("path", "min_characters"),
    SourceKind.book_rows: (*_ROW_FILES, "text_column", "min_characters", "keep_verse"),
    SourceKind.rows: (
        *_ROW_FILES, "text_column", "id_column", "title_column", "language_column",
        "one_sentence_per_line", "min_characters",
    ),
    SourceKind.lines: ("path", "min_characters", "one_sentence_per_line"),
    SourceKind.warc: ("path", "id_column", "min_characters"),
}  # fmt: skip
_OF_ROWS = tuple(kind for kind, used in USED_BY.items() if "dataset" in used)
_OF_PATHS = tuple(kind for kind, used in USED_BY.items() if "path" in used and kind not in _OF_ROWS)
_OF_URLS = (*_OF_ROWS, SourceKind.lines, SourceKind.warc, SourceKind.plugin)


def _path_fault(kind: SourceKind, path: str) -> str | None:
    """Why a source of this kind cannot have a path; None if it can."""
    if is_url(path) and holds_key(path):
        return (
            f"source.path={path.partition('://')[0]}://...: holds a key, which files of the corpus "
            "would keep; leave it out, and set it in the environment (AWS_ACCESS_KEY_ID, HF_TOKEN)"
        )
    if kind in _OF_URLS and (is_url(path) or glob.glob(path, recursive=True)):
        return None
    if is_url(path):
        return (
            f"source.path={path}: only the sources of rows (rows, wikipedia, bookcorpus, "
            "gutenberg), lines and warc read URLs; fetch the files first"
        )
    return None if os.path.exists(path) else f"source.path={path} does not exist"


def _source_faults(source: SourceSettings) -> Iterator[str]:
    unused = [
        name
        for name, value in vars(source).items()
        if value is not None and name not in (*USED_BY_ALL, *USED_BY.get(source.kind, (name,)))
    ]
    if unused:
        used = ", ".join([*USED_BY_ALL, *USED_BY[source.kind]])
        yield (
            f"source.{', source.'.join(unused)}: not used by source.kind={source.kind.value}, "
            f"which uses {used}; leave it out, or choose another source"
        )
    if not source.name or "/" in source.name or source.name.startswith("."):
        yield f"source.name={source.name!r} must be the name of one folder"
    yield from filter(None, (_path_fault(source.kind, path) for path in source.paths))
    if source.path is None and source.kind in _OF_PATHS:
        yield "source.path is not set; it is the folder to read: add source.path=FOLDER"
    if source.path is None and source.dataset is None and source.kind in _OF_ROWS:
        yield "neither source.path nor source.dataset is set; set source.path=FOLDER"
    if source.language is not None and source.language.lower() not in known_languages():
        yield (
            f"source.language={source.language} is not known; it takes a code such as en, de or "
            "zh, or null to keep all languages"
        )

"""The filter that leaves out text which the evaluation tasks have, by common n-grams of words."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.core.config import SettingsError
from data_prep.core.files import regular_size
from data_prep.core.printable import shortened
from data_prep.filters.rules import Changes, Dropped, Filter

SUFFIXES = (".json", ".jsonl", ".tsv", ".csv", ".txt")
MOST_WORDS = 500_000  # whose hashes are kept: 60 MB
MOST_MATCHES = 10  # a document with more separate ones is dropped: GPT-3's rule for pieces

# A run without blanks and marks; in scripts that put no blanks between words, one character
_ALONE = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_MARKS = r"\s!-/:-@\[-`{-~\u00a0-\u00bf\u2000-\u206f\u3000-\u303f\uff00-\uff0f،؛؟۔।॥։"
_WORD = re.compile(f"[{_ALONE}]|[^{_MARKS}{_ALONE}]+")
_BASE = 0x9E3779B97F4A7C15  # odd: of the polynomial of an n-gram's hash, modulo 2**64


class _WordHashes(dict[str, int]):
    """Hashes of the words so far; a corpus has few words, often."""

    def __missing__(self, word: str) -> int:
        if len(self) > MOST_WORDS:
            self.clear()
        self[word] = number = xxhash.xxh3_64_intdigest(word.encode())
        return number


_HASHES = _WordHashes()


def decontaminate(tasks: NDArray[np.uint64], size: int) -> Filter:
    """Leaves out every line that shares an n-gram of words with a task file.

    After GPT-3 (Brown et al. 2020, appendix C): words in lower case without marks, n-grams of 13
    (`size`), and a document with more than ten separate matches is dropped. Where GPT-3 cuts 200
    characters around a match, the lines that it touches are left out. `tasks`: (T,) hashes of the
    tasks' n-grams, ascending.
    """

    def apply(text: str, code: str, changes: Changes) -> str | Dropped:
        hashes = ngram_hashes(_WORD.findall(text.lower()), size)
        found = np.flatnonzero(_is_in(hashes, tasks))
        if not len(found):
            return text
        lines = text.split("\n")
        ends = np.cumsum([len(_WORD.findall(line.lower())) for line in lines])
        first = np.searchsorted(ends, found, side="right")
        last = np.searchsorted(ends, found + size - 1, side="right")
        matches = 1 + int(np.count_nonzero(np.diff(found) > size))
        if matches > MOST_MATCHES:
            return Dropped(f"more than {MOST_MATCHES} matches", lines[first[0]])
        touched = {n for one, other in zip(first, last, strict=True) for n in range(one, other + 1)}
        for number in sorted(touched):
            changes.append(("shares an n-gram with a task", lines[number]))
        return "\n".join(line for number, line in enumerate(lines) if number not in touched)

    return apply


def ngram_hashes(words: Sequence[str], size: int) -> NDArray[np.uint64]:
    """(N,) hashes of all n-grams of `size` words, in order; none of fewer words."""
    number = len(words) - size + 1
    if number < 1:
        return np.zeros(0, np.uint64)
    own = np.fromiter(map(_HASHES.__getitem__, words), np.uint64, len(words))
    hashes = np.zeros(number, np.uint64)
    for place in range(size):
        hashes = hashes * np.uint64(_BASE) + own[place : place + number]
    return hashes


def task_ngrams(paths: Sequence[Path], size: int) -> NDArray[np.uint64]:
    """The (T,) hashes, ascending, of all n-grams in task files. Raises SettingsError.

    Of JSON, all strings at any depth count, such as SQuAD's contexts and questions; of a table, all
    fields. An n-gram is inside one of them.
    """
    found = [np.zeros(0, np.uint64)]
    for path in paths:
        texts = (_WORD.findall(text.lower()) for text in _texts(path))
        of_file = [ngram_hashes(words, size) for words in texts]
        if not any(map(len, of_file)):
            raise SettingsError(
                f"filter.decontaminate_against: {path} has no text of {size} words; name a file "
                "of a task, or set filter.ngram to a smaller number"
            )
        found += of_file
    return np.unique(np.concatenate(found))


def _is_in(hashes: NDArray[np.uint64], tasks: NDArray[np.uint64]) -> NDArray[np.bool_]:
    places = np.minimum(np.searchsorted(tasks, hashes), len(tasks) - 1)
    found: NDArray[np.bool_] = tasks[places] == hashes
    return found


def _texts(path: Path) -> Iterator[str]:
    """The texts of a task file, by its suffix."""
    regular_size(path)
    try:
        content = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            yield from _strings(json.loads(content))
        elif path.suffix == ".jsonl":
            for line in content.splitlines():
                if line.strip():
                    yield from _strings(json.loads(line))
        elif path.suffix == ".csv":
            for row in csv.reader(io.StringIO(content)):
                yield from row
        else:  # quotes in a .tsv of GLUE are text
            for line in content.splitlines():
                yield from line.split("\t")
    except (ValueError, RecursionError, csv.Error) as error:
        raise SettingsError(
            f"filter.decontaminate_against: {path} cannot be read as {path.suffix} "
            f"({shortened(str(error))}); it takes UTF-8 files that end in {', '.join(SUFFIXES)}"
        ) from error


def _strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for part in value.values() for text in _strings(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in _strings(part))

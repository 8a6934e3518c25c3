"""Token parts, documents and vocabularies from outside that cannot be: refused with place and cure.

Shards are in test_hostile_shards.py; test_fuzz.py harms every kind of file at random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_corpora import open_store, random_documents, write_corpus
from made_documents import write_source
from made_manifests import token_rule

from data_prep.core.config import SettingsError
from data_prep.core.files import read_json, write_json
from data_prep.core.objectives import Pairing
from data_prep.examples.build_shard import make_examples
from data_prep.examples.pairs import PairRule
from data_prep.quality.corpus_counts import count_corpus
from data_prep.stores.documents import Document, list_parts, read_part
from data_prep.stores.shard_records import read_token_counts
from data_prep.stores.token_records import read_tokens_manifest
from data_prep.stores.tokens import TokenPart, TokenStore
from data_prep.tokenizer import vocab_file
from data_prep.tokenizer.vocab_file import read_vocab

RULE = PairRule(Pairing.nsp, seq_len=32, short_seq_prob=0.1, seed=0, copy=0)


def two_parts(data_dir: Path) -> None:
    rng = np.random.default_rng(0)
    write_corpus(data_dir, [random_documents(rng, 9), random_documents(rng, 9)])


def harm(data_dir: Path, name: str, place: int, value: int) -> Path:
    """Put `value` into an array of the second part; the path of the part."""
    path = data_dir / "tokens" / "train" / "part-00001.arrow"
    old = getattr(TokenPart.open(path), name).copy()
    new = old.copy()
    new[place] = value
    path.write_bytes(path.read_bytes().replace(old.tobytes(), new.tobytes()))
    return path


HARMS = [
    ("document_offsets", 4, 0, "row 3: the length of sentences is -"),
    ("document_offsets", 4, 10**6, r"row 3: the length of sentences is 999,\d+, not from 1 to"),
    ("sentence_offsets", 4, 2**31 - 1, "row 3: the length of sentence is 2,147,483,"),
    ("sentence_offsets", 0, 1, "row 0: sentence begins at 1, not at 0"),
    ("ids", 0, 1000, "row 0: sentence is 1,000, not from 0 to 999"),
]


@pytest.mark.parametrize(("name", "place", "value", "reason"), HARMS)
def test_a_token_part_that_cannot_be_is_refused_with_row_and_cure(
    tmp_path: Path, name: str, place: int, value: int, reason: str
) -> None:
    two_parts(tmp_path)
    path = harm(tmp_path, name, place, value)
    with pytest.raises(SettingsError, match=f"^{path}, {reason}.*run data_prep.encode again$"):
        count_corpus(tmp_path / "tokens", read_tokens_manifest(tmp_path), 1)


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("document_offsets", 10**6, "its sentences lie outside of the part"),
        ("document_offsets", 0, "its sentences lie outside of the part"),
        ("document_offsets", -3, "its sentences lie outside of the part"),
        ("sentence_offsets", 2**31 - 1, "its sentences lie outside of the part"),
        ("ids", 1000, "in a partner of row .* the id is 1,000, not from 0 to 999"),
    ],
)
def test_a_random_partner_in_a_part_that_cannot_be_is_refused(
    tmp_path: Path, name: str, values: int, reason: str
) -> None:
    two_parts(tmp_path)
    harm(tmp_path, name, slice(1, -1), values)  # type: ignore[arg-type]
    store = TokenStore.open(tmp_path, "train")
    with pytest.raises(SettingsError, match=f"{reason}.*run data_prep.encode again"):
        make_examples(store, 0, RULE, token_rule(1000))


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("part", {"name": "../x"}, "'../x' is no plain file name"),
        ("part", {"name": "a\x1b[2J"}, "is no plain file name"),
        ("part", {"tokens": -1}, "Expected `int` >= 0"),
        ("part", {"documents_of": "CAAAAA=="}, "8 documents in its languages, 9 in all"),
        ("part", {"documents_of": "CQAAAA=="}, "counts documents in 1 languages, and there are 0"),
        ("whole", {"special_ids": {}}, "special_ids are not those of"),
        ("whole", {"splits": {"train": []}}, "splits are not train and heldout"),
    ],
)
def test_a_tokens_manifest_that_cannot_be_is_refused_with_the_field(
    tmp_path: Path, kind: str, change: dict[str, Any], reason: str
) -> None:
    two_parts(tmp_path)
    path = tmp_path / "tokens" / "manifest.json"
    manifest = read_json(path)
    (manifest if kind == "whole" else manifest["splits"]["train"][0]).update(change)
    write_json(path, manifest)
    with pytest.raises(SettingsError, match=f"{reason}.*; delete it and run") as refused:
        TokenStore.open(tmp_path, "train")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_column_of_languages_other_than_the_manifest_says_is_refused(
    tmp_path: Path, is_stored: bool
) -> None:
    parts = [random_documents(np.random.default_rng(0), 2)]
    for data_dir, languages in ((tmp_path / "a", ["xy"]), (tmp_path / "b", None)):
        open_store(data_dir, parts, languages=languages)
    own, other = (tmp_path / n / "tokens" / "train" for n in ("ab" if is_stored else "ba"))
    (own / "part-00000.arrow").write_bytes((other / "part-00000.arrow").read_bytes())
    says = "has" if is_stored else "has no"
    with pytest.raises(SettingsError, match=f"the manifest {says} languages, other than the colu"):
        TokenStore.open(own.parents[1], "train").part(0)


TEXTS = ["a text", "another"]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"id": ["1", "2"], "title": ["", None], "text": TEXTS}, "column title has 1 nulls"),
        ({"id": ["1", "2"], "title": ["", ""], "text": [1, 2]}, "its columns are not"),
        ({"id": ["1", "2"], "text": TEXTS}, "its columns are not"),
        ({"id": ["1"], "title": [""], "text": TEXTS[:1]}, "it has 1 rows, the manifest says 2"),
    ],
)
def test_documents_that_cannot_be_are_refused_with_the_cure(
    tmp_path: Path, columns: dict[str, list[Any]], reason: str
) -> None:
    write_source(tmp_path, "books", [[Document(str(n), "", text) for n, text in enumerate(TEXTS)]])
    [part] = list_parts(tmp_path)
    pq.write_table(pa.table(columns), part.path)
    with pytest.raises(SettingsError, match=f"{reason}.*collect the source books again"):
        list(read_part(part.path, part.rows))


COUNTS = [np.arange(999), np.zeros(1000, np.float64), np.zeros((1000, 1)), np.full(1000, -1)]


@pytest.mark.parametrize("counts", COUNTS)
def test_token_counts_that_cannot_be_are_refused(tmp_path: Path, counts: Any) -> None:
    np.save(tmp_path / "token_counts.npy", counts)
    with pytest.raises(SettingsError, match=r"token_counts\.npy.* run data_prep\.build again"):
        read_token_counts(tmp_path, 1000)


def test_token_counts_that_claim_gigabytes_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "token_counts.npy").open("wb") as file:
        head = {"descr": "<i8", "fortran_order": False, "shape": (1 << 40,)}
        np.lib.format.write_array_header_1_0(file, head)
    with pytest.raises(SettingsError, match="does not hold 1,000 counts"):
        read_token_counts(tmp_path, 1000)


def test_a_vocabulary_of_ten_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    for name in ("vocab.txt", "tokenizer.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(10 << 30)
        with pytest.raises(SettingsError, match="has 10,737,418,240 bytes, and 67,108,864 are"):
            read_vocab(tmp_path / name)


def test_an_entry_of_a_megabyte_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n" + "x" * 10**6 + "\n")
    with pytest.raises(SettingsError, match="line 2, has 1,000,000 characters, and 1,000 are"):
        read_vocab(path)


def test_too_many_entries_are_refused_with_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocab_file, "MOST_ENTRIES", 5)
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nmore\n")
    with pytest.raises(SettingsError, match="has 6 entries, and 5 are the most"):
        read_vocab(path)


def test_a_vocabulary_that_is_a_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").symlink_to("/dev/zero")
    with pytest.raises(SettingsError, match="is not a regular file"):
        read_vocab(tmp_path / "vocab.txt")

"""Every reader of a store on harmed files: it reads them or refuses them in one line.

Manifests are made to vouch for the harmed files: the checksums protect from accidents, not here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from fuzzing import harmed_bytes, harmed_json, refusals
from made_corpora import random_documents, write_corpus
from made_documents import write_source
from made_manifests import token_rule, vocab_manifest
from made_shards import vouch, write_folder

from data_prep.core.files import checksum, write_json
from data_prep.core.job import load
from data_prep.core.objectives import Pairing
from data_prep.core.records import TextForm
from data_prep.dedup import find
from data_prep.duplicates.dropped import dropped_ids
from data_prep.duplicates.signatures import open_signatures, signatures_path, write_signatures
from data_prep.examples.build_shard import make_examples
from data_prep.examples.pairs import PairRule
from data_prep.quality.corpus import judge_corpus
from data_prep.quality.corpus_counts import count_corpus
from data_prep.stores.documents import Document, list_parts, read_part
from data_prep.stores.shard_checks import verify
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shard_records import read_token_counts
from data_prep.stores.tokens import TokenStore, check_part
from data_prep.tokenizer.hf_files import save_tokenizer
from data_prep.tokenizer.store import read_vocab_store
from data_prep.tokenizer.vocab_file import read_vocab

FAST = 60


class Reader(NamedTuple):
    """A file that is harmed, how, and what reads it."""

    path: Path
    harm: Callable[[np.random.Generator, bytes], bytes]
    read: Callable[[], object]


def shard(folder: Path) -> Reader:
    write_folder(folder, [8, 5])

    def read() -> object:
        vouch(folder)
        rows = Shards.open(folder, "train").rows(np.arange(13))
        return rows.read().targets

    return Reader(folder / "train" / "shard-00000.arrow", harmed_bytes, read)


def shards_manifest(folder: Path) -> Reader:
    write_folder(folder, [8, 5])

    def read() -> object:
        verify(folder)
        shards = Shards.open(folder, "train")
        return shards.read(np.arange(shards.num_examples))

    return Reader(folder / "manifest.json", harmed_json, read)


def token_counts(folder: Path) -> Reader:
    np.save(folder / "token_counts.npy", np.arange(1000))
    return Reader(
        folder / "token_counts.npy", harmed_bytes, lambda: read_token_counts(folder, 1000)
    )


def tokens(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    write_corpus(folder, [random_documents(rng, 6), random_documents(rng, 6)])
    return folder / "tokens"


def examples_of(folder: Path) -> object:
    """The first part is what a task of build reads whole; partners come from the second."""
    store = TokenStore.open(folder, "train")
    rule = PairRule(Pairing.nsp, seq_len=32, short_seq_prob=0.1, seed=0, copy=0)
    masks = token_rule(store.manifest.vocab_size)
    check_part(store.path_of(0), store.part(0), store.manifest.vocab_size)
    return make_examples(store, 0, rule, masks)


def own_token_part(folder: Path) -> Reader:
    path = tokens(folder) / "train" / "part-00000.arrow"
    return Reader(path, harmed_bytes, lambda: examples_of(folder))


def partners_token_part(folder: Path) -> Reader:
    path = tokens(folder) / "train" / "part-00001.arrow"
    return Reader(path, harmed_bytes, lambda: examples_of(folder))


def tokens_manifest(folder: Path) -> Reader:
    def read() -> object:
        store = TokenStore.open(folder, "train")
        return count_corpus(folder / "tokens", store.manifest, 1)

    return Reader(tokens(folder) / "manifest.json", harmed_json, read)


def corpus_counts(folder: Path) -> Reader:
    bounds = load([f"data_dir={folder}"]).audit
    path = tokens(folder) / "counts.json"
    return Reader(path, harmed_json, lambda: judge_corpus(folder, Pairing.nsp, bounds))


def documents(folder: Path) -> None:
    rows = [Document(str(n), f"title {n}", f"some text {n}\n" * 9) for n in range(20)]
    write_source(folder, "books", [rows[:12], rows[12:]])


def document_part(folder: Path) -> Reader:
    documents(folder)
    [first, _] = list_parts(folder)
    return Reader(first.path, harmed_bytes, lambda: list(read_part(first.path, first.rows)))


def documents_manifest(folder: Path) -> Reader:
    documents(folder)

    def read() -> object:
        return [list(read_part(part.path, part.rows)) for part in list_parts(folder)]

    return Reader(folder / "documents" / "books" / "manifest.json", harmed_json, read)


def signatures(folder: Path) -> Reader:
    documents(folder)
    [first, _] = list_parts(folder)
    write_signatures(first.path, first.checksum)

    def read() -> object:
        return open_signatures(first.path, first.checksum)

    return Reader(signatures_path(first.path), harmed_bytes, read)


def duplicates(folder: Path, name: str) -> Path:
    documents(folder)
    find(load([f"data_dir={folder}"]), list_parts(folder))
    return folder / "documents" / name


def duplicates_record(folder: Path) -> Reader:
    path, settings = duplicates(folder, "duplicates.json"), load([f"data_dir={folder}"])
    return Reader(path, harmed_json, lambda: find(settings, list_parts(folder)))


def duplicates_table(folder: Path) -> Reader:
    path = duplicates(folder, "duplicates.parquet")
    [first, _] = list_parts(folder)
    vouched = {first.key: {"documents": 1, "ids_checksum": "0"}}

    def read() -> object:
        with contextlib.suppress(RuntimeError):  # others than those vouched for
            return dropped_ids(folder, first, vouched)

    return Reader(path, harmed_bytes, read)


def vocab_text(folder: Path) -> Reader:
    tokens(folder)
    path = folder / "vocab" / "vocab.txt"
    return Reader(path, harmed_bytes, lambda: read_vocab(path))


def tokenizer_json(folder: Path) -> Reader:
    tokens(folder)
    save_tokenizer(folder / "vocab", read_vocab(folder / "vocab" / "vocab.txt"), TextForm(True))
    path = folder / "vocab" / "tokenizer.json"
    return Reader(path, harmed_json, lambda: read_vocab(path))


def vocab_store(folder: Path) -> Reader:
    tokens(folder)
    path = folder / "vocab" / "manifest.json"
    write_json(path, vocab_manifest(checksum=checksum(folder / "vocab" / "vocab.txt")))
    return Reader(path, harmed_json, lambda: read_vocab_store(folder))


READERS = [
    shard, shards_manifest, token_counts, own_token_part, partners_token_part, tokens_manifest,
    corpus_counts, document_part, documents_manifest, signatures, duplicates_record,
    duplicates_table, vocab_text, tokenizer_json, vocab_store,
]  # fmt: skip


@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
def test_a_few_harmed_files_are_read_or_refused(
    tmp_path: Path, make: Callable[[Path], Reader]
) -> None:
    refusals(*make(tmp_path), tries=FAST)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
def test_ten_thousand_harmed_files_are_read_or_refused(
    tmp_path: Path, make: Callable[[Path], Reader]
) -> None:
    refusals(*make(tmp_path), tries=10_000, seed=1)

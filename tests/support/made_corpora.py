"""Token stores and vocabularies made up for tests, in the real format."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from made_manifests import tokens_manifest

from data_prep.core.files import checksum, write_json
from data_prep.executors import tasks
from data_prep.quality.corpus import counts_path
from data_prep.quality.corpus_counts import count_corpus
from data_prep.stores.token_records import WrittenPart
from data_prep.stores.tokens import TokenStore, write_part

FIRST_TEXT_ID = 5
Document = Sequence[Sequence[int]]  # sentences of ids


def write_corpus(
    data_dir: Path, train: Sequence[Sequence[Document]], heldout: Sequence[Sequence[Document]] = (),
    vocab_size: int = 1000, sources: str | None = None,
    languages: tuple[Sequence[str], Sequence[str]] | None = None,
) -> None:  # fmt: skip
    """Write data_dir/vocab and data_dir/tokens; each split is given as parts of documents.

    `sources` has a letter for each part of the train split, its source; held-out parts are of the
    first one. None: all are of one. `languages` has for each part of each split a letter for each
    document, its language. None: they are not stored.
    """
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for number in range(FIRST_TEXT_ID, vocab_size):  # every third entry continues a word
        vocab.append(f"##p{number}" if number % 3 == 0 else f"w{number}")
    (data_dir / "vocab").mkdir(parents=True, exist_ok=True)
    (data_dir / "vocab" / "vocab.txt").write_text("\n".join(vocab) + "\n")
    splits = {
        split: _write_parts(data_dir / "tokens" / split, parts, of_parts, codes)
        for (split, parts, of_parts), codes in zip(
            (
                ("train", train, sources),
                ("heldout", heldout, sources and sources[0] * len(heldout)),
            ),
            languages or (None, None),
            strict=True,
        )
    }
    manifest = tokens_manifest(
        splits, vocab_checksum=checksum(data_dir / "vocab" / "vocab.txt"), vocab_size=vocab_size
    )
    write_json(counts_path(data_dir), count_corpus(data_dir / "tokens", manifest, 1))
    write_json(data_dir / "tokens" / "manifest.json", manifest)


def open_store(
    data_dir: Path, train: Sequence[Sequence[Document]], sources: str | None = None,
    languages: Sequence[str] | None = None,
) -> TokenStore:  # fmt: skip
    """The train split of a token store made of these parts, of any ids.

    `sources` has a letter for each part, its source; None: all are of one. `languages` has for each
    part a letter for each document, its language; None: they are not stored.
    """
    entries = _write_parts(data_dir / "tokens" / "train", train, sources, languages)
    manifest = tokens_manifest({"train": entries}, vocab_size=1 << 16)
    write_json(data_dir / "tokens" / "manifest.json", manifest)
    return TokenStore.open(data_dir, "train")


def distinct_documents(sentence_lengths: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """Documents of sentences of these lengths; no id occurs twice in the corpus: 5, 6, 7, ..."""
    documents, next_id = [], FIRST_TEXT_ID
    for lengths in sentence_lengths:
        document = []
        for length in lengths:
            document.append(list(range(next_id, next_id + length)))
            next_id += length
        documents.append(document)
    return documents


def random_documents(
    rng: np.random.Generator, count: int, sentences: float = 8.0, vocab_size: int = 1000
) -> list[list[list[int]]]:
    """Documents of 1 to about 4 * `sentences` sentences of about 12 ids, text ids only."""
    return [
        [
            rng.integers(FIRST_TEXT_ID, vocab_size, 1 + rng.poisson(11)).tolist()
            for _ in range(1 + int(rng.exponential(sentences)))
        ]
        for _ in range(count)
    ]


def _write_parts(
    folder: Path, parts: Sequence[Sequence[Document]], sources: str | None = None,
    languages: Sequence[str] | None = None,
) -> list[WrittenPart]:  # fmt: skip
    of_parts = sources or ["part"] * len(parts), languages or [None] * len(parts)
    return [
        _write_part(folder / f"{source}-{n:05d}.arrow", part, codes)
        for n, (part, source, codes) in enumerate(zip(parts, *of_parts, strict=True))
    ]


def _write_part(path: Path, documents: Sequence[Document], languages: str | None) -> WrittenPart:
    sentences = [sentence for document in documents for sentence in document]
    ids = np.array([token for sentence in sentences for token in sentence], np.uint16)
    return write_part(
        path, [f"made/{path.stem}-{number}" for number in range(len(documents))], ids,
        np.cumsum([0, *map(len, sentences)]), np.cumsum([0, *map(len, documents)]),
        languages=languages,
    )  # fmt: skip


def run_inline(plan: tasks.TaskPlan, todo: Iterable[int], num_workers: int) -> dict[int, str]:
    """In place of run_processes in tests of other things: a process takes 1 s per task."""
    for index in todo:
        entry = plan.entries[index]
        record = {
            "fingerprint": entry.fingerprint,
            "counts": plan.task(entry.item),
            "sizes": tasks.sizes(entry.outputs),
            "seconds": 1.0,
        }
        write_json(tasks.record_path(plan.log_dir, "finished", entry.name), record)
    return {}

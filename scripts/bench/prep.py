"""Megabytes of text per second of one core: each stage of data preparation, and other programs.

    python -m scripts.bench.prep [path=FOLDER] [language=en] [megabytes=1.5] [vocab_file=FILE]
        [vocab_size=5000] [seq_len=512] [heldout_fraction=0.3] [rounds=3]

`path` is a folder of .txt files of a language. The first by name are taken, up to `megabytes`.
Without it the text comes from CPython: pydoc's topics, then docstrings. `vocab_file` is a released
vocab.txt. Without it a vocabulary of `vocab_size` entries is trained, which is not timed.

The jobs run as they are, except that all tasks run in this process, so that its processor time is
theirs. `all stages` is collect, encode and build, from files to shards, with manifests and
checksums; the other lines are parts of it. The published algorithm and `datasets.map` get text
that is clean already. Every rate is over the bytes of the clean text. A task starts without known
words and keeps the ids of those it has met: WordPiece is faster on a task's 16 MB than on this.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from data_prep import build, collect, encode, vocab
from data_prep.core.job import load, require_source
from data_prep.core.settings import DataPrepSettings
from data_prep.examples.build_shard import make_examples
from data_prep.examples.masking import MaskingRule
from data_prep.examples.pairs import PairRule
from data_prep.executors import tasks as tasks_module
from data_prep.sources import sample
from data_prep.stores.documents import Document, list_parts, read_part
from data_prep.stores.token_records import SPLITS
from data_prep.stores.tokens import TokenStore
from data_prep.text.language import MULTI, iso_code, language_of
from data_prep.text.sentences import splitter
from data_prep.tokenizer.store import read_vocab_store
from data_prep.tokenizer.wordpiece import Encoder
from scripts.baselines.google_prep import PublishedTokenizer, prepare
from scripts.bench.parts.harness import Record, benchmark, in_turn, run, stopwatch, table


@benchmark("preparation")
def main(
    path: str = "",
    language: str = "en",
    megabytes: float = 1.5,
    vocab_file: str = "",
    vocab_size: int = 5_000,
    seq_len: int = 512,
    heldout_fraction: float = 0.3,  # so that a few documents are enough for both splits
    rounds: int = 3,
) -> Record:
    """The benchmark."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(collect, "run_tasks", _run_here),
        mock.patch.object(encode, "run_tasks", _run_here),
        mock.patch.object(build, "run_tasks", _run_here),
    ):
        texts = Path(folder) / "texts"
        _write_texts(texts, path, megabytes * 1e6)
        typed = [
            f"source.path={texts}", f"vocab_size={vocab_size}", f"seq_len={seq_len}",
            f"heldout_fraction={heldout_fraction}", f"language={language}",
        ]  # fmt: skip
        corpus = Corpus(Path(folder), typed + [f"vocab_file={vocab_file}"] * bool(vocab_file))
        seconds = in_turn({name: corpus.timed(name) for name in STAGES}, rounds)
    kilobytes = {
        name: [corpus.num_bytes / 1e3 / each for each in runs] for name, runs in seconds.items()
    }
    record = table("preparation", "kB of text/s/core", kilobytes, "published algorithm")
    rate = record["median"]
    for name in STAGES:
        key = name.lower().replace(" ", "_").replace(".", "_")
        record[f"{key}_mb_per_second_per_core"] = round(rate[name] / 1e3, 4)
    speedup = rate["all stages"] / rate["published algorithm"]
    record["speedup_over_published_algorithm"] = round(speedup, 2)
    return record | {"text_bytes": corpus.num_bytes}


class Corpus:
    """One text in the form that each stage reads, and the stages."""

    def __init__(self, folder: Path, typed: Sequence[str]) -> None:
        self.again = folder / "again"
        self.seconds = stopwatch(torch.device("cpu"))
        self.settings = load(
            [
                f"data_dir={folder / 'data'}",
                "+source=books",
                *typed,
                "audit.random_next_least=0",  # a small text may miss the bounds by chance
                "audit.random_next_most=1",
                "audit.fewest_documents=2",
            ]
        )
        collect.run(self.settings)
        vocab.run(self.settings)
        encode.run(self.settings)
        data_dir = Path(self.settings.data_dir)
        self.tokens, stored = read_vocab_store(data_dir)
        self.form = stored.form
        documents = [d for part in list_parts(data_dir) for d in read_part(part.path)]
        self.paragraphs = [document.text.split("\n") for document in documents]
        self.num_bytes = sum(len(document.text.encode()) for document in documents)
        self.sentences = [self._split(paragraphs) for paragraphs in self.paragraphs]
        self.stores = [TokenStore.open(data_dir, split) for split in SPLITS]
        self.pair_rule = PairRule(
            pairing=self.settings.pairs,
            seq_len=self.settings.seq_len,
            short_seq_prob=self.settings.short_seq_prob,
            seed=self.settings.seed,
            copy=0,
        )
        self.masking_rule = MaskingRule.from_manifest(
            build.run(self.settings), data_dir / "vocab" / "vocab.txt"
        )
        gc.freeze()  # or every stage would traverse these objects again

    def timed(self, name: str) -> Callable[[], float]:
        """One round of a stage: it is prepared first, and then timed."""

        return lambda: self.seconds(STAGES[name](self))

    def _split(self, paragraphs: list[str]) -> list[str]:
        profile = self.settings.language
        code = profile.code
        if code == MULTI:
            code = iso_code(language_of("\n".join(paragraphs)))
        split = splitter("nupunkt" if code == "en" else profile.splitter.value, code)
        return [sentence for paragraph in paragraphs for sentence in split(paragraph)]

    def _fresh(self) -> DataPrepSettings:
        """Settings of a corpus that has only its vocabulary so far."""
        shutil.rmtree(self.again, ignore_errors=True)
        shutil.copytree(Path(self.settings.data_dir) / "vocab", self.again / "vocab")
        return dataclasses.replace(self.settings, data_dir=str(self.again))

    def _collect(self) -> Callable[[], object]:
        settings = self._fresh()
        return lambda: collect.run(settings)

    def _sentences(self) -> Callable[[], object]:
        return lambda: [self._split(paragraphs) for paragraphs in self.paragraphs]

    def _wordpiece(self) -> Callable[[], object]:
        encoder = Encoder(self.tokens, self.form)
        return lambda: [encoder.encode(sentences) for sentences in self.sentences]

    def _pairs(self) -> Callable[[], object]:
        return lambda: [
            make_examples(store, part, self.pair_rule, self.masking_rule)
            for store in self.stores
            for part in range(store.num_parts)
        ]

    def _all(self) -> Callable[[], object]:
        settings = self._fresh()
        return lambda: [job.run(settings) for job in (collect, encode, build)]

    def _encode_batch(self) -> Callable[[], object]:
        from tokenizers import Tokenizer

        path = Path(self.settings.data_dir) / "vocab" / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        return lambda: [
            [text.ids for text in tokenizer.encode_batch(sentences, add_special_tokens=False)]
            for sentences in self.sentences
        ]

    def _datasets_map(self) -> Callable[[], object]:
        """Tokens of paragraphs, then blocks of seq_len, as in Hugging Face's run_mlm.py.

        It makes no pairs and no masks.
        """
        from datasets import Dataset, disable_progress_bars
        from transformers import BertTokenizerFast

        disable_progress_bars()
        tokenizer = BertTokenizerFast(
            vocab={token: number for number, token in enumerate(self.tokens)},
            do_lower_case=self.form.lowercase,
        )
        rows = Dataset.from_dict(
            {"text": [p for paragraphs in self.paragraphs for p in paragraphs]}
        )
        seq_len = self.settings.seq_len

        def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
            ids = tokenizer(batch["text"], return_special_tokens_mask=True, verbose=False)
            return dict(ids)

        def group(batch: dict[str, Any]) -> dict[str, Any]:
            joined = {name: [i for row in rows for i in row] for name, rows in batch.items()}
            end = len(joined["input_ids"]) // seq_len * seq_len
            return {
                name: [column[first : first + seq_len] for first in range(0, end, seq_len)]
                for name, column in joined.items()
            }

        # Named fingerprints: on a large corpus, hashing the tokenizer for the cache does not count
        options = {"batched": True, "keep_in_memory": True}
        return lambda: rows.map(
            tokenize, remove_columns=["text"], new_fingerprint="tokens", **options
        ).map(group, new_fingerprint="blocks", **options)

    def _published(self) -> Callable[[], object]:
        tokenizer = PublishedTokenizer(self.tokens, self.form.lowercase)
        return lambda: prepare(
            [self._split(paragraphs) for paragraphs in self.paragraphs],
            tokenizer,
            self.settings.seq_len,
            self.settings.seed,
        )


# Each prepares one round of a stage, and returns what is timed
STAGES: dict[str, Callable[[Corpus], Callable[[], object]]] = {
    "collect": Corpus._collect,
    "sentences": Corpus._sentences,
    "WordPiece": Corpus._wordpiece,
    "pairs and masks": Corpus._pairs,
    "all stages": Corpus._all,
    "tokenizers.encode_batch": Corpus._encode_batch,
    "datasets.map": Corpus._datasets_map,
    "published algorithm": Corpus._published,
}


def _run_here(
    job: str,
    log_dir: Path,
    tasks: Sequence[tasks_module.TaskEntry],
    task: tasks_module.Task,
    settings: DataPrepSettings,
) -> dict[str, int]:
    """Replace data_prep.executors.run.run_tasks: run all tasks one by one in this process."""
    total: Counter[str] = Counter()
    for entry in tasks:
        total.update(task(entry.item))
    return dict(total)


def _write_texts(folder: Path, path: str, most_bytes: float) -> None:
    """Write the text as .txt files, in order, as many as fit; at least one."""
    folder.mkdir()
    written = 0
    for name, text in _files(Path(path)) if path else _sample(folder.parent):
        if written and written + len(text) > most_bytes:
            return
        (folder / name.replace("/", "_")).write_bytes(text)
        written += len(text)


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*.txt")):
        yield path.relative_to(folder).as_posix(), path.read_bytes()


def _sample(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The manual's topics, then docstrings, read lazily."""
    settings = load([f"data_dir={folder}", "+source=sample"])
    source = require_source(settings)
    for task in sample.plan(source, settings.characters_per_part).tasks:
        for item in sample.read(source, task):
            if isinstance(item, Document):
                yield f"{item.id}.txt", item.text.replace("\n", "\n\n").encode()


if __name__ == "__main__":
    run(main)

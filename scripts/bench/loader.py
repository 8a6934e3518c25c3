"""Tokens per second of one core: our loader against Hugging Face's collator, on the same shard.

    python -m scripts.bench.loader [lengths=wikipedia] [examples=20000] [global_batch=256]
        [token_budget=16384] [numpy_batch=4096] [hf_batch=32] [seconds=2] [rounds=3]

All read the examples in random order from the same Arrow file.

ours                order, deal, read, mask and pack, in one thread
ours, N sources     the same from a mixture
ours, handed over   the same in the background, as in a run; the waiting thread counts too
NumPy alone         read, mask and pack: the same bits
datasets + collator `datasets` with the special-token masks and segment ids prepared beforehand, and
                    `DataCollatorForLanguageModeling`, padded to the longest of the batch

Only real tokens count. The benchmark also times a deal, and opening a corpus of 10,000 shards.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from data_prep.core.files import write_json
from data_prep.examples.masking import MaskingRule, dynamic_keys
from data_prep.examples.pairs import LOSSES
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shard_records import SplitEntry
from data_prep.stores.shards import read_shard
from pretrain.config.settings import MaskMode
from pretrain.data.balancing import deal, longest_prefix
from pretrain.data.mixture import MixedOrder, Source
from pretrain.data.shuffle import ExampleOrder
from pretrain.data.train_loader import TrainLoader
from scripts.baselines.numpy_loader import packed_columns
from scripts.baselines.synthetic_shards import (
    SPECIAL_IDS,
    VOCAB_SIZE,
    draw_lengths,
    open_synthetic_shards,
)
from scripts.bench.parts.harness import Record, benchmark, in_turn, run, stopwatch, table

OURS, THEIRS = "ours, dynamic masks", "datasets + collator"
Measure = Callable[[], float]


@benchmark("loader")
def main(
    lengths: str = "wikipedia",
    examples: int = 20_000,
    global_batch: int = 256,
    token_budget: int = 16_384,
    numpy_batch: int = 4_096,
    hf_batch: int = 32,
    seconds: float = 2.0,
    rounds: int = 3,
) -> Record:
    """The benchmark."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = open_synthetic_shards(Path(folder), lengths, examples, VOCAB_SIZE)

        def ours(masking: MaskMode, in_background: bool = False, num_sources: int = 0) -> Measure:
            def rate() -> float:
                mixture = _mixture(shards, num_sources) if num_sources else None
                with _loader(shards, masking, global_batch, token_budget, mixture) as loader:
                    stream = loader.batches(0) if in_background else loader.prepared(0)
                    next(stream)
                    return _rate(lambda: next(stream).num_tokens, seconds)

            return rate

        variants = {
            THEIRS: _hugging_face(shards, hf_batch, seconds),
            OURS: ours(MaskMode.dynamic),
            "ours, static masks": ours(MaskMode.static),
            "ours, dynamic masks, 3 sources": ours(MaskMode.dynamic, num_sources=3),
            "ours, dynamic masks, 22 sources": ours(MaskMode.dynamic, num_sources=22),
            "ours, dynamic masks, handed over": ours(MaskMode.dynamic, in_background=True),
            "NumPy alone, dynamic masks": _numpy(shards, numpy_batch, seconds),
        }
        measured = in_turn(variants, rounds)
        times = _deals(lengths) | {"seconds_to_open_10000_shards": _opening(shards)}
    for what, number in times.items():
        print(f"{what.replace('_', ' '):<60}{number:12.4g}")
    record = table("loader", "real tokens/s/core", measured, THEIRS)
    rate = record["median"]
    record["million_tokens_per_second_per_core"] = rate[OURS] / 1e6
    record["speedup_over_datasets"] = rate[OURS] / rate[THEIRS]
    return record | times


def _rate(next_tokens: Callable[[], int], seconds: float) -> float:
    """Tokens per processor second, over at least `seconds`."""
    tokens, started = 0, time.process_time()
    while (spent := time.process_time() - started) < seconds:
        tokens += next_tokens()
    return tokens / spent


def _loader(
    shards: Shards,
    masking: MaskMode,
    global_batch: int,
    token_budget: int,
    mixture: MixedOrder | None = None,
) -> TrainLoader:
    return TrainLoader(
        shards,
        global_batch=global_batch,
        rank=0,
        world_size=1,
        token_budget=token_budget,
        seed=1,
        masking=masking,
        rule=MaskingRule.from_manifest(shards.manifest, vocab_path=None),
        mixture=mixture,
    )


def _mixture(shards: Shards, count: int) -> MixedOrder:
    """The examples as so many sources of equal size, with weights 1, 2, 3, ..."""
    ends = [shards.num_examples * number // count for number in range(count + 1)]
    tokens = shards.manifest.splits[shards.split].tokens // count
    sources = [
        Source(f"source-{number:02}", [pair], tokens)
        for number, pair in enumerate(itertools.pairwise(ends))
    ]
    total = count * (count + 1) // 2
    return MixedOrder(sources, [Fraction(n + 1, total) for n in range(count)], seed=1)


def _numpy(shards: Shards, batch_size: int, seconds: float) -> Measure:
    rule = MaskingRule.from_manifest(shards.manifest, vocab_path=None)
    columns, _ = read_shard(next((shards.folder / shards.split).glob("*.arrow")))
    order, positions = ExampleOrder(len(columns), seed=1), itertools.count(0, batch_size)

    def next_tokens() -> int:
        epochs, ids = order.examples(next(positions), batch_size)
        keys = dynamic_keys(1, epochs, ids)
        return len(packed_columns(columns, ids, keys, rule)["input_ids"])

    return lambda: _rate(next_tokens, seconds)


def _deals(name: str) -> dict[str, float]:
    """Milliseconds of one deal, and of one search for a step of tokens; medians of five."""
    rng, found = np.random.default_rng(1), {}
    for size, num_ranks in ((256, 8), (4_096, 64), (65_536, 1_024)):
        lengths = draw_lengths(name, size, rng)
        took = _milliseconds(lambda n=lengths, r=num_ranks: deal(n, r, 16_384)[0])  # type: ignore[misc]
        found[f"ms_to_deal_{size}_sequences"] = took
    for num_bins in (8, 1_024):
        lengths = draw_lengths(name, 90 * num_bins, rng)
        took = _milliseconds(lambda n=lengths, b=num_bins: longest_prefix(n, b, 16_384))  # type: ignore[misc]
        found[f"ms_to_fill_{num_bins}_bins_of_16384_tokens"] = took
    return found


def _milliseconds(work: Callable[[], object]) -> float:
    """Milliseconds of processor time; the first call compiles."""
    seconds = stopwatch(torch.device("cpu"))
    return 1e3 * statistics.median([seconds(work) for _ in range(6)][1:])


def _opening(shards: Shards) -> float:
    """Seconds from a folder of 10,000 shards to a loader that is ready for its first batch.

    All are one file under many names, with its few rows: only their number matters.
    """
    whole = shards.manifest.splits["train"]
    first = whole.shards[0]
    with tempfile.TemporaryDirectory(dir=shards.folder) as temporary:
        folder = Path(temporary)
        (folder / "train").mkdir()
        source = shards.folder / "train" / first.name
        names = [f"shard-{number:05d}.arrow" for number in range(10_000)]
        entries = [msgspec.structs.replace(first, name=name) for name in names]
        for name in names:
            os.link(source, folder / "train" / name)
        train = SplitEntry.of(entries, shards.manifest.pairs, dict.fromkeys(LOSSES, 0))
        splits = {**shards.manifest.splits, "train": train}
        manifest = msgspec.structs.replace(shards.manifest, splits=splits)
        write_json(folder / "manifest.json", manifest)
        started = time.perf_counter()
        with _loader(Shards.open(folder, "train"), MaskMode.dynamic, 256, 16_384):
            return time.perf_counter() - started


def _hugging_face(shards: Shards, batch_size: int, seconds: float) -> Measure:
    from datasets import Dataset, disable_progress_bars
    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    disable_progress_bars()
    folder = shards.folder / shards.split
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"word{number}" for number in range(len(words), VOCAB_SIZE)]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    rows = Dataset.from_file(str(folder / shards.manifest.splits["train"].shards[0].name))
    rows = rows.map(_columns_of_the_collator, remove_columns=rows.column_names, keep_in_memory=True)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    rng = np.random.default_rng(1)

    def next_tokens() -> int:
        examples = rows.__getitems__(rng.integers(0, len(rows), batch_size).tolist())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the advice to tokenize and pad in one call
            batch = collate(examples)
        return int(batch["attention_mask"].sum())

    return lambda: _rate(next_tokens, seconds)


def _columns_of_the_collator(row: dict[str, Any]) -> dict[str, Any]:
    ids = np.asarray(row["input_ids"])
    special = (ids == SPECIAL_IDS["cls"]) | (ids == SPECIAL_IDS["sep"])
    return {
        "input_ids": ids,
        "token_type_ids": (np.arange(len(ids)) >= row["segment_a_length"]).astype(np.int64),
        "special_tokens_mask": special.astype(np.int64),
        "next_sentence_label": row["next_sentence_label"],
    }


if __name__ == "__main__":
    run(main)

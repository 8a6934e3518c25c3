"""Tokens a second of one core: our loader against Hugging Face's collator, on the same shard.

    python -m scripts.bench_loader [lengths=wikipedia] [examples=20000] [seconds=2] [rounds=3]

Both draw the examples in random order from the same Arrow file. Ours: order, deal, read, mask,
pack. Theirs: `datasets` with the special-token masks and segment ids prepared beforehand, and
`DataCollatorForLanguageModeling`, padded to the longest of the batch. Only real tokens count.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.masking import MaskingRule
from data_prep.shards import Shards
from pretrain.batches.loader import TrainLoader
from pretrain.settings import Masking
from scripts.benchmark import arguments, in_turn, report
from scripts.synthetic_shards import SPECIAL_IDS, open_synthetic_shards

VOCAB_SIZE = 30_522
DEFAULTS: dict[str, str | int | float] = {
    "lengths": "wikipedia",
    "examples": 20_000,
    "global_batch": 256,
    "token_budget": 16_384,
    "hf_batch": 32,
    "seconds": 2.0,
    "rounds": 3,
}


def main() -> None:
    given = arguments(sys.argv[1:], DEFAULTS)
    torch.set_num_threads(1)
    seconds = float(given["seconds"])
    with tempfile.TemporaryDirectory() as folder:
        name, count = str(given["lengths"]), int(given["examples"])
        shards = open_synthetic_shards(Path(folder), name, count, VOCAB_SIZE)
        batch, budget = int(given["global_batch"]), int(given["token_budget"])
        figures = in_turn(
            {
                "datasets + collator": _hugging_face(shards, int(given["hf_batch"]), seconds),
                "ours, dynamic masks": _ours(shards, Masking.dynamic, batch, budget, seconds),
                "ours, static masks": _ours(shards, Masking.static, batch, budget, seconds),
            },
            int(given["rounds"]),
        )
    report("loader", "real tokens/s/core", figures, "datasets + collator", {"settings": given})


def _rate(next_tokens: Callable[[], int], seconds: float) -> float:
    """Tokens per processor second, over that many of them at least."""
    tokens, started = 0, time.process_time()
    while (spent := time.process_time() - started) < seconds:
        tokens += next_tokens()
    return tokens / spent


def _ours(
    shards: Shards, masking: Masking, global_batch: int, token_budget: int, seconds: float
) -> Callable[[], float]:
    rule = MaskingRule.from_manifest(shards.manifest, vocab_path=None)

    def run() -> float:
        loader = TrainLoader(
            shards,
            global_batch=global_batch,
            rank=0,
            world_size=1,
            token_budget=token_budget,
            seed=1,
            masking=masking,
            rule=rule,
        )
        with loader:
            stream = loader.batches(0)
            next(stream)
            return _rate(lambda: next(stream).num_tokens, seconds)

    return run


def _hugging_face(shards: Shards, batch_size: int, seconds: float) -> Callable[[], float]:
    from datasets import Dataset, disable_progress_bars
    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    disable_progress_bars()
    folder = shards.folder / shards.split
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"word{number}" for number in range(len(words), VOCAB_SIZE)]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    rows = Dataset.from_file(str(folder / shards.manifest["splits"]["train"]["shards"][0]["name"]))
    rows = rows.map(_columns_of_the_collator, remove_columns=rows.column_names, keep_in_memory=True)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    rng = np.random.default_rng(1)

    def next_tokens() -> int:
        examples = rows.__getitems__(rng.integers(0, len(rows), batch_size).tolist())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the advice to tokenise and pad in one call
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
    main()

"""Shards of random tokens with published distributions of lengths, for benchmarks without a corpus.

wikipedia  19 points of the cumulative histogram of Wikipedia's sequences at 512 tokens (Krell et
           al., "Efficient sequence packing without cross-contamination", arXiv 2107.02027):
           mean 256, 23 % at 512
books      10 % short targets, 84 % full, the rest ends of documents
full       512 tokens; a number: that many tokens
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from data_prep.core.files import checksum, write_json
from data_prep.core.objectives import MaskingUnit, Pairing
from data_prep.core.records import TextForm
from data_prep.core.settings import MaskingSettings
from data_prep.examples.masking import MaskingRule, mask_examples, static_keys
from data_prep.examples.pairs import LOSSES
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shard_records import (
    BuildSettings,
    ShardEntry,
    ShardsIdentity,
    ShardsManifest,
    SplitEntry,
)
from data_prep.stores.shards import SCHEMA_VERSION, SPLITS, Examples, write_shard
from data_prep.tokenizer.hf_files import save_tokenizer
from pretrain.data.packing import PackedBatch, pack
from pretrain.data.train_loader import GlobalBatch

VOCAB_SIZE = 30_522
SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
MASKING = MaskingSettings(
    rate=0.15, max_predictions=80, mask_share=0.8, random_share=0.1, unit=MaskingUnit.token
)
# Share of the sequences up to each length; the rest has 512 tokens.
WIKIPEDIA = (
    [0, .01, .025, .05, .1, .15, .2, .25, .3, .35, .4, .45, .5, .55, .6, .65, .7, .75, .7656],
    [5, 22, 29, 36, 48, 59, 70, 84, 100, 120, 143, 171, 204, 243, 288, 342, 407, 484, 511],
)  # fmt: skip


def draw_lengths(name: str, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(count,) lengths in tokens, 5 to 512. Raises ValueError on an unknown name."""
    if name.isdigit() and 5 <= int(name) <= 512:
        return np.full(count, int(name))
    if name == "full":
        return np.full(count, 512)
    if name == "books":
        kind = rng.random(count)
        lengths = np.where(kind < 0.1, rng.integers(5, 513, count), 512)
        return np.where(kind > 0.94, rng.integers(64, 512, count), lengths)
    if name == "wikipedia":
        drawn = rng.random(count)
        lengths = np.interp(drawn, *WIKIPEDIA).round().astype(np.int64)
        return np.where(drawn < WIKIPEDIA[0][-1], lengths, 512)
    raise ValueError(f"lengths={name} is not known; there are wikipedia, books, full, 5 to 512")


def typical_lengths(name: str, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(count,) lengths at even quantiles, so that a handful represents the distribution."""
    drawn = np.sort(draw_lengths(name, 16 * count + 4096, rng))
    return rng.permutation(drawn[((np.arange(count) + 0.5) / count * len(drawn)).astype(int)])


def write_synthetic_shards(
    folder: Path,
    lengths_of_shards: dict[str, list[NDArray[np.int64]]],
    *,
    seq_len: int,
    vocab_size: int,
    seed: int,
    sources: Sequence[str] = (),
    vocab_checksum: str = "synthetic",
) -> None:
    """Write a folder of shards with a manifest; `lengths_of_shards`: split -> shard -> lengths.

    A split that is not named has no shards. Shard i is of sources[i], or else of one without name.
    Tokens are uniform over the vocabulary without its five special entries; lengths are 5 or more.
    """
    rng = np.random.default_rng(seed)
    identity = ShardsIdentity(
        schema_version=SCHEMA_VERSION,
        seq_len=seq_len,
        dtype="uint16" if vocab_size <= 2**16 else "uint32",
        vocab_size=vocab_size,
        vocab_checksum=vocab_checksum,
        lowercase=True,
        special_ids=SPECIAL_IDS,
        tokens_checksum="synthetic",
        pairs=Pairing.nsp,
        masking=MASKING,
        settings=BuildSettings(
            seed=seed,
            seq_len=seq_len,
            pairs=Pairing.nsp,
            copies=1,
            short_seq_prob=0.0,
            masking=MASKING,
        ),
    )
    rule = MaskingRule.from_manifest(identity, vocab_path=None)
    splits = {}
    for split in SPLITS:
        (folder / split).mkdir(parents=True, exist_ok=True)
        entries = []
        for number, lengths in enumerate(lengths_of_shards.get(split, [])):
            examples = _random_examples(lengths, identity.dtype, rule, number, rng)
            path = folder / split / f"shard-{number:05}.arrow"
            part = {"token_part": f"{sources[number]}-{number:05}"} if sources else {}
            write_shard(path, examples, {"split": split, **part})
            entries.append(ShardEntry.of(path, examples, identity.pairs))
        splits[split] = SplitEntry.of(entries, identity.pairs, dict.fromkeys(LOSSES, 0))
    manifest = ShardsManifest(**msgspec.structs.asdict(identity), splits=splits)
    write_json(folder / "manifest.json", manifest)


def write_synthetic_data(data_dir: Path, count: int) -> None:
    """Write what `pretrain.run data.dir=... data.seq_len=512` trains on: a vocabulary and shards.

    `count` training examples with Wikipedia's lengths, and 64 held-out ones.
    """
    words = [f"word{number}" for number in range(len(SPECIAL_IDS), VOCAB_SIZE)]
    specials = [f"[{name.upper()}]" for name in SPECIAL_IDS]
    save_tokenizer(data_dir / "vocab", [*specials, *words], TextForm(lowercase=True))
    rng, folder = np.random.default_rng(1), data_dir / "len512"
    lengths = {"train": count, "heldout": 64}
    write_synthetic_shards(
        folder,
        {split: [typical_lengths("wikipedia", size, rng)] for split, size in lengths.items()},
        seq_len=512,
        vocab_size=VOCAB_SIZE,
        seed=2,
        vocab_checksum=checksum(data_dir / "vocab" / "vocab.txt"),
    )
    np.save(folder / "token_counts.npy", np.ones(VOCAB_SIZE, np.int64))


def open_synthetic_shards(folder: Path, name: str, count: int, vocab_size: int) -> Shards:
    """Write one train shard of `count` examples with these lengths, and open it.

    Its seq_len is 512, or the length if all are equal.
    """
    lengths = typical_lengths(name, count, np.random.default_rng(1))
    seq_len = int(name) if name.isdigit() else 512
    write_synthetic_shards(
        folder, {"train": [lengths]}, seq_len=seq_len, vocab_size=vocab_size, seed=2
    )
    return Shards.open(folder, "train")


def synthetic_batch(
    lengths: NDArray[np.int64], world_size: int, micro_batches: int = 1
) -> GlobalBatch:
    """A global batch of one micro-batch of these lengths, the same on every rank, repeated."""
    with tempfile.TemporaryDirectory() as name:
        write_synthetic_shards(
            Path(name), {"train": [lengths]}, seq_len=512, vocab_size=VOCAB_SIZE, seed=2
        )
        micro_batch = pack(Shards.open(Path(name), "train").read(np.arange(len(lengths))), 512)
    return global_batch(micro_batch, world_size, micro_batches)


def global_batch(batch: PackedBatch, world_size: int = 1, micro_batches: int = 1) -> GlobalBatch:
    """A global batch in which every rank has `batch` as each of its micro-batches."""
    copies = world_size * micro_batches
    return GlobalBatch(
        position=0,
        micro_batches=[batch] * micro_batches,
        dropout_seeds=list(range(micro_batches)),
        num_sequences=batch.num_sequences * copies,
        num_masked=batch.num_masked * copies,
        num_tokens=batch.num_tokens * copies,
        squared_lengths=sum(length**2 for length in batch.lengths) * copies,
    )


def _random_examples(
    lengths: NDArray[np.int64], dtype: str, rule: MaskingRule, number: int, rng: np.random.Generator
) -> Examples:
    size = len(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    input_ids = rng.integers(len(SPECIAL_IDS), rule.vocab_size, offsets[-1]).astype(dtype)
    segment_a_lengths = rng.integers(3, lengths - 1)
    input_ids[offsets[:-1]] = SPECIAL_IDS["cls"]
    input_ids[offsets[:-1] + segment_a_lengths - 1] = SPECIAL_IDS["sep"]
    input_ids[offsets[1:] - 1] = SPECIAL_IDS["sep"]
    keys = static_keys(0, number, np.arange(size), np.zeros(size, np.int64))
    positions, masked_offsets, masked_input_ids = mask_examples(input_ids, offsets, keys, rule)
    labels = rng.integers(0, 2, size).astype(np.uint8)
    return Examples(
        input_ids=input_ids,
        offsets=offsets,
        segment_a_lengths=segment_a_lengths.astype(np.uint16),
        next_sentence_labels=labels,
        masked_positions=positions,
        masked_offsets=masked_offsets,
        masked_input_ids=masked_input_ids,
        document_a=np.arange(size, dtype=np.uint32),
        document_b=(np.arange(size) + labels).astype(np.uint32),
    )

"""Corpora of a few dozen examples, cut out of the sample corpus: several epochs in a few steps."""

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from made_manifests import split_entry

from data_prep.core.files import write_json
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shard_records import ShardEntry
from data_prep.stores.shards import write_shard
from pretrain.data.packing import PackedBatch

SEQ_LEN = 128


def cut(
    sample_dir: Path,
    folder: Path,
    train: Sequence[int],
    held_out: Sequence[int],
    sources: Sequence[str] = (),
) -> Path:
    """Write a data folder whose shards hold so many of the sample's first examples; `folder`.

    Shard i is of sources[i], or else of a source without a name.
    """
    shutil.copytree(sample_dir / "vocab", folder / "vocab")
    target = folder / f"len{SEQ_LEN}"
    splits = {}
    for split, sizes in (("train", train), ("heldout", held_out)):
        whole = Shards.open(sample_dir / target.name, split)
        entries = []
        for number, first in enumerate(itertools.accumulate(sizes[:-1], initial=0)):
            examples = whole.read(np.arange(first, first + sizes[number]))
            path = target / split / f"shard-{number:05d}.arrow"
            part = {"token_part": f"{sources[number]}-{number:05d}"} if sources else {}
            write_shard(path, examples, {"split": split, **part})
            entries.append(ShardEntry.of(path, examples, whole.manifest.pairs))
        splits[split] = split_entry(entries)
    shutil.copy(sample_dir / target.name / "token_counts.npy", target)
    write_json(target / "manifest.json", msgspec.structs.replace(whole.manifest, splits=splits))
    return folder


def numbers_by_content(shards: Shards) -> dict[bytes, int]:
    """The unmasked tokens of each example -> its number."""
    everything = shards.read(np.arange(shards.num_examples))
    parts = np.split(everything.input_ids.astype(np.int64), everything.offsets[1:-1])
    numbers = {part.tobytes(): number for number, part in enumerate(parts)}
    assert len(numbers) == shards.num_examples
    return numbers


def contents(batch: PackedBatch) -> list[bytes]:
    """The unmasked tokens of each sequence of a micro-batch."""
    unmasked = batch.input_ids.long()
    unmasked[batch.masked_positions] = batch.labels
    return [row.numpy().tobytes() for row in unmasked.split(batch.lengths)]

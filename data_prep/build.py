"""Build the shards: python -m data_prep.build data_dir=FOLDER seq_len=512.

Turns the token store into shards of masked examples, data_dir/len<seq_len>/. One task makes one
shard from one part of the token store in one pass (`copies`). Held-out documents are paired among
themselves. Rows are in document order: training permutes them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.core.config import as_dict
from data_prep.core.files import checksum, read_json, whole_or_absent, write_json
from data_prep.core.job import start
from data_prep.core.objectives import Pairing
from data_prep.core.settings import DataPrepSettings
from data_prep.examples.pairs import LOSSES, label_fault
from data_prep.executors.run import run_tasks
from data_prep.executors.tasks import TaskEntry, fingerprint
from data_prep.quality.corpus import judge_corpus
from data_prep.stores import shards
from data_prep.stores.tokens import read_manifest

# The settings that determine the bytes; the others (workers, limits of the audit, ...) do not.
DECISIVE = ("seed", "seq_len", "pairs", "copies", "short_seq_prob", "masking")


def main(argv: Sequence[str] | None = None) -> int:
    """Build the shards of one length and print a table."""
    return start(run, argv, summary=lambda _, manifest: summary(manifest), has_shares=True)


def run(settings: DataPrepSettings) -> dict[str, Any]:
    """Build the shards of `settings.seq_len`, unless they exist; return their manifest.

    Raises ValueError if the token store is missing or a split of it is too small; RuntimeError if
    the store is unfit for training (then nothing is written), a task failed or the pairs are unfit
    (then there is no manifest).
    """
    data_dir = Path(settings.data_dir)
    folder = data_dir / f"len{settings.seq_len}"
    path = folder / "manifest.json"
    manifest = _describe(settings, data_dir)
    tasks = list_tasks(read_manifest(data_dir), settings.pairs, settings.copies)
    if not path.is_file() or not manifest.items() <= read_json(path).items():
        _refuse_unfit(data_dir, settings)
    from data_prep.examples.build_shard import build_shard  # late: it loads the kernels

    # One fingerprint for all: the random partners of every shard come from the whole store
    common = fingerprint(manifest)
    entries = [
        TaskEntry(f"{split}-{shard.stem}", common, (shard,))
        for index, (split, _, _) in enumerate(tasks)
        for shard in [folder / split / shards.shard_name(tasks, index)]
    ]
    task = partial(build_shard, folder, tasks, manifest)
    counts = run_tasks(f"build {settings.seq_len}", folder / "logs", entries, task, settings)
    if path.is_file():  # there was nothing to do
        return shards.read_manifest(folder)
    (folder / "README.md").unlink(missing_ok=True)  # the audit's card of other shards
    splits, token_counts = _collect(folder, tasks, counts, manifest)
    _check_pairs(folder, splits, settings)
    with whole_or_absent(folder / "token_counts.npy") as temporary, temporary.open("wb") as file:
        np.save(file, token_counts)
    finished = {**manifest, "splits": splits}
    write_json(path, finished)
    return finished


def _check_pairs(folder: Path, splits: dict[str, Any], settings: DataPrepSettings) -> None:
    """Raises RuntimeError for a split without examples or with an unfit share of labels."""
    bounds = settings.audit.random_next_least, settings.audit.random_next_most
    for split, metrics in splits.items():
        ones = metrics.get(settings.pairs.label_1, 0)
        if fault := label_fault(settings.pairs, ones, metrics["rows"], *bounds):
            raise RuntimeError(f"{folder / split}: {fault}")
        if not metrics["rows"]:
            raise RuntimeError(
                f"{folder / split}: no examples: each of its {metrics['unpaired_documents']:,} "
                "documents is one sentence, which has no order (is every line its own document?); "
                "mend the documents, or set pairs=nsp or pairs=none"
            )


def list_tasks(
    token_manifest: dict[str, Any], pairing: Pairing, copies: int
) -> list[tuple[str, int, int]]:
    """(split, pass, part) of every task, in the order of the shards.

    Raises ValueError if random partners are needed and a split has too few documents for them.
    """
    documents = {
        split: sum(part["documents"] for part in token_manifest["splits"][split])
        for split in shards.SPLITS
    }
    if pairing is Pairing.nsp and min(documents.values()) < 2:
        raise ValueError(
            f"the token store has {documents['train']} train and {documents['heldout']} held-out "
            "documents; each split needs 2, since a random next sentence comes from another "
            "document of the same split: add documents, or change heldout_fraction, and run "
            "data_prep.encode again"
        )
    return [
        (split, copy, part)
        for split in shards.SPLITS
        for copy in range(copies)
        for part in range(len(token_manifest["splits"][split]))
    ]


def summary(manifest: dict[str, Any]) -> str:
    """A short table of the shards."""
    label = Pairing[manifest["pairs"]].label_1
    title = f"{label.replace('_', ' '):>13}" if label else ""
    lines = [f"{'':9}{'shards':>7}{'examples':>13}{'tokens':>15}{'mean':>7}{'masked':>8}{title}"]
    for name, split in manifest["splits"].items():
        rows, num_tokens = max(split["rows"], 1), max(split["tokens"], 1)
        lines.append(
            f"{name:9}{len(split['shards']):7,}{split['rows']:13,}{split['tokens']:15,}"
            f"{split['tokens'] / rows:7.1f}{split['masked_tokens'] / num_tokens:8.2%}"
            + (f"{split[label] / rows:13.2%}" if label else "")
        )
    lines += [
        f"{name}: {split['truncated_tokens']:,} tokens of the documents are in no example, "
        f"{split['long_sentences']:,} sentences longer than a window were cut into pieces"
        + (
            f", {n:,} documents of one sentence have no pair"
            if (n := split["unpaired_documents"])
            else ""
        )
        for name, split in manifest["splits"].items()
    ]
    return "\n".join(lines) + "\n"


def _refuse_unfit(data_dir: Path, settings: DataPrepSettings) -> None:
    """Raises RuntimeError with every reason for which the audit would refuse the token store."""
    _, faults = judge_corpus(data_dir, settings.pairs, settings.audit)
    if faults:
        reasons = "".join(f"\n- {fault}" for fault in faults)
        raise RuntimeError(
            f"{data_dir / 'tokens'} is unfit for training; nothing is built:{reasons}"
        )


def _describe(settings: DataPrepSettings, data_dir: Path) -> dict[str, Any]:
    """The manifest without its splits: everything that determines the bytes of the shards."""
    token_manifest = read_manifest(data_dir)
    vocab_path = data_dir / "vocab" / "vocab.txt"
    if not vocab_path.is_file() or checksum(vocab_path) != token_manifest["vocab_checksum"]:
        raise ValueError(
            f"{vocab_path} is missing or not the vocabulary that the token store was encoded with; "
            "run data_prep.encode again"
        )
    plain = as_dict(settings)
    chosen = {name: plain[name] for name in DECISIVE}
    return {
        "schema_version": shards.SCHEMA_VERSION,
        "seq_len": settings.seq_len,
        "dtype": token_manifest["dtype"],
        "vocab_size": token_manifest["vocab_size"],
        "vocab_checksum": token_manifest["vocab_checksum"],
        "lowercase": token_manifest["lowercase"],
        "special_ids": token_manifest["special_ids"],
        "tokens_checksum": checksum(data_dir / "tokens" / "manifest.json"),
        "pairs": chosen["pairs"],
        "masking": chosen["masking"],
        "settings": chosen,
    }


def _collect(
    folder: Path,
    tasks: Sequence[tuple[str, int, int]],
    counts: dict[str, int],
    manifest: dict[str, Any],
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """The manifest's splits, read from the shards themselves, and (V,) target counts of train."""
    vocab_size, label = int(manifest["vocab_size"]), Pairing[manifest["pairs"]].label_1
    labels = (label,) if label else ()
    splits: dict[str, Any] = {split: {"shards": []} for split in shards.SPLITS}
    token_counts = np.zeros(vocab_size, np.int64)
    for index, (split, _, _) in enumerate(tasks):
        name = shards.shard_name(tasks, index)
        path = folder / split / name
        examples, _ = shards.read_shard(path)
        splits[split]["shards"].append(
            {
                "name": name,
                "rows": len(examples),
                "tokens": int(examples.offsets[-1] - examples.offsets[0]),
                "masked_tokens": int(examples.masked_offsets[-1] - examples.masked_offsets[0]),
                **dict.fromkeys(labels, int(examples.next_sentence_labels.sum())),
                "bytes": path.stat().st_size,
                "checksum": checksum(path),
            }
        )
        if split == "train":
            token_counts += np.bincount(examples.targets, minlength=vocab_size)
    for split, metrics in splits.items():
        for name in ("rows", "tokens", "masked_tokens", *labels):
            metrics[name] = sum(shard[name] for shard in metrics["shards"])
        for name in LOSSES:
            metrics[name] = counts.get(f"{split}/{name}", 0)
    return splits, token_counts


if __name__ == "__main__":
    sys.exit(main())

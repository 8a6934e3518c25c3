"""Build the shards: python -m data_prep.build data_dir=FOLDER seq_len=512.

Turns the token store into shards of masked examples, data_dir/len<seq_len>/. One task makes one
shard from one part of the token store in one pass (`copies`). Held-out documents are paired among
themselves. Rows are in document order: training permutes them.

Settings are typed as name=value or group.name=value:

{data_prep.yaml}
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, read_json, whole_or_absent, write_json
from data_prep.core.job import load, segmenters, start
from data_prep.core.objectives import MaskingUnit, Pairing, RandomNext
from data_prep.core.records import read_packed
from data_prep.core.settings import DataPrepSettings
from data_prep.examples.pairs import LOSSES, label_fault
from data_prep.executors.run import run_tasks
from data_prep.executors.tasks import TaskEntry, fingerprint
from data_prep.quality.corpus import judge_corpus
from data_prep.stores import shard_records, shards
from data_prep.stores.token_records import TokensManifest, read_tokens_manifest
from data_prep.text.language import MULTI


def main(argv: Sequence[str] | None = None) -> int:
    """Build the shards of one length and print a table."""
    return start(run, argv, summary=lambda _, manifest: summary(manifest), has_shares=True)


def run(settings: DataPrepSettings) -> shard_records.ShardsManifest:
    """Build the shards of `settings.seq_len`, unless they exist; return their manifest.

    Raises SettingsError if other shards are there (see settings.replace); ValueError if the token
    store is missing or a split of it is too small; RuntimeError if
    the store is unfit for training (then nothing is written), a task failed or the pairs are unfit
    (then there is no manifest).
    """
    data_dir = Path(settings.data_dir)
    folder = data_dir / f"len{settings.seq_len}"
    path = folder / "manifest.json"
    identity = _identity(settings, data_dir)
    tasks = list_tasks(read_tokens_manifest(data_dir), settings.pairs, settings.copies)
    plain = msgspec.to_builtins(identity)
    there = read_json(path) if path.is_file() else None
    if there is None or not plain.items() <= there.items():
        if there is not None and not settings.replace:
            _refuse_to_replace(folder, there, plain)
        _refuse_unfit(data_dir, settings)
        path.unlink(missing_ok=True)  # also where every shard is finished, as of an older schema
    from data_prep.examples.build_shard import build_shard  # late: it loads the kernels

    # One fingerprint for all: the random partners of every shard come from the whole store
    common = fingerprint(identity)
    entries = [
        TaskEntry(f"{item.split}-{shard.stem}", common, (shard,), item)
        for item in tasks
        for shard in [folder / item.split / item.name]
    ]
    task = partial(build_shard, folder, identity)
    counts = run_tasks(f"build {settings.seq_len}", folder / "logs", entries, task, settings)
    if path.is_file():  # there was nothing to do
        return shard_records.read_shards_manifest(folder)
    (folder / "README.md").unlink(missing_ok=True)  # the audit's card of other shards
    splits, token_counts = _collect(folder, tasks, counts, identity)
    _check_pairs(folder, splits, settings)
    with whole_or_absent(folder / "token_counts.npy") as temporary, temporary.open("wb") as file:
        np.save(file, token_counts)
    manifest = shard_records.ShardsManifest(**msgspec.structs.asdict(identity), splits=splits)
    write_json(path, manifest)
    return manifest


def _check_pairs(
    folder: Path, splits: dict[str, shard_records.SplitEntry], settings: DataPrepSettings
) -> None:
    """Raises RuntimeError for a split without examples or with an unfit share of labels."""
    bounds = settings.audit.random_next_least, settings.audit.random_next_most
    for name, split in splits.items():
        if fault := label_fault(settings.pairs, split.label_1, split.rows, *bounds):
            raise RuntimeError(f"{folder / name}: {fault}")
        if not split.rows:
            raise RuntimeError(
                f"{folder / name}: no examples: each of its {split.unpaired_documents:,} "
                "documents is one sentence, which has no order (is every line its own document?); "
                "mend the documents, or set pairs=nsp or pairs=none"
            )


def list_tasks(
    token_manifest: TokensManifest, pairing: Pairing, copies: int
) -> list[shard_records.ShardTask]:
    """Every task, in the order of the shards.

    Raises ValueError if random partners are needed and a split has too few documents for them.
    """
    documents = {
        split: sum(part.documents for part in token_manifest.splits[split])
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
        shard_records.ShardTask(split, copy, part, f"shard-{copy * size + part:05d}.arrow")
        for split in shards.SPLITS
        for size in [len(token_manifest.splits[split])]
        for copy in range(copies)
        for part in range(size)
    ]


def summary(manifest: shard_records.ShardsManifest) -> str:
    """A short table of the shards."""
    label = manifest.pairs.label_1
    by_language = manifest.settings.random_next is RandomNext.language
    kind = "source and language" if by_language else "source"
    title = f"{label.replace('_', ' '):>13}" if label else ""
    lines = [f"{'':9}{'shards':>7}{'examples':>13}{'tokens':>15}{'mean':>7}{'masked':>8}{title}"]
    for name, split in manifest.splits.items():
        rows, num_tokens = max(split.rows, 1), max(split.tokens, 1)
        lines.append(
            f"{name:9}{len(split.shards):7,}{split.rows:13,}{split.tokens:15,}"
            f"{split.tokens / rows:7.1f}{split.masked_tokens / num_tokens:8.2%}"
            + (f"{split.label_1 / rows:13.2%}" if label else "")
        )
    lines += [
        f"{name}: {split.truncated_tokens:,} tokens of the documents are in no example, "
        f"{split.long_sentences:,} sentences longer than a window were cut into pieces"
        + "".join(
            f", {count:,} {what}"
            for count, what in (
                (split.unpaired_documents, "documents of one sentence have no pair"),
                (split.lone_documents, f"documents are alone of their {kind}: partners of others"),
            )
            if count
        )
        for name, split in manifest.splits.items()
    ]
    return "\n".join(lines) + "\n"


def _refuse_to_replace(folder: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises SettingsError: whole shards of other content are never replaced unasked."""
    omitted = {"random_next": RandomNext.corpus.value}
    before = {**omitted, **there, **there.get("settings", {})}
    wanted = {**omitted, **now, **now["settings"]}
    del wanted["settings"]
    changes = {name: f"{name} {before.get(name)}, now {wanted[name]}" for name in wanted}
    changes["tokens_checksum"] = "another token store"
    differing = [changes[name] for name in wanted if before.get(name) != wanted[name]]
    raise SettingsError(
        f"{folder} holds whole shards of other content ({'; '.join(differing)}), and a run that "
        "trains on them could not continue; to keep them build in another data_dir, to replace "
        "them add replace=true"
    )


def _refuse_unfit(data_dir: Path, settings: DataPrepSettings) -> None:
    """Raises RuntimeError with every reason for which the audit would refuse the token store.

    Prints the audit's warnings.
    """
    _, faults, warnings = judge_corpus(data_dir, settings.pairs, settings.audit)
    if faults:
        reasons = "".join(f"\n- {fault}" for fault in faults)
        raise RuntimeError(
            f"{data_dir / 'tokens'} is unfit for training; nothing is built:{reasons}"
        )
    for warning in warnings:
        sys.stderr.write(f"warning: {warning}\n")


def _refuse_without_words(
    data_dir: Path, settings: DataPrepSettings, store: TokensManifest
) -> None:
    """Raises SettingsError for whole words of a language whose words the token store lacks."""
    sentences = store.settings.sentences
    if settings.masking.unit is not MaskingUnit.whole_word or store.settings.words or not sentences:
        return
    code, language = sentences.language, settings.language
    if code != language.code:  # it need not be typed to build
        language = load([f"data_dir={data_dir}", f"language={code}"]).language
    if segmenters(language):
        raise SettingsError(
            f'masking.unit=whole_word: "##" shows no words in the text of {data_dir} '
            f"(language={code}), and its token store was made without them; make it again with "
            f"python -m data_prep.encode data_dir={data_dir} language={code} "
            "masking.unit=whole_word (after pip install 'bert-pretraining[words]'), or set "
            f'language={code} language.words=none for words by "##" alone'
        )


def _identity(settings: DataPrepSettings, data_dir: Path) -> shard_records.ShardsIdentity:
    """Everything that determines the bytes of the shards."""
    store = read_tokens_manifest(data_dir)
    vocab_path = data_dir / "vocab" / "vocab.txt"
    if not vocab_path.is_file() or checksum(vocab_path) != store.vocab_checksum:
        raise ValueError(
            f"{vocab_path} is missing or not the vocabulary that the token store was encoded with; "
            "run data_prep.encode again"
        )
    _refuse_without_words(data_dir, settings, store)
    return shard_records.ShardsIdentity(
        schema_version=shards.SCHEMA_VERSION,
        seq_len=settings.seq_len,
        dtype=store.dtype,
        vocab_size=store.vocab_size,
        vocab_checksum=store.vocab_checksum,
        **msgspec.structs.asdict(store.settings.form),
        special_ids=store.special_ids,
        tokens_checksum=checksum(data_dir / "tokens" / "manifest.json"),
        words=store.settings.words if settings.masking.unit is MaskingUnit.whole_word else None,
        pairs=settings.pairs,
        masking=settings.masking,
        settings=shard_records.BuildSettings(
            **{
                **{
                    name: getattr(settings, name)
                    for name in shard_records.BuildSettings.__struct_fields__
                },
                "random_next": _random_next(data_dir, settings, store),
            }
        ),
    )


def _random_next(data_dir: Path, settings: DataPrepSettings, store: TokensManifest) -> RandomNext:
    """What random_next comes to: of one language or source, or without random pairs, all is one.

    Raises SettingsError for random_next=language and a store of many languages that has none.
    """
    if settings.pairs is not Pairing.nsp:
        return RandomNext.corpus
    parts = [part for parts in store.splits.values() for part in parts]
    if settings.random_next is RandomNext.language:
        sentences = store.settings.sentences
        if sentences and sentences.language == MULTI and not store.settings.languages:
            raise SettingsError(
                f"random_next=language: the token store of {data_dir} has no languages of its "
                "documents, as it was made before there were any; make it again with python -m "
                f"data_prep.encode data_dir={data_dir} language={MULTI} heldout_fraction="
                f"{store.settings.heldout_fraction}, or set random_next=source"
            )
        if len(store.languages) > 1:
            return RandomNext.language
    if settings.random_next is RandomNext.corpus or len({part.source for part in parts}) == 1:
        return RandomNext.corpus
    return RandomNext.source


def _collect(
    folder: Path,
    tasks: Sequence[shard_records.ShardTask],
    counts: dict[str, int],
    identity: shard_records.ShardsIdentity,
) -> tuple[dict[str, shard_records.SplitEntry], NDArray[np.int64]]:
    """The splits of the manifest and (V,) target counts of train, from the tasks' records.

    A shard without one, as of an earlier version, is read.
    """
    entries: dict[str, list[shard_records.ShardEntry]] = {split: [] for split in shards.SPLITS}
    token_counts = np.zeros(identity.vocab_size, np.int64)
    for split, _, _, name in tasks:
        path, record_path = folder / split / name, shard_records.counts_path(folder, split, name)
        record = read_packed(record_path, shard_records.ShardCounts)
        if record is None or record.identity != identity:
            record = shard_records.ShardCounts.of(path, shards.read_shard(path)[0], identity)
        entries[split].append(record.entry)
        if split == "train":
            token_counts += record.target_counts()
    splits = {}
    for split, of_split in entries.items():
        losses = {name: counts.get(f"{split}/{name}", 0) for name in LOSSES}
        splits[split] = shard_records.SplitEntry.of(of_split, identity.pairs, losses)
    return splits, token_counts


if __name__ == "__main__":
    sys.exit(status_of(main))

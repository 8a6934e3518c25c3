"""Audit the shards: python -m data_prep.audit data_dir=FOLDER seq_len=512.

Reads the shards of data_dir/len<seq_len> back and judges whether they are fit for training. Every
metric of the shards is computed from their bytes, none is taken from their manifest; those of the
token store are what encode has counted. data_dir/audit/<seq_len>/ gets audit.json, plots and
index.html; the folder of the shards gets a data set card, README.md. The exit status is 1 if the
shards are unfit, and every reason is named.

Settings are typed as name=value or group.name=value:

{data_prep.yaml}
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from data_prep.core.command import status_of
from data_prep.core.files import checksum, remove_folder, write_json
from data_prep.core.job import start
from data_prep.core.objectives import Pairing
from data_prep.core.printable import printable
from data_prep.core.records import read_packed
from data_prep.core.settings import DataPrepSettings
from data_prep.examples.masking import MaskingRule
from data_prep.examples.pairs import LOSSES, label_fault
from data_prep.executors.run import run_tasks
from data_prep.executors.tasks import TaskEntry, fingerprint
from data_prep.quality.corpus import judge_corpus
from data_prep.quality.corpus_counts import choose_one_in
from data_prep.quality.counts import Counts, shares
from data_prep.quality.report.dataset_card import write_card
from data_prep.quality.report.page import write_page
from data_prep.quality.report.samples import shown_examples
from data_prep.quality.report.tables import (
    CORPUS,
    LANGUAGES,
    REPEATED,
    REPEATED_EXAMPLES,
    SHARDS,
    by_tokens,
    table_rows,
)
from data_prep.quality.shard_counts import (
    CountedGroup,
    CountedShard,
    Group,
    count_group,
    list_groups,
    record_path,
)
from data_prep.quality.shortcut import audit_shortcut
from data_prep.stores import shard_reader, shard_records, shards
from data_prep.stores.tokens import TokenStore
from data_prep.tokenizer.vocab_file import read_vocab

SHOWN_LANGUAGES = SHOWN_SOURCES = 5  # on the terminal, the largest
MOST_LISTED = 10_000  # shards of a split whose own metrics audit.json has: 7 MB
SHOWN_WORDS = 100  # of an example on the terminal; audit.json has all

Counted = tuple[str, shard_records.ShardEntry, CountedShard]  # of which split


def main(argv: Sequence[str] | None = None) -> int:
    """Audit the shards of one length and print a table and examples."""
    return start(
        run, argv, summary=lambda _, report: summary(report), faults=_unfit, has_shares=True
    )


def run(settings: DataPrepSettings) -> dict[str, Any]:
    """Audit the shards of `settings.seq_len`; write and return the report.

    `report["faults"]` lists why they are unfit for training; it is empty if they are fit, perhaps
    with `report["warnings"]`. Raises
    ValueError if there are no finished shards, no token store or no vocabulary.
    """
    data_dir = Path(settings.data_dir)
    folder = data_dir / f"len{settings.seq_len}"
    manifest = shard_records.read_shards_manifest(folder)
    plain = msgspec.to_builtins(manifest)
    vocab_path = data_dir / "vocab" / "vocab.txt"
    rule = MaskingRule.from_manifest(manifest, vocab_path)
    pairing = manifest.pairs
    corpus, corpus_faults, warnings = judge_corpus(data_dir, pairing, settings.audit)
    out = data_dir / "audit" / str(settings.seq_len)
    counted = _count(data_dir, manifest, settings)
    own = [item for group, found in counted if group.folder == folder for item in found]
    damaged = [shard.damage for _, _, shard in own if shard.damage]
    faults = [*_provenance_faults(data_dir, manifest, settings.seq_len), *damaged, *corpus_faults]
    report: dict[str, Any] = {
        "seq_len": settings.seq_len,
        "shards_checksum": checksum(folder / "manifest.json"),
        "made": {
            name: plain[name]
            for name in ("settings", "vocab_size", "lowercase", "words")
            if name in plain
        },
        "other_length_counts": _other_length_counts(folder, counted),
        "corpus": corpus,
        "warnings": warnings,
        "splits": {},
        "examples": [],
    }
    if not damaged:  # the metrics of a damaged file mean nothing
        for split in shards.SPLITS:
            of_split = [(entry, shard) for name, entry, shard in own if name == split]
            metrics, split_faults = _audit_split(split, of_split, manifest, rule, settings)
            report["splits"][split] = metrics
            faults += split_faults
        train = shard_reader.Shards.open(folder, "train", is_verified=True)
        if pairing.label_1:
            report["shortcut"], shortcut_faults = audit_shortcut(train, settings.audit)
            faults += shortcut_faults
        entries = read_vocab(vocab_path) if vocab_path.is_file() else []
        if len(entries) == manifest.vocab_size:  # of another vocabulary: a fault reported elsewhere
            store = TokenStore.open(data_dir, "train")
            report["examples"] = shown_examples(train, store, entries, rule.mask_id)
    report["faults"] = faults
    write_page(out, report)
    write_card(folder, report)
    write_json(out / "audit.json", report)
    remove_folder(out / "logs")  # the next audit reads every byte again
    return report


def _count(
    data_dir: Path, manifest: shard_records.ShardsManifest, settings: DataPrepSettings
) -> list[tuple[Group, list[Counted]]]:
    """Count all shards in tasks. Returns the groups of shards, with what was found."""
    groups = list_groups(data_dir, settings.seq_len)
    one_in = {name: choose_one_in(split.rows) for name, split in manifest.splits.items()}
    vocab_path = data_dir / "vocab" / "vocab.txt"
    common = [one_in, checksum(vocab_path) if vocab_path.is_file() else None]
    paths = [record_path(data_dir, settings.seq_len, group) for group in groups]
    # A task that ended before this start is done unless a file of its shards was changed since
    tasks = [
        TaskEntry(group.name, fingerprint([*common, group.made_from()]), (path,), number)
        for number, (group, path) in enumerate(zip(groups, paths, strict=True))
    ]
    task = partial(count_group, data_dir, settings.seq_len, one_in)
    logs = data_dir / "audit" / str(settings.seq_len) / "logs"
    run_tasks(f"audit {settings.seq_len}", logs, tasks, task, settings)
    counted = []
    for group, path in zip(groups, paths, strict=True):
        found = read_packed(path, CountedGroup)
        if found is None:
            raise RuntimeError(f"{path} was changed while this job ran; run it again")
        items = zip(group.shards, found.shards, strict=True)
        counted.append((group, [(split, entry, shard) for (split, entry), shard in items]))
    return counted


def _unfit(report: dict[str, Any]) -> str:
    reasons = [f"- {fault}" for fault in report["faults"]]
    return "\n".join(["unfit for training:", *reasons]) if reasons else ""


def _provenance_faults(
    data_dir: Path, manifest: shard_records.ShardsManifest, seq_len: int
) -> list[str]:
    faults = []
    vocab_path, store = data_dir / "vocab" / "vocab.txt", data_dir / "tokens" / "manifest.json"
    if not vocab_path.is_file():
        faults.append(f"{vocab_path} is missing; put the vocabulary of these shards back")
    elif (found := checksum(vocab_path)) != manifest.vocab_checksum:
        faults.append(
            f"{vocab_path} has checksum {found}, the shards were made with "
            f"{manifest.vocab_checksum}: run data_prep.encode, then data_prep.build with "
            "replace=true"
        )
    if store.is_file() and checksum(store) != manifest.tokens_checksum:
        faults.append(
            f"{store} is not of the store that the shards came from: run data_prep.build "
            "with replace=true"
        )
    if manifest.seq_len != seq_len:
        faults.append(f"the manifest's seq_len is {manifest.seq_len}, the folder's {seq_len}")
    return faults


def _other_length_counts(
    folder: Path, counted: Sequence[tuple[Group, list[Counted]]]
) -> dict[str, list[int]]:
    """By seq_len of the corpus' other shards: position i counts train examples of i tokens."""
    counts: dict[str, NDArray[np.int64]] = {}
    damaged = set()
    for group, items in counted:
        name = str(group.manifest.seq_len)
        for _, _, shard in items if group.folder != folder else []:
            if shard.damage:  # its own audit says so
                damaged.add(name)
            else:
                lengths = np.frombuffer(shard.length_counts, "<u4").astype(np.int64)
                counts[name] = counts.get(name, np.zeros_like(lengths)) + lengths
    return {name: total.tolist() for name, total in counts.items() if name not in damaged}


def _audit_split(
    split: str,
    counted: Sequence[tuple[shard_records.ShardEntry, CountedShard]],
    manifest: shard_records.ShardsManifest,
    rule: MaskingRule,
    settings: DataPrepSettings,
) -> tuple[dict[str, Any], list[str]]:
    """The metrics of one split, in total and per shard, and its faults."""
    faults = [fault for _, shard in counted for fault in shard.faults]
    per_shard = [
        {"name": entry.name, **shares(shard.counts, settings.seq_len)}
        for entry, shard in counted[:MOST_LISTED]
    ]
    total: Counts = Counter()
    length_counts = np.zeros(settings.seq_len + 1, np.int64)
    for _, shard in counted:
        total.update(shard.counts)
        length_counts += np.frombuffer(shard.length_counts, "<u4")
    if not total.get("rows"):
        return {"rows": 0, "shards": per_shard}, faults
    metrics = shares(total, settings.seq_len)
    hashes = np.concatenate([np.frombuffer(shard.hashes, "<u8") for _, shard in counted])
    hashes.sort()
    repeated = int(np.count_nonzero(hashes[1:] == hashes[:-1]))
    metrics["repeated_examples"] = repeated * choose_one_in(manifest.splits[split].rows)
    for name in LOSSES:
        metrics[name] = getattr(manifest.splits[split], name)
    metrics["length_counts"] = length_counts.tolist()
    metrics["shards"] = per_shard
    faults += [
        f"{split}: {fault}"
        for fault in _split_faults(total, metrics, manifest.pairs, rule, settings)
    ]
    return metrics, faults


def _split_faults(
    total: Counts,
    metrics: dict[str, Any],
    pairing: Pairing,
    rule: MaskingRule,
    settings: DataPrepSettings,
) -> list[str]:
    """Faults in the metrics of a whole split."""
    faults = []
    bounds = settings.audit
    ones = total[pairing.label_1] if pairing.label_1 else 0
    aims = (bounds.random_next_least, bounds.random_next_most)
    if fault := label_fault(pairing, ones, total["rows"], *aims):
        faults.append(fault)
    if metrics["unknown_share"] > bounds.most_unknown:
        faults.append(
            f"{metrics['unknown_share']:.2%} of the text's tokens are unknown, more than "
            f"{bounds.most_unknown:.0%}: is the vocabulary of another language or casing?"
        )
    masked = max(total["masked_tokens"], 1)
    # With whole words, a few positions of the quota stay unused
    if abs(total["masked_tokens"] / total["quota"] - 1) > 0.04 + 2 / np.sqrt(total["quota"]):
        faults.append(
            f"{total['masked_tokens']:,} positions are masked, the rule asks for {total['quota']:,}"
        )
    # A random entry that equals the original counts as kept: below 1e-3 of the masked positions for
    # every vocabulary allowed. The rest of the margin is four standard errors, 4 * sqrt(0.25 / M).
    margin = 0.002 + 2 / np.sqrt(masked)
    kept_share = 1 - rule.mask_share - rule.random_share
    for name, wanted in (
        ("mask_share", rule.mask_share),
        ("random_share", rule.random_share),
        ("kept_share", kept_share),
    ):
        if abs(metrics[name] - wanted) > margin:
            faults.append(
                f"{name} of the masked positions is {metrics[name]:.4f}, not {wanted:.4f}"
            )
    return faults


def _source_rows(train: dict[str, Any]) -> list[list[str]]:
    """The largest sources of a corpus of several."""
    tokens, documents = train["tokens_of_source"], train["documents_of_source"]
    names = sorted(tokens, key=lambda name: (-tokens[name], name))[:SHOWN_SOURCES]
    if len(tokens) < 2:
        return []
    return [
        ["source, train", *(printable(name)[:14] for name in names)],
        ["documents", *(f"{documents[name]:,}" for name in names)],
        ["of all tokens", *(f"{tokens[name] / train['tokens']:.1%}" for name in names)],
    ]


def summary(report: dict[str, Any]) -> str:
    """Warnings, a short table of the report, and its examples in words."""
    pairing = Pairing[report["made"]["settings"]["pairs"]]
    splits, corpus = report["splits"], report["corpus"]["splits"]
    shards_rows = [*table_rows(SHARDS, splits), *table_rows(REPEATED_EXAMPLES, splits)]
    corpus_rows = [*table_rows(CORPUS, corpus), *table_rows(REPEATED, corpus)]
    languages = dict(by_tokens(report["corpus"]["languages"])[:SHOWN_LANGUAGES])
    language_rows = table_rows(LANGUAGES, languages)
    lines = [f"warning: {warning}" for warning in report["warnings"]]
    lines += [
        f"{row[0]:32}" + "".join(f"{value:>15}" for value in row[1:])
        for row in (
            *(["shards", *splits], *shards_rows),
            *(["corpus", *corpus], *corpus_rows),
            *_source_rows(corpus["train"]),
            *([["language", *languages], *language_rows] if languages else []),
        )
    ]
    if (others := len(report["corpus"]["languages"]) - SHOWN_LANGUAGES) > 0:
        lines.append(f"... and {others:,} languages of fewer tokens, see audit.json")
    if shortcut := report.get("shortcut"):
        lines.append(
            f"bag of words on pairs: {shortcut['alone_accuracy']:.1%} right from either segment, "
            f"{shortcut['together_accuracy']:.1%} from both, {shortcut['majority']:.1%} by the "
            "more frequent label"
        )
    for example in report["examples"]:
        label = pairing.meanings[example["next_sentence_label"]]
        words = [
            piece["word"] if "put" not in piece else f"{{{piece['word']}|{piece['put']}}}"
            for piece in example["pieces"]
        ]
        more = f" ... ({len(words)} tokens)" if len(words) > SHOWN_WORDS else ""
        text = " ".join(words[:SHOWN_WORDS]) + more
        lines.append(f"\nexample {example['example']} ({label}): {text}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(status_of(main))

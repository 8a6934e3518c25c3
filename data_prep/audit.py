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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from data_prep.core.command import status_of
from data_prep.core.files import checksum, write_json
from data_prep.core.job import start
from data_prep.core.objectives import Pairing
from data_prep.core.settings import DataPrepSettings
from data_prep.examples.masking import MaskingRule
from data_prep.examples.pairs import LOSSES, label_fault
from data_prep.quality.corpus import judge_corpus
from data_prep.quality.counts import BROKEN, Counts, content_hashes, count, shares
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
from data_prep.quality.shortcut import audit_shortcut
from data_prep.stores import shard_checks, shard_reader, shards
from data_prep.stores.tokens import TokenStore
from data_prep.tokenizer.vocab_file import read_vocab

SHOWN_LANGUAGES = 5  # on the terminal, the largest
SHOWN_WORDS = 100  # of an example on the terminal; audit.json has all


def main(argv: Sequence[str] | None = None) -> int:
    """Audit the shards of one length and print a table and examples."""
    return start(run, argv, summary=lambda _, report: summary(report), faults=_unfit)


def run(settings: DataPrepSettings) -> dict[str, Any]:
    """Audit the shards of `settings.seq_len`; write and return the report.

    `report["faults"]` lists why they are unfit for training; it is empty if they are fit, perhaps
    with `report["warnings"]`. Raises
    ValueError if there are no finished shards, no token store or no vocabulary.
    """
    data_dir = Path(settings.data_dir)
    folder = data_dir / f"len{settings.seq_len}"
    manifest = shards.read_shards_manifest(folder)
    plain = msgspec.to_builtins(manifest)
    vocab_path = data_dir / "vocab" / "vocab.txt"
    rule = MaskingRule.from_manifest(manifest, vocab_path)
    pairing = manifest.pairs
    corpus, corpus_faults, warnings = judge_corpus(data_dir, pairing, settings.audit)
    damaged = shard_checks.verify(folder)
    faults = [*_provenance_faults(data_dir, manifest, settings.seq_len), *damaged, *corpus_faults]
    report: dict[str, Any] = {
        "seq_len": settings.seq_len,
        "shards_checksum": checksum(folder / "manifest.json"),
        "made": {name: plain[name] for name in ("settings", "vocab_size", "lowercase")},
        "other_length_counts": _other_length_counts(data_dir, folder),
        "corpus": corpus,
        "warnings": warnings,
        "splits": {},
        "examples": [],
    }
    if not damaged:  # the metrics of a damaged file mean nothing
        for split in shards.SPLITS:
            metrics, split_faults = _audit_split(folder, split, manifest, rule, settings)
            report["splits"][split] = metrics
            faults += split_faults
        train = shard_reader.Shards.open(folder, "train")
        if pairing.label_1:
            report["shortcut"], shortcut_faults = audit_shortcut(train, settings.audit)
            faults += shortcut_faults
        entries = read_vocab(vocab_path) if vocab_path.is_file() else []
        if len(entries) == manifest.vocab_size:  # of another vocabulary: a fault reported elsewhere
            store = TokenStore.open(data_dir, "train")
            report["examples"] = shown_examples(train, store, entries, rule.mask_id)
    report["faults"] = faults
    out = data_dir / "audit" / str(settings.seq_len)
    write_page(out, report)
    write_card(folder, report)
    write_json(out / "audit.json", report)
    return report


def _unfit(report: dict[str, Any]) -> str:
    reasons = [f"- {fault}" for fault in report["faults"]]
    return "\n".join(["unfit for training:", *reasons]) if reasons else ""


def _provenance_faults(data_dir: Path, manifest: shards.ShardsManifest, seq_len: int) -> list[str]:
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


def _other_length_counts(data_dir: Path, folder: Path) -> dict[str, list[int]]:
    """By seq_len of the corpus' other shards: position i counts train examples of i tokens."""
    counts = {}
    for path in sorted(data_dir.glob("len*/manifest.json")):
        if path.parent == folder:
            continue
        try:
            manifest = shards.read_shards_manifest(path.parent)
        except ValueError:  # of another version: its own audit says so
            continue
        if shard_checks.size_faults(path.parent, manifest, "train"):
            continue
        total = np.zeros(manifest.seq_len + 1, np.int64)
        for entry in manifest.splits["train"].shards:
            shard = path.parent / "train" / entry.name
            examples, _ = shards.read_shard(shard)
            shard_checks.check_rows(shard, examples, manifest)
            total += np.bincount(np.diff(examples.offsets), minlength=len(total))
        counts[str(manifest.seq_len)] = total.tolist()
    return counts


def _audit_split(
    folder: Path,
    split: str,
    manifest: shards.ShardsManifest,
    rule: MaskingRule,
    settings: DataPrepSettings,
) -> tuple[dict[str, Any], list[str]]:
    """The metrics of one split, in total and per shard, and its faults."""
    faults: list[str] = []
    pairing = manifest.pairs
    total: Counts = {}
    length_counts = np.zeros(settings.seq_len + 1, np.int64)
    per_shard = []
    contents: list[NDArray[np.uint64]] = []
    for entry in manifest.splits[split].shards:
        path = folder / split / entry.name
        examples, metadata = shards.read_shard(path)
        for key in ("vocab_checksum", "seq_len"):
            if metadata.get(key) != (stated := str(getattr(manifest, key))):
                faults.append(
                    f"{path} was made with {key} {metadata.get(key)}, the manifest says "
                    f"{stated}: a shard of another corpus; {shards.CURE}"
                )
        counts = count(examples, pairing, rule, manifest.special_ids, settings.seq_len)
        faults += [f"{path}: {counts[kind]:,} {kind}" for kind in BROKEN if counts[kind]]
        for name in filter(None, ("rows", "tokens", "masked_tokens", pairing.label_1)):
            if counts[name] != (count_there := getattr(entry, name)):
                faults.append(f"{path} has {counts[name]:,} {name}, the manifest {count_there:,}")
        per_shard.append({"name": entry.name, **shares(counts, settings.seq_len)})
        total = {name: total.get(name, 0) + n for name, n in counts.items()}
        lengths_N = np.diff(examples.offsets)
        length_counts += np.bincount(lengths_N, minlength=len(length_counts))[: len(length_counts)]
        contents.append(content_hashes(examples.input_ids, examples.offsets))
    if not total.get("rows"):
        return {"rows": 0, "shards": per_shard}, faults
    metrics = shares(total, settings.seq_len)
    hashes = np.concatenate(contents)
    metrics["repeated_examples"] = len(hashes) - len(np.unique(hashes))
    for name in LOSSES:
        metrics[name] = getattr(manifest.splits[split], name)
    metrics["length_counts"] = length_counts.tolist()
    metrics["shards"] = per_shard
    faults += [
        f"{split}: {fault}" for fault in _split_faults(total, metrics, pairing, rule, settings)
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


def summary(report: dict[str, Any]) -> str:
    """A short table of the report, and its examples in words."""
    pairing = Pairing[report["made"]["settings"]["pairs"]]
    splits, corpus = report["splits"], report["corpus"]["splits"]
    shards_rows = [*table_rows(SHARDS, splits), *table_rows(REPEATED_EXAMPLES, splits)]
    corpus_rows = [*table_rows(CORPUS, corpus), *table_rows(REPEATED, corpus)]
    languages = dict(by_tokens(report["corpus"]["languages"])[:SHOWN_LANGUAGES])
    language_rows = table_rows(LANGUAGES, languages)
    lines = [
        f"{row[0]:32}" + "".join(f"{value:>15}" for value in row[1:])
        for row in (
            *(["shards", *splits], *shards_rows),
            *(["corpus", *corpus], *corpus_rows),
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
    lines += [f"warning: {warning}" for warning in report["warnings"]]
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

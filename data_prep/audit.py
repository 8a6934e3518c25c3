"""Job: read the shards of data_dir/len<seq_len>/ back and judge whether they are fit for training.

Every figure is computed anew from the shards' bytes, none is taken from the manifest. They go to
data_dir/audit/<seq_len>/audit.json; the exit status is 1, with every reason named, when the shards
are unfit.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep import shards
from data_prep.files import checksum, write_json
from data_prep.masking import MaskingRule, num_masked
from data_prep.pairs import random_next_fault
from data_prep.settings import DataPrepSettings, start
from data_prep.shards import Examples
from data_prep.wordpiece import read_vocab

MOST_UNKNOWN = 0.01  # of the text's tokens: above, the vocabulary or its casing is not the text's
SHOWN = 5  # examples written in words
SHOWN_WORDS = 100  # of each on the terminal; audit.json has all

# What is counted in every shard, and summed.
Counts = dict[str, int]


def main(argv: Sequence[str] | None = None) -> int:
    return start(_judge, argv)


def run(settings: DataPrepSettings) -> dict[str, Any]:
    """Audit the shards of `settings.seq_len`; write and return the report.

    `report["faults"]` lists why they are unfit for training, empty when they are fit. Raises
    ValueError when there are no finished shards or no vocabulary.
    """
    data_dir = Path(settings.data_dir)
    folder = data_dir / f"len{settings.seq_len}"
    manifest = shards.read_manifest(folder)
    vocab_path = data_dir / "vocab" / "vocab.txt"
    rule = MaskingRule.from_manifest(manifest, vocab_path)
    faults = _provenance_faults(manifest, vocab_path, settings.seq_len)
    damaged = shards.verify(folder)
    faults += damaged
    report: dict[str, Any] = {"seq_len": settings.seq_len, "splits": {}, "examples": []}
    if not damaged:  # the figures of a damaged file mean nothing
        for split in shards.SPLITS:
            figures, split_faults = _audit_split(folder, split, manifest, rule, settings)
            report["splits"][split] = figures
            faults += split_faults
        if vocab_path.is_file():
            report["examples"] = _shown(folder, read_vocab(vocab_path))
    report["faults"] = faults
    write_json(data_dir / "audit" / str(settings.seq_len) / "audit.json", report)
    return report


def _judge(settings: DataPrepSettings) -> None:
    report = run(settings)
    sys.stdout.write(summary(report))
    if report["faults"]:
        raise RuntimeError("unfit for training:\n" + "\n".join(f"- {f}" for f in report["faults"]))


def _provenance_faults(manifest: dict[str, Any], vocab_path: Path, seq_len: int) -> list[str]:
    faults = []
    if not vocab_path.is_file():
        faults.append(f"{vocab_path} is missing; put the vocabulary of these shards back")
    elif (found := checksum(vocab_path)) != manifest["vocab_checksum"]:
        faults.append(
            f"{vocab_path} has checksum {found}, the shards were made with "
            f"{manifest['vocab_checksum']}: run data_prep.encode and data_prep.build again"
        )
    if manifest["seq_len"] != seq_len:
        faults.append(f"the manifest's seq_len is {manifest['seq_len']}, the folder's {seq_len}")
    return faults


def _audit_split(
    folder: Path,
    split: str,
    manifest: dict[str, Any],
    rule: MaskingRule,
    settings: DataPrepSettings,
) -> tuple[dict[str, Any], list[str]]:
    """The figures of one split, over all and of each shard, and its faults."""
    faults: list[str] = []
    total: Counts = {}
    length_counts = np.zeros(settings.seq_len + 1, np.int64)
    per_shard = []
    contents: list[NDArray[np.uint64]] = []
    for entry in manifest["splits"][split]["shards"]:
        path = folder / split / entry["name"]
        examples, metadata = shards.read_shard(path)
        for key in ("vocab_checksum", "seq_len"):
            if metadata.get(key) != str(manifest[key]):
                faults.append(
                    f"{path} was made with {key} {metadata.get(key)}, the manifest says "
                    f"{manifest[key]}: a shard of another corpus; run data_prep.build again"
                )
        counts = count(examples, rule, manifest["special_ids"], settings.seq_len)
        faults += [f"{path}: {counts[kind]:,} {kind}" for kind in BROKEN if counts[kind]]
        for name in ("rows", "tokens", "masked_tokens", "random_next"):
            if counts[name] != entry[name]:
                faults.append(f"{path} has {counts[name]:,} {name}, the manifest {entry[name]:,}")
        per_shard.append({"name": entry["name"], **_shares(counts, settings.seq_len)})
        total = {name: total.get(name, 0) + n for name, n in counts.items()}
        lengths_N = np.diff(examples.offsets)
        length_counts += np.bincount(lengths_N, minlength=len(length_counts))[: len(length_counts)]
        contents.append(_content_hashes(examples))
    if not total.get("rows"):
        return {"rows": 0, "shards": per_shard}, faults
    figures = _shares(total, settings.seq_len)
    hashes = np.concatenate(contents)
    figures["repeated_examples"] = len(hashes) - len(np.unique(hashes))
    figures["length_counts"] = length_counts.tolist()
    figures["shards"] = per_shard
    faults += [f"{split}: {fault}" for fault in _unfit(total, figures, rule, settings)]
    return figures, faults


BROKEN = (
    "pairs labelled random within one document",
    "pairs labelled next from two documents",
    "examples not of the form [CLS] A [SEP] B [SEP]",
    "special ids inside the text",
    "examples longer than seq_len",
    "ids outside the vocabulary",
    "masks on [CLS], [SEP] or out of order",
    "examples with a wrong number of masks",
)


def count(
    examples: Examples, rule: MaskingRule, special_ids: dict[str, int], seq_len: int
) -> Counts:
    """Everything countable of N examples, the kinds of BROKEN among it."""
    ids, starts, ends = examples.input_ids, examples.offsets[:-1], examples.offsets[1:]
    is_random = examples.next_sentence_labels == 1
    is_same = examples.document_a == examples.document_b
    first_sep = starts + examples.segment_a_lengths - 1
    lengths_N = ends - starts
    masked_N = np.diff(examples.masked_offsets)
    wanted_N = num_masked(lengths_N, rule)
    whole = first_sep < ends - 2  # B has a token, A's is looked at below
    is_form = whole & (examples.segment_a_lengths >= 3) & (lengths_N >= 5)
    is_form &= (ids[starts] == rule.cls_id) & (ids[ends - 1] == rule.sep_id)
    is_form[whole] &= ids[first_sep[whole]] == rule.sep_id
    is_text = np.ones(len(ids), np.bool_)
    for places in (starts, ends - 1, first_sep[whole]):
        is_text[places] = False
    inner_special = [special_ids[name] for name in ("pad", "cls", "sep", "mask")]
    at = examples.masked_indices
    put, target = examples.masked_input_ids, examples.targets
    is_first = np.zeros(len(at), np.bool_)
    is_first[examples.masked_offsets[:-1][masked_N > 0]] = True
    is_rising = np.diff(examples.masked_positions.astype(np.int64), prepend=-1) > 0
    is_mask, is_kept = put == rule.mask_id, put == target
    wrong_number = (masked_N < 1) | (masked_N > rule.most)
    if not rule.whole_word:
        wrong_number |= masked_N != wanted_N
    broken = (
        (is_random & is_same).sum(),
        (~is_random & ~is_same).sum(),
        (~is_form).sum(),
        np.isin(ids[is_text], inner_special).sum(),
        (lengths_N > seq_len).sum(),
        (ids >= rule.vocab_size).sum() + (put >= rule.vocab_size).sum(),
        (~is_text[at]).sum() + (~is_rising & ~is_first).sum(),
        wrong_number.sum(),
    )
    sums = {
        "rows": len(examples),
        "tokens": len(ids),
        "text_tokens": is_text.sum(),
        "masked_tokens": len(at),
        "quota": wanted_N.sum(),
        "random_next": is_random.sum(),
        "became_mask": is_mask.sum(),
        "stayed": (is_kept & ~is_mask).sum(),
        "became_random": (~is_mask & ~is_kept).sum(),
        "unknown_tokens": (ids[is_text] == special_ids["unk"]).sum(),
        **dict(zip(BROKEN, broken, strict=True)),
    }
    return {name: int(value) for name, value in sums.items()}


def _shares(counts: Counts, seq_len: int) -> dict[str, Any]:
    """Counts and the shares that a person compares with the literature."""
    rows, masked = max(counts["rows"], 1), max(counts["masked_tokens"], 1)
    return {
        **{name: n for name, n in counts.items() if name not in BROKEN},
        "mean_length": counts["tokens"] / rows,
        "real_share": counts["tokens"] / (rows * seq_len),
        "random_next_share": counts["random_next"] / rows,
        "masked_share": counts["masked_tokens"] / max(counts["tokens"], 1),
        "mask_share": counts["became_mask"] / masked,
        "random_share": counts["became_random"] / masked,
        "kept_share": counts["stayed"] / masked,
        "unknown_share": counts["unknown_tokens"] / max(counts["text_tokens"], 1),
    }


def _unfit(
    total: Counts, figures: dict[str, Any], rule: MaskingRule, settings: DataPrepSettings
) -> list[str]:
    """Faults of the figures over a whole split."""
    faults = []
    bounds = settings.audit
    if fault := random_next_fault(
        total["random_next"], total["rows"], bounds.random_next_least, bounds.random_next_most
    ):
        faults.append(fault)
    if figures["unknown_share"] > MOST_UNKNOWN:
        faults.append(
            f"{figures['unknown_share']:.2%} of the text's tokens are unknown, more than "
            f"{MOST_UNKNOWN:.0%}: is the vocabulary of another language or casing?"
        )
    masked = max(total["masked_tokens"], 1)
    # Of whole words, a few positions of the quota stay open
    if abs(total["masked_tokens"] / total["quota"] - 1) > 0.04 + 2 / np.sqrt(total["quota"]):
        faults.append(
            f"{total['masked_tokens']:,} positions are masked, the rule asks for {total['quota']:,}"
        )
    # A random entry equals the original now and then: that is counted as kept, and below 1e-3 of
    # the masked for every vocabulary allowed. Four standard errors, 4 * sqrt(0.25 / M), are chance's.
    margin = 0.002 + 2 / np.sqrt(masked)
    kept_share = 1 - rule.mask_share - rule.random_share
    for name, wanted in (
        ("mask_share", rule.mask_share),
        ("random_share", rule.random_share),
        ("kept_share", kept_share),
    ):
        if abs(figures[name] - wanted) > margin:
            faults.append(
                f"{name} of the masked positions is {figures[name]:.4f}, not {wanted:.4f}"
            )
    return faults


def _content_hashes(examples: Examples) -> NDArray[np.uint64]:
    """(N,) one number for the ids of each example: equal ones have equal numbers."""
    ids = examples.input_ids
    rows = itertools.pairwise(examples.offsets.tolist())
    hashes = (xxhash.xxh3_64_intdigest(ids[start:end].data) for start, end in rows)
    return np.fromiter(hashes, np.uint64, len(examples))


def _shown(folder: Path, vocab: Sequence[str]) -> list[dict[str, Any]]:
    """Examples in words, spread over the train split; a masked piece stands as {piece|input}."""
    split = shards.Shards.open(folder, "train")
    chosen = np.unique(np.linspace(0, split.num_examples - 1, SHOWN).astype(np.int64))
    examples = split.read(chosen)
    names = dict(enumerate(vocab))  # an id beyond them is a fault, and shown as a number
    words = [names.get(token, str(token)) for token in examples.input_ids.tolist()]
    inputs = [names.get(token, str(token)) for token in examples.masked_input_ids.tolist()]
    for place, put in zip(examples.masked_indices.tolist(), inputs, strict=True):
        words[place] = f"{{{words[place]}|{put}}}"
    return [
        {
            "example": int(chosen[i]),
            "next_sentence_label": int(examples.next_sentence_labels[i]),
            "text": " ".join(words[examples.offsets[i] : examples.offsets[i + 1]]),
        }
        for i in range(len(chosen))
    ]


def summary(report: dict[str, Any]) -> str:
    """The report as a short table and the examples in words."""
    rows = [
        ("examples", "rows", "{:,}"),
        ("tokens", "tokens", "{:,}"),
        ("mean length", "mean_length", "{:.1f}"),
        ("real tokens of all places", "real_share", "{:.1%}"),
        ("random next", "random_next_share", "{:.2%}"),
        ("masked", "masked_share", "{:.2%}"),
        ("  as [MASK]", "mask_share", "{:.2%}"),
        ("  as a random entry", "random_share", "{:.2%}"),
        ("  kept", "kept_share", "{:.2%}"),
        ("unknown", "unknown_share", "{:.3%}"),
        ("repeated examples", "repeated_examples", "{:,}"),
    ]
    splits = report["splits"]
    lines = ["".join([f"{'':28}", *(f"{name:>15}" for name in splits)])]
    for label, key, form in rows:
        figures = [form.format(split[key]) if key in split else "-" for split in splits.values()]
        lines.append("".join([f"{label:28}", *(f"{figure:>15}" for figure in figures)]))
    for example in report["examples"]:
        label = "random" if example["next_sentence_label"] else "next"
        words = example["text"].split(" ")
        more = f" ... ({len(words)} tokens)" if len(words) > SHOWN_WORDS else ""
        text = " ".join(words[:SHOWN_WORDS]) + more
        lines.append(f"\nexample {example['example']} ({label}): {text}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

"""Whether the corpus is fit for training, before any pair is made: judged by build and audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from data_prep.core.config import SettingsError
from data_prep.core.objectives import Pairing
from data_prep.core.records import Count, Record, Share, read_record
from data_prep.core.settings import AuditSettings
from data_prep.quality.languages import LanguageMetrics, language_faults
from data_prep.stores.documents import (
    DuplicatesRecord,
    read_documents_manifest,
    read_filtered_manifest,
)
from data_prep.stores.token_records import SPLITS, TokensManifest, read_tokens_manifest


class SplitCounts(Record):
    """The counts of one split of a token store."""

    documents: Count
    sentences: Count
    tokens: Count
    unknown_share: Share
    documents_of_source: dict[str, Count]
    tokens_of_source: dict[str, Count]
    document_tokens_log2_counts: list[Count]
    one_sentence_share: Share
    repeated_sentences_share: Share
    repeated_tokens_share: Share


class CorpusCounts(Record):
    """tokens/counts.json, see corpus_counts.py."""

    made_from: dict[str, list[str]]
    splits: dict[Literal["train", "heldout"], SplitCounts]
    heldout_in_train_share: Share
    languages: dict[str, LanguageMetrics] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.splits) != len(SPLITS):
            raise ValueError(f"splits are not {' and '.join(SPLITS)}")


def judge_corpus(
    data_dir: Path, pairing: Pairing, bounds: AuditSettings
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Metrics of data_dir/documents and data_dir/tokens, faults of theirs, and warnings.

    A corpus with faults would train badly and is refused.

    Raises ValueError if the token store is missing, SettingsError if it or its counts are of
    another version or cannot be.
    """
    manifest = read_tokens_manifest(data_dir)
    counts = read_counts(data_dir, manifest)
    if counts is None:
        raise SettingsError(
            f"{counts_path(data_dir)} is missing or of another token store: run python -m "
            f"data_prep.encode data_dir={data_dir} heldout_fraction="
            f"{manifest.settings.heldout_fraction} again (with duplicates= and language= if they "
            "were typed); it counts the store, and encodes nothing that is already there"
        )
    metrics = {
        "sources": collected(data_dir),
        "dropped": manifest.dropped,
        "copies": _copies(data_dir),
        "splits": {split: counts["splits"][split] for split in SPLITS},  # train first
        "heldout_in_train_share": counts["heldout_in_train_share"],
        "languages": counts.get("languages", {}),
    }
    train = metrics["splits"]["train"]
    faults = _faults(train, pairing, bounds)
    faults += language_faults(metrics["languages"], bounds, has_pairs=bool(pairing.label_1))
    return metrics, faults, _warnings(train, pairing, bounds)


def counts_path(data_dir: Path) -> Path:
    """The counts of the token store, see corpus_counts.py."""
    return data_dir / "tokens" / "counts.json"


def made_from(manifest: TokensManifest) -> dict[str, list[str]]:
    """The checksums of a token store's parts: what its counts were made from."""
    return {split: [part.checksum for part in manifest.splits[split]] for split in SPLITS}


def read_counts(data_dir: Path, manifest: TokensManifest) -> dict[str, Any] | None:
    """The counts of the token store that `manifest` describes; None if there are none of it."""
    path = counts_path(data_dir)
    if not path.is_file():
        return None
    again = f"delete it and run python -m data_prep.encode data_dir={data_dir} again"
    counts = read_record(path, CorpusCounts, again)
    found: dict[str, Any] = msgspec.to_builtins(counts)
    return found if counts.made_from == made_from(manifest) else None


def collected(data_dir: Path) -> dict[str, Any]:
    """What collect and filter have recorded for each source; it may have been deleted since."""
    names = ("documents", "dropped", "settings", "characters")
    return {
        path.parent.name: {
            **{name: getattr(manifest, name) for name in names},
            **_filtered(data_dir / "filtered" / path.parent.name, manifest.dropped),
        }
        for path in sorted((data_dir / "documents").glob("*/manifest.json"))
        for manifest in [read_documents_manifest(path.parent)]
    }


def _filtered(folder: Path, dropped: dict[str, int]) -> dict[str, Any]:
    """What the filters of a source leave and have `dropped`, too; {} if it has none."""
    if not (folder / "manifest.json").is_file():
        return {}
    manifest = read_filtered_manifest(folder)
    rules = {
        f"{name}: {rule}": counts
        for name, of_filter in manifest.counts.items()
        for rule, counts in of_filter.items()
    }
    return {
        "documents": manifest.documents,
        "characters": manifest.characters,
        "dropped": dropped | {rule: n.documents for rule, n in rules.items() if n.documents},
        "changed": {rule: n.changes for rule, n in rules.items() if n.changes},
    }


def _copies(data_dir: Path) -> dict[str, Any]:
    """Copies of other documents by source, and the largest groups; {} if dedup has not run."""
    path = data_dir / "documents" / "duplicates.json"
    if not path.is_file():
        return {}
    record = read_record(path, DuplicatesRecord, "delete it and run data_prep.dedup again")
    plain = msgspec.to_builtins(record)
    return {name: plain[name] for name in ("sources", "groups", "largest")}


def _warnings(train: dict[str, Any], pairing: Pairing, bounds: AuditSettings) -> list[str]:
    if pairing is not Pairing.nsp or train["documents"] >= bounds.fewest_documents:
        return []
    return [
        f"there are {train['documents']:,} train documents, fewer than audit.fewest_documents="
        f"{bounds.fewest_documents:,}: enough for a try, but the few texts that random partners "
        "come from are memorised; for a real run add documents, or split them where they are "
        "collections"
    ]


def _faults(train: dict[str, Any], pairing: Pairing, bounds: AuditSettings) -> list[str]:
    faults = []
    if pairing.label_1 and train["one_sentence_share"] > bounds.most_one_sentence:
        faults.append(
            f"{train['one_sentence_share']:.1%} of the documents are one sentence, more than "
            f"{bounds.most_one_sentence:.0%}: they have no next sentence, which pairs=none does "
            "not need; is a row of the source a sentence, every line its own document "
            "(source.rows_per_document groups rows)? The bound is audit.most_one_sentence"
        )
    if train["repeated_tokens_share"] > bounds.most_repeated:
        faults.append(
            f"{train['repeated_tokens_share']:.1%} of the tokens stand in a sentence that occurred "
            f"before, more than {bounds.most_repeated:.0%}: the corpus holds documents or lines "
            "many times; remove the copies and collect again, or set audit.most_repeated"
        )
    if train["unknown_share"] > bounds.most_unknown:
        faults.append(
            f"{train['unknown_share']:.2%} of the tokens are unknown, more than "
            f"{bounds.most_unknown:.0%}: is the vocabulary of another language or casing? Make "
            "another one and encode again, or set audit.most_unknown"
        )
    return faults

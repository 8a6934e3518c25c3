"""Manifests of the stores made up for tests: whole records, with what a test asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from data_prep.core.objectives import MaskingUnit, Pairing
from data_prep.core.settings import MaskingSettings
from data_prep.examples.masking import MaskingRule
from data_prep.stores.documents import DocumentsManifest, FilteredManifest, PartEntry
from data_prep.stores.shard_records import BuildSettings, ShardEntry, ShardsManifest, SplitEntry
from data_prep.stores.token_records import (
    EncodeSettings,
    TokensManifest,
    WrittenPart,
    manifest_entries,
)
from data_prep.tokenizer.store import VocabManifest, VocabSettings

SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def documents_manifest(parts: Sequence[PartEntry] = (), **changes: Any) -> DocumentsManifest:
    whole = DocumentsManifest(
        schema_version=1, source="made", settings={}, inputs={}, parts=list(parts),
        documents=sum(part.rows for part in parts),
        characters=sum(part.characters for part in parts), dropped={}, damaged=[],
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def filtered_manifest(
    parts: Sequence[PartEntry], made_from: dict[str, str], **changes: Any
) -> FilteredManifest:
    whole = FilteredManifest(
        schema_version=1, source="made", filters=["pii"], settings={}, made_from=made_from,
        parts=list(parts), documents=1, characters=1, documents_before=2, characters_before=2,
        counts={},
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def part_entry(name: str, checksum: str = "c") -> PartEntry:
    return PartEntry(name=name, rows=1, characters=1, checksum=checksum)


def vocab_manifest(documents: dict[str, str] | None = None, **changes: Any) -> VocabManifest:
    """Of a vocabulary trained on `documents`; None: of a released one."""
    whole = VocabManifest(
        schema_version=1,
        vocab_size=1000,
        lowercase=True,
        special_ids=SPECIAL_IDS,
        checksum="v",
        settings=VocabSettings(
            lowercase=True, tokenizers="1", duplicates={}, vocab_file=None if documents else "f",
            vocab_size=1000 if documents else None, documents=documents,
        ),
        added_words=[],
        parts=len(documents or ()),
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def tokens_manifest(
    splits: Mapping[str, list[WrittenPart]] | None = None,
    documents: dict[str, str] | None = None,
    **changes: Any,
) -> TokensManifest:
    languages, entries = manifest_entries(splits or {})
    whole = TokensManifest(
        schema_version=1,
        dtype="uint16",
        vocab_checksum="v",
        vocab_size=1000,
        lowercase=True,
        special_ids=SPECIAL_IDS,
        settings=EncodeSettings(
            vocab_checksum="v", lowercase=True, heldout_fraction=0.1, nupunkt="1", tokenizers="1",
            schema_version=1, documents=documents or {}, duplicates={},
            languages=bool(languages),
        ),
        splits={"train": [], "heldout": [], **entries},
        dropped={},
        languages=languages,
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def shards_manifest(
    splits: Mapping[str, SplitEntry] | None = None, **changes: Any
) -> ShardsManifest:
    masking = MaskingSettings(
        rate=0.15, max_predictions=None, mask_share=0.8, random_share=0.1, unit=MaskingUnit.token
    )
    whole = ShardsManifest(
        schema_version=2,
        seq_len=128,
        dtype="uint16",
        vocab_size=1000,
        vocab_checksum="v",
        lowercase=True,
        special_ids=SPECIAL_IDS,
        tokens_checksum="t",
        pairs=Pairing.nsp,
        masking=masking,
        settings=BuildSettings(
            seed=0, seq_len=128, pairs=Pairing.nsp, copies=1, short_seq_prob=0.1, masking=masking
        ),
        splits={"train": split_entry(), "heldout": split_entry(), **(splits or {})},
    )
    return msgspec.structs.replace(whole, **changes)


def split_entry(shards: Sequence[ShardEntry] = (), **changes: Any) -> SplitEntry:
    """A split of these shards with their totals, or of one shard with the counts in `changes`."""
    if changes and not shards:
        shards = [shard_entry(**{"tokens": 1000, "masked_tokens": 1, **changes})]
        changes = {}
    counts = ("rows", "tokens", "masked_tokens", "random_next")
    totals = {name: sum(getattr(shard, name) or 0 for shard in shards) for name in counts}
    losses = dict.fromkeys(("truncated_tokens", "long_sentences", "unpaired_documents"), 0)
    return SplitEntry(shards=list(shards), **{**totals, **losses, **changes})


def shard_entry(name: str = "shard-00000.arrow", **changes: Any) -> ShardEntry:
    counts = dict.fromkeys(("rows", "tokens", "masked_tokens"), 1)
    return ShardEntry(name=name, **{**counts, "bytes": 1 << 20, "checksum": "c", **changes})


def token_rule(vocab_size: int, **changes: Any) -> MaskingRule:
    """The masks of BERT: 15 % of the tokens, 80, 10 and 10 % of these."""
    rule = MaskingRule(
        rate=0.15, max_predictions=None, mask_share=0.8, random_share=0.1, unit=MaskingUnit.token,
        num_special=3, mask_id=4, cls_id=2, sep_id=3, vocab_size=vocab_size,
        special_ids=(0, 1, 2, 3, 4),
    )  # fmt: skip
    return replace(rule, **changes)

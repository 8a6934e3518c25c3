"""The task of data_prep.build: one part of the token store in one pass -> one shard.

Importing this module loads its kernels, from numba's cache if it is warm. The server from which
tasks are forked imports it once, so a task of 16 MB of text takes 0.2 s instead of 1 s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import orjson

from data_prep.core.config import SettingsError
from data_prep.core.objectives import MaskingUnit, Pairing
from data_prep.core.records import write_packed
from data_prep.examples.masking import MaskingRule, mask_examples, static_keys
from data_prep.examples.pairs import LOSSES, PairRule, Pairs, make_pairs
from data_prep.stores.arrow import no_bits, outside
from data_prep.stores.shard_records import ShardCounts, ShardsIdentity, ShardTask, counts_path
from data_prep.stores.shards import Examples, write_shard
from data_prep.stores.tokens import CURE, TokenPart, TokenStore, check_part


def build_shard(folder: Path, identity: ShardsIdentity, task: ShardTask) -> dict[str, int]:
    """Write the shard of one task below `folder`, data_dir/len<seq_len>; return its counts.

    A shard may have no rows.
    """
    split, copy, part, name = task
    settings, data_dir = identity.settings, folder.parent
    store = TokenStore.open(data_dir, split)
    pair_rule = PairRule(
        pairing=settings.pairs,
        seq_len=settings.seq_len,
        short_seq_prob=settings.short_seq_prob,
        seed=settings.seed,
        copy=copy,
        random_next=settings.random_next,
    )
    masking_rule = MaskingRule.from_manifest(identity, data_dir / "vocab" / "vocab.txt")
    check_part(store.path_of(part), store.part(part), identity.vocab_size)
    examples, pairs = make_examples(store, part, pair_rule, masking_rule)
    metadata = {
        "split": split,
        "copy": str(copy),
        "seed": str(settings.seed),
        "seq_len": str(settings.seq_len),
        "vocab_checksum": identity.vocab_checksum,
        "token_part": store.part(part).name,
        "settings": orjson.dumps(settings, msgspec.to_builtins, orjson.OPT_SORT_KEYS).decode(),
    }
    path = folder / split / name
    write_shard(path, examples, metadata)
    counts = ShardCounts.of(path, examples, identity)
    write_packed(counts_path(folder, split, path.name), counts)
    return {f"{split}/{name}": getattr(pairs, name) for name in LOSSES}


def make_examples(
    store: TokenStore, part: int, pair_rule: PairRule, masking_rule: MaskingRule
) -> tuple[Examples, Pairs]:
    """The examples of one part with their static masks, and the pairs they are made of.

    Raises SettingsError if the part of a random partner has sentences or ids that cannot be.
    """
    pairs = make_pairs(store, part, pair_rule, masking_rule.cls_id, masking_rule.sep_id)
    largest_id = masking_rule.vocab_size - 1
    if fault := outside("the id", pairs.input_ids, 0, largest_id, pairs.offsets):
        raise SettingsError(f"{store.folder / store.split}, in a partner of {fault}; {CURE}")
    keys = static_keys(pair_rule.seed, pair_rule.copy, pairs.document_a, pairs.numbers)
    is_by_words = masking_rule.unit is MaskingUnit.whole_word
    continues_word = pairs.continues_word if is_by_words else no_bits()
    masked_positions, masked_offsets, masked_input_ids = mask_examples(
        pairs.input_ids, pairs.offsets, keys, masking_rule, continues_word
    )
    examples = Examples(
        input_ids=pairs.input_ids,
        offsets=pairs.offsets,
        segment_a_lengths=pairs.segment_a_lengths,
        next_sentence_labels=pairs.next_sentence_labels,
        masked_positions=masked_positions,
        masked_offsets=masked_offsets,
        masked_input_ids=masked_input_ids,
        document_a=pairs.document_a,
        document_b=pairs.document_b,
        continues_word=continues_word,
    )
    return examples, pairs


def _load_kernels() -> None:
    """Run every kernel on two documents of two sentences, in the dtypes of a memory-mapped part."""
    ids, sentence_offsets = np.arange(16, dtype=np.uint16), np.arange(0, 17, 4, dtype=np.int32)
    document_offsets = np.array([0, 2, 4], np.int32)
    for column in (ids, sentence_offsets, document_offsets):
        column.flags.writeable = False  # like a memory map; numba compiles another version for it
    part = TokenPart("", ids, sentence_offsets, document_offsets, documents=None)
    store = TokenStore(Path(), "", cast(Any, None), np.array([0, 2]), {0: part})
    masking_rule = MaskingRule(
        rate=0.15,
        max_predictions=None,
        mask_share=0.8,
        random_share=0.1,
        unit=MaskingUnit.token,
        num_special=3,
        mask_id=18,
        cls_id=16,
        sep_id=17,
        vocab_size=19,
        special_ids=(16, 17, 18),
    )
    for pairing in Pairing:
        pair_rule = PairRule(pairing, seq_len=16, short_seq_prob=0.1, seed=0, copy=0)
        make_examples(store, 0, pair_rule, masking_rule)


_load_kernels()

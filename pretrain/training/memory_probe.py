"""The memory rehearsal: runs out of memory before the first step, not at the longest batch.

A synthetic micro-batch of exactly engine.tokens_per_micro_batch tokens goes through forward,
backward and gradient reduction, after smaller ones. If it does not fit, the error names the largest
that did.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data_prep.examples.masking import MaskingRule, num_masked
from data_prep.stores.shards import Examples, ShardsManifest
from pretrain.config.phases import Phase
from pretrain.data.balancing import micro_steps
from pretrain.data.packing import PackedBatch, pack
from pretrain.engine.engine import Engine

PARTS = 4  # sizes tried: quarters of the whole
_SHORTEST = 8  # tokens of a sequence that fills up the row


def rehearse(engine: Engine, phase: Phase, manifest: ShardsManifest) -> None:
    """Try a step of a phase at full size and leave the engine unchanged. Collective.

    `manifest` is that of the phase's shards. If a step has several micro-batches, two are tried:
    the second meets the gradients of the first. On a rank without enough memory it raises
    RuntimeError with the setting to change and its value.
    """
    settings = phase.settings
    rule = MaskingRule.from_manifest(manifest, Path(settings.data.dir) / "vocab" / "vocab.txt")
    num_micro_batches = min(2, micro_steps(settings, manifest, engine.ranks.world_size))
    whole, seq_len = settings.engine.tokens_per_micro_batch, settings.data.seq_len
    of_tokens = settings.optim.tokens_per_step is not None
    is_even = of_tokens or settings.optim.global_batch % engine.ranks.world_size == 0
    least = min(whole, seq_len if is_even else 2 * seq_len)  # batches.dealing refuses less
    fitted = None
    for tokens in sorted({max(least, whole * part // PARTS) for part in range(1, PARTS + 1)}):
        batch = fake_batch(tokens, seq_len, rule, manifest.vocab_size)
        try:
            recompute = settings.engine.activation_checkpointing
            engine.rehearse([batch] * num_micro_batches, recompute)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(_cure(phase, engine, tokens, fitted, str(error))) from None
        fitted = tokens


def fake_batch(tokens: int, seq_len: int, rule: MaskingRule, vocab_size: int) -> PackedBatch:
    """A micro-batch of `tokens` tokens in sequences of `seq_len`, the last one shorter.

    The longest sequences need the most memory: attention grows with the square of the length.
    """
    whole, rest = divmod(tokens, seq_len)
    lengths = np.array([seq_len] * whole + [rest] * (rest >= _SHORTEST), np.int64)
    masked_counts = num_masked(lengths, rule)
    offsets, masked_offsets = (
        np.concatenate([[0], np.cumsum(n)]) for n in (lengths, masked_counts)
    )
    size = len(lengths)
    ids = np.arange(offsets[-1]) % vocab_size
    return pack(
        Examples(
            input_ids=ids,
            offsets=offsets,
            segment_a_lengths=(lengths // 2).astype(np.uint16),
            next_sentence_labels=np.zeros(size, np.uint8),
            masked_positions=np.concatenate([np.arange(1, n + 1) for n in masked_counts]),
            masked_offsets=masked_offsets,
            masked_input_ids=ids[: masked_offsets[-1]],
            document_a=np.zeros(size, np.uint32),
            document_b=np.zeros(size, np.uint32),
        ),
        seq_len,
    )


def _cure(phase: Phase, engine: Engine, tokens: int, fitted: int | None, error: str) -> str:
    settings, ranks, stage = phase.settings, engine.ranks, phase.settings.engine.zero_stage
    least = f"that is the least for data.seq_len={settings.data.seq_len}"
    if fitted is not None:
        cure = f"set engine.tokens_per_micro_batch={fitted}, which fits; it changes no result"
    elif not settings.engine.activation_checkpointing:
        cure = f"{least}; set engine.activation_checkpointing=true; it changes no result"
    elif stage < 3 and ranks.world_size > 1:
        cure = f"{least}; set engine.zero_stage={stage + 1}"
    else:
        cure = f"{least}; set a smaller data.seq_len or a smaller model"
    of_phase = f"phase {phase.number}: " if phase.number > 1 else ""
    return (
        f"{of_phase}a micro-batch of {tokens} tokens does not fit into the memory of rank "
        f"{ranks.rank} ({ranks.device}), found before the first step: {cure}. Torch: {error}"
    )

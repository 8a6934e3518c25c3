"""The rehearsal: runs out of memory before the first step, not at the longest batch, and compiles.

A synthetic micro-batch of as many tokens as the fullest of the run can have goes through forward,
backward and gradient reduction, on a GPU after smaller ones. If it does not fit, the error names
the largest that did. Where layers are compiled, the sizes are the static shapes of the run's own
batches: their code is ready before the first step, and nothing is compiled that no batch needs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from data_prep.examples.masking import MaskingRule, num_masked
from data_prep.stores.shard_records import ShardsManifest
from data_prep.stores.shards import Examples
from pretrain.config.phases import Phase
from pretrain.data.balancing import fullest, micro_steps
from pretrain.data.mask_rate import training_rule
from pretrain.data.packing import PackedBatch, Shape, pack
from pretrain.data.static_shapes import Shapes
from pretrain.engine.engine import Engine

# How many sizes are tried. A CPU is slow and raises no error: the system ends the run
PARTS = {"cuda": 4, "cpu": 1}
_SHORTEST = 8  # tokens of a sequence that fills up the row


def rehearse(
    engine: Engine,
    phase: Phase,
    manifest: ShardsManifest,
    shapes: Shapes | None = None,
    begin_size: Callable[[int], object] = lambda done: None,
) -> None:
    """Try a step of a phase at full size and leave the engine unchanged. Collective.

    `manifest` is that of the phase's shards; `shapes` are those of its loader if they are static.
    `begin_size` is called before each size, with the number of those that are done.
    If a step has several micro-batches, two are tried: the second meets the gradients of the first.
    On a rank without enough memory it raises RuntimeError with the setting to change and its value.
    """
    settings = phase.settings
    rule = training_rule(settings.data, manifest)
    num_micro_batches = min(2, micro_steps(settings, manifest, engine.ranks.world_size))
    whole, seq_len = fullest(settings, engine.ranks.world_size), settings.data.seq_len
    of_tokens = settings.optim.tokens_per_step is not None
    is_even = of_tokens or settings.optim.global_batch % engine.ranks.world_size == 0
    least = min(whole, seq_len if is_even else 2 * seq_len)  # check_dealable refuses less
    num_parts = PARTS[engine.ranks.device.type]
    parts = {max(least, whole * part // num_parts) for part in range(1, num_parts + 1)}
    sizes = [Shape(tokens, 0, 0) for tokens in sorted(parts)] if shapes is None else shapes.usual
    smaller = None  # a token budget to propose
    for number, size in enumerate(sizes):
        begin_size(number)
        shape = None if shapes is None else size
        batch = fake_batch(size.tokens, seq_len, rule, manifest.vocab_size, shape)
        try:
            recompute = settings.engine.activation_checkpointing
            engine.rehearse([batch] * num_micro_batches, recompute)
        except torch.OutOfMemoryError as error:
            if smaller is None and shapes is not None and size.tokens > least:
                smaller = f"{max(least, size.tokens // 2)}, which the next start tries"
            raise RuntimeError(_cure(phase, engine, size.tokens, smaller, str(error))) from None
        smaller = f"{size.tokens}, which fits"


def fake_batch(
    tokens: int, seq_len: int, rule: MaskingRule, vocab_size: int, shape: Shape | None = None
) -> PackedBatch:
    """A micro-batch of `tokens` tokens in sequences of `seq_len`, the last one shorter.

    `shape` fills it up to static sizes; None: no more than the sequences need. The longest
    sequences need the most memory: attention grows with the square of the length.
    """
    whole, rest = divmod(tokens, seq_len)
    lengths = np.array([seq_len] * whole + [rest] * (rest >= _SHORTEST), np.int64)
    masked_counts = num_masked(lengths, rule)
    if shape is not None:  # rounding may give one too many
        masked_counts[-1] -= max(0, int(masked_counts.sum()) - shape.masked)
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
        shape,
    )


def _cure(phase: Phase, engine: Engine, tokens: int, smaller: str | None, error: str) -> str:
    settings, ranks, stage = phase.settings, engine.ranks, phase.settings.engine.zero_stage
    least = f"that is the least for data.seq_len={settings.data.seq_len}"
    if smaller is not None:
        cure = f"set engine.tokens_per_micro_batch={smaller}"
        cure += "; it changes only rounding and the masks of dropout"
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

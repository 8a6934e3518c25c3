"""What a model is shown, as one number: to compare two runs' data step by step.

The number does not depend on who holds which sequence: not on ranks, micro-batches, or their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import xxhash

if TYPE_CHECKING:
    from pretrain.data.train_loader import GlobalBatch

_MODULUS = 2**128


def batch_checksum(batch: GlobalBatch) -> int:
    """This rank's part of a global batch's checksum; `together` adds the parts up.

    The sum of its sequences' xxh3_128: of the batch's position in the stream, token ids (masks
    applied), segment ids, masked positions, labels and the pair's label. The batch must be on the
    CPU.
    """
    total = 0
    for micro_batch in batch.micro_batches:
        input_ids, segment_ids = micro_batch.input_ids.numpy(), micro_batch.segment_ids.numpy()
        positions = micro_batch.masked_positions.numpy()[: micro_batch.num_masked]
        labels = micro_batch.labels.numpy()
        borders = micro_batch.cu_seqlens.numpy()
        masks = np.searchsorted(positions, borders)
        pair_labels = micro_batch.next_sentence_labels.tolist()[: micro_batch.num_sequences]
        for i, pair_label in enumerate(pair_labels):
            start, end = borders[i], borders[i + 1]
            first, last = masks[i], masks[i + 1]
            sequence = np.concatenate(
                [
                    np.array([batch.position, end - start, last - first, pair_label], np.int64),
                    input_ids[start:end],
                    segment_ids[start:end],
                    positions[first:last] - start,
                    labels[first:last],
                ]
            )
            total += xxhash.xxh3_128_intdigest(sequence.tobytes())
    return total % _MODULUS


def together(parts: Iterable[int]) -> str:
    """One checksum of several ranks' parts, or of several batches: 32 hexadecimal digits."""
    return f"{sum(parts) % _MODULUS:032x}"

"""Self-attention over a packed row: tokens see their own sequence only.

A packed row holds whole sequences end to end, so the attention matrix is block-diagonal. One call a
sequence computes exactly the blocks: no mask, no padding, no value that could overflow in half
precision, and nothing of a neighbour can leak. What replaces it with one kernel over all blocks
keeps the signature of `attention`.

Shapes: T tokens of the packed row, N sequences, H heads, K head dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from pretrain.batches.packing import PackedBatch


def attention(qkv: Tensor, batch: PackedBatch, dropout_p: float) -> Tensor:
    """softmax(QK' / sqrt(K)) V inside each sequence, dropout on the probabilities.

    `qkv` is (T, 3, H, K), queries, keys and values; the result is (T, H * K) of the same type.
    Devlin et al. 2018, section 3; Vaswani et al. 2017, section 3.2.
    """
    blocks = [_one_sequence(block, dropout_p) for block in torch.split(qkv, batch.lengths)]
    return torch.cat(blocks).flatten(1)


def _one_sequence(qkv: Tensor, dropout_p: float) -> Tensor:
    """Attention of one sequence of L tokens: (L, 3, H, K) to (L, H, K)."""
    q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(
        1
    )  # each (1, H, L, K): four axes take the fast path
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)[0].transpose(0, 1)

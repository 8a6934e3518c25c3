"""Tiny models whose gradients are reduced in several buckets during the backward pass, as those of
large models are."""

from collections.abc import Sequence

import torch

from pretrain.engine.zero1 import LeanZero
from pretrain.optim import buckets as buckets_module


def use_several_buckets(elements: int) -> None:
    """Call it in a process of its own: it stays so. With one rank there is one bucket."""
    buckets_module.BUCKET_ELEMENTS = elements
    make = LeanZero._make_buckets

    def checked(self: LeanZero, of_runs: Sequence[Sequence[int]]) -> None:
        assert len(of_runs) > 2 or torch.distributed.get_world_size() == 1, (
            "one bucket hides nothing"
        )
        make(self, of_runs)

    LeanZero._make_buckets = checked

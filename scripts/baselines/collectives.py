"""Count the collectives of ranks at torch's call of the process group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Per operator of torch: the kind, and how often (n - 1) / n of all bytes are sent one way
KINDS = {
    "allreduce_": ("all-reduce", 2),
    "_allreduce_base_": ("all-reduce", 2),
    "reduce_": ("reduce", 1),
    "broadcast_": ("broadcast", 1),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
    "reduce_scatter_": ("reduce-scatter", 1),
    "_allgather_base_": ("all-gather", 1),
    "allgather_": ("all-gather", 1),
    "barrier": ("barrier", 0),
}


@dataclass
class Calls:
    """Collectives of one kind."""

    calls: int = 0
    bytes: int = 0  # of whole tensors: before a reduce-scatter, after an all-gather
    one_way: int = 0  # bytes sent one way; an all-reduce counts twice


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that counts this rank's collectives by kind. An unknown kind raises KeyError."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kinds: dict[str, Calls] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            kind, ways = KINDS[func._schema.name.removeprefix("c10d::")]
            tensors = list(_tensors(args[:2]))
            size = max((t.nbytes for t in tensors), default=0)
            if func._schema.name == "c10d::allreduce_":  # a list of tensors reduced together
                size = sum(t.nbytes for t in tensors)
            seen = self.kinds.setdefault(kind, Calls())
            seen.calls += 1
            seen.bytes += size
            seen.one_way += ways * size
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)

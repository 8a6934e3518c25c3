"""Buckets: the parameters whose gradients are reduced, and whose weights are gathered, together.

Plans use this, too: no torch here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

# Large enough for the bandwidth of links and networks (100 MB in fp32, two layers of BERT-large),
# small enough that little is left to reduce when the backward pass ends
BUCKET_ELEMENTS = 25_000_000


def runs(groups: Sequence[Mapping[str, int]], num_ranks: int) -> list[list[list[str]]]:
    """Cut each parameter group, in the model's order, into runs of about a bucket.

    `groups` are elements by parameter. A model of no more than one bucket is not cut, nor that of
    one rank. Others are cut between modules and from the end, since gradients come in that order;
    the embeddings stay by themselves, because their gradients come last.
    """
    elements = sum(itertools.chain(*(sizes.values() for sizes in groups)))
    is_cut = elements > BUCKET_ELEMENTS and num_ranks > 1
    return [_runs(sizes) if is_cut else [[*sizes]] for sizes in groups]


def _runs(sizes: Mapping[str, int]) -> list[list[str]]:
    found: list[list[str]] = []
    elements = 0
    modules = [(module, [*names]) for module, names in itertools.groupby(sizes, module_of)]
    for module, names in reversed(modules):
        if not found or elements >= BUCKET_ELEMENTS or module == "embeddings":
            found.insert(0, [])
            elements = 0
        found[0][:0] = names
        elements += sum(sizes[name] for name in names)
    return found


def buckets(groups: Sequence[Sequence[Sequence[str]]], names: Iterable[str]) -> list[list[int]]:
    """Which runs are reduced together: their places in the list of all, as a backward pass ends.

    `groups` are those of `runs`, `names` all parameters in the model's order. The gradients of a
    run are complete once that of its first module is.
    """
    of_all = list(itertools.chain(*groups))
    if len(of_all) == len(groups):  # nothing is cut
        return [[*range(len(groups))]]
    order = {module: place for place, module in enumerate(dict.fromkeys(map(module_of, names)))}
    last = [order[module_of(run[0])] for run in of_all]
    backward = sorted(range(len(of_all)), key=lambda index: (-last[index], index))
    return [[*same] for _, same in itertools.groupby(backward, lambda index: last[index])]


def module_of(name: str) -> str:
    """The module of a parameter that runs as one: the embeddings, a layer, a head."""
    first, second, *_ = name.split(".")
    return f"{first}.{second}" if first == "layers" else first

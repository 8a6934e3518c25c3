"""Dealing sequences to ranks and micro-steps by length.

The longest sequence first, each to the bin with the fewest tokens (LPT: Graham, "Bounds on
multiprocessing timing anomalies", 1969). A pure function of the lengths: every rank computes the
whole deal for itself and nothing is communicated. Tokens are balanced, not their squares (the cost
of attention); from 16 sequences per bin on, the squares are then within 1 % as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from data_prep.stores.shard_records import ShardsManifest
from pretrain.config.settings import Settings

# the bin of each sequence, and the tokens of each bin
Bins = tuple[NDArray[np.int64], NDArray[np.int64]]


class Deal(Sequence[list[NDArray[np.int64]]]):
    """The sequences of each micro-batch: [rank][micro_step] -> ascending indices, int64."""

    def __init__(self, bins: Bins, num_ranks: int) -> None:
        """Rank r holds the bins r, r + num_ranks, ..."""
        bin_of, tokens = bins
        self._num_ranks = num_ranks
        self._members = np.empty(len(bin_of), np.int64)
        self._ends = np.cumsum(np.bincount(bin_of, minlength=len(tokens)))
        self.most_tokens = int(tokens.max())  # of the fullest bin
        _group(bin_of, self._ends, self._members)

    def __len__(self) -> int:
        return self._num_ranks

    def __getitem__(self, rank: Any) -> Any:
        if not 0 <= rank < self._num_ranks:
            raise IndexError(rank)
        bins = range(rank, len(self._ends), self._num_ranks)
        return [self._members[self._ends[b - 1] if b else 0 : self._ends[b]] for b in bins]


def deal(lengths: NDArray[np.int64], num_ranks: int, token_budget: int) -> Deal:
    """Deal N sequences of (N,) lengths in tokens.

    Every rank gets the same number of micro-steps, the smallest with which no micro-batch exceeds
    `token_budget` tokens; none is empty. (The smallest of the first eight tried; beyond, where
    sequences are nearly as long as the budget, the smallest that bisection finds.) Raises
    ValueError if that is impossible (`check_dealable` finds out beforehand).
    """
    if len(lengths) < num_ranks or lengths.min() < 1 or lengths.max() > token_budget:
        raise ValueError(
            f"{len(lengths)} sequences of {lengths.min(initial=0)} to {lengths.max(initial=0)} "
            f"tokens cannot be dealt to {num_ranks} ranks in micro-batches of {token_budget} tokens"
        )
    order = _longest_first(lengths)
    fewest = -(-int(lengths.sum()) // (num_ranks * token_budget))
    most = len(lengths) // num_ranks

    bins: dict[int, Bins] = {}

    def fits(num_micro_steps: int) -> bool:
        bins[num_micro_steps] = dealt = _lpt(lengths, order, num_ranks * num_micro_steps)
        return int(dealt[1].max()) <= token_budget

    found = _first(fits, fewest, most)
    if found is None:
        raise ValueError(
            f"{len(lengths)} sequences of up to {lengths.max()} tokens leave a rank of {num_ranks} "
            f"without one in some micro-step of {token_budget} tokens; set "
            f"engine.tokens_per_micro_batch={2 * int(lengths.max())} or optim.global_batch to a "
            f"multiple of {num_ranks}"
        )
    return Deal(bins[found], num_ranks)


def longest_prefix(lengths: NDArray[np.int64], num_bins: int, token_budget: int) -> int:
    """How many of the first of (N,) lengths fill `num_bins` bins of `token_budget` tokens each.

    As many as LPT deals into them, found from above in growing strides and then by bisection: a
    pure function of the lengths, at least `num_bins`. They should be more than the bins can hold.
    """
    ends = np.cumsum(lengths)
    above = int(np.searchsorted(ends, num_bins * token_budget, side="right"))
    mean = max(1, int(ends[-1]) // len(lengths))
    order = _longest_first(lengths[:above])

    def over(count: int) -> int:
        """Tokens by which the fullest bin exceeds its budget."""
        return int(_lpt(lengths, order[order < count], num_bins)[1].max()) - token_budget

    fitting, stride = above, 1
    while fitting > num_bins and (excess := over(fitting)) > 0:
        above = fitting
        # drop as many sequences as would empty every bin by a quarter of the excess
        stride = max(2 * stride, excess * num_bins // (4 * mean))
        fitting = max(num_bins, fitting - stride)
    while above - fitting > 1:
        middle = (above + fitting) // 2
        fitting, above = (middle, above) if over(middle) <= 0 else (fitting, middle)
    return fitting


def deal_prefix(lengths: NDArray[np.int64], num_ranks: int, num_bins: int) -> Deal:
    """Deal what `longest_prefix` found to any number of ranks that divides the bins."""
    return Deal(_lpt(lengths, _longest_first(lengths), num_bins), num_ranks)


def _first(fits: Callable[[int], bool], first: int, last: int) -> int | None:
    """The first number from `first` to `last` that fits; None if the last does not."""
    below, number, stride = first - 1, first, 1
    while number <= last and not fits(number):
        if number == last:
            return None
        below = number
        stride = 1 if number - first < 8 else 2 * stride
        number = min(last, number + stride)
    while number - below > 1 and stride > 1:
        middle = (below + number) // 2
        below, number = (below, middle) if fits(middle) else (middle, number)
    return number if number <= last else None


def _longest_first(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) the order of descending length; ties keep their order."""
    # numpy radix-sorts 16-bit numbers, and no example has more than 65,535 tokens
    return np.argsort((65_535 - lengths).astype(np.uint16), kind="stable")


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _lpt(lengths: NDArray[np.int64], order: NDArray[np.int64], num_bins: int) -> Bins:
    """The bin of each sequence in `order`, and the tokens of each bin. Ties go to the lower bin.

    With at least as many sequences as bins no bin is empty: an empty one has the fewest tokens.
    """
    heap = np.arange(num_bins)  # min-heap of tokens << 24 | bin
    bin_of = np.empty(len(lengths), np.int64)
    for place in order:
        bin_of[place] = heap[0] & 0xFFFFFF
        value, hole = heap[0] + (lengths[place] << 24), 0
        while True:
            child = 2 * hole + 1
            if child + 1 < num_bins and heap[child + 1] < heap[child]:
                child += 1
            if child >= num_bins or heap[child] >= value:
                break
            heap[hole] = heap[child]
            hole = child
        heap[hole] = value
    tokens = np.empty(num_bins, np.int64)
    for value in heap:
        tokens[value & 0xFFFFFF] = value >> 24
    return bin_of, tokens


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _group(bin_of: NDArray[np.int64], ends: NDArray[np.int64], members: NDArray[np.int64]) -> None:
    """Fill `members` with each bin's sequences, ascending, bin after bin; bins end at `ends`."""
    at = np.zeros(len(ends), np.int64)
    at[1:] = ends[:-1]
    for i in range(len(bin_of)):
        members[at[bin_of[i]]] = i
        at[bin_of[i]] += 1


def fullest(settings: Settings, num_ranks: int) -> int:
    """Most tokens that a micro-batch can have: the token budget, unless a step has fewer."""
    budget, seq_len = settings.engine.tokens_per_micro_batch, settings.data.seq_len
    if settings.optim.tokens_per_step is not None:
        return budget
    return most_tokens(settings.optim.global_batch, num_ranks, seq_len, budget)


def most_tokens(num_sequences: int, num_ranks: int, seq_len: int, token_budget: int) -> int:
    """Most tokens in a micro-batch of `deal`.

    Each sequence goes to the bin with the fewest tokens. So the fullest one had at most an equal
    share of the others before it got its last.
    """
    return min(token_budget, (num_sequences - 1) * seq_len // num_ranks + seq_len)


def micro_steps(settings: Settings, manifest: ShardsManifest, world_size: int) -> int:
    """Micro-batches per rank and step, at the mean length of the manifest's training examples."""
    train = manifest.splits["train"]
    return micro_steps_of_chunk(settings, train.tokens / train.rows, world_size)


def micro_steps_of_chunk(settings: Settings, mean_length: float, world_size: int) -> int:
    budget = settings.engine.tokens_per_micro_batch
    if settings.optim.tokens_per_step is not None:
        return settings.optim.tokens_per_step // (world_size * budget)
    tokens_per_rank = settings.optim.global_batch * mean_length / world_size
    return max(1, -int(-tokens_per_rank // budget))

"""Dealing a global batch to ranks and micro-steps by length.

The longest sequence first, each to the bin with the fewest tokens (LPT: Graham, "Bounds on
multiprocessing timing anomalies", 1969). A pure function of the lengths: every rank computes the
whole deal for itself and nothing is communicated.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from data_prep.configuration import SettingsError


def check_dealable(global_batch: int, num_ranks: int, token_budget: int, seq_len: int) -> None:
    """Refuse, before a run, what `deal` could not deal without an empty micro-batch.

    With the longest sequences a bin of one sequence is full below a budget of 2 x seq_len, and
    then `global_batch` bins are needed, on every rank the same number. Raises SettingsError.
    """
    if global_batch < num_ranks:
        raise SettingsError(
            f"optim.global_batch={global_batch} sequences cannot be dealt to {num_ranks} ranks, "
            f"each of which needs one at least; set optim.global_batch={num_ranks} or more"
        )
    if token_budget < seq_len:
        raise SettingsError(
            f"engine.tokens_per_micro_batch={token_budget} cannot hold one sequence of data.seq_len="
            f"{seq_len} tokens; set engine.tokens_per_micro_batch={seq_len} or more"
        )
    if global_batch % num_ranks and token_budget < 2 * seq_len:
        raise SettingsError(
            f"optim.global_batch={global_batch} is not a multiple of {num_ranks} ranks, and "
            f"engine.tokens_per_micro_batch={token_budget} may hold one sequence of data.seq_len="
            f"{seq_len} tokens only, so that a rank could be left without one; set "
            f"engine.tokens_per_micro_batch={2 * seq_len} or "
            f"optim.global_batch={global_batch - global_batch % num_ranks}"
        )


def deal(
    lengths: NDArray[np.int64], num_ranks: int, token_budget: int
) -> list[list[NDArray[np.int64]]]:
    """Deal N sequences of (N,) lengths in tokens: [rank][micro_step] -> ascending indices, int64.

    Every rank gets the same number of micro-steps, the smallest with which no micro-batch exceeds
    `token_budget` tokens; none is empty. Raises ValueError where that cannot be
    (`check_dealable` tells beforehand).
    """
    if len(lengths) < num_ranks or lengths.min() < 1 or lengths.max() > token_budget:
        raise ValueError(
            f"{len(lengths)} sequences of {lengths.min(initial=0)} to {lengths.max(initial=0)} tokens "
            f"cannot be dealt to {num_ranks} ranks in micro-batches of {token_budget} tokens"
        )
    fewest = -(-int(lengths.sum()) // (num_ranks * token_budget))
    for num_micro_steps in range(fewest, len(lengths) // num_ranks + 1):
        num_bins = num_ranks * num_micro_steps
        bin_of, most_tokens = _longest_first(lengths, num_bins)
        if most_tokens <= token_budget:
            by_bin = np.argsort(bin_of, kind="stable")
            borders = np.cumsum(np.bincount(bin_of, minlength=num_bins))[:-1]
            bins = np.split(by_bin, borders)
            return [bins[rank::num_ranks] for rank in range(num_ranks)]
    raise ValueError(
        f"{len(lengths)} sequences of up to {lengths.max()} tokens leave a rank of {num_ranks} without "
        f"one in some micro-step of {token_budget} tokens; set engine.tokens_per_micro_batch="
        f"{2 * int(lengths.max())} or optim.global_batch to a multiple of {num_ranks}"
    )


def _longest_first(lengths: NDArray[np.int64], num_bins: int) -> tuple[NDArray[np.int64], int]:
    """The bin of each sequence and the tokens of the fullest bin. Ties go by index.

    With at least as many sequences as bins none stays empty: an empty one has the fewest tokens.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    heap = [(0, index) for index in range(num_bins)]  # ascending, so already a heap
    chosen = []
    for length in lengths[longest_first].tolist():
        tokens, index = heap[0]
        chosen.append(index)
        heapq.heapreplace(heap, (tokens + length, index))
    bin_of = np.empty(len(lengths), dtype=np.int64)
    bin_of[longest_first] = chosen
    return bin_of, max(heap)[0]

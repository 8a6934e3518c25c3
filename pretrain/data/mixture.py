"""A mixture: the stream of examples with a set share from each source.

Which source is at a place of the stream is decided by the place alone. The numbers

    (place * STEP + offset) mod 2**32,    STEP = 2**32 / golden ratio, made odd

are spread over [0, 2**32) more evenly than by chance, at any length (Weyl's sequence: Knuth, "The
Art of Computer Programming", volume 3, section 6.4). Each source has a part of this range that is
as long as its share. So in any stretch of the stream, a batch or an epoch, a source has its share
of the examples but for a few, and in 2**32 places exactly. How many places before one belong to a
source is a sum of floors, which Euclid's algorithm finds in some 45 divisions: seeking is free.

Each source has an order of its own (`ExampleOrder`), so each of its examples comes once before any
comes twice.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numba
import numpy as np
from numpy.typing import NDArray

from data_prep.core.config import SettingsError
from data_prep.stores.shard_reader import Shards
from pretrain.config.settings import DataSettings
from pretrain.data.corpus import folder_of
from pretrain.data.shuffle import ExampleOrder, epoch_keys, keyed_hash, permuted

STEP = 0x9E3779B9  # odd, so that 2**32 places meet every number once
RANGE = 1 << 32
LEAST_SHARE = 1e-7  # 429 numbers of the range, so that a share is exact to 0.2 % of itself


@dataclass(frozen=True)
class Source:
    """The examples of one source in a split."""

    name: str
    ranges: list[tuple[int, int]]  # [first, end) of its example numbers, ascending
    num_tokens: int

    @property
    def num_examples(self) -> int:
        return sum(end - first for first, end in self.ranges)

    @property
    def mean_length(self) -> float:
        """Tokens per example."""
        return self.num_tokens / self.num_examples


def sources_of(shards: Shards) -> list[Source]:
    """The sources of a split's examples, by name; the head of every shard is read.

    A source without examples is none. Raises SettingsError if a head cannot be read.
    """
    ranges: dict[str, list[tuple[int, int]]] = {}
    tokens: Counter[str] = Counter()
    entries, first = shards.manifest.splits[shards.split].shards, 0
    for entry, name in zip(entries, shards.sources(range(len(entries))), strict=True):
        of_source, end = ranges.setdefault(name, []), first + entry.rows
        if of_source and of_source[-1][1] == first:
            of_source[-1] = (of_source[-1][0], end)
        elif entry.rows:
            of_source.append((first, end))
        tokens[name] += entry.tokens
        first = end
    return [Source(name, each, tokens[name]) for name, each in sorted(ranges.items()) if each]


def shares_of(data: DataSettings, sources: Sequence[Source]) -> list[Fraction]:
    """The share of each source; together they are 1.

    `data.mixture` has weights, in any unit; `data.mixture_temperature` is the exponent to which the
    numbers of examples are raised. Raises SettingsError, which lists the sources that there are,
    unless the weights name them all and no other.
    """
    if data.mixture is None:
        exponent = data.mixture_temperature
        assert exponent is not None, "the settings ask for a mixture"
        weights = [Fraction(float(source.num_examples) ** exponent) for source in sources]
    else:
        names = {source.name for source in sources}
        wrong = [f"{name!r} is no source of it" for name in sorted(data.mixture.keys() - names)]
        wrong += [f"{name!r} has no weight" for name in sorted(names - data.mixture.keys())]
        if wrong:
            raise SettingsError(
                f"data.mixture={_typed(data.mixture)}: {'; '.join(wrong)}; "
                f"{data.dir} has {_listed(sources)}"
            )
        weights = [Fraction(str(data.mixture[source.name])) for source in sources]
    shares = [weight / sum(weights) for weight in weights]
    for source, share in zip(sources, shares, strict=True):
        if share < LEAST_SHARE:
            raise SettingsError(
                f"{source.name} would have a share of {float(share):.1e} of the examples; give it "
                f"{LEAST_SHARE:g} or more in data.mixture, or prepare the data without it"
            )
    return shares


def check_mixture(data: DataSettings) -> None:
    """Raise SettingsError if a mixture does not fit the sources of the shards, which are there."""
    if data.is_mixed:
        shares_of(data, sources_of(Shards.open(folder_of(data), "train")))


def _typed(mixture: Mapping[str, float]) -> str:
    return "{" + ",".join(f"{name}:{weight:g}" for name, weight in mixture.items()) + "}"


def _listed(sources: Sequence[Source]) -> str:
    return ", ".join(f"{source.name} ({source.num_examples:,} examples)" for source in sources)


class MixedOrder:
    """The endless stream of a mixture; each example of a source once in each epoch of it."""

    def __init__(self, sources: Sequence[Source], shares: Sequence[Fraction], seed: int) -> None:
        """`shares` are those of the sources, and together 1."""
        self.sources, self.shares = list(sources), list(shares)
        self.orders = [
            ExampleOrder(source.num_examples, keyed_hash(f"order of {source.name}", seed))
            for source in sources
        ]
        ends = [round(RANGE * sum(shares[: number + 1])) for number in range(len(shares))]
        self._ends = np.array(ends, np.uint64)
        self._offset = np.uint64(keyed_hash("mixture", seed) % RANGE)
        self._seeds = tuple(order.seed for order in self.orders)
        self._sizes = np.array([order.num_examples for order in self.orders])
        self._half_bits = np.array([order.half_bits for order in self.orders])
        # Batches follow one another: the last place asked for, and the counts before it
        self._last = 0, np.zeros(len(shares), np.int64)
        # The examples in the order of their sources: where each source and each range begins there,
        # and what to add for an example's number
        ranges = [each for source in sources for each in source.ranges]
        lengths = [end - first for first, end in ranges]
        self._firsts = np.cumsum([0, *self._sizes[:-1]])
        self._range_firsts = np.cumsum([0, *lengths[:-1]])
        self._shifts = np.array([first for first, _ in ranges]) - self._range_firsts

    @classmethod
    def open(cls, shards: Shards, data: DataSettings, seed: int) -> MixedOrder:
        """That of the settings over the examples of a split.

        Raises SettingsError if they do not fit its sources, as `shares_of`.
        """
        sources = sources_of(shards)
        return cls(sources, shares_of(data, sources), seed)

    @property
    def mean_length(self) -> float:
        """Tokens per example of the mixture."""
        each = zip(self.shares, self.sources, strict=True)
        return sum(float(share) * source.mean_length for share, source in each)

    def examples(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epochs and example ids, (count,) int64 each, of the stream's places from `first` on.

        An epoch is that of the example's source.
        """
        places, of = self.places(first), np.empty(count, np.int64)
        after = places.copy()
        _assign(first, self._offset, self._ends, of, after)
        self._last = first + count, after
        first_epochs = places // self._sizes
        num_epochs = np.maximum(after - 1, places) // self._sizes - first_epochs + 1
        keys = _keys(self._seeds, tuple(first_epochs.tolist()), tuple(num_epochs.tolist()))
        key_rows = np.cumsum(num_epochs) - num_epochs - first_epochs
        epochs, ids = np.empty(count, np.int64), np.empty(count, np.int64)
        _mix(
            *(of, places, self._sizes, self._half_bits, keys, key_rows),
            *(self._firsts, self._range_firsts, self._shifts, epochs, ids),
        )
        return epochs, ids

    def passes(self, num_examples: float) -> dict[str, float]:
        """How often a stretch of the stream goes through each source."""
        each = zip(self.sources, self.shares, strict=True)
        return {s.name: num_examples * float(share) / s.num_examples for s, share in each}

    def places(self, position: int) -> NDArray[np.int64]:
        """(sources,) how many of the stream's first `position` places belong to each source."""
        last, places = self._last
        if position == last:
            return places.copy()
        below = np.empty(len(self._ends), np.int64)
        _count(position, self._offset, self._ends, below)
        below[1:] -= below[:-1].copy()
        return below


@functools.lru_cache(maxsize=8)
def _keys(
    seeds: tuple[int, ...], first_epochs: tuple[int, ...], num_epochs: tuple[int, ...]
) -> NDArray[np.uint64]:
    """The keys of each source's epochs, source after source."""
    return np.concatenate([*map(epoch_keys, seeds, first_epochs, num_epochs)])


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _assign(
    first: int,
    offset: np.uint64,
    ends: NDArray[np.uint64],
    of: NDArray[np.int64],
    places: NDArray[np.int64],
) -> None:
    """Fill `of` with the source of each place from `first` on, and add them up in `places`."""
    step, mask = np.uint64(STEP), np.uint64(RANGE - 1)
    number = (np.uint64(first) * step + offset) & mask
    for i in range(len(of)):
        of[i] = source = np.searchsorted(ends, number, side="right")
        places[source] += 1
        number = (number + step) & mask


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mix(
    of: NDArray[np.int64],
    places: NDArray[np.int64],
    sizes: NDArray[np.int64],
    half_bits: NDArray[np.int64],
    keys: NDArray[np.uint64],
    key_rows: NDArray[np.int64],
    firsts: NDArray[np.int64],
    range_firsts: NDArray[np.int64],
    shifts: NDArray[np.int64],
    epochs: NDArray[np.int64],
    ids: NDArray[np.int64],
) -> None:
    """Fill epochs and ids of places of these sources. `places`, in their own orders, go on.

    keys[key_rows[s] + epoch] are the keys of an epoch of source s.
    """
    for i in range(len(of)):
        source = of[i]
        size = sizes[source]
        epochs[i] = epoch = places[source] // size
        place = places[source] - epoch * size
        example = permuted(place, keys[key_rows[source] + epoch], half_bits[source], size)
        example = np.int64(example) + firsts[source]
        ids[i] = example + shifts[np.searchsorted(range_firsts, example, side="right") - 1]
        places[source] += 1


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count(
    position: int, offset: np.uint64, ends: NDArray[np.uint64], below: NDArray[np.int64]
) -> None:
    """Fill `below` with how many of the first `position` places have a number below each end.

    A number x is below an end if x and x + 2**32 - end have the same quotient by 2**32.
    """
    size = np.uint64(RANGE)
    rounds, rest = np.uint64(position) // size, np.uint64(position) % size
    whole = _floor_sum(rest, offset)
    for i in range(len(ends)):
        above = _floor_sum(rest, offset + size - ends[i]) - whole
        below[i] = np.int64(rounds * ends[i] + rest - above)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _floor_sum(count: np.uint64, start: np.uint64) -> np.uint64:
    """The sum of (STEP * i + start) // 2**32 over i below `count`, modulo 2**64.

    `count` is at most, and `start` below, 2**33. Unsigned: no product exceeds 64 bits.
    """
    one, total = np.uint64(1), np.uint64(0)
    step, size = np.uint64(STEP), np.uint64(RANGE)
    while True:
        if step >= size:
            total += count * (count - one) // np.uint64(2) * (step // size)
            step %= size
        if start >= size:
            total += count * (start // size)
            start %= size
        last = step * count + start
        if last < size:
            return total
        count, start = last // size, last % size
        step, size = size, step

"""Steps, sequences and tokens of each phase."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.config.settings import Padding, Settings
from pretrain.data.balancing import micro_steps_of_chunk
from pretrain.data.mask_rate import MaskRate
from pretrain.data.mixture import MixedOrder, Source
from pretrain.data.shuffle import ExampleOrder, order_seed
from pretrain.model.flops import Lengths

CHUNK = 1_000_000  # examples per lookup of lengths


@dataclass(frozen=True)
class LengthStats:
    """What a plan knows about the sequences of one `data.seq_len`."""

    rows: int | None  # None: there is no prepared data
    vocab_size: int
    lengths: Lengths
    each: NDArray[np.uint16] | None  # tokens of every example, if there are shards
    source: str  # where this is from; the plan prints it
    mixture: MixedOrder | None = None  # of any seed: its sources and shares


@dataclass(frozen=True)
class PhasePlan:
    """What a phase will consume or, if it has no last step, what one step will."""

    total_steps: int | None  # None: a budget of hours
    budget_hours: float | None
    sequences: int
    tokens: int
    epochs: float | None  # None: there is no prepared data
    passes: dict[str, float] | None  # over each source of a mixture; None: no mixture
    sequences_a_rank: float  # per step; an average if steps are counted in tokens
    tokens_per_step: int | None  # None: steps are counted in sequences
    micro_steps: int  # per rank and step
    fill: float  # mean share of the token budget that a micro-batch fills
    parameters: int
    world_size: int

    def line(self) -> str:
        """The plan as a line of text."""
        whole = f"{self.budget_hours} hours of training; a step"
        if self.total_steps is not None:
            whole = f"{self.total_steps:,} steps"
        if self.tokens_per_step is not None:
            whole += f" of {self.tokens_per_step:,} tokens"
        epochs = "" if self.epochs is None else f"{self.epochs:.2f} epochs over the data, "
        if self.passes is not None:
            of_each = ", ".join(f"{name} {n:,.2f}" for name, n in self.passes.items())
            epochs += f"of each source: {of_each}, "
        return (
            f"{whole}, {self.sequences:,} sequences, {self.tokens / 1e6:,.1f} M tokens, {epochs}"
            f"{self.micro_steps} micro-step(s) per step, {self.fill:.0%} full"
        )


def corpus_of(settings: Settings, has_data: bool = True) -> LengthStats:
    """The prepared data of data.seq_len, or without it what the `plan` settings assume."""
    data, assumed = settings.data, settings.plan
    folder = data.folder / f"len{data.seq_len}"
    if has_data and (folder / "manifest.json").exists():
        from data_prep.stores.shard_reader import Shards

        shards = Shards.open(folder, "train")
        train = shards.manifest.splits["train"]
        each = np.concatenate([
            shards.lengths(np.arange(first, min(first + CHUNK, train.rows))).astype(np.uint16)
            for first in range(0, train.rows, CHUNK)
        ])  # fmt: skip
        mean, masked = train.tokens / train.rows, train.masked_tokens / train.rows
        lengths = Lengths(mean, float(np.square(each, dtype=np.float64).mean()), masked)
        mixture = MixedOrder.open(shards, data, 0) if data.is_mixed else None
        if mixture is not None:
            lengths = _mixed_lengths(mixture, each, masked / mean)
        found = LengthStats(
            train.rows, shards.manifest.vocab_size, lengths, each, str(folder), mixture
        )
    else:
        mean, square = assumed.lengths.get(data.seq_len, [data.seq_len, data.seq_len**2])
        lengths = Lengths(mean, square, 0.15 * mean)
        missing = folder if has_data else "data= or data.dir="
        source = (
            f"no {missing}: mean length {mean:g} and {assumed.vocab_size:,} vocabulary entries "
            "assumed (plan.lengths, plan.vocab_size)"
        )
        found = LengthStats(None, assumed.vocab_size, lengths, None, source)
    if (rate := MaskRate.of(settings, mean := found.lengths.mean)) is not None:
        steps = settings.schedule.last_step or 0
        masked = mean * rate.mean(steps * settings.optim.sequences_per_step(mean))
        lengths = dataclasses.replace(found.lengths, masked=masked)
        found = dataclasses.replace(found, lengths=lengths)
    if assumed.padding is Padding.full:
        lengths = Lengths.full(data.seq_len, found.lengths.masked)
        source = f"{found.source}, padded to the full length"
        return dataclasses.replace(found, lengths=lengths, each=None, source=source)
    return found


def _mixed_lengths(mixture: MixedOrder, each: NDArray[np.uint16], masked_share: float) -> Lengths:
    """Mean lengths of a mixture, with this share of tokens masked."""
    square = sum(
        float(share) * float(np.square(_of(source, each), dtype=np.float64).mean())
        for share, source in zip(mixture.shares, mixture.sources, strict=True)
    )
    return Lengths(mixture.mean_length, square, masked_share * mixture.mean_length)


def _of(source: Source, each: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The lengths of a source's examples, in its own order."""
    return np.concatenate([each[first:end] for first, end in source.ranges])


def plan(
    settings: Settings, corpus: LengthStats, parameters: int, world_size: int, number: int
) -> PhasePlan:
    """The plan of phase `number` of a run with these settings, over `corpus`."""
    last_step = settings.schedule.last_step
    n = settings.optim.sequences_per_step(corpus.lengths.mean)
    steps = 1 if last_step is None else last_step
    sequences = round(steps * n)
    tokens_a_rank = n * corpus.lengths.mean / world_size
    micro = micro_steps_of_chunk(settings, corpus.lengths.mean, world_size)
    return PhasePlan(
        total_steps=last_step,
        budget_hours=settings.schedule.budget_hours,
        sequences=sequences,
        tokens=tokens_between(corpus, 0, sequences, order_seed(settings.run.seed, number)),
        epochs=None if corpus.rows is None else sequences / corpus.rows,
        passes=None if corpus.mixture is None else corpus.mixture.passes(sequences),
        sequences_a_rank=n / world_size,
        tokens_per_step=settings.optim.tokens_per_step,
        micro_steps=micro,
        fill=tokens_a_rank / (micro * settings.engine.tokens_per_micro_batch),
        parameters=parameters,
        world_size=world_size,
    )


def tokens_between(corpus: LengthStats, first: int, end: int, seed: int) -> int:
    """Tokens of the sequences [first, end) of a stream; exact if there are shards."""
    if corpus.each is None:
        return round((end - first) * corpus.lengths.mean)
    if corpus.mixture is None:
        streams = [(corpus.each, ExampleOrder(len(corpus.each), seed), first, end)]
    else:
        mixture = corpus.mixture
        order = MixedOrder(mixture.sources, mixture.shares, seed)
        lengths = [_of(source, corpus.each) for source in order.sources]
        streams = [*zip(lengths, order.orders, order.places(first), order.places(end), strict=True)]
    return sum(
        _tokens_before(each, order, int(end)) - _tokens_before(each, order, int(first))
        for each, order, first, end in streams
    )


def _tokens_before(each: NDArray[np.uint16], order: ExampleOrder, end: int) -> int:
    whole_epochs, rest = divmod(end, len(each))
    tokens = whole_epochs * int(each.sum(dtype=np.int64))
    for first in range(end - rest, end, CHUNK):
        ids = order.examples(first, min(CHUNK, end - first))[1]
        tokens += int(each[ids].sum(dtype=np.int64))
    return tokens

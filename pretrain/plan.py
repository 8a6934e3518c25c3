"""A run before it runs: its arithmetic, and on named hardware its memory, time, money and energy.

    python -m pretrain.plan +model=large recipe=nvidia_lamb cluster=dgx_a100 cluster.nodes=32

takes what `pretrain.run` takes, needs neither data nor GPU, and refuses what the run would refuse.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from data_prep.core.config import SettingsError, as_yaml, choices
from data_prep.core.files import read_json
from pretrain.config.phases import check_phases, phases_of
from pretrain.config.settings import Padding, Settings
from pretrain.planning.step_time import Lengths

HELP = """\
python -m pretrain.plan +model={model} [cluster={cluster}] [GROUP=NAME ...] [SETTING=VALUE ...] [json=true]

What a run will take: steps, tokens, memory, days, money, energy. Settings are those of pretrain.run, and
  cluster=NAME cluster.nodes=N   the hardware, in conf/cluster; without it this machine, which is measured
  plan.padding=full              as published runs do it; plan.lengths: where there is no prepared data
example: python -m pretrain.plan +model=large recipe=nvidia_lamb cluster=dgx_a100 cluster.nodes=32 engine=bf16
"""
CHUNK = 1_000_000  # examples whose lengths are looked up at a time


@dataclass(frozen=True)
class Corpus:
    """What a plan knows of the sequences of one length."""

    rows: int | None  # None: there is no prepared data
    vocab_size: int
    lengths: Lengths
    each: NDArray[np.uint16] | None  # tokens of every example, where the shards are there
    source: str  # where this is from, for whoever reads the plan


@dataclass(frozen=True)
class Plan:
    """What a phase will consume, or, without a last step, one of its steps."""

    total_steps: int | None  # None: a budget of hours
    budget_hours: float | None
    sequences: int
    tokens: int
    epochs: float | None  # None: nothing is known of the data
    sequences_a_rank: float  # in a step; about so many where steps are counted in tokens
    tokens_per_step: int | None  # None: steps are counted in sequences
    micro_steps: int  # a rank and step
    fill: float  # share of the token budget that the tokens of a micro-batch take, on the average
    parameters: int
    world_size: int

    def line(self) -> str:
        """The plan as a person reads it."""
        whole = f"{self.budget_hours} hours of training; a step"
        if self.total_steps is not None:
            whole = f"{self.total_steps:,} steps"
        if self.tokens_per_step is not None:
            whole += f" of {self.tokens_per_step:,} tokens"
        epochs = "" if self.epochs is None else f"{self.epochs:.2f} epochs over the data, "
        return (
            f"{whole}, {self.sequences:,} sequences, {self.tokens / 1e6:,.1f} M tokens, {epochs}"
            f"{self.micro_steps} micro-step(s) a step, {self.fill:.0%} full"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Plan from the command line. 0: planned; 1: it does not fit the memory; 2: wrong settings."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        print(HELP.format(model="|".join(choices("model")), cluster="|".join(clusters())), end="")
        return 0
    as_json = "json=true" in arguments
    typed = [a for a in arguments if a not in ("--cfg", "json=true", "json=false")]
    try:
        settings = load(typed)
        if "--cfg" in arguments:
            print(as_yaml(settings), end="")
            return 0
        from pretrain.planning.estimate import forecast

        found = forecast(settings)
    except SettingsError as error:
        print(f"pretrain.plan: {error}", file=sys.stderr)
        return 2
    if as_json:
        print(orjson.dumps(found.as_dict(), option=orjson.OPT_INDENT_2).decode())
    else:
        print("\n".join(found.lines()))
    return 0 if found.fits else 1


def clusters() -> list[str]:
    """The hardware that can be named."""
    return [name for name in choices("cluster") if name != "none"]


def load(typed: Sequence[str]) -> Settings:
    """Settings of a plan, checked for all of the cluster's ranks; this machine where none is named.

    Raises SettingsError as `pretrain.run` does on so many ranks, with the nearest number of nodes.
    """
    from pretrain import run

    names = {argument.split("=", 1)[0].lstrip("+") for argument in typed}
    if "cluster" not in names:
        typed = [*typed, "cluster=local"]
    settings, _ = run.load(typed, world_size=1)
    cluster = settings.cluster
    if cluster.gpu is None:
        raise SettingsError(f"cluster=none has no hardware; there are {', '.join(clusters())}")
    ranks = cluster.nodes * cluster.gpus_per_node
    try:
        check_phases(settings, ranks)
    except SettingsError as error:
        batch = min(phase.settings.optim.global_batch for phase in phases_of(settings))
        nodes = batch // cluster.gpus_per_node
        of_tokens = any(p.settings.optim.tokens_per_step is not None for p in phases_of(settings))
        if batch >= ranks or nodes < 1 or of_tokens:
            raise
        raise SettingsError(f"{error}, or cluster.nodes={nodes} or fewer") from error
    return settings


def corpus_of(settings: Settings) -> Corpus:
    """The prepared data of data.seq_len where it is there, else what `plan` assumes."""
    data, assumed = settings.data, settings.plan
    folder = Path(data.dir) / f"len{data.seq_len}"
    if (folder / "manifest.json").exists():
        from data_prep.stores.shards import Shards

        manifest: dict[str, Any] = read_json(folder / "manifest.json")
        train = manifest["splits"]["train"]
        shards = Shards.open(folder, "train")
        each = np.concatenate([
            shards.lengths(np.arange(first, min(first + CHUNK, train["rows"]))).astype(np.uint16)
            for first in range(0, train["rows"], CHUNK)
        ])  # fmt: skip
        mean, masked = train["tokens"] / train["rows"], train["masked_tokens"] / train["rows"]
        lengths = Lengths(mean, float(np.square(each, dtype=np.float64).mean()), masked)
        found = Corpus(train["rows"], manifest["vocab_size"], lengths, each, str(folder))
    else:
        mean, square = assumed.lengths.get(data.seq_len, [data.seq_len, data.seq_len**2])
        lengths = Lengths(mean, square, 0.15 * mean)
        source = f"no {folder}: mean length {mean:g} assumed (plan.lengths)"
        found = Corpus(None, assumed.vocab_size, lengths, None, source)
    if assumed.padding is Padding.full:
        lengths = Lengths.full(data.seq_len, found.lengths.masked)
        return Corpus(
            found.rows,
            found.vocab_size,
            lengths,
            None,
            f"{found.source}, padded to the full length",
        )
    return found


def plan(settings: Settings, corpus: Corpus, parameters: int, world_size: int, number: int) -> Plan:
    """The plan of phase `number` of a run, whose settings these are, over `corpus`."""
    last_step, n = (
        settings.schedule.last_step,
        settings.optim.sequences_per_step(corpus.lengths.mean),
    )
    steps = 1 if last_step is None else last_step
    sequences = round(steps * n)
    tokens_a_rank = n * corpus.lengths.mean / world_size
    micro = _micro_steps(settings, corpus.lengths.mean, world_size)
    return Plan(
        total_steps=last_step,
        budget_hours=settings.schedule.budget_hours,
        sequences=sequences,
        tokens=tokens_between(corpus, 0, sequences, order_seed(settings.run.seed, number)),
        epochs=None if corpus.rows is None else sequences / corpus.rows,
        sequences_a_rank=n / world_size,
        tokens_per_step=settings.optim.tokens_per_step,
        micro_steps=micro,
        fill=tokens_a_rank / (micro * settings.engine.tokens_per_micro_batch),
        parameters=parameters,
        world_size=world_size,
    )


def micro_steps(settings: Settings, manifest: dict[str, Any], world_size: int) -> int:
    """Micro-batches of a rank in a step, at the mean length of the manifest's training examples."""
    train = manifest["splits"]["train"]
    return _micro_steps(settings, train["tokens"] / train["rows"], world_size)


def _micro_steps(settings: Settings, mean_length: float, world_size: int) -> int:
    budget = settings.engine.tokens_per_micro_batch
    if settings.optim.tokens_per_step is not None:
        return settings.optim.tokens_per_step // (world_size * budget)
    tokens_a_rank = settings.optim.global_batch * mean_length / world_size
    return max(1, -int(-tokens_a_rank // budget))


def order_seed(run_seed: int, phase_number: int) -> int:
    """Seed of the order of examples in a phase."""
    return (run_seed + phase_number - 1) % 2**32


def tokens_between(corpus: Corpus, first: int, end: int, seed: int) -> int:
    """Tokens of the sequences [first, end) of a stream: exactly, where the shards are there."""
    if corpus.each is None:
        return round((end - first) * corpus.lengths.mean)
    return _tokens_before(corpus.each, end, seed) - _tokens_before(corpus.each, first, seed)


def _tokens_before(each: NDArray[np.uint16], end: int, seed: int) -> int:
    from pretrain.data.shuffle import ExampleOrder

    order = ExampleOrder(len(each), seed)
    whole_epochs, rest = divmod(end, len(each))
    tokens = whole_epochs * int(each.sum(dtype=np.int64))
    for first in range(end - rest, end, CHUNK):
        ids = order.examples(first, min(CHUNK, end - first))[1]
        tokens += int(each[ids].sum(dtype=np.int64))
    return tokens


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    sys.exit(main())

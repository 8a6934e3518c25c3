"""Which settings are tried after which, and the fastest of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_prep.core.config import as_overrides
from data_prep.core.records import Record
from pretrain.config.settings import Settings
from pretrain.data.balancing import most_tokens

LEAST_BUDGET = 2_048  # tokens per micro-batch: below, every machine is slow
MOST_BUDGET = 2**20
SLOWER = 0.97  # of the fastest budget so far: larger ones will not be faster again
_STEP = 1_024  # budgets between two others are multiples of it


@dataclass(frozen=True)
class Candidate:
    """The settings that are tried; none of them changes the result of a run."""

    tokens_per_micro_batch: int
    compile: bool
    activation_checkpointing: bool

    @property
    def settings(self) -> dict[str, Any]:
        """As a plain mapping for the file."""
        return {"engine": dict(vars(self))}

    @property
    def overrides(self) -> list[str]:
        """As they are typed."""
        return as_overrides(self.settings)


class Outcome(Record):
    """What a trial measured, or why it failed."""

    tokens_per_second: float = 0.0  # real tokens, all ranks, by the steps of the whole run
    peak_share: float | None = None  # of the devices' peak; None: it is not known
    memory_gb: float = 0.0  # peak of rank 0: of its GPU, or of its process on a CPU
    fault: str = ""
    is_too_large: bool = False  # it did not fit the memory


@dataclass
class Search:
    """Tries budgets upward, then activation checkpointing if memory was short, then the other
    compilation at the fastest."""

    budgets: Sequence[int]  # ascending
    compiles: Sequence[bool]  # the first is the usual one
    checkpointings: Sequence[bool]
    measure: Callable[[Candidate], Outcome]
    has_between: bool = True  # whether other budgets are allowed, too
    trials: dict[Candidate, Outcome] = field(default_factory=dict)

    def run(self) -> None:
        """Fill `trials`, in the order in which they were made."""
        usual, plain = self.compiles[0], self.checkpointings[0]
        is_short = self._climb(self.budgets, usual, plain)
        best = self.fastest
        if is_short and len(self.checkpointings) > 1:
            least = 0 if best is None else best.tokens_per_micro_batch + 1
            self._climb([b for b in self.budgets if b >= least], usual, self.checkpointings[1])
        best = self.fastest
        if best is not None and len(self.compiles) > 1:
            self._try(
                Candidate(
                    best.tokens_per_micro_batch, self.compiles[1], best.activation_checkpointing
                )
            )

    @property
    def fastest(self) -> Candidate | None:
        """The fastest of those that worked; None if none did."""
        working = [candidate for candidate, found in self.trials.items() if not found.fault]
        speed = {candidate: self.trials[candidate].tokens_per_second for candidate in working}
        return max(working, key=speed.__getitem__, default=None)

    def _try(self, candidate: Candidate) -> Outcome:
        if candidate not in self.trials:
            self.trials[candidate] = self.measure(candidate)
        return self.trials[candidate]

    def _climb(self, budgets: Iterable[int], compile: bool, checkpointing: bool) -> bool:
        """Try ascending budgets until they get slower or fail; whether memory was short."""
        fastest, last = 0.0, 0
        for budget in budgets:
            found = self._try(Candidate(budget, compile, checkpointing))
            if found.is_too_large:
                between = (last + budget) // 2 // _STEP * _STEP
                if last and last < between < budget and self.has_between:
                    self._try(Candidate(between, compile, checkpointing))
                return True
            if found.fault or found.tokens_per_second < SLOWER * fastest:
                return False
            fastest, last = max(fastest, found.tokens_per_second), budget
        return False


def budgets(settings: Settings, ranks: int) -> list[int]:
    """The token budgets to try: each twice the one before, to the first that no step fills.

    With optim.tokens_per_step those by whose micro-batches a step can be divided.
    """
    optim, seq_len = settings.optim, settings.data.seq_len
    least = LEAST_BUDGET
    while least < 2 * seq_len:
        least *= 2
    found = [least]
    while found[-1] < MOST_BUDGET:
        most = found[-1]
        if optim.tokens_per_step is None:
            if most_tokens(optim.global_batch, ranks, seq_len, MOST_BUDGET) <= most:
                break
        elif ranks * most >= optim.tokens_per_step:
            break
        found.append(2 * most)
    if (whole := optim.tokens_per_step) is not None:
        found = [b for b in found if whole % (ranks * b) == 0]
        found = found or [settings.engine.tokens_per_micro_batch]
    return found


def table(trials: dict[Candidate, Outcome], unit: str) -> list[str]:
    """The trials as lines, the fastest marked. `unit`: whose memory, GPU or host."""
    working = [found.tokens_per_second for found in trials.values() if not found.fault]
    best = max(working, default=0.0)
    rows = [f"{'tokens':>10}  compile  checkpointing  tokens/s  of peak  {unit} memory, GB"]
    for candidate, found in trials.items():
        settings = (
            f"{candidate.tokens_per_micro_batch:>10,}  {str(candidate.compile).lower():<7}  "
            f"{str(candidate.activation_checkpointing).lower():<13}  "
        )
        if found.fault:
            rows.append(settings + found.fault)
            continue
        share = "-" if found.peak_share is None else f"{found.peak_share:.1%}"
        mark = "  <- fastest" if found.tokens_per_second == best else ""
        numbers = f"{found.tokens_per_second:>8,.0f}  {share:>7}  {found.memory_gb:>14.2f}"
        rows.append(settings + numbers + mark)
    return rows

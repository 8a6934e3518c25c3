"""The order in which settings are tried, and the fastest of them, with made measurements."""

import pytest

from data_prep.core.config import compose
from pretrain.config.settings import Settings
from pretrain.tuning.search import Candidate, Outcome, Search, budgets, table

BUDGETS = [2048, 4096, 8192, 16384]


def searched(speeds, room, compiles=(True,), checkpointings=(False, True), of=BUDGETS) -> Search:
    """A search where speed is `speeds(candidate)`, and a budget above `room(candidate)` fails."""

    def measure(candidate: Candidate) -> Outcome:
        if candidate.tokens_per_micro_batch > room(candidate):
            return Outcome(fault="does not fit the memory", is_too_large=True)
        return Outcome(speeds(candidate), memory_gb=1.0)

    search = Search(of, compiles, checkpointings, measure)
    search.run()
    return search


def tried(search: Search) -> list[tuple[int, bool, bool]]:
    return [tuple(vars(candidate).values()) for candidate in search.trials]


def test_budgets_grow_until_they_get_slower() -> None:
    search = searched(lambda c: {2048: 10, 4096: 20, 8192: 18, 16384: 99}.get(*_budget(c)), _any)
    assert tried(search) == [(2048, True, False), (4096, True, False), (8192, True, False)]
    assert search.fastest == Candidate(4096, True, False)


def _budget(candidate: Candidate) -> tuple[int]:
    return (candidate.tokens_per_micro_batch,)


def _any(candidate: Candidate) -> int:
    return 10**9


def test_without_memory_one_in_between_is_tried_and_then_checkpointing() -> None:
    search = searched(
        lambda c: c.tokens_per_micro_batch * (0.7 if c.activation_checkpointing else 1),
        lambda c: 12_000 if c.activation_checkpointing else 7_000,
    )
    assert tried(search) == [
        (2048, True, False), (4096, True, False), (8192, True, False), (6144, True, False),
        (8192, True, True), (16384, True, True), (12288, True, True),
    ]  # fmt: skip
    assert search.fastest == Candidate(6144, True, False)


def test_where_nothing_fits_without_checkpointing_it_is_tried_from_the_least() -> None:
    search = searched(
        lambda c: c.tokens_per_micro_batch, lambda c: 3000 * c.activation_checkpointing
    )
    assert search.fastest == Candidate(2048, True, True)


def test_checkpointing_is_not_tried_where_memory_is_left() -> None:
    search = searched(lambda c: c.tokens_per_micro_batch, _any)
    assert not any(candidate.activation_checkpointing for candidate in search.trials)


def test_the_other_compilation_is_tried_at_the_fastest() -> None:
    search = searched(
        lambda c: c.tokens_per_micro_batch * (1 if c.compile else 1.5), _any, compiles=(True, False)
    )
    assert tried(search)[-1] == (16384, False, False)
    assert search.fastest == Candidate(16384, False, False)


def test_what_fails_for_another_reason_ends_the_budgets_and_is_in_the_table() -> None:
    outcomes = {2048: Outcome(100.0, 0.25, 3.0), 4096: Outcome(fault="no driver")}
    search = Search(BUDGETS, [False], [False], lambda c: outcomes[c.tokens_per_micro_batch])
    search.run()
    lines = table(search.trials, "GPU")
    assert "GPU memory, GB" in lines[0]
    assert "25.0%" in lines[1]
    assert lines[1].endswith("<- fastest")
    assert lines[2].endswith("no driver")


def test_if_nothing_works_there_is_no_fastest() -> None:
    assert searched(_any, lambda c: 0).fastest is None


@pytest.mark.parametrize(
    ("typed", "ranks", "expected"),
    [
        (["optim.global_batch=32"], 1, [2048, 4096]),
        (["optim.global_batch=32", "data.seq_len=512"], 4, [2048, 4096, 8192]),
        (["optim.global_batch=256"], 8, [2048, 4096, 8192]),
        (["optim.tokens_per_step=98304"], 2, [2048, 4096, 8192, 16384]),
        (["optim.tokens_per_step=6000", "engine.tokens_per_micro_batch=3000"], 2, [3000]),
    ],
)
def test_budgets_are_doubled_until_no_step_fills_them(typed, ranks, expected) -> None:
    settings, _ = compose("config", Settings, ["+model=tiny", *typed])
    assert budgets(settings, ranks) == expected

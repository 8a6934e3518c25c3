"""Garbage is collected at the records of the loop, after the same steps on all ranks."""

import gc
import weakref
from unittest.mock import MagicMock

import pytest

from pretrain.distributed.garbage import collected_by_calls
from pretrain.training.loop import Trainer, train


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_garbage_stays_until_the_call_whatever_is_allocated() -> None:
    with collected_by_calls():
        gone = weakref.ref(Node())
        _many = [[] for _ in range(100_000)]
        assert gone() is not None
        gc.collect()
        assert gone() is None


def test_what_there_was_before_is_left_out() -> None:
    before = weakref.ref(Node())
    with collected_by_calls():
        gc.collect()
        assert before() is not None


def test_an_exception_switches_the_collector_on_again() -> None:
    with pytest.raises(RuntimeError), collected_by_calls():
        raise RuntimeError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_record_collects_and_the_loop_collects_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, window, batch = MagicMock(), MagicMock(checksum=None), MagicMock(num_shapes=0)
    window.metrics.return_value = {"train/loss": 1.0}
    trainer.engine.trust_ratios.return_value = {}
    trainer.source_metrics.return_value = trainer._examples_seen.return_value = {}
    trainer.settings.schedule.budget_hours = trainer.expectation = None
    calls = []
    monkeypatch.setattr(gc, "collect", lambda: calls.append(gc.isenabled()))

    @collected_by_calls()
    def loop() -> None:
        Trainer.record(trainer, window, batch, MagicMock(grad_norm=0.0), 0.0)

    loop()
    assert calls == [False]
    assert hasattr(train, "__wrapped__"), "the loop runs in that context"

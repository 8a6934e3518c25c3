"""A rank's own time: by a clock on a CPU, by events without a wait on a GPU."""

import pytest
import torch

from pretrain.distributed.own_time import OwnTime


def test_it_is_the_mean_over_the_steps_since_the_last_record() -> None:
    moments = iter([0.0, 1.0, 5.0, 8.0, 10.0, 11.0])
    own = OwnTime(torch.device("cpu"), lambda: next(moments))
    for _ in range(2):
        with own:
            pass
    assert own.take() == 2.0
    with own:
        pass
    assert own.take() == 1.0
    assert own.take() == 0.0


def test_on_a_gpu_two_events_are_recorded_and_read_only_at_a_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("record")

        def elapsed_time(self, last: "Event") -> float:
            done.append("read")
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: pytest.fail("a wait"))
    own = OwnTime(torch.device("cuda"), lambda: pytest.fail("the host's clock"))
    for _ in range(3):
        with own:
            done.append("work")
    assert done == ["record", "work", "record"] * 3
    assert own.take() == 0.25
    assert done[9:] == ["read"] * 3
    assert own.take() == 0.0

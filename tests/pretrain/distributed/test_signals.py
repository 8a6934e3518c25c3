"""Signals only set a flag, also before torch is imported."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pretrain.distributed.signals import StopRequest


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield StopRequest.install()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nothing_is_requested_before_a_signal(stop: StopRequest) -> None:
    assert not stop.requested
    assert stop.signal_name is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_either_signal_only_sets_the_flag(stop: StopRequest, number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    assert stop.requested
    assert stop.signal_name == number.name


def test_the_first_signal_gives_the_name(stop: StopRequest) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal_name == "SIGUSR1"


def test_handlers_and_rank_are_there_before_torch_is_imported() -> None:
    code = (
        "import sys; from pretrain.distributed.ranks import environment_rank; "
        "from pretrain.distributed.signals import StopRequest; "
        "StopRequest.install(); environment_rank(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

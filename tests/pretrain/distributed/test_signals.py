"""Signals only set a flag, also before torch is imported; a second Ctrl-C ends the process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pretrain.distributed.signals import StopRequest


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    handled = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in handled}
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


def test_ctrl_c_raises_where_there_is_nothing_to_save(stop: StopRequest) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.was_interrupted


def test_ctrl_c_while_there_is_something_to_save_only_sets_the_flag(stop, capfd) -> None:
    stop.next_start = lambda: "step 900"
    with stop.saving():
        os.kill(os.getpid(), signal.SIGINT)
    assert (stop.requested, stop.signal_name, stop.was_interrupted) == (True, "SIGINT", True)
    line = "pretrain.run: saving after this step; Ctrl-C again ends at once, to continue from "
    assert capfd.readouterr().err == f"{line}step 900\n"


def test_what_a_launcher_passes_on_of_one_ctrl_c_is_no_second_one(stop: StopRequest) -> None:
    with stop.saving():
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
    assert stop.requested


@pytest.mark.parametrize(
    ("second", "status"),
    [("SIGINT", 130), ("SIGTERM", 130), ("SIGUSR1", 0)],
    ids=["again", "as torchrun passes it on", "the time limit"],
)
def test_a_second_ctrl_c_ends_the_process_though_it_is_saving(second: str, status: int) -> None:
    code = (
        "import os, signal; from pretrain.distributed import signals; signals._ONE_PRESS_S = 0; "
        "stop = signals.StopRequest.install(); stop.next_start = lambda: 'step 7'\n"
        "with stop.saving():\n"
        f"    for name in ('SIGINT', {second!r}): os.kill(os.getpid(), getattr(signal, name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status
    ended = "pretrain.run: ended at once; the same command continues from step 7\n"
    assert done.stderr.endswith(ended) == (status == 130)


def test_a_rank_that_prints_nothing_stays_silent(stop: StopRequest, capfd) -> None:
    stop.next_start = str
    with stop.saving():
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == ""


def test_handlers_and_rank_are_there_before_torch_is_imported() -> None:
    code = (
        "import sys; from pretrain.distributed.ranks import environment_rank; "
        "from pretrain.distributed.signals import StopRequest; "
        "StopRequest.install(); environment_rank(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

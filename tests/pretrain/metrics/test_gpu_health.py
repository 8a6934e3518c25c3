"""NVML through a stand-in for nvidia-ml-py; without the library or a GPU there is nothing."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.metrics.gpu_health import GpuHealth, Health

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


class NVMLError(Exception):
    pass


class Nvml:
    """What GpuHealth uses of pynvml, with one GPU. `unknown` are calls that it refuses."""

    NVML_CLOCK_SM, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 1, 1, 0
    nvmlEventTypeXidCriticalError = 8
    NVMLError = NVMLError

    def __init__(self, unknown: tuple[str, ...] = ()) -> None:
        self.unknown, self.asked = unknown, 0
        self.clock, self.reasons, self.ecc = 1980, 0x04 | 0x01, 0
        self.xids: list[int] = []

    def __getattribute__(self, name: str) -> Any:
        if name != "unknown" and name in self.unknown:

            def refused(*_: Any) -> Any:
                raise NVMLError("not supported")

            return refused
        return super().__getattribute__(name)

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-12ab"
        return uuid

    def nvmlDeviceGetClockInfo(self, gpu: str, kind: int) -> int:
        self.asked += 1
        return self.clock

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: str) -> int:
        return self.reasons

    def nvmlDeviceGetTotalEccErrors(self, gpu: str, kind: int, counter: int) -> int:
        return self.ecc

    def nvmlEventSetCreate(self) -> list[int]:
        return self.xids

    def nvmlDeviceRegisterEvents(self, gpu: str, kinds: int, events: list[int]) -> None:
        assert kinds == self.nvmlEventTypeXidCriticalError

    def nvmlEventSetWait_v2(self, events: list[int], timeout_ms: int) -> Any:
        assert timeout_ms == 0, "nothing is waited for"
        if not events:
            raise NVMLError("timeout")
        return SimpleNamespace(eventData=events.pop(0))


@pytest.fixture
def properties(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(uuid="12ab")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)


def test_clock_throttling_and_errors_are_read(properties, monkeypatch) -> None:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    moments = iter(range(0, 100, 10))
    health = GpuHealth(GPU, lambda: float(next(moments)))
    assert health.read() == Health(1980, 0x04)
    assert not health.read().is_throttled, "a power cap is usual"
    nvml.clock, nvml.reasons, nvml.ecc, nvml.xids[:] = 1100, 0x40, 2, [31, 63]
    found = health.read()
    assert found == Health(1100, 0x40, ecc_errors=2, xid=63)
    assert found.is_throttled
    assert found.why_throttled() == "temperature (hardware)"
    assert health.read().xid == 63, "kept"


def test_it_is_read_at_most_every_ten_seconds(properties, monkeypatch) -> None:
    nvml, clock = Nvml(), [0.0]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    health = GpuHealth(GPU, lambda: clock[0])
    for clock[0] in (0.0, 3.0, 9.9, 10.0):
        health.read()
    assert nvml.asked == 2


@pytest.mark.parametrize(
    "unknown",
    ["nvmlDeviceGetTotalEccErrors", "nvmlEventSetCreate", "nvmlDeviceRegisterEvents"],
)
def test_what_a_gpu_does_not_answer_is_left_out(unknown, properties, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml((unknown,)))
    assert GpuHealth(GPU).read() == Health(1980, 0x04)


@pytest.mark.parametrize("unknown", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_without_an_answer_of_the_driver_nothing_is_known(unknown, properties, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml((unknown,)))
    assert GpuHealth(GPU).read() == Health()


def test_without_the_library_nothing_is_known(properties, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # its import fails
    assert GpuHealth(GPU).read() == Health()


def test_on_a_cpu_the_library_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(("nvmlInit",)))
    assert GpuHealth(CPU).read() == Health()

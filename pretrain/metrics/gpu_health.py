"""A GPU's clock, why it is throttled, and its errors, by NVML where nvidia-ml-py is installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

READ_EVERY_S = 10.0  # a read takes milliseconds of the host
# Bits of nvmlDeviceGetCurrentClocksEventReasons. A power cap is usual under load
_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "temperature (driver)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
_USUAL = 0x04


@dataclass(frozen=True)
class Health:
    """What NVML answers; 0 where it does not know."""

    clock_mhz: int = 0  # of the multiprocessors
    reasons: int = 0  # bits of _REASONS
    ecc_errors: int = 0  # uncorrected, since the driver was loaded
    xid: int = 0  # the last critical error of this process's time

    @property
    def is_throttled(self) -> bool:
        """Whether heat or power supply slow the GPU down, beyond its usual power cap."""
        return bool(self.reasons & ~_USUAL)

    def why_throttled(self) -> str:
        """The reasons in words; "" if there are none."""
        return ", ".join(text for bit, text in _REASONS.items() if self.reasons & bit)


class GpuHealth:
    """Reads one GPU's health, at most every READ_EVERY_S; always Health() on a CPU, without the
    library, or where the driver does not answer."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._last, self._health = now, -READ_EVERY_S, Health()
        self._nvml: Any = None
        if device.type == "cuda":
            self._open(device)

    def read(self) -> Health:
        """The health of late."""
        if self._nvml is not None and self._now() - self._last >= READ_EVERY_S:
            self._last = self._now()
            nvml, gpu = self._nvml, self._gpu
            reasons = self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu)
            self._health = Health(
                clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_SM),
                reasons=reasons & sum(_REASONS),
                ecc_errors=self._ask(
                    nvml.nvmlDeviceGetTotalEccErrors, gpu,
                    nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC,
                ),
                xid=self._new_xid() or self._health.xid,
            )  # fmt: skip
        return self._health

    def _open(self, device: torch.device) -> None:
        try:
            import pynvml
        except ImportError:
            return
        import torch

        uuid = str(torch.cuda.get_device_properties(device).uuid)
        try:
            pynvml.nvmlInit()
            self._gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
        except pynvml.NVMLError:  # a MIG slice, or no driver that it knows
            return
        self._nvml, self._events = pynvml, None
        try:
            events = pynvml.nvmlEventSetCreate()
            kind = pynvml.nvmlEventTypeXidCriticalError
            pynvml.nvmlDeviceRegisterEvents(self._gpu, kind, events)
            self._events = events
        except pynvml.NVMLError:
            pass

    def _ask(self, question: Callable[..., int], *arguments: Any) -> int:
        try:
            return int(question(*arguments))
        except self._nvml.NVMLError:  # not on this GPU, or not now
            return 0

    def _new_xid(self) -> int:
        """The last critical error since the last call; 0 if there was none. Waits for nothing."""
        xid = 0
        while self._events is not None:
            try:
                xid = int(self._nvml.nvmlEventSetWait_v2(self._events, 0).eventData)
            except self._nvml.NVMLError:  # the timeout of 0 ms: no further event
                break
        return xid

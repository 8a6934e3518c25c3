"""The device of a rank: asked for by engine.device, found once, before DeepSpeed is imported."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# First driver of a CUDA version (docs.nvidia.com/deploy/cuda-compatibility)
_DRIVERS = {11: 450, 12: 525, 13: 580}
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # one setting, now and formerly
# OpenMP of GCC, which torch's wheels for Linux have (gcc.gnu.org/onlinedocs/libgomp)
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_PCI_DEVICES = Path("/sys/bus/pci/devices")
_THREADS = Path("/proc/self/task")


@functools.cache
def cuda_is_usable() -> bool:
    """Whether CUDA starts and finds a GPU: one answer per process.

    `import deepspeed` makes torch ask NVML from then on, which sees GPUs that an old driver cannot
    use. That question is not asked here, whoever set the variable.
    """
    import torch

    before = os.environ.pop(_NVML_CHECK, None)
    try:
        return torch.cuda.is_available()
    finally:
        if before is not None:
            os.environ[_NVML_CHECK] = before


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """The device of this process for engine.device=auto, cuda or cpu; DeepSpeed takes the same.

    The CPU if there is no usable GPU: `why_no_cuda` then says whether and why that is wrong.
    """
    import torch

    if wanted == "cpu" or not cuda_is_usable():
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
        return torch.device("cpu")
    # a task that Slurm shows only one GPU finds it under number 0, whatever its local rank
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def use_expandable_segments() -> None:
    """Let the allocator of GPU memory grow its segments, unless the variables say otherwise.

    Micro-batches have many sizes, which otherwise leave gaps between segments that no later one
    fits. Before torch is imported.
    """
    if not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"


def let_waiting_threads_sleep() -> None:
    """Let OpenMP's threads spin for a tenth of its default, unless the variables say how long.

    For 300,000 turns a thread that waits keeps a core, which the thread waited for may need where
    other programs use the cores, too (docs/log.md, 2026-11-30). Before torch is imported.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ[_WAITING[0]] = "30000"


def bind_to_gpu(device: torch.device) -> set[int]:
    """Run this process's threads on the CPUs next to its GPU; returns them, or none if it does not.

    Slurm deals tasks to sockets in turn, so that half the ranks of a node with two have their CPUs
    and memory on the other side. Nothing changes on a CPU, where all CPUs are near, where the
    process is bound to near ones already, or where its job has none of them.
    """
    import torch

    if device.type != "cuda":
        return set()
    gpu: Any = torch.cuda.get_device_properties(device)
    address = f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
    try:
        near = _cpus((_PCI_DEVICES / address / "local_cpulist").read_text())
        if not near or os.sched_getaffinity(0) <= near:
            return set()
        for thread in _THREADS.iterdir():
            os.sched_setaffinity(int(thread.name), near)
    except (OSError, ValueError):  # not shown in a container, or the job has no CPU there
        return set()
    return near


def _cpus(ranges: str) -> set[int]:
    """The numbers of a list such as 0-3,8."""
    found: set[int] = set()
    for part in filter(None, ranges.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def why_on_cpu() -> str:
    """Why a run that takes a GPU where there is one has none; without a cure on a plain machine."""
    import torch

    if _driver() is None and "SLURM_JOB_ID" not in os.environ:
        return f"this machine has no NVIDIA driver (torch {torch.__version__})"
    return why_no_cuda()


def why_no_cuda() -> str:
    """Why this process has no usable GPU, with the cure; what torch, driver and Slurm answer."""
    import torch

    driver, needed = _driver(), _needed_driver(torch.version.cuda)
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built without CUDA; install torch=="
            f"{torch.__version__.partition('+')[0]} from a package index whose wheels have CUDA"
        )
    facts = f"{_driver_name(driver)}; torch {torch.__version__} is built for CUDA " + (
        f"{torch.version.cuda}, which needs driver {needed} or newer; {_environment(os.environ)}"
    )
    if driver is None:
        cure = (
            "start on a node with GPUs (sbatch --gpus-per-node=N), and show them to a container "
            "(apptainer exec --nv, docker run --gpus all)"
        )
    elif int(driver.partition(".")[0]) < needed:
        cure = "update the driver of that node, or install a torch that is built for an older CUDA"
    elif _has_no_gpus(os.environ):
        cure = "ask for GPUs (sbatch --gpus-per-node=N), and leave CUDA_VISIBLE_DEVICES as it is"
    else:
        cure = f"look at nvidia-smi on that node; torch: {_reason()}"
    return f"{facts}; {cure}"


def _driver() -> str | None:
    """The version of this host's NVIDIA driver; None if there is none, as in a CPU container."""
    try:
        found = re.search(r"(\d+\.[\d.]+)", _DRIVER_FILE.read_text(errors="replace"))
    except OSError:
        return None
    return found and found[1]


def _driver_name(driver: str | None) -> str:
    return f"there is no NVIDIA driver ({_DRIVER_FILE})" if driver is None else f"driver {driver}"


def _needed_driver(cuda: str | None) -> int:
    major = int(cuda.partition(".")[0]) if cuda else 0
    return _DRIVERS.get(major, max(_DRIVERS.values()))


def _environment(environment: Mapping[str, str]) -> str:
    names = ("SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES")
    return ", ".join(
        f"{name}={environment[name]}" if name in environment else f"{name} is not set"
        for name in names
    )


def _has_no_gpus(environment: Mapping[str, str]) -> bool:
    """Whether Slurm gave this job no GPUs, or all are hidden."""
    is_job = "SLURM_JOB_ID" in environment
    return (is_job and "SLURM_GPUS_ON_NODE" not in environment) or (
        environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")
    )


def _reason() -> str:
    """What torch answers when it starts CUDA, in one line."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0]
    return "CUDA starts, and finds no GPU"

"""The device of a rank: a GPU that is wanted and cannot be used is refused, with the reason."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_in_fork import TINY, pretrain_run
from script_settings import script_settings
from test_rendezvous import info

from data_prep.core.config import SettingsError
from pretrain.config.load import load
from pretrain.config.settings import Device
from pretrain.distributed import device as device_module
from pretrain.distributed import ranks as ranks_module
from pretrain.distributed.device import (
    bind_to_gpu,
    choose_device,
    cuda_is_usable,
    let_waiting_threads_sleep,
    use_expandable_segments,
    why_no_cuda,
    why_on_cpu,
)
from pretrain.distributed.rendezvous import check_devices

Pretend = Callable[..., None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretend:
    """Makes torch a wheel for CUDA 13 on a host with this driver, where CUDA starts or not."""

    def made(driver: str | None, usable: bool = False, **environment: str) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(device_module, "cuda_is_usable", lambda: usable)
        file = tmp_path / "version"
        if driver is not None:
            file.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Tue\n")
        monkeypatch.setattr(device_module, "_DRIVER_FILE", file)
        monkeypatch.setattr(device_module, "_reason", lambda: "error 802")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        for name in ("SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return made


JOB = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0,1"}


@pytest.mark.parametrize(
    ("driver", "environment", "cure"),
    [
        (None, JOB, "apptainer exec --nv"),
        ("535.54.03", JOB, "update the driver of that node, or install a torch"),
        ("580.65.06", {"SLURM_JOB_ID": "7"}, "ask for GPUs (sbatch --gpus-per-node=N)"),
        ("580.65.06", {"CUDA_VISIBLE_DEVICES": ""}, "ask for GPUs (sbatch --gpus-per-node=N)"),
        ("580.65.06", JOB, "look at nvidia-smi on that node; torch: error 802"),
    ],
)
def test_the_reason_names_driver_wheel_and_slurms_gpus_with_the_cure(
    pretend: Pretend, driver: str | None, environment: dict[str, str], cure: str
) -> None:
    pretend(driver, **environment)
    why = why_no_cuda()
    assert (f"driver {driver}" if driver else "there is no NVIDIA driver") in why
    assert "is built for CUDA 13.0, which needs driver 580 or newer" in why
    given = environment.get("SLURM_GPUS_ON_NODE")
    assert f"SLURM_GPUS_ON_NODE{'=' + given if given else ' is not set'}" in why
    assert cure in why


def test_a_torch_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert re.search(r"torch \S+ is built without CUDA; install torch==\d+\.\d+", why_no_cuda())


def test_a_plain_machine_is_told_in_a_few_words_and_a_job_of_slurm_gets_the_cure(
    pretend: Pretend,
) -> None:
    pretend(None)
    assert why_on_cpu() == f"this machine has no NVIDIA driver (torch {torch.__version__})"
    pretend(None, SLURM_JOB_ID="7")
    assert why_on_cpu() == why_no_cuda()
    pretend("580.65.06")
    assert why_on_cpu() == why_no_cuda()


def test_auto_takes_a_gpu_that_can_be_used_by_local_rank(pretend: Pretend) -> None:
    pretend("580.1", usable=True)
    assert choose_device("auto", 3) == choose_device("cuda", 11) == torch.device("cuda", 3)


def test_a_cpu_that_is_chosen_is_deepspeeds_too(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend("580.1", usable=True)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert choose_device("cpu", 0) == torch.device("cpu")
    assert os.environ["DS_ACCELERATOR"] == "cpu"


def test_deepspeeds_question_to_nvml_is_not_the_one_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `import deepspeed` on a node whose driver is too old: NVML sees a GPU."""
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    by_nvml = "PYTORCH_NVML_BASED_CUDA_CHECK"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: by_nvml in os.environ)
    cuda_is_usable.cache_clear()
    assert not cuda_is_usable()
    assert os.environ[by_nvml] == "1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not cuda_is_usable(), "one answer per process"
    cuda_is_usable.cache_clear()


def test_one_process_that_wants_a_gpu_is_refused_before_anything_starts(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend("535.54.03", **JOB)
    for name in ranks_module.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match=r"rank 0 on \S+ cannot use a GPU: driver 535.54.03"):
        ranks_module.start(1, "cuda")


def test_ranks_without_a_gpu_are_named_once_and_not_compared_with_the_others() -> None:
    without: dict[str, Any] = {"device": "a CPU", "unit": ""}
    infos = [info(rank) for rank in range(8)]
    infos += [info(rank, "node2", **without, fault="no driver") for rank in range(8, 16)]
    (fault,) = check_devices(infos)
    assert fault == (
        "engine.device=cuda, and 8 of 16 ranks, the first of them rank 8 on node2, cannot use a "
        "GPU: no driver; or set engine.device=cpu to train on the CPU"
    )


@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_run_that_wants_a_gpu_ends_with_status_2_and_the_reason(sample_dir, tmp_path) -> None:
    typed = [*TINY, f"data.dir={sample_dir}", "engine.device=cuda"]
    statuses, output = pretrain_run(typed, tmp_path, ranks=2)
    assert statuses[0] == 2
    assert output.count("engine.device=cuda, and ") == 1
    assert not (tmp_path / "runs/x").exists()


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_batch_scripts_want_a_gpu(size: str) -> None:
    words = script_settings(size)
    assert load(words, 32)[0].engine.device is Device.cuda
    assert load([*words, "engine.device=cpu"], 32)[0].engine.device is Device.cpu


@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_auto_without_a_gpu_says_first_that_it_trains_on_the_cpu(sample_dir, tmp_path) -> None:
    typed = [*TINY, f"data.dir={sample_dir}", "schedule.total_steps=1", "eval.max_examples=8"]
    statuses, output = pretrain_run(typed, tmp_path)
    assert statuses == [0]
    first = output.splitlines()[0]
    assert first.startswith("training on the CPU: ")
    assert f"torch {torch.__version__}" in first, "with CUDA or without, the build is named"


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", None])
def test_segments_are_expandable_unless_the_environment_says_otherwise(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(variable, raising=False)
    if name is not None:
        monkeypatch.setenv(name, "max_split_size_mb:64")
    use_expandable_segments()
    own = os.environ.get("PYTORCH_ALLOC_CONF")
    assert own == {
        None: "expandable_segments:True", "PYTORCH_ALLOC_CONF": "max_split_size_mb:64",
        "PYTORCH_CUDA_ALLOC_CONF": None,
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "then"),
    [({}, "30000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_sleep_unless_the_environment_says_otherwise(
    given: dict[str, str], then: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(variable, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    let_waiting_threads_sleep()
    assert os.environ.get("GOMP_SPINCOUNT") == then


@pytest.fixture
def two_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[int, set[int]]:
    """A GPU next to the CPUs 4-7 and 12-15 of 16; returns what each thread is bound to."""
    gpu = type("gpu", (), {"pci_domain_id": 0, "pci_bus_id": 0xDC, "pci_device_id": 0})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    (tmp_path / "0000:dc:00.0").mkdir()
    (tmp_path / "0000:dc:00.0/local_cpulist").write_text("4-7,12-15\n")
    (tmp_path / "threads/71").mkdir(parents=True)
    (tmp_path / "threads/72").mkdir()
    monkeypatch.setattr(device_module, "_PCI_DEVICES", tmp_path)
    monkeypatch.setattr(device_module, "_THREADS", tmp_path / "threads")
    bound: dict[int, set[int]] = {}
    monkeypatch.setattr(os, "sched_setaffinity", bound.__setitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    return bound


GPU, NEAR = torch.device("cuda", 0), {4, 5, 6, 7, 12, 13, 14, 15}


def test_every_thread_is_bound_to_the_cpus_next_to_the_gpu(two_sockets) -> None:
    assert bind_to_gpu(GPU) == NEAR
    assert two_sockets == {71: NEAR, 72: NEAR}


@pytest.mark.parametrize("now", [{5}, NEAR])
def test_a_process_that_is_near_already_stays_where_it_is(two_sockets, now, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: now)
    assert bind_to_gpu(GPU) == set()
    assert two_sockets == {}


def test_on_a_cpu_or_where_the_gpus_place_is_not_shown_nothing_is_bound(
    two_sockets, tmp_path: Path
) -> None:
    assert bind_to_gpu(torch.device("cpu")) == set()
    (tmp_path / "0000:dc:00.0/local_cpulist").unlink()
    assert bind_to_gpu(GPU) == set()
    assert two_sockets == {}


def test_a_job_without_a_cpu_near_the_gpu_stays_where_it_is(two_sockets, monkeypatch) -> None:
    def refuse(thread: int, cpus: set[int]) -> None:
        raise OSError("Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert bind_to_gpu(GPU) == set()

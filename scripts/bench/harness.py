"""The harness of the benchmarks: variants timed in turn, a table, a line of JSON."""

from __future__ import annotations

import functools
import inspect
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data_prep.core.config import SettingsError, compose
from pretrain.config.settings import Settings

Stopwatch = Callable[[Callable[[], object]], float]
Record = dict[str, Any]


def benchmark(name: str) -> Callable[[Callable[..., Record | None]], Callable[..., None]]:
    """Decorate the function whose parameters are a benchmark's arguments.

    The record that it returns is printed as the last line, as JSON, with the arguments and the
    machine. A rank that returns None prints nothing.
    """

    def decorate(measure: Callable[..., Record | None]) -> Callable[..., None]:
        defaults = {key: p.default for key, p in inspect.signature(measure).parameters.items()}

        @functools.wraps(measure)
        def command(**typed: Any) -> None:
            settings = defaults | typed
            record = measure(**settings)
            if record is not None:
                facts = {"settings": settings, "machine": machine()}
                print(json.dumps({"benchmark": name, **record, **facts}))

        return command

    return decorate


def in_turn(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run A B C A B C ..., so that a disturbance of the machine hits all. One round warms up.

    Each variant returns what it measured.
    """
    measured: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(rounds + 1):
        for name, run in variants.items():
            value = run()
            if round_number:
                measured[name].append(value)
    return measured


def medians(measured: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each variant."""
    return {name: statistics.median(values) for name, values in measured.items()}


def table(name: str, unit: str, measured: Mapping[str, list[float]], reference: str) -> Record:
    """Print medians, spread and ratio to `reference`; return the medians and all values."""
    found, width = medians(measured), max(map(len, measured))
    print(f"{name:{width}}  {'median':>12}  {'lowest':>12}  {'highest':>12}  {'ratio':>7}   {unit}")
    for variant, values in measured.items():
        numbers = f"{found[variant]:12,.0f}  {min(values):12,.0f}  {max(values):12,.0f}"
        print(f"{variant:{width}}  {numbers}  {found[variant] / found[reference]:7.2f}")
    return {"unit": unit, "median": found, "all": measured}


def machine() -> dict[str, str]:
    """Processor, versions and commit, without which a measurement is worth nothing."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "processor": f"{len(names)} x {names[0]}" if names else platform.processor(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", "transformers")},
        "commit": commit.stdout.strip() or "none",
    }


def settings_of(model: str, *overrides: str) -> Settings:
    """The settings of a run of this size. Raises SettingsError."""
    return compose("config", Settings, [f"+model={model}", *overrides])[0]


def choose_device(name: str) -> torch.device:
    """cpu, cuda, or auto: cuda if there is one. Raises SettingsError if there is none."""
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise SettingsError("device=cuda: this machine has no GPU that torch can use")
    if name not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"device={name} is not known; there are auto, cpu and cuda")
    return torch.device("cuda" if has_gpu and name == "auto" else name.replace("auto", "cpu"))


def uses_bf16(precision: str, device: torch.device) -> bool:
    """fp32, bf16, or auto: bf16 on CUDA. Raises SettingsError on another word."""
    if precision not in ("auto", "fp32", "bf16"):
        raise SettingsError(f"precision={precision} is not known; there are auto, fp32 and bf16")
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


def stopwatch(device: torch.device, clock: str = "processor") -> Stopwatch:
    """Return a function that times a call, in seconds of the processor or of the wall clock.

    On CUDA it is always the wall clock, until the device has finished. Raises SettingsError on
    another clock.
    """
    clocks = {"processor": time.process_time, "wall": time.perf_counter}
    if clock not in clocks:
        raise SettingsError(f"clock={clock} is not known; there are processor and wall")
    on_gpu = device.type == "cuda"
    now = time.perf_counter if on_gpu else clocks[clock]
    synchronize: Callable[[], None] = torch.cuda.synchronize if on_gpu else lambda: None

    def seconds(call: Callable[[], object]) -> float:
        synchronize()
        started = now()
        call()
        synchronize()
        return now() - started

    return seconds

"""The harness of the benchmarks: variants timed in turn, a table, a line of JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch

from data_prep.core.config import SettingsError, compose
from pretrain.config.arguments import run_command
from pretrain.config.settings import Settings
from pretrain.distributed.device import cuda_is_usable
from pretrain.distributed.ranks import Ranks, exit_with, start
from pretrain.engine.engine import Engine
from scripts.baselines.synthetic_shards import VOCAB_SIZE
from scripts.baselines.transformers_step import packed_model

Stopwatch = Callable[[Callable[[], object]], float]
Record = dict[str, Any]


def run(command: Callable[..., int | None]) -> NoReturn:
    """Run a benchmark from the command line, and exit."""
    exit_with(functools.partial(run_command, command))


def benchmark(name: str) -> Callable[[Callable[..., Record | None]], Callable[..., None]]:
    """Decorate the function whose parameters are a benchmark's arguments.

    torch gets as many threads as `threads` names. The record that is returned is printed as the
    last line, as JSON, with the arguments and the machine. A rank that returns None prints nothing.
    """

    def decorate(measure: Callable[..., Record | None]) -> Callable[..., None]:
        defaults = {key: p.default for key, p in inspect.signature(measure).parameters.items()}

        @functools.wraps(measure)
        def command(**typed: Any) -> None:
            settings = defaults | typed
            if "threads" in settings:
                torch.set_num_threads(settings["threads"])
            record = measure(**settings)
            if record is not None:
                facts = {"settings": settings, "machine": machine()}
                print(json.dumps({"benchmark": name, **record, **facts}, default=str))

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


@contextlib.contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks that a launcher started, or this one alone; they part at the end."""
    ranks = start(timeout_minutes=10)
    yield ranks
    ranks.stop()


def engine_of(settings: Settings, ranks: Ranks, **changes: Any) -> Engine:
    """A run's engine with its model, and with these changes of settings.engine."""
    own = dataclasses.replace(settings.engine, **changes)
    return Engine(packed_model(settings, VOCAB_SIZE), settings.optim, own, ranks)


def choose_device(name: str) -> torch.device:
    """cpu, cuda, or auto: cuda if there is one. Raises SettingsError if there is none."""
    has_gpu = cuda_is_usable()
    if _known("device", name, "auto", "cpu", "cuda") == "cuda" and not has_gpu:
        raise SettingsError("device=cuda: this machine has no GPU that torch can use")
    return torch.device("cuda" if has_gpu and name == "auto" else name.replace("auto", "cpu"))


def uses_bf16(precision: str, device: torch.device) -> bool:
    """fp32, bf16, or auto: bf16 on CUDA. Raises SettingsError on another word."""
    word = _known("precision", precision, "auto", "fp32", "bf16")
    return word == "bf16" or (word == "auto" and device.type == "cuda")


def _known(name: str, value: str, *words: str) -> str:
    if value not in words:
        known = f"{', '.join(words[:-1])} and {words[-1]}"
        raise SettingsError(f"{name}={value} is not known; there are {known}")
    return value


def stopwatch(device: torch.device, clock: str = "processor") -> Stopwatch:
    """Return a function that times a call, in seconds of the processor or of the wall clock.

    On CUDA it is always the wall clock, until the device has finished. Raises SettingsError on
    another clock.
    """
    on_gpu = device.type == "cuda"
    is_processors = _known("clock", clock, "processor", "wall") == "processor"
    now = time.process_time if is_processors and not on_gpu else time.perf_counter
    synchronize: Callable[[], None] = torch.cuda.synchronize if on_gpu else lambda: None

    def seconds(call: Callable[[], object]) -> float:
        synchronize()
        started = now()
        call()
        synchronize()
        return now() - started

    return seconds

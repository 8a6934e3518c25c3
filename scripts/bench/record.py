"""Run the benchmarks, and write what each measured to docs/log.md, next to its command.

    python -m scripts.bench.record cpu|gpu [into=docs/log.md] [json=build/bench/gpu.json]
        [minutes=12] [dry=false]

The numbers are those of the JSON that a benchmark prints as its last line. They stand between two
markers, one pair each for cpu and gpu, and replace the earlier ones. Missing markers are added at
the end. Both files are written after each part, so that an end by force loses no other's results.

minutes  for all parts of `gpu` together, each with a limit of its own; those that do not fit are
         listed as left out. Default: 12; of a dry run there are no limits
dry      true: `gpu` at small sizes and on any machine, to see that every part works. Its table is
         printed only, its JSON is build/bench/gpu-dry.json

Status: 0; 1 if a part failed, which the table shows with the reason; 2 for wrong arguments, and for
`gpu` without one.
"""

from __future__ import annotations

import contextlib
import json as json_text
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.files import write_json
from pretrain.config.arguments import run_command

GRACE_S = 10.0  # from an interrupt to a kill
MODULE = "python -m scripts.bench."
TARGETS = {"cpu": "make bench", "gpu": "make bench-gpu", "gpu-dry": "make bench-gpu DRY=1"}


@dataclass(frozen=True)
class Part:
    """A benchmark with its arguments, after the name of the module."""

    words: str
    limit_s: float = math.inf
    small: str = ""  # arguments of a dry run, which replace those of the same names


# Small: each takes a minute or two on two cores
CPU = tuple(
    Part(words)
    for words in (
        "prep",
        "loader",
        "step",
        "step dropout=0.1",
        "step lengths=books parts=0 engine=0",
        "step lengths=128 sequences=32 parts=0 engine=0",
        "step model=base sequences=3 rounds=1 parts=0 engine=0",
        "engine",
        "scaling",
        "checkpoint model=small steps=3",
    )
)


def _step(model: str, lengths: str, sequences: int, dropout: float) -> Part:
    words = (
        f"step device=cuda precision=bf16 dropout={dropout} model={model} lengths={lengths} "
        f"sequences={sequences} rounds=5"
    )
    return Part(words, 120, "device=cpu model=tiny sequences=2 rounds=1")


def _trial(settings: str) -> Part:
    """One trial of `gpu.tune`, whose budgets have 16,384 tokens in autocast, too."""
    budget, small_budget = (f"engine.tokens_per_micro_batch={tokens}" for tokens in (16_384, 1_024))
    small = f"model=tiny device=cpu sequences=2 steps=1 minutes=60 settings='{settings} "
    return Part(
        f"gpu.tune minutes=1.5 settings='{settings} engine.compile=true {budget}'", 100,
        f"{small}{small_budget}'",
    )  # fmt: skip


# The first are those that tell most, should the time be over before the last
GPU = (
    Part("gpu.checks", 180),
    Part("matmul model=large", 60, "model=tiny tokens=64 masked=9 rounds=1 lengths=16"),
    _step("large", "wikipedia", 64, 0.1),
    Part("gpu.profile", 150, "model=tiny device=cpu sequences=2 tokens=1024 minutes=60"),
    Part("gpu.tune", 150, "model=tiny device=cpu sequences=2 steps=1 minutes=60"),
    Part("checkpoint model=large sequences=64", 90, "model=tiny sequences=2 steps=1"),
    _trial("engine=bf16"),
    _step("base", "wikipedia", 64, 0.1),
    Part(
        "engine model=large precision=bf16_autocast", 90,
        "model=tiny precision=fp32 sequences=2 measured=2 rounds=1",
    ),
    _step("large", "512", 64, 0.1),
    _step("large", "128", 256, 0.1),
    _step("large", "wikipedia", 64, 0.0),
    _step("large", "512", 64, 0.0),
    _step("large", "128", 256, 0.0),
    *(
        _step("base", lengths, sequences, dropout)
        for lengths, sequences in (("128", 256), ("512", 64))
        for dropout in (0.1, 0.0)
    ),
    _step("base", "wikipedia", 64, 0.0),
)  # fmt: skip
# Setup, checks and single rounds are not recorded
NOT_RECORDED = (
    "settings", "sequences_per_second", "machine", "all", "all_s", "rows", "saves", "losses",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a part printed as JSON, and why it failed, if it did."""

    result: dict[str, Any] | None
    fault: str = ""
    seconds: float = 0.0


Results = Mapping[str, Outcome]  # by command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    typed = sys.argv[1:] if argv is None else argv
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)  # for the parts, which inherit it
    words = [f"which={word}" if word in ("cpu", "gpu") else word for word in typed]
    return run_command(record, words)


def record(
    which: str,
    into: Path | None = None,
    json: Path | None = None,
    minutes: float | None = None,
    dry: bool = False,
) -> int:
    """The command; `which` is cpu or gpu."""
    if which not in ("cpu", "gpu"):
        raise SettingsError(f"there are benchmarks for cpu and gpu, not {which!r}")
    if dry and which == "cpu":
        raise SettingsError("dry=true is for gpu: the benchmarks of a CPU are small as they are")
    num_gpus = _num_gpus() if which == "gpu" else 0
    if which == "gpu" and not num_gpus and not dry:
        raise SettingsError("the GPU benchmarks need a GPU that torch can use: there is none")
    name, load, results = f"{which}{'-dry' if dry else ''}", os.getloadavg()[0], {}
    into = Path("docs/log.md") if into is None and not dry else into
    json = json or Path(f"build/bench/{name}.json")
    end = time.monotonic() + 60 * (minutes or (12 if which == "gpu" and not dry else math.inf))
    text = ""
    for part in _parts(which, num_gpus, dry):
        command = MODULE + (f"{part.words} {part.small}".rstrip() if dry else part.words)
        own_s = math.inf if dry else part.limit_s
        results[command] = run(command, min(own_s, end - time.monotonic()))
        text = table(name, results, load)
        _keep(name, into, json, text, results)
    print(f"\n{text}\n\nkept in {json}" + (f" and {into}" if into else ""))
    return 1 if any(outcome.fault for outcome in results.values()) else 0


def _parts(which: str, num_gpus: int, dry: bool) -> Sequence[Part]:
    if which == "cpu":
        return CPU
    parts = [*GPU]
    if find_spec("torchao") is not None:  # of the extra fp8, which make does not install
        parts.append(_trial("engine=bf16 engine.fp8=true"))
    if num_gpus < 2 and not dry:
        return parts
    words = f"scaling model=base precision=bf16_autocast ranks={num_gpus}"
    small = "model=tiny precision=fp32 ranks=2 stages=1 micro_batches=1 rounds=1"
    return [*parts, Part(words, 150, small)]


def _keep(name: str, into: Path | None, json: Path, text: str, results: Results) -> None:
    json.parent.mkdir(parents=True, exist_ok=True)
    kept = [{"command": command, **asdict(outcome)} for command, outcome in results.items()]
    write_json(json, {"which": name, "date": date.today().isoformat(), "results": kept})
    if into is not None:
        old = into.read_text(encoding="utf-8") if into.is_file() else ""
        into.write_text(insert(old, name, text), encoding="utf-8")


def run(command: str, limit_s: float = math.inf) -> Outcome:
    """Run a command and print its output; its last line that is JSON is its result.

    After `limit_s` it is interrupted, and GRACE_S later killed. It needs some time to be started.
    """
    if limit_s <= 0:
        print(f"$ {command}\nleft out: the time is over", flush=True)
        return Outcome(None, "left out: the time was over")
    print(f"$ {command}", flush=True)
    words, started = [sys.executable, *shlex.split(command)[1:]], time.monotonic()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    ) as process, _ended_after(process, limit_s) as is_late:  # fmt: skip
        assert process.stdout is not None
        result, last = _read(process.stdout)
        status = process.wait()
    seconds, fault = round(time.monotonic() - started, 1), ""
    if is_late.is_set():
        fault = f"stopped after {seconds:.0f} s; its last line: {last}"
    elif status:
        fault = f"status {status}: {last}"
    elif result is None:
        fault = f"no result: {last}"
    return Outcome(result, fault, seconds)


@contextlib.contextmanager
def _ended_after(process: subprocess.Popen[str], limit_s: float) -> Iterator[threading.Event]:
    """End a process that takes too long, or that this one leaves. The event: it took too long.

    An interrupted one ends the ranks that it has started, which a killed one could not.
    """
    is_late = threading.Event()

    def send(number: signal.Signals) -> None:
        is_late.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    waits = {signal.SIGINT: limit_s, signal.SIGKILL: limit_s + GRACE_S}
    timers = [
        threading.Timer(min(wait, threading.TIMEOUT_MAX), send, [number])
        for number, wait in waits.items()
    ]
    for timer in timers:
        timer.start()
    try:
        yield is_late
    finally:
        for timer in timers:
            timer.cancel()
        if process.poll() is None:  # Ctrl-C does not reach its session
            send(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            send(signal.SIGKILL)


def _read(output: Iterator[str]) -> tuple[dict[str, Any] | None, str]:
    """The last result that a command prints, and its last other line; those are printed again."""
    result, last = None, ""
    for line in output:
        found = _parsed(line)
        result = found or result
        if found is None:
            print(line, end="", flush=True)
            last = line.strip()[:300] or last
    return result, last


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json_text.loads(line) if line.startswith("{") else None
    except json_text.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a record by name; those of an inner mapping by both names."""
    for name, value in record.items():
        if isinstance(value, Mapping) and name not in NOT_RECORDED:
            yield from ((f"{name}: {inner}", number) for inner, number in numbers(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def table(which: str, results: Results, load: float) -> str:
    """A Markdown section: the machine, then one row per command with all its numbers."""
    records = [outcome.result for outcome in results.values() if outcome.result]
    facts = {"load before": f"{load:.1f}"} | next(
        (r["machine"] for r in records if "machine" in r), {}
    )
    devices = {r["device"] for r in records if "device" in r}
    facts["device"] = ", ".join(sorted(devices)) or which
    lines = [
        f"## Results of `{TARGETS[which]}`, {date.today()}",
        "",
        "; ".join(f"{name} {value}" for name, value in facts.items()) + ".",
        "",
        "| command | results |",
        "| --- | --- |",
    ]
    for command, outcome in results.items():
        found = [f"{name} {value:,.4g}" for name, value in numbers(outcome.result or {})]
        if outcome.fault:
            found.insert(0, f"**failed**: {_in_a_cell(outcome.fault)}")
        lines.append(f"| `{command}` | {'<br>'.join(found)} |")
    return "\n".join(lines)


def _in_a_cell(text: str) -> str:
    """Any text in Markdown, with no mark-up of its own."""
    return "".join(f"&#{ord(sign)};" if sign in "|<>&`*[]\\" else sign for sign in text)


def insert(text: str, which: str, block: str) -> str:
    """`text` with `block` between the markers of `which`. Raises SettingsError if one is lost."""
    begin, end = (f"<!-- {word} of the {which} figures -->" for word in ("begin", "end"))
    if (begin in text) != (end in text):
        raise SettingsError(
            f"one of the markers {begin} and {end} is missing: put it back, or remove both"
        )
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2] if rest else "\n"
    if not rest and before:
        before = before.rstrip("\n") + "\n\n"
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


if __name__ == "__main__":
    sys.exit(status_of(main))

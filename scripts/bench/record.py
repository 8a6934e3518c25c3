"""Run the benchmarks, and write what each measured to docs/log.md, next to its command.

    python -m scripts.bench.record cpu|gpu [into=docs/log.md]

The numbers are those of the JSON that a benchmark prints as its last line. They stand between two
markers, one pair each for cpu and gpu, and replace the earlier ones. Missing markers are added at
the end. Status: 0; 1 if a benchmark failed, which the table shows; 2 for wrong arguments, and for
`gpu` without one.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from pretrain.config.arguments import run_command

# Small: each takes a minute or two on two cores
CPU = (
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
# The bounds first: the bare products, and the attention's kernel
GPU = (
    "matmul model=large",
    *(
        f"step device=cuda precision=bf16 dropout={dropout} model={model} lengths={lengths} "
        f"sequences={sequences} rounds=5"
        for model in ("base", "large")
        for lengths, sequences in (("128", 256), ("512", 64), ("wikipedia", 64))
        for dropout in (0.0, 0.1)
    ),
    "engine model=large precision=bf16_autocast",
    "checkpoint model=large sequences=64",
)
# Setup, checks and single rounds are not recorded
NOT_RECORDED = (
    "settings", "sequences_per_second", "machine", "all", "all_s", "rows", "saves", "losses",
)  # fmt: skip


Results = Mapping[str, dict[str, Any] | None]  # of each command; None if it failed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    typed = sys.argv[1:] if argv is None else argv
    words = [f"which={word}" if word in ("cpu", "gpu") else word for word in typed]
    return run_command(record, words)


def record(which: str, into: Path = Path("docs/log.md")) -> int:
    """The command; `which` is cpu or gpu."""
    if which not in ("cpu", "gpu"):
        raise SettingsError(f"there are benchmarks for cpu and gpu, not {which!r}")
    num_gpus = _num_gpus() if which == "gpu" else 0
    if which == "gpu" and not num_gpus:
        raise SettingsError("the GPU benchmarks need a GPU that torch can use: there is none")
    load = os.getloadavg()[0]
    commands = GPU if which == "gpu" else CPU
    if num_gpus > 1:
        commands += (f"scaling model=base precision=bf16_autocast ranks={num_gpus}",)
    results = {
        command: run(command) for command in map("python -m scripts.bench.{}".format, commands)
    }
    text = into.read_text(encoding="utf-8") if into.is_file() else ""
    into.write_text(insert(text, which, table(which, results, load)), encoding="utf-8")
    return 0 if all(results.values()) else 1


def run(command: str) -> dict[str, Any] | None:
    """Run a command and print its output; its last line, parsed, or None if it failed."""
    print(f"$ {command}", flush=True)
    words = [sys.executable, *shlex.split(command)[1:]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            if line.strip():
                last = line
            if not line.startswith("{"):
                print(line, end="", flush=True)
    try:
        record = json.loads(last) if process.returncode == 0 else None
    except json.JSONDecodeError:
        record = None
    return record if isinstance(record, dict) else None


def numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a record by name; those of an inner mapping by both names."""
    for name, value in record.items():
        if isinstance(value, Mapping) and name not in NOT_RECORDED:
            yield from ((f"{name}: {inner}", number) for inner, number in numbers(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def table(which: str, results: Results, load: float) -> str:
    """A Markdown section: the machine, then one row per command with all its numbers."""
    records = [record for record in results.values() if record]
    facts = {"load before": f"{load:.1f}"} | next((r["machine"] for r in records), {})
    devices = {r["device"] for r in records if "device" in r}
    facts["device"] = ", ".join(sorted(devices)) or which
    lines = [
        f"## Results of `make {'bench-gpu' if which == 'gpu' else 'bench'}`, {date.today()}",
        "",
        "; ".join(f"{name} {value}" for name, value in facts.items()) + ".",
        "",
        "| command | results |",
        "| --- | --- |",
    ]
    for command, record in results.items():
        found = [f"{name} {value:,.4g}" for name, value in numbers(record or {})]
        lines.append(f"| `{command}` | {'<br>'.join(found) or 'failed'} |")
    return "\n".join(lines)


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

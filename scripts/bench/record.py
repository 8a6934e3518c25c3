"""Run the benchmarks, and keep what each measured in docs/log.md, beside its command.

    python -m scripts.bench.record cpu|gpu [into=docs/log.md]

The figures are those of the last line that a benchmark prints, JSON. They stand between two markers,
one pair for each of cpu and gpu, and take the place of those that stood there; markers that are not
there yet are added at the end. Status: 0; 1 where a benchmark failed, and the table says which; 2 for
wrong arguments, and for `gpu` where there is none.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from scripts.bench.harness import Arguments, arguments

DEFAULTS: Arguments = {"into": "docs/log.md"}
# Small: each takes a minute or two of two cores.
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
# First what fixes the bounds: the bare products, and the attention's kernel.
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
# No figures of their own: how it was run, what was checked, each round
NOT_KEPT = (
    "settings",
    "sequences_per_second",
    "machine",
    "all",
    "all_s",
    "rows",
    "saves",
    "losses",
)


@dataclass(frozen=True)
class Kept:
    """What one command measured; None: it failed."""

    command: str
    record: dict[str, Any] | None


def main(argv: Sequence[str]) -> int:
    which, *words = argv or [""]
    if which not in ("cpu", "gpu"):
        print(f"which benchmarks: cpu or gpu, not {which!r}", file=sys.stderr)
        return 2
    path = Path(str(arguments(words, DEFAULTS)["into"]))
    num_gpus = _num_gpus() if which == "gpu" else 0
    if which == "gpu" and not num_gpus:
        print("the GPU benchmarks need a GPU that torch can use: there is none", file=sys.stderr)
        return 2
    load = os.getloadavg()[0]
    commands = GPU if which == "gpu" else CPU
    if num_gpus > 1:
        commands += (f"scaling model=base precision=bf16_autocast ranks={num_gpus}",)
    kept = [run(f"python -m scripts.bench.{words}") for words in commands]
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.write_text(placed(text, which, table(which, kept, load)), encoding="utf-8")
    return 0 if all(one.record for one in kept) else 1


def run(command: str) -> Kept:
    """Run it, pass on what it prints, and keep its last line."""
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
    return Kept(command, record if isinstance(record, dict) else None)


def figures(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a record by name, those of a mapping by both names."""
    for name, value in record.items():
        if isinstance(value, Mapping) and name not in NOT_KEPT:
            yield from ((f"{name}: {inner}", number) for inner, number in figures(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def table(which: str, kept: Sequence[Kept], load: float) -> str:
    """Markdown: what machine, then a row a command with all its figures."""
    records = [one.record for one in kept if one.record]
    facts = {"load before": f"{load:.1f}"} | next((r["machine"] for r in records), {})
    devices = {r["device"] for r in records if "device" in r}
    facts["device"] = ", ".join(sorted(devices)) or which
    lines = [
        f"## Figures of `make {'bench-gpu' if which == 'gpu' else 'bench'}`, {date.today()}",
        "",
        "; ".join(f"{name} {value}" for name, value in facts.items()) + ".",
        "",
        "| command | figures |",
        "| --- | --- |",
    ]
    for one in kept:
        found = [f"{name} {value:,.4g}" for name, value in figures(one.record or {})]
        lines.append(f"| `{one.command}` | {'<br>'.join(found) or 'failed'} |")
    return "\n".join(lines)


def placed(text: str, which: str, block: str) -> str:
    """`text` with `block` between the markers of `which`. Raises SystemExit where one is missing."""
    begin, end = (f"<!-- {word} of the {which} figures -->" for word in ("begin", "end"))
    if (begin in text) != (end in text):
        raise SystemExit(
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
    sys.exit(main(sys.argv[1:]))

"""What the benchmarks share: arguments, variants run in turn, a table, a line of JSON."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

Arguments = dict[str, str | int | float]


def arguments(typed: Sequence[str], defaults: Arguments) -> Arguments:
    """`name=value` words over `defaults`, each of its default's type.

    Raises SystemExit with the known names on a word that is none of them.
    """
    values = dict(defaults)
    for word in typed:
        name, separator, value = word.partition("=")
        if not separator or name not in defaults:
            known = " ".join(f"{key}={default}" for key, default in defaults.items())
            raise SystemExit(f"{word!r} is no setting; the settings and their defaults: {known}")
        try:
            values[name] = type(defaults[name])(value)
        except ValueError as error:
            raise SystemExit(f"{word!r}: {error}") from error
    return values


def in_turn(variants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run A B C A B C ...: what disturbs the machine for a while disturbs all. One round warms up.

    Each variant returns its own figure.
    """
    figures: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(rounds + 1):
        for name, run in variants.items():
            figure = run()
            if round_number:
                figures[name].append(figure)
    return figures


def report(
    name: str,
    unit: str,
    figures: dict[str, list[float]],
    reference: str,
    facts: dict[str, Any],
) -> None:
    """Print medians, spread and ratio to `reference` as a table, then all of it as JSON."""
    medians = {variant: statistics.median(values) for variant, values in figures.items()}
    width = max(map(len, figures))
    print(f"{name:{width}}  {'median':>12}  {'lowest':>12}  {'highest':>12}  {'ratio':>7}   {unit}")
    for variant, values in figures.items():
        ratio = medians[variant] / medians[reference]
        numbers = f"{medians[variant]:12,.0f}  {min(values):12,.0f}  {max(values):12,.0f}"
        print(f"{variant:{width}}  {numbers}  {ratio:7.2f}")
    record = {"benchmark": name, "unit": unit, "median": medians, "all": figures}
    print(json.dumps(record | facts | {"machine": machine()}))


def machine() -> dict[str, str]:
    """Processor, versions and commit: what a figure is worth nothing without."""
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

"""Plan a preparation before it runs: python -m data_prep.plan +source=NAME source.path=FOLDER.

Prepares a sample of the source's own text with the jobs themselves, in a temporary folder (below
data_dir, if it is typed), on all workers at once. Then prints time, memory, files and bytes of
each stage for the whole input, or for plan.bytes of it, on plan.nodes nodes like this one.

+source={source}
language={language}
Settings are typed as name=value or group.name=value:

{data_prep.yaml}
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data_prep.core.command import status_of
from data_prep.core.job import require_source, start
from data_prep.core.settings import DataPrepSettings
from data_prep.planning.forecast import Forecast, Sample, forecast


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, forecast and print a table."""
    typed = list(sys.argv[1:] if argv is None else argv)
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        if not any(argument.startswith("data_dir=") for argument in typed):
            typed.append(f"data_dir={folder}")
        return start(run, typed, summary=_summary)


def run(settings: DataPrepSettings) -> tuple[Sample, Forecast]:
    """Measure a sample and forecast all jobs.

    Raises SettingsError for a source that cannot be read or sampled.
    """
    from data_prep.planning.sample import measure  # late: it loads all jobs

    source = require_source(settings)
    Path(settings.data_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="plan-", dir=settings.data_dir) as folder:
        sample = measure(settings, source, Path(folder))
    return sample, forecast(settings, sample)


def _summary(settings: DataPrepSettings, result: tuple[Sample, Forecast]) -> str:
    sample, plan = result
    nodes = settings.plan.nodes
    lines = [
        f"input     {_bytes(plan.input_bytes)}: {plan.characters:,.0f} characters, "
        f"{plan.documents:,.0f} documents, {plan.tokens:,.0f} tokens",
        f"machines  {nodes:,} node{'s' * (nodes > 1)} of {settings.workers} cores",
        f"measured  {_bytes(sample.input_bytes)} of the input in {sample.seconds:.0f} s",
        "",
        f"{'stage':12}{'tasks':>10}{'time':>11}{'memory/node':>14}{'files':>13}{'size':>12}",
    ]
    for stage in plan.stages:
        memory = _bytes(stage.peak_bytes) if stage.peak_bytes else ""
        files = f"{stage.files:,.0f}" if stage.files else ""
        size = _bytes(stage.bytes) if stage.bytes else ""
        lines.append(
            f"{stage.name:12}{stage.tasks:>10,}{_time(stage.seconds):>11}{memory:>14}"
            f"{files:>13}{size:>12}".rstrip()
        )
    seconds = sum(stage.seconds for stage in plan.stages)
    files, size = (sum(getattr(s, name) for s in plan.stages) for name in ("files", "bytes"))
    lines.append(
        f"{'together':12}{'':>10}{_time(seconds):>11}{'':>14}{files:>13,.0f}{_bytes(size):>12}"
    )
    return "\n".join(lines) + "\n"


def _time(seconds: float) -> str:
    for unit, factor in (("h", 3600), ("min", 60)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:,.1f} {unit}"
    return f"{seconds:,.0f} s"


def _bytes(number: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if number >= factor:
            return f"{number / factor:,.1f} {unit}"
    return f"{number / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(status_of(main))

"""Inject faults into a small run on two ranks, one after another, and print how it recovers.

    python -m scripts.drill [data.dir=FOLDER data.seq_len=128] [faults=kill,hang,...] [out=FOLDER]

faults  kill, kill_all, kill_saving, hang, cut, flip, nan, full_disk, full_disk_stop, sigterm,
        sigusr1, second_job, wandb, shard; default: all
out     keep the table as drill.md and the runs with their logs, in a new or empty folder
Other settings of pretrain.run's groups data, model, optim and engine are passed on.

The run makes 40 steps, with a checkpoint every 10, on the embedded sample unless data.dir
names a corpus. It is made once undisturbed, and once per fault; where the fault ended it, the same
command is typed again. All must end with the weights of the undisturbed run, bit for bit.

Columns of the table:
  noticed after   from the fault until the ranks ended, or logged it and continued
  steps lost      steps made that are not in the checkpoint it continued from
  new step after  from the next start (if nothing ended: from the fault) to the first new step
  final weights   the last checkpoint compared with the undisturbed run's, by checksums of its files
Status: 0 if everything held, 1 if something did not, 2 for wrong settings.
"""

from __future__ import annotations

import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.files import remove_folder
from pretrain.config.arguments import parse_arguments
from pretrain.config.load import load
from pretrain.config.settings import Settings
from pretrain.data.corpus import folder_of, manifest_of, prepare_sample
from pretrain.run import SAMPLE_LINE
from pretrain.verification.run_watcher import RunFailedError
from scripts.drills.faults import FAULTS
from scripts.drills.harness import BATCH, EVERY, RANKS, STEPS, Drill, Outcome, Seen

SIZES = (
    "+model=tiny", "model.hidden_size=64", "model.intermediate_size=256",
    f"optim.global_batch={BATCH}",
)  # fmt: skip
SCHEDULE = (
    f"schedule.total_steps={STEPS}", f"checkpoint.every_steps={EVERY}", "monitor.every_steps=1",
    f"eval.every_steps={STEPS}", "eval.max_examples=64",
)  # fmt: skip
PASSED_ON = ("data", "model", "optim", "engine")


def table(outcomes: Sequence[Outcome], markdown: bool = False) -> str:
    """One line per outcome, as aligned text or Markdown, then the expectations that failed."""
    head = ("fault", "noticed after", "how", "steps lost", "new step after", "final weights")
    rows = [head, *(_row(outcome) for outcome in outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if markdown:
        rows.insert(1, tuple("-" * width for width in widths))
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip())
    failures = [f"FAILED  {one.fault}: {reason}" for one in outcomes for reason in one.failures]
    lines += ["", *failures] if failures else []
    return "\n".join(lines)


def _row(outcome: Outcome) -> tuple[str, ...]:
    seen = outcome.seen
    return (
        outcome.fault,
        _seconds(seen.after_s),
        seen.how,
        "" if outcome.steps_lost is None else str(outcome.steps_lost),
        _seconds(outcome.new_step_s),
        outcome.weights,
    )


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"


def drill(
    names: Sequence[str], folder: Path, overrides: Sequence[str], settings: Settings
) -> list[Outcome]:
    """Run without a fault, then with each of these, in the order of FAULTS."""
    shared = Drill(folder, overrides, settings)
    outcomes = [shared.undisturbed()]
    if outcomes[0].failures:
        return outcomes
    for name, fault in FAULTS.items():
        if name in names:
            print(f"{name}: {fault.__doc__}", flush=True)
            try:
                outcomes.append(fault(shared))
            except (RunFailedError, OSError, ValueError) as error:
                outcomes.append(Outcome(name, Seen(None, ""), failures=(str(error),)))
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        names, out, typed = _parse(arguments)
        overrides = [*SIZES, *typed, *SCHEDULE]
        settings, on_sample = load(overrides, RANKS)
        if on_sample:
            print(SAMPLE_LINE, flush=True)
            if not (folder_of(settings.data) / "manifest.json").exists():
                prepare_sample(settings.data)
        manifest_of(settings.data)
    except SettingsError as error:
        print(f"scripts.drill: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no rank behind
    folder = Path(tempfile.mkdtemp(prefix="drill-")) if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    outcomes = drill(names, folder, overrides, settings)
    holds = not any(outcome.failures for outcome in outcomes)
    print(f"\n{table(outcomes)}\n\n{len(outcomes) - 1} faults in {time.time() - began:.0f} s")
    if out is not None:
        (folder / "drill.md").write_text(f"{table(outcomes, markdown=True)}\n", encoding="utf-8")
    if out is None and holds:
        remove_folder(folder)
    else:
        print(f"runs and logs: {folder}")
    return 0 if holds else 1


@dataclass(frozen=True)
class Arguments:
    """The drill's own arguments."""

    faults: str = ",".join(FAULTS)
    out: Path | None = None


def _parse(typed: Sequence[str]) -> tuple[list[str], Path | None, list[str]]:
    """The faults, the folder to keep, and the settings of pretrain.run."""
    passed_on = [word for word in typed if re.match(rf"({'|'.join(PASSED_ON)})[.=]", word)]
    own = [word for word in typed if word not in passed_on]
    if strange := [word for word in own if not word.startswith(("faults=", "out="))]:
        raise SettingsError(
            f"{strange[0]!r} is no setting of the drill; it takes faults=, out= and pretrain.run's "
            f"groups {', '.join(PASSED_ON)}"
        )
    given = Arguments(**parse_arguments(Arguments, own))
    names = given.faults.split(",")
    if unknown := [name for name in names if name not in FAULTS]:
        raise SettingsError(f"faults={unknown[0]} is not known; there are {', '.join(FAULTS)}")
    out = given.out
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"out={out} exists and is not empty; name a new folder")
    return names, out, passed_on


if __name__ == "__main__":
    sys.exit(status_of(main))

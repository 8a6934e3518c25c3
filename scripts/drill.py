"""A fault drill: a small run on two ranks, hurt in one way after the other, and what came of it.

    python -m scripts.drill [data.dir=FOLDER data.seq_len=128] [faults=kill,hang,...] [out=FOLDER]

The run makes {STEPS} steps, on the embedded sample where no data.dir is named, with a checkpoint
every {EVERY}: once undisturbed, then once for each fault, with the same command typed again where
the fault ended it. All of them has to end with the weights of the undisturbed run, bit for bit.

faults: {FAULTS}
out     keeps the table as drill.md and the runs with their logs, in a folder that is new or empty
Further settings of pretrain.run's groups data, model, optim and engine are passed on.

What the table says:
  noticed after      from the fault until the ranks ended, or said what is wrong and went on
  steps lost         steps that had been made and are not in the checkpoint it went on from
  new step after     from the next start (where nothing ended: from the fault) to the first new step
  final weights      last checkpoint against the undisturbed run's, by the checksums of its files
Status: 0 where everything held that should, 1 where something did not, 2 for wrong settings.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.core.config import SettingsError
from pretrain.config.load import load
from pretrain.config.settings import Settings
from pretrain.data.corpus import folder_of, manifest_of, prepare_sample
from pretrain.run import SAMPLE_LINE
from pretrain.verification.run_watcher import RunFailedError
from scripts.drills.faults import FAULTS
from scripts.drills.harness import BATCH, EVERY, RANKS, STEPS, Drill, Outcome, Seen

SIZES = (
    "+model=tiny", "model.hidden_size=64", "model.intermediate_size=256", f"optim.global_batch={BATCH}",
)  # fmt: skip
RHYTHM = (
    f"schedule.total_steps={STEPS}", f"checkpoint.every_steps={EVERY}", "monitor.every_steps=1",
    f"eval.every_steps={STEPS}", "eval.max_examples=64",
)  # fmt: skip
PASSED_ON = ("data", "model", "optim", "engine")


def table(outcomes: Sequence[Outcome], markdown: bool = False) -> str:
    """The outcomes, a line each, as aligned text or as markdown; below it what did not hold."""
    head = ("fault", "noticed after", "how", "steps lost", "new step after", "final weights")
    rows = [head, *(_row(outcome) for outcome in outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if markdown:
        rows.insert(1, tuple("-" * width for width in widths))
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip())
    wrong = [f"{each.fault}: {reason}" for each in outcomes for reason in each.wrong]
    lines += ["", *(f"DOES NOT HOLD  {line}" for line in wrong)] if wrong else []
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
    """The undisturbed run, then these faults in the order of FAULTS; each is told as it ends."""
    shared = Drill(folder, overrides, settings)
    outcomes = [shared.undisturbed()]
    if outcomes[0].wrong:
        return outcomes
    for name, fault in FAULTS.items():
        if name in names:
            print(f"{name}: {fault.__doc__}", flush=True)
            try:
                outcomes.append(fault(shared))
            except (RunFailedError, OSError, ValueError) as error:
                outcomes.append(Outcome(name, Seen(None, ""), wrong=(str(error),)))
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, run the drill, print the table; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        print((__doc__ or "").format(STEPS=STEPS, EVERY=EVERY, FAULTS=", ".join(FAULTS)))
        return 0
    try:
        names, out, typed = _parse(arguments)
        overrides = [*SIZES, *typed, *RHYTHM]
        settings, on_sample = load(overrides, RANKS)
        if on_sample:
            print(SAMPLE_LINE, flush=True)
            if not (folder_of(settings.data) / "manifest.json").exists():
                prepare_sample(settings.data)
        manifest_of(settings.data)
    except SettingsError as error:
        print(f"scripts.drill: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no rank is left behind
    folder = Path(tempfile.mkdtemp(prefix="drill-")) if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    outcomes = drill(names, folder, overrides, settings)
    holds = not any(outcome.wrong for outcome in outcomes)
    print(f"\n{table(outcomes)}\n\n{len(outcomes) - 1} faults in {time.time() - began:.0f} s")
    if out is not None:
        (folder / "drill.md").write_text(f"{table(outcomes, markdown=True)}\n", encoding="utf-8")
    if out is None and holds:
        shutil.rmtree(folder)
    else:
        print(f"runs and logs: {folder}")
    return 0 if holds else 1


def _parse(arguments: Sequence[str]) -> tuple[list[str], Path | None, list[str]]:
    """Names of faults, the folder to keep, and what goes on to pretrain.run."""
    names, out, typed = list(FAULTS), None, []
    for word in arguments:
        key, _, value = word.partition("=")
        if key == "faults":
            names = value.split(",")
            if unknown := [name for name in names if name not in FAULTS]:
                raise SettingsError(
                    f"faults={unknown[0]} is not known; there are {', '.join(FAULTS)}"
                )
        elif key == "out":
            out = Path(value)
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise SettingsError(f"out={value} is there and not empty; name a new folder")
        elif key.split(".")[0] in PASSED_ON:
            typed.append(word)
        else:
            raise SettingsError(
                f"{word!r} is no setting of the drill; it takes faults=, out= and pretrain.run's "
                f"groups {', '.join(PASSED_ON)}"
            )
    return names, out, typed


if __name__ == "__main__":
    sys.exit(main())

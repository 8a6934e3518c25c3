"""Print a table of all runs: state, progress, losses, speed and time left.

    python -m pretrain.runs [dir=runs]

dir   the folder that holds the runs (their run.dir); default: runs
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.printable import printable
from pretrain.config.arguments import run_command
from pretrain.run_folder.history import History, State, run_folders

HEAD = (
    "run", "state", "step", "of", "starts", "MLM", "NSP/SOP", "held-out MLM", "tokens/s", "goodput",
    "left",
)  # fmt: skip


def runs(dir: Path = Path("runs")) -> None:
    """The command."""
    print("\n".join(aligned([HEAD, *map(_row, run_folders(dir))])))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, or 2 with a message if the arguments are wrong."""
    return run_command(runs, argv)


def _row(folder: Path) -> list[str]:
    try:
        run = History.read(folder)
    except SettingsError as error:  # one unreadable folder must not hide the others
        return [printable(folder.name), f"unreadable: {printable(str(error))}"]
    speed, total = run.last("perf/tokens_per_second"), run.total_steps
    pair = run.last("train/nsp_loss")
    return [
        printable(run.name),
        run.state.value,
        f"{run.step:,}",
        "by the clock" if total is None else f"{total:,}",
        str(sum(stretch.kind != "rewound" for stretch in run.stretches)),
        _number(run.last("train/mlm_loss"), "{:.3f}"),
        _number(run.last("train/sop_loss") if pair is None else pair, "{:.3f}"),
        _number(run.last("eval/mlm_loss"), "{:.3f}"),
        _number(speed, "{:,.0f}"),
        _number(run.last("perf/goodput"), "{:.0%}"),
        _left(run),
    ]


def _left(run: History) -> str:
    """Time left at the speed of this stretch; a dash if the run is not running."""
    if run.state is not State.running or not run.stretches or run.total_steps is None:
        return "–"
    stretch = run.stretches[-1]
    done, took = stretch.counted_step - stretch.first_step, stretch.counted_until - stretch.began
    if not done:
        return "–"
    left_s = took.total_seconds() / done * (run.total_steps - run.step)
    return str(timedelta(seconds=round(left_s)))


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of aligned columns: the first two to the left, numbers to the right."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    widths[0] = max(len(row[0]) for row in rows)
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(status_of(main))

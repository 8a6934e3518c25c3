"""Write one self-contained HTML page about a run: no network, no script, no wandb.

    python -m pretrain.report run=runs/x [other=runs/y] [target=FILE]

other    a second run, to be compared with the first
target   the file to write; default: RUN/report.html

The run may be in progress.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.core.command import status_of
from data_prep.core.files import whole_or_absent
from pretrain.config.arguments import run_command
from pretrain.reporting.page import page
from pretrain.run_folder.history import History


def report(run: Path, other: Path | None = None, target: Path | None = None) -> None:
    """The command."""
    text = page(History.read(run), None if other is None else History.read(other))
    target = target or run / "report.html"
    with whole_or_absent(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"report  {target}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, or 2 with a message if the arguments are wrong."""
    return run_command(report, argv)


if __name__ == "__main__":
    sys.exit(status_of(main))

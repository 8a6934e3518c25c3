"""Check that a run continues exactly, with its own settings, data and machine.

    python -m pretrain.verify run=FOLDER [steps=8] [ranks=N] [other_ranks=M] [keep=true]

Trains three copies of the run for a few steps from one of its checkpoints: one straight, one
killed twice and started again, one on another number of ranks. Compares each step's examples and
losses, and the last weights. The run itself is only read; it may be training. Its disk needs room
for three more checkpoints.

run           the folder of a run, as in run=runs/first
steps         updates to make again, 3 or more; default: 8
ranks         ranks on this machine; default: as many as the run's last start had, if possible
other_ranks   ranks of the third copy; default: half of ranks, or twice as many. 0: no third copy
keep          leave the copies in RUN/verify; they also stay if something differs

Exit status: 0 everything that must be equal is; 1 something differs or a copy failed; 2 wrong
arguments.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.core.command import INTERRUPTED, as_typed, status_of
from data_prep.core.config import SettingsError
from pretrain.config.arguments import run_command
from pretrain.verification.run_watcher import RunFailedError
from pretrain.verification.trial import FEWEST_STEPS, verify_run


def verify(
    run: Path,
    steps: int = 8,
    ranks: int | None = None,
    other_ranks: int | None = None,
    keep: bool = False,
) -> int:
    """The command."""
    for name, value, least in (
        ("steps", steps, FEWEST_STEPS), ("ranks", ranks, 1), ("other_ranks", other_ranks, 0),
    ):  # fmt: skip
        if value is not None and value < least:
            raise SettingsError(f"{name}={value}: {name} takes {least} or more")
    started = time.monotonic()
    try:
        holds, verdict = verify_run(run, steps, ranks, other_ranks, keep, _print)
    except RunFailedError as error:
        print(as_typed(f"pretrain.verify: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(as_typed("pretrain.verify: interrupted; the copies are removed"), file=sys.stderr)
        return INTERRUPTED
    _print(f"took      {time.monotonic() - started:.0f} s\n{verdict}")
    return 0 if holds else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the docstring of this module lists the exit statuses."""
    return run_command(verify, argv)


def _print(line: str) -> None:
    print(line, flush=True)


def _leave(number: int, frame: object) -> None:
    """Exit on a signal as on an error, so that no rank and no copy is left behind."""
    sys.exit(128 + number)


if __name__ == "__main__":
    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, _leave)
    sys.exit(status_of(main))

"""The proof that a run continues exactly: on its own settings, its own data and this machine.

    python -m pretrain.verify run=runs/x [steps=8] [ranks=N] [other_ranks=M] [keep=true]

Three copies of the run go on from one of its checkpoints for the same few steps: one straight, one
killed twice and started again, one on another number of ranks. Every step's examples and losses are
compared, and the weights at the end. The run itself is read and never written to; it may be training.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.core.config import SettingsError
from pretrain.config.arguments import asks_for_help, named_words
from pretrain.verification.replica import NotTrainedError
from pretrain.verification.trial import FEWEST_STEPS, verify_run

HELP = """\
python -m pretrain.verify run=FOLDER [steps=8] [ranks=N] [other_ranks=M] [keep=true]

Trains three copies of a run a few steps from one of its checkpoints: straight, with two kills, and on
another number of ranks. Compares every step's examples and losses and the last weights. The run itself
is not touched. On its disk there must be room for three more checkpoints.

run=FOLDER      the folder of a run, as in run=runs/first
steps=8         updates to make again, 3 or more
ranks=N         ranks of this machine; as many as the run's last start had, where this machine can
other_ranks=M   of the third copy; half of N, or twice. 0: no third copy
keep=true       leave the copies in FOLDER/verify; they also stay where something differs

Exit status: 0 all is equal that must be, 1 something differs or a copy failed, 2 wrong arguments.
"""

ARGUMENTS = {"run": "FOLDER", "steps": "N", "ranks": "N", "other_ranks": "M", "keep": "true"}
LEAST = {"steps": FEWEST_STEPS, "ranks": 1, "other_ranks": 0}


def main(argv: Sequence[str] | None = None) -> int:
    """Verify from the command line: see HELP for the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if asks_for_help(arguments):
        sys.stdout.write(HELP)
        return 0
    started = time.monotonic()

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    try:
        given = _arguments(arguments)
        holds, sentence = verify_run(**given, say=say)
    except SettingsError as error:
        sys.stderr.write(f"pretrain.verify: {error}\n")
        return 2
    except NotTrainedError as error:
        sys.stderr.write(f"pretrain.verify: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("pretrain.verify: interrupted; the copies are removed\n")
        return 130
    say(f"took      {time.monotonic() - started:.0f} s\n{sentence}")
    return 0 if holds else 1


def _arguments(argv: Sequence[str]) -> dict[str, Any]:
    """Raises SettingsError on an argument that is none, or has a wrong value."""
    words = named_words(argv, ARGUMENTS, needed=["run"])
    arguments: dict[str, Any] = {"run": Path(words.pop("run"))}
    if "keep" in words:
        keep = words.pop("keep")
        if keep not in ("true", "false"):
            raise SettingsError(f"keep={keep}; it takes true or false")
        arguments["keep"] = keep == "true"
    for name, value in words.items():
        if not value.isdecimal() or int(value) < LEAST[name]:
            raise SettingsError(f"{name}={value}; it takes a number of {LEAST[name]} or more")
        arguments[name] = int(value)
    return arguments


def _leave(number: int, frame: object) -> None:
    """On a signal leave as from an error, so that no rank and no copy stays behind."""
    sys.exit(128 + number)


if __name__ == "__main__":
    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, _leave)
    sys.exit(main())

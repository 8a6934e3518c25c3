"""Average the weights of a run's last checkpoints, export the mean and evaluate it.

    python -m pretrain.average run=runs/x [last=5] [target=FOLDER]

last     how many of the newest checkpoints; all that there are if the run has fewer; default: 5
target   the Hugging Face folder to write; default: RUN/average

Prints the held-out metrics of the last checkpoint and of the mean. The mean helps while the rate is
constant (schedule=wsd before its decay), and not at the end of a decay (docs/training.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from pretrain.config.arguments import run_command
from pretrain.config.load import config_of


def average(run: Path, last: int = 5, target: Path | None = None) -> None:
    """The command."""
    if last < 2:
        raise SettingsError(f"last={last}; it takes 2 or more")
    config_of(run)
    # Not before it is known that there is a run: these imports take seconds
    from pretrain.metrics.names import held_out
    from pretrain.training.export_run import export_average

    try:
        found = export_average(run, last, target)
    except ValueError as error:  # a manifest or a state of another version
        raise SettingsError(str(error)) from error
    steps = ", ".join(f"{step:,}" for step in found.steps)
    print(f"mean of the weights after steps {steps}; held-out, {found.examples:,} examples")
    mean, alone = held_out(found.metrics), held_out(found.metrics_of_last)
    width = max(34, *(len(label) + 1 for label in mean))
    print(f"{'':<{width}}{f'step {found.steps[-1]:,}':>14}{'mean':>14}")
    for label, value in mean.items():
        print(f"{label:<{width}}{alone[label]:14.4f}{value:14.4f}")
    print(f"export  {found.target}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, or 2 with a message if something is wrong."""
    return run_command(average, argv)


if __name__ == "__main__":
    sys.exit(status_of(main))

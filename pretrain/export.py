"""Export a run's checkpoint as a Hugging Face folder, which stock `transformers` reads.

    python -m pretrain.export run=runs/x [checkpoint=FOLDER] [target=FOLDER]

checkpoint   the checkpoint to export; default: the newest whole one of the run
target       the folder to write; default: RUN/export

The folder appears only once it is complete and, where `transformers` is installed, its logits equal
those of the model trained here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from pretrain.config.arguments import run_command
from pretrain.config.load import config_of


def export(run: Path, checkpoint: Path | None = None, target: Path | None = None) -> None:
    """The command."""
    config_of(run)
    # Not before it is known that there is a run: these imports take seconds
    from pretrain.training.export_run import export_run

    try:
        print(f"export  {export_run(run, checkpoint, target)}")
    except ValueError as error:  # a manifest or a state of another version
        raise SettingsError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, or 2 with a message if the arguments are wrong."""
    return run_command(export, argv)


if __name__ == "__main__":
    sys.exit(status_of(main))

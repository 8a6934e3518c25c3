"""The Hugging Face folder of a trained model: written, checked against `transformers`, read again.

    python -m pretrain.export run=runs/x [checkpoint=FOLDER] [target=FOLDER]

The folder holds what `from_pretrained` of stock `transformers` reads. It appears under its name when
all of it is there and, where `transformers` is installed, its logits have been found equal to ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.core.config import SettingsError
from pretrain.config.arguments import asks_for_help, named_words
from pretrain.training.export_run import export_run

ARGUMENTS = {"run": "FOLDER", "checkpoint": "FOLDER", "target": "FOLDER"}


def main(argv: Sequence[str] | None = None) -> int:
    """Export from the command line: 0, or 2 with a message where the arguments are wrong."""
    typed = sys.argv[1:] if argv is None else argv
    if asks_for_help(typed):
        sys.stdout.write(__doc__ or "")
        return 0
    try:
        words = named_words(typed, ARGUMENTS, needed=["run"])
        folders = {name: Path(value) for name, value in words.items()}
        run_folder = folders.pop("run")
        sys.stdout.write(f"export  {export_run(run_folder, **folders)}\n")
    except SettingsError as error:
        sys.stderr.write(f"pretrain.export: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One page about a run that needs nothing else: no network, no script, no wandb.

    python -m pretrain.report run=runs/x [other=runs/y] [target=FILE]

It may be written while the run is in progress. Text from data, settings and names is escaped by the
template engine; charts are SVG inside the page.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.core.config import SettingsError
from data_prep.core.files import whole_or_absent
from pretrain.config.arguments import asks_for_help, named_words
from pretrain.reporting.page import page
from pretrain.run_folder.history import History

ARGUMENTS = {"run": "FOLDER", "other": "FOLDER", "target": "FILE"}


def main(argv: Sequence[str] | None = None) -> int:
    """Write a report: 0, or 2 with a message where the arguments are wrong."""
    typed = sys.argv[1:] if argv is None else argv
    if asks_for_help(typed):
        sys.stdout.write(__doc__ or "")
        return 0
    try:
        words = named_words(typed, ARGUMENTS, needed=["run"])
        run = History.read(Path(words["run"]))
        other = History.read(Path(words["other"])) if "other" in words else None
        target = Path(words.get("target", f"{words['run']}/report.html"))
        with whole_or_absent(target) as temporary:
            temporary.write_text(page(run, other), encoding="utf-8")
    except SettingsError as error:
        sys.stderr.write(f"pretrain.report: {error}\n")
        return 2
    sys.stdout.write(f"report  {target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

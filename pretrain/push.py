"""Upload a run, an exported model or shards to the Hugging Face hub.

    python -m pretrain.push run=FOLDER to=OWNER/NAME [private=false] [checkpoints=false]
        [overwrite=true]

run           a run: its export, with curves, as main, and each checkpoint as a branch (step-1000);
              or an exported model; or shards such as data/x/len128, as a data set with their card
to            the repository, which is made if there is none
private       whether only you can see a new repository; default: true
checkpoints   whether a run's checkpoints are uploaded; default: true
overwrite     whether files of another run in the repository are replaced; default: false

The token comes from HF_TOKEN or `hf auth login`. Cut off, the same command continues: what the hub
has is not sent again. Exit status: 0; 1 if the hub fails; 2 if something is wrong or missing;
130 on Ctrl-C.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from data_prep.core.command import INTERRUPTED, as_typed, status_of
from data_prep.core.config import SettingsError
from data_prep.core.printable import printable_lines
from pretrain.config.arguments import run_command
from pretrain.config.hub_access import name_fault, token


def push(
    run: Annotated[Path, "FOLDER"],
    to: Annotated[str, "OWNER/NAME (the repository, as in to=me/bert-small)"],
    private: bool = True,
    checkpoints: bool = True,
    overwrite: bool = False,
) -> int:
    """The command."""
    if fault := name_fault(to):
        raise SettingsError(f"to={to}: {fault}")
    token()  # before anything slow
    from pretrain.hub import contents, repository

    found = contents.contents_of(run, to, checkpoints)
    words = [f"run={run}", f"to={to}", *([] if private else ["private=false"])]
    words += [*([] if checkpoints else ["checkpoints=false"])]
    words += ["overwrite=true"] if overwrite else []
    again = f"continue it with: {shlex.join(['python', '-m', 'pretrain.push', *words])}"
    try:
        repository.push(
            found, to, private, overwrite, lambda line: print(f"pushed  {to}  {line}", flush=True)
        )
    except repository.HubError as error:
        _say(f"the upload to {to} failed ({error}); {again}")
        return 1
    except KeyboardInterrupt:
        _say(f"the upload to {to} was interrupted; {again}")
        return INTERRUPTED
    return 0


def _say(text: str) -> None:
    print(as_typed(printable_lines(f"pretrain.push: {text}")), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, 1 if the hub fails, or 2 with a message if something is wrong."""
    return run_command(push, argv)


if __name__ == "__main__":
    sys.exit(status_of(main))

"""Evaluate a checkpoint or an exported model on prepared shards: its loss on texts of your own.

    python -m pretrain.evaluate run=FOLDER [checkpoint=STEP] [data.dir=FOLDER] [data.seq_len=N]
        [split=heldout] [max_examples=N] [json=true]

run            a run, or a Hugging Face folder such as runs/x/export
checkpoint     of the run: a step or a folder; default: the newest whole one
data.dir       a corpus prepared by data_prep with the same vocabulary; default: the run's
data.seq_len   which of its shards; default: those of the run's last phase
split          heldout, or another split of the shards, such as train; default: heldout
max_examples   spread evenly over the split; default: all
json           print the result as JSON

Shards of another vocabulary are refused. On a run's own shards, with its eval.max_examples, the
metrics are those that it logged. Exit status: 0; 2 if something is wrong or does not fit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import orjson

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from data_prep.core.settings import is_url
from pretrain.config.arguments import run_command


def evaluate(
    run: Path,
    checkpoint: str | None = None,
    data__dir: Path | None = None,
    data__seq_len: int | None = None,
    split: str = "heldout",
    max_examples: int | None = None,
    json: bool = False,
) -> None:
    """The command."""
    if max_examples is not None and max_examples < 1:
        raise SettingsError(f"max_examples={max_examples}; it takes 1 or more")
    # A Path has one slash of the two
    if data__dir is not None and is_url(str(data__dir).replace(":/", "://", 1)):
        raise SettingsError(
            "data.dir is a URL, and shards are read from a local folder here: copy them to one, "
            "or take the folder in data.stage where a run with this URL has put them"
        )
    if not run.is_dir():
        raise SettingsError(
            f"run={run} is no folder; it takes a run, such as runs/x, or a Hugging Face BERT, such "
            "as runs/x/export"
        )
    # Not before it is known that there is a model: these imports take seconds
    from pretrain.metrics.names import held_out
    from pretrain.training.evaluate_model import evaluate_model

    try:
        found = evaluate_model(run, checkpoint, data__dir, data__seq_len, split, max_examples)
    except ValueError as error:  # a manifest or a state of another version
        raise SettingsError(str(error)) from error
    if json:
        print(orjson.dumps(vars(found), default=str, option=orjson.OPT_INDENT_2).decode())
        return
    print(f"model   {found.model} ({found.precision})")
    print(
        f"data    {found.shards}, {found.examples:,} of {found.of_examples:,} examples of "
        f"split {found.split}"
    )
    metrics = held_out(found.metrics)
    width = max(34, *(len(label) + 1 for label in metrics))
    for label, value in metrics.items():
        print(f"{label:<{width}}{value:10.4f}")
    if found.note:
        print(found.note)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, or 2 with a message if something is wrong."""
    return run_command(evaluate, argv)


if __name__ == "__main__":
    sys.exit(status_of(main))

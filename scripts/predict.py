"""Predict with a BERT folder. Its config.json decides what is predicted.

    python -m scripts.predict model=DIR [TEXT ...] [--pair TEXT] [--file FILE] [--top N]
        [--embed cls|mean] [--json]

fine-tuned on labels     the class and all probabilities, or the number
fine-tuned on questions  the span that answers TEXT in the pair
fine-tuned on tags       one tag per word; spaces separate words
pretrained               tokens for each [MASK], and whether the pair follows TEXT
--embed                  one vector per text, with any of these models: hidden states of the last
                         layer, of [CLS] or their mean
--pair                   the second text of every TEXT
--top                    number of tokens for each [MASK]; default: 5
--json                   one object per line

Without TEXT, the lines of --file or of standard input are read. A TAB separates text and pair.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.core.bert_folder import check_folder
from data_prep.core.command import as_typed, status_of
from data_prep.core.config import SettingsError
from scripts.finetuning.settings import InputError
from scripts.prediction.inputs import inputs_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, or 2 with a message if something cannot be used."""
    try:
        given = _arguments(sys.argv[1:] if argv is None else argv)
        folder, inputs = Path(given.model), inputs_of(given.text, given.file, given.pair)
        check_folder(folder)
        # Not before it is known that there is a model: these imports take seconds
        from scripts.prediction.predictions import predict

        for record, line in predict(folder, inputs, given.embed, given.top):
            print(json.dumps(record, ensure_ascii=False) if given.json else line, flush=True)
    except SettingsError as error:
        sys.stderr.write(as_typed(f"scripts.predict: {error}\n"))
        return 2
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(as_typed("python -m scripts.predict"), add_help=False)
    parser.add_argument("model", nargs="?", help="model=DIR, a Hugging Face folder")
    parser.add_argument("text", nargs="*")
    parser.add_argument("--pair", help="the second text of every TEXT")
    parser.add_argument("--file", type=Path, help="one text per line; - is standard input")
    parser.add_argument("--embed", choices=("cls", "mean"), help="vectors of the last layer")
    parser.add_argument("--top", type=int, default=5, help="number of tokens for each [MASK]")
    parser.add_argument("--json", action="store_true", help="one object per line")
    given = parser.parse_intermixed_args(argv)  # texts may follow options
    if given.model is None:
        raise InputError("no model is named; add model=DIR, such as model=runs/x/export")
    given.model = given.model.removeprefix("model=")
    if given.top < 1:
        raise InputError(f"--top {given.top}: must be at least 1")
    return given


if __name__ == "__main__":
    sys.exit(status_of(main))

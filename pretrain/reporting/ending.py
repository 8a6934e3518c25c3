"""The last lines of a run: a picture of the loss, and what to type next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from data_prep.core.command import as_typed
from data_prep.core.config import SettingsError
from data_prep.core.entry import why_not
from data_prep.core.files import whole_or_absent
from pretrain.run_folder.history import History

PICTURE = "loss.svg"
BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", ".,:-=+*#"  # from low to high; the second where only ASCII prints
COLUMNS = 48  # of the sparkline, at most


def ending(run_folder: Path) -> list[str]:
    """Write loss.svg, and return lines of the loss and of the commands for what comes next.

    A picture that cannot be drawn is named in a line: the run is finished all the same.
    """
    try:
        run = History.read(run_folder)
        loss = list(_loss(run))
    except (OSError, SettingsError) as error:
        return [f"  no picture of the loss: {error}"]
    return ["", *loss, "  next", *(f"  {command}" for command in next_commands(run))]


def _loss(run: History) -> Iterator[str]:
    _, losses = run.series("train/mlm_loss")
    if not losses:
        return
    line = sparkline(losses, COLUMNS, levels_for(sys.stdout.encoding))
    yield f"  training MLM loss  {losses[0]:.2f} {line} {losses[-1]:.2f}"
    if why := why_not("report"):
        yield f"  no picture of the loss: {why}"
    elif chart := _chart(run):
        target = run.folder / PICTURE
        with whole_or_absent(target) as temporary:
            temporary.write_text(chart, encoding="utf-8")
        yield f"  {'':17}  {target}"
    yield ""


def _chart(run: History) -> str | None:
    """The picture of the loss as SVG; None if there is too little to draw."""
    from pretrain.reporting.charts import loss_chart
    from pretrain.reporting.plots import picture

    chart = loss_chart(run)
    return None if chart is None else picture(chart)


def next_commands(run: History) -> list[str]:
    """Look at the run, use its model, and go on: with own text, or with a task for the model."""
    export = shlex.quote(str(run.folder / "export"))
    data = run.settings.data.folder
    if (data / "documents" / "sample").is_dir():
        last = "data_prep.collect +source=books source.path=FOLDER data_dir=data/mine"
    else:
        last = f"scripts.finetune_classification +task=sst2 model={export}"
    words = "'The [MASK] is here.'"
    commands = [
        f"python -m pretrain.report run={shlex.quote(str(run.folder))}",
        f"python -m scripts.predict model={export} {words}",
        f"python -m {last}",
    ]
    return [as_typed(command) for command in commands]


def sparkline(values: Sequence[float], columns: int, levels: str = BLOCKS) -> str:
    """One character per value, its height among all; more values than `columns` become means."""
    width = min(columns, len(values))
    bounds = [column * len(values) // width for column in range(width + 1)]
    heights = [fmean(values[first:end]) for first, end in pairwise(bounds)]
    low, high = min(heights), max(heights)
    scale = (len(levels) - 1) / (high - low) if high > low else 0.0
    return "".join(levels[round(scale * (height - low))] for height in heights)


def levels_for(encoding: str | None) -> str:
    """Blocks, or ASCII where the terminal's encoding has none."""
    try:
        BLOCKS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return BLOCKS

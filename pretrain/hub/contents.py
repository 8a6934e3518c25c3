"""What is uploaded: a run with its checkpoints, an exported model, or shards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.core.command import as_typed
from data_prep.core.config import SettingsError
from data_prep.core.entry import why_not
from data_prep.core.files import checksum
from pretrain.checkpoint.files import MANIFEST_FILE, find_fault, read_state
from pretrain.run_folder.line_types import events_of

logger = logging.getLogger(__name__)

MAIN = "main"
CURVES = "loss.svg"


@dataclass(frozen=True)
class Branch:
    """One branch of the repository; `fill` puts its files into a new folder."""

    name: str
    fill: Callable[[Path], object]


@dataclass(frozen=True)
class Contents:
    """All that goes into one repository."""

    kind: str  # "model" or "dataset", as the hub names it
    title: str  # of what is uploaded
    identity: str  # tells it from others of that title
    branches: list[Branch]  # main is the first


def contents_of(folder: Path, name: str, checkpoints: bool = True) -> Contents:
    """What `folder` holds for the repository `name`; of a run, with its whole checkpoints or not.

    Raises SettingsError if it is no run, no exported model, and no shards with their card.
    """
    if (folder / "config.yaml").is_file():
        events = events_of(folder / "events.jsonl")
        _warn_of_older_export(folder)
        begun = str(events[0]["time"]) if events else checksum(folder / "config.yaml")
        branches = [Branch(MAIN, lambda target: _fill_with_run(target, folder, name))]
        if checkpoints:
            branches += _checkpoints(folder, name)
        return Contents("model", folder.resolve().name, begun, branches)
    if (folder / "config.json").is_file() and (weights := folder / "model.safetensors").is_file():
        only = Branch(MAIN, lambda target: _fill_with_model(target, folder, name))
        return Contents("model", folder.resolve().name, checksum(weights), [only])
    if (folder / "manifest.json").is_file() and any(folder.glob("train/*.arrow")):
        if not (folder / "README.md").is_file():
            raise SettingsError(
                f"{folder} has no data set card; write it with python -m data_prep.audit "
                f"data_dir={folder.parent} seq_len={folder.name.removeprefix('len')}"
            )
        only = Branch(MAIN, lambda target: _fill_with_shards(target, folder, name))
        title, identity = folder.resolve().name, checksum(folder / "manifest.json")
        return Contents("dataset", title, identity, [only])
    raise SettingsError(
        f"{folder} is no run (config.yaml), no exported model (config.json, model.safetensors) and "
        "no shards (manifest.json, train/*.arrow); give run= one of them, as in run=runs/x"
    )


def _warn_of_older_export(run_folder: Path) -> None:
    """A run that goes on after its end, as with run.extend=true, keeps its export until the end."""
    weights = run_folder / "export" / "model.safetensors"
    found = sorted((run_folder / "checkpoints").glob(f"step-*/{MANIFEST_FILE}"))
    if weights.is_file() and found and weights.stat().st_mtime < found[-1].stat().st_mtime:
        text = (
            f"{weights.parent} is older than {found[-1].parent}; to upload that as main, too: "
            f"python -m pretrain.export run={run_folder}, then this command again"
        )
        logger.warning("%s", as_typed(text))


def _checkpoints(run_folder: Path, name: str) -> Iterator[Branch]:
    """A branch per whole checkpoint: step-1000 holds the exported model of step 1,000."""
    for path in sorted((run_folder / "checkpoints").glob("step-*")):
        if fault := find_fault(path):
            logger.warning("checkpoint %s is damaged and left out: %s", path, fault)
            continue
        branch = f"step-{read_state(path).step}"
        yield Branch(branch, _checkpoint_filler(run_folder, path, name, branch))


def _checkpoint_filler(
    run_folder: Path, checkpoint: Path, name: str, branch: str
) -> Callable[[Path], object]:
    def fill(target: Path) -> None:
        from pretrain.training.export_run import export_run  # imports torch

        export_run(run_folder, checkpoint, target)
        _address_card(target, target, f'"{name}", revision="{branch}"')

    return fill


def _fill_with_run(target: Path, run_folder: Path, name: str) -> None:
    """The exported model, newly made if there is none, with the curves."""
    export = run_folder / "export"
    if not export.is_dir():
        from pretrain.training.export_run import export_run  # imports torch

        export_run(run_folder)
    _fill_with_model(target, export, name)
    if curves := _curves(run_folder):
        (target / CURVES).write_text(curves, encoding="utf-8")
        card = (target / "README.md").read_text(encoding="utf-8")
        picture = f"## Curves\n\n![MLM loss over steps]({CURVES})\n\n## Use\n"
        (target / "README.md").write_text(card.replace("## Use\n", picture, 1), encoding="utf-8")


def _curves(run_folder: Path) -> str | None:
    """Training and held-out loss over steps as SVG; None if nothing is recorded."""
    if why := why_not("report"):
        logger.warning("no curves are uploaded: %s", why)
        return None
    from pretrain.reporting.charts import loss_chart
    from pretrain.reporting.plots import picture
    from pretrain.run_folder.history import History

    chart = loss_chart(History.read(run_folder))
    return None if chart is None else picture(chart)


def _fill_with_model(target: Path, export: Path, name: str) -> None:
    _link(target, export)
    if (export / "README.md").is_file():
        _address_card(target, export, f'"{name}"')


def _fill_with_shards(target: Path, shards: Path, name: str) -> None:
    """The shards with their card and, since their ids mean nothing without it, the vocabulary."""
    _link(target, shards)
    if (vocabulary := shards.parent / "vocab").is_dir():
        _link(target / "vocab", vocabulary)
    card = (shards / "README.md").read_text(encoding="utf-8")
    _write_card(target, card.replace('"FOLDER OF THIS FILE"', f'"{name}"'))


def _link(target: Path, folder: Path) -> None:
    """Links to all regular files below `folder`, hidden ones and its logs left out."""
    for path in sorted(folder.rglob("*")):
        within = path.relative_to(folder)
        is_own = within.parts[0] == "logs" or any(part.startswith(".") for part in within.parts)
        if path.is_file() and not is_own:
            (target / within).parent.mkdir(parents=True, exist_ok=True)
            (target / within).symlink_to(path.resolve())


def _address_card(target: Path, export: Path, address: str) -> None:
    """The model card in `target`, whose example loads the model from the hub."""
    card = (export / "README.md").read_text(encoding="utf-8")
    _write_card(target, card.replace('from_pretrained("FOLDER"', f"from_pretrained({address}"))


def _write_card(target: Path, card: str) -> None:
    (target / "README.md").unlink(missing_ok=True)  # perhaps a link, which is not written through
    (target / "README.md").write_text(card, encoding="utf-8")

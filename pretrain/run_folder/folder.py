"""Opens runs/<run.name>/ on rank 0, and decides where the run continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.core.config import SettingsError, as_yaml
from data_prep.core.files import whole_or_absent, write_json
from pretrain.checkpoint.identity import differences
from pretrain.config.settings import Resume, Settings
from pretrain.run_folder.environment import environment


def open_run_folder(folder: Path, settings: Settings, now: dict[str, Any]) -> Path | None:
    """Make the folder with config.yaml and environment.json; return the checkpoint to continue.

    None means step 0. `now` is the run's identity. Raises SettingsError if run.resume forbids what
    is found, all checkpoints are broken, or the newest belongs to a run of other settings or data.
    """
    from pretrain.checkpoint.files import find_fault, newest_whole

    newest = newest_whole(folder)
    saved = sorted((folder / "checkpoints").glob("step-*"))
    resume = settings.run.resume
    if newest is None and saved and resume is not Resume.never:
        raise SettingsError(
            f"none of the {len(saved)} checkpoints in {folder / 'checkpoints'} is whole:\n"
            + "".join(f"  {path.name}: {find_fault(path)}\n" for path in saved)
            + "Delete that folder to start at step 0, or type another run.name"
        )
    if newest is None and resume is Resume.must:
        raise SettingsError(
            f"run.resume=must, but there is no checkpoint in {folder / 'checkpoints'}; check "
            "run.name and run.dir, or start with run.resume=auto"
        )
    if saved and resume is Resume.never:
        raise SettingsError(
            f"run.resume=never, but {folder / 'checkpoints'} holds {saved[-1].name}, which would "
            "be overwritten; type another run.name, or delete that folder"
        )
    if newest is not None:
        _refuse_another_run(newest, now)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_or_absent(folder / "config.yaml") as temporary:
        temporary.write_text(as_yaml(settings))
    write_json(folder / "environment.json", environment())
    return newest


def _refuse_another_run(checkpoint: Path, now: dict[str, Any]) -> None:
    from pretrain.checkpoint.files import read_state

    try:
        before = read_state(checkpoint).identity
    except ValueError as error:
        raise SettingsError(str(error)) from error
    if changed := differences(before, now):
        raise SettingsError(
            f"{checkpoint} cannot be continued, its run had other settings:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nType another run.name for a new run, or the settings of that one"
        )

"""Opens runs/<run.name>/ on rank 0, and decides where the run continues."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.core.config import SettingsError, as_yaml
from data_prep.core.files import remove_folder, whole_or_absent, write_json
from pretrain.checkpoint.extension import Change, Extension, before_decay, changes, extended
from pretrain.checkpoint.progress import CheckpointState
from pretrain.config.settings import Resume, Settings
from pretrain.run_folder.environment import environment
from pretrain.run_folder.line_types import extensions_of


@contextlib.contextmanager
def removed_if_refused(folder: Path, is_main: bool, barrier: Callable[[], None]) -> Iterator[None]:
    """In this context a refusal (SettingsError) leaves no folder that was not there before.

    Collective: a refusal is raised on every rank, and rank 0 removes the folder and the parents
    made with it once no rank writes a log or a heartbeat there any more. A run that has begun to
    train keeps its folder.
    """
    made = [path for path in (folder, *folder.parents) if is_main and not path.exists()]
    try:
        yield
    except SettingsError:
        barrier()
        begun = [folder / name for name in ("checkpoints", "metrics.jsonl")]
        if made and not any(path.exists() for path in begun):
            remove_folder(folder)
            with contextlib.suppress(OSError):  # another run has been started in one
                for parent in made[1:]:
                    parent.rmdir()
        raise


def open_run_folder(
    folder: Path, settings: Settings, now: dict[str, Any]
) -> tuple[Path | None, Extension | None]:
    """Make the folder with config.yaml and environment.json; return the checkpoint to continue
    and the changes that it continues with.

    No checkpoint means step 0, and no changes the settings as they were. `now` is the run's
    identity. Raises SettingsError if run.resume or run.extend forbids what is found, all
    checkpoints are broken, or the newest belongs to a run of other settings or data.
    """
    from pretrain.checkpoint.files import find_fault, newest_whole, put_aside_after

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
    if newest is None and settings.run.extend:
        raise SettingsError(
            f"run.extend=true, but there is no checkpoint in {folder / 'checkpoints'} to continue; "
            "check run.name and run.dir, or leave it out"
        )
    extension = None
    if newest is not None:
        origin = _before_decay(folder, newest, now) if settings.run.extend else newest
        extension = _extension(folder, origin, now, settings.run.extend)
        if origin != newest:
            assert extension is not None, "another schedule is a change"
            extension = replace(extension, put_aside=str(put_aside_after(folder, origin)))
            newest = origin
    folder.mkdir(parents=True, exist_ok=True)
    with whole_or_absent(folder / "config.yaml") as temporary:
        temporary.write_text(as_yaml(settings))
    write_json(folder / "environment.json", environment())
    return newest, extension


def _before_decay(folder: Path, newest: Path, now: dict[str, Any]) -> Path:
    """The checkpoint that an extension goes on from: `newest`, or the last before its decay.

    Raises SettingsError if that one is not whole.
    """
    from pretrain.checkpoint.files import find_fault, path_of

    state = _state(newest)
    if (step := before_decay(state.identity, now, state)) is None:
        return newest
    path = path_of(folder, step)
    if (fault := find_fault(path)) is None:
        return path
    raise SettingsError(
        f"the learning rate decays since step {step:,}, and another schedule goes on from there, "
        f"but of {path} {fault}. Put that checkpoint back, or start another run from the newest "
        f"weights, with run.init_from={newest} and a new run.name"
    )


def _state(checkpoint: Path) -> CheckpointState:
    from pretrain.checkpoint.files import read_state

    try:
        return read_state(checkpoint)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _extension(
    folder: Path, checkpoint: Path, now: dict[str, Any], is_asked_for: bool
) -> Extension | None:
    """The changes to the run since `checkpoint` that no start has recorded; None: none.

    Raises SettingsError if there are such changes and run.extend does not ask for them or they
    cannot be made.
    """
    state = _state(checkpoint)
    recorded = [e for e in extensions_of(folder / "events.jsonl") if e.step == state.step]
    known = recorded[-1].changes if recorded else []  # of a start that wrote no checkpoint yet
    found = changes(state.identity, now)
    if found == known:
        return None
    if is_asked_for:
        try:
            return extended(state.identity, now, state)
        except SettingsError as error:
            raise SettingsError(
                f"{checkpoint} cannot be continued with these changes:\n{error}"
            ) from error
    raise SettingsError(_another_run(checkpoint, state, now, found or known))


def _another_run(
    checkpoint: Path, state: CheckpointState, now: dict[str, Any], found: list[Change]
) -> str:
    """What is refused, and what may be typed instead."""
    cures = ["the settings of that run"]
    try:
        extended(state.identity, now, state)
        cures.append("run.extend=true to continue it with the new ones")
    except SettingsError:
        pass
    cures.append(f"run.init_from={checkpoint} and another run.name to start from its weights")
    return (
        f"{checkpoint} cannot be continued, its run had other settings:\n"
        + "\n".join(f"  {change}" for change in found)
        + f"\nType {', or '.join(cures)}"
    )

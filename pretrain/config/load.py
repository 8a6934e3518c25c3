"""Settings from the command line or a run folder."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from data_prep.core.config import SettingsError, as_overrides, choices, compose, updated
from data_prep.core.plain_yaml import read_yaml
from pretrain.config.phases import check_phases
from pretrain.config.settings import Settings


def folder_of_run(settings: Settings) -> Path:
    """The folder of the run with these settings."""
    return Path(settings.run.dir) / str(settings.run.name)


def config_of(folder: Path) -> Path:
    """The file with the settings of the run in `folder`. Raises SettingsError if it has none."""
    path = folder / "config.yaml"
    if not os.path.lexists(path):
        raise SettingsError(f"{path} is missing; run= takes the folder of a run, as in run=runs/x")
    return path


def settings_of(folder: Path) -> Settings:
    """The settings of the run in `folder`; settings that its version lacked are as in conf/.

    The folder may be somebody else's: its config.yaml is read as plain data. Raises SettingsError
    if there is no run, or its settings are not those of this version.
    """
    path = config_of(folder)
    try:
        return updated(_defaults(), read_yaml(path))
    except SettingsError as error:
        raise SettingsError(
            f"{path} cannot be read ({error}); use the version of this project that wrote it, or "
            "leave that setting out"
        ) from error
    except (OSError, ValueError) as error:
        raise SettingsError(str(error)) from error


@functools.cache  # a list of runs reads many
def _defaults() -> Settings:
    """What a run's file leaves out; shared, and never changed."""
    return compose("config", Settings, ["+model=base"])[0]


def load(overrides: Sequence[str], world_size: int) -> tuple[Settings, bool]:
    """Checked settings from what was typed, and whether they ask for the sample corpus.

    They do where data=sample was typed or neither data= nor data.dir= was: whoever names a folder
    of their own and mistypes it is told so, and does not train on the sample. `@FILE` stands for
    the settings in a YAML file. Raises SettingsError, listing the models where none is named.
    """
    overrides = [word for override in overrides for word in _from_file(override)]
    typed = {override.split("=", 1)[0].lstrip("+") for override in overrides}
    if "model" not in typed:
        raise SettingsError(
            f"no model is named; add +model= and one of {', '.join(choices('model'))}"
        )
    settings, chosen = compose("config", Settings, overrides)
    if settings.run.name is None:
        corpus = Path(settings.data.dir).name
        settings.run.name = f"{chosen['model']}-{corpus}-{settings.data.seq_len}"
    check_phases(settings, world_size)
    settings.model.initializer_range = settings.model.initializer_std
    return settings, chosen["data"] == "sample" and ("data" in typed or "data.dir" not in typed)


def _from_file(override: str) -> list[str]:
    """The overrides in the file of `@FILE`, such as `pretrain.tune` writes; any other as it is."""
    if not override.startswith("@"):
        return [override]
    try:
        return as_overrides(read_yaml(Path(override[1:])))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{override}: {error}") from error

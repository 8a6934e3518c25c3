"""The trackers by their names in log.trackers."""

from __future__ import annotations

import importlib
from typing import cast

from data_prep.core.config import SettingsError
from data_prep.core.entry import why_not
from pretrain.config.settings import LogSettings
from pretrain.trackers.feed import Feed
from pretrain.trackers.tracker import TrackedRun, Tracker

# The package has the name of its tracker, as has its extra
_TRACKERS = {"wandb": "Wandb", "tensorboard": "TensorBoard", "trackio": "Trackio"}


def check_trackers(log: LogSettings) -> None:
    """Raise SettingsError for a tracker that is not known or not installed."""
    for name in log.names:
        if name not in _TRACKERS:
            known = ", ".join(_TRACKERS)
            raise SettingsError(f"log.trackers={name} is not known; there are {known}")
        if why := why_not(name):
            raise SettingsError(f"log.trackers={name}: {why}, or leave it out")


def start_trackers(run: TrackedRun, first_step: int) -> list[Feed]:
    """All trackers that the settings name, each in a thread of its own."""
    return [Feed(name, _tracker(name)(run), run, first_step) for name in run.log.names]


def _tracker(name: str) -> type[Tracker]:
    module = importlib.import_module(f"pretrain.trackers.{name}")
    return cast(type[Tracker], getattr(module, _TRACKERS[name]))

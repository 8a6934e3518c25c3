"""The trackers by their names in log.trackers."""

from __future__ import annotations

import importlib
from typing import cast

from data_prep.core.config import SettingsError
from data_prep.core.entry import why_not
from data_prep.plugins.entry_points import load_plugin, of_current_folder, plugin_names
from pretrain.config.settings import LogSettings
from pretrain.trackers.feed import Feed
from pretrain.trackers.tracker import TrackedRun, Tracker

# The package has the name of its tracker, as has its extra
_TRACKERS = {"wandb": "Wandb", "tensorboard": "TensorBoard", "trackio": "Trackio"}


def check_trackers(log: LogSettings) -> None:
    """Raise SettingsError for a tracker that is not known or not installed."""
    for name in log.names:
        if name not in _TRACKERS:
            _own_tracker(name)
        elif why := why_not(name):
            raise SettingsError(f"log.trackers={name}: {why}, or leave it out")


def start_trackers(run: TrackedRun, first_step: int) -> list[Feed]:
    """All trackers that the settings name, each in a thread of its own."""
    return [Feed(name, _tracker(name)(run), run, first_step) for name in run.log.names]


def _tracker(name: str) -> type[Tracker]:
    if name not in _TRACKERS:
        return _own_tracker(name)
    module = importlib.import_module(f"pretrain.trackers.{name}")
    return cast(type[Tracker], getattr(module, _TRACKERS[name]))


def _own_tracker(name: str) -> type[Tracker]:
    """A tracker that another package has."""
    if name not in plugin_names("trackers"):
        known = ", ".join([*_TRACKERS, *plugin_names("trackers")])
        raise SettingsError(
            f"log.trackers={name} is not known; there are {known}, and what packages that you "
            f"install add (docs/extending.md){of_current_folder()}"
        )
    plugin = load_plugin("trackers", name, "log.trackers")
    if not (isinstance(plugin.what, type) and issubclass(plugin.what, Tracker)):
        raise plugin.refusal("is no subclass of pretrain.trackers.tracker.Tracker")
    return plugin.what

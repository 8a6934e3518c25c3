"""How every job starts: settings from the command line, help, required inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.core.config import CONF, SettingsError, as_yaml, choices, compose
from data_prep.core.files import remove_abandoned
from data_prep.core.settings import DataPrepSettings, SourceSettings, check


class ShareDone(Exception):
    """No error: the share of a job's tasks is done, and others do the rest."""


def load(overrides: Sequence[str]) -> DataPrepSettings:
    """Compose conf/data_prep.yaml with `overrides` and check it. Raises SettingsError."""
    try:
        settings, _ = compose("data_prep", DataPrepSettings, overrides)
    except SettingsError as error:
        if str(error).startswith("data_dir:"):
            raise SettingsError(
                "data_dir is not set; it is the folder that holds, or will hold, the prepared "
                "corpus: add data_dir=FOLDER"
            ) from error
        raise
    check(settings)
    return settings


def start(
    job: Callable[[DataPrepSettings], object],
    argv: Sequence[str] | None = None,
    *,
    has_shares: bool = True,
) -> int:
    """Run one job as a program: load its settings, call it, return the exit status.

    has_shares=False: the job is one task, and settings.share is refused. --help prints the job's
    module docstring and what there is to set, --cfg the settings, and nothing is done.
    0 done; 1 refused or failed on what it met; 2 wrong settings; 130 interrupted. A message on
    stderr stands for a traceback; a slip of our own (any other exception) keeps its traceback.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if "--help" in arguments or "-h" in arguments:
            sys.stdout.write(_help(str(sys.modules[job.__module__].__doc__)))
            return 0
        settings = load([argument for argument in arguments if argument != "--cfg"])
        if "--cfg" in arguments:
            sys.stdout.write(as_yaml(settings))
            return 0
        if settings.share is not None and not has_shares:
            raise SettingsError(
                f"share={settings.share}: this job is a single task, which cannot be shared; leave "
                "share out (collect, encode and build take it)"
            )
        job(settings)
        remove_abandoned(Path(settings.data_dir))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except ShareDone as done:
        sys.stdout.write(f"{done}\n")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command continues\n")
        return 130
    return 0


def _help(doc: str) -> str:
    """What a job does, and what there is to set, with its comments."""
    values = (CONF / "data_prep.yaml").read_text(encoding="utf-8")
    sources = "|".join(choices("source"))
    return f"{doc}\n+source={sources}\nSettings are typed as name=value or group.name=value:\n\n{values}"


def require_source(settings: DataPrepSettings) -> SourceSettings:
    """The source to collect from. Raises SettingsError listing the sources where none is given."""
    if settings.source is None:
        raise SettingsError(
            f"no source is given; add +source=NAME, one of {', '.join(choices('source'))}"
        )
    return settings.source

"""How every job starts: settings from the command line, a summary, the exit status."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from data_prep.core.command import INTERRUPTED, as_typed, refusal
from data_prep.core.config import SettingsError, as_yaml, choices, compose
from data_prep.core.files import remove_abandoned
from data_prep.core.printable import printable_lines
from data_prep.core.settings import (
    DataPrepSettings,
    LanguageSettings,
    SourceSettings,
    Words,
    check,
)
from data_prep.text.language import MULTI, NoDetectorError, known_languages

Result = TypeVar("Result")
Rows = list[tuple[str, str]]  # name and value


class ShareDone(Exception):
    """Not an error: this share of a job's tasks is done; other shares run the rest."""


def load(overrides: Sequence[str]) -> DataPrepSettings:
    """Compose conf/data_prep.yaml with `overrides` and check it. Raises SettingsError."""
    try:
        return _checked(overrides)
    except NoDetectorError as error:
        raise SettingsError(str(error)) from error


def _checked(overrides: Sequence[str]) -> DataPrepSettings:
    try:
        settings, _ = compose("data_prep", DataPrepSettings, _with_profile(overrides))
    except SettingsError as error:
        if str(error).startswith("data_dir:"):
            raise SettingsError(
                "data_dir is not set; it is the folder that holds, or will hold, the prepared "
                "corpus: add data_dir=FOLDER"
            ) from error
        raise
    if settings.source and settings.source.language == MULTI:
        settings.source.language = None
    check(settings)
    return settings


def segmenters(language: LanguageSettings) -> dict[str, str]:
    """The segmenter of words of each language that a corpus may hold and that has one."""
    profiles = [language]
    if language.words is Words.each:
        codes = [name for name in choices("language") if name not in ("other", MULTI)]
        profiles = [load(["data_dir=.", f"language={code}"]).language for code in codes]
    return {own.code: own.words.value for own in profiles if own.words is not Words.none}


def _with_profile(overrides: Sequence[str]) -> list[str]:
    """The overrides, with the profile `other` for a language that has no file in conf/language."""
    profiles, found = choices("language"), []
    for override in overrides:
        name, _, code = override.partition("=")
        if override.lower() == "language=other":
            raise SettingsError(
                "language=other is the profile of every language without one of its own: type the "
                "language's code, such as language=sv"
            )
        if name == "language" and code.lower() in profiles:
            found.append(f"language={code.lower()}")
        elif name == "language" and code.lower() in known_languages():
            found += ["language=other", f"language.code={code}"]
        else:
            found.append(override)
    return found


def start(
    run: Callable[[DataPrepSettings], Result],
    argv: Sequence[str] | None = None,
    *,
    summary: Callable[[DataPrepSettings, Result], str | Rows],
    faults: Callable[[Result], str] = lambda result: "",
    has_shares: bool = False,
) -> int:
    """Run one job as a command and return its exit status.

    Loads the settings from `argv`, calls `run` and prints the `summary` of its result: a text, or
    rows of a table, to which the time taken is added. A text from `faults` is the error message of
    a job that has finished nevertheless. With has_shares=False the job is a single task and refuses
    settings.share. --cfg prints the resolved settings and does not run the job.
    Status: 0 done; 1 failed, also where what this job reads is missing; 2 wrong settings, that is
    every SettingsError, or a folder that the system refuses; 130 interrupted.
    Expected errors are a message on stderr; any other exception is a bug and keeps its traceback.
    """
    arguments, began = sys.argv[1:] if argv is None else argv, time.monotonic()
    try:
        settings = load([argument for argument in arguments if argument != "--cfg"])
        if "--cfg" in arguments:
            sys.stdout.write(as_yaml(settings))
            return 0
        if settings.share is not None and not has_shares:
            raise SettingsError(
                f"share={settings.share}: this job is a single task and cannot be shared; leave "
                "share out (collect, filter, dedup, encode, build and audit take it)"
            )
        result = run(settings)
        shown = summary(settings, result)
        if not isinstance(shown, str):
            shown = _table([*shown, ("seconds", f"{time.monotonic() - began:,.1f}")])
        sys.stdout.write(as_typed(printable_lines(shown)))
        remove_abandoned(Path(settings.data_dir))
        if text := faults(result):
            raise RuntimeError(text)
    except SettingsError as error:
        sys.stderr.write(as_typed(f"{printable_lines(str(error))}\n"))
        return 2
    except BrokenPipeError:  # of stdout, see data_prep.core.command
        raise
    except (ValueError, RuntimeError, OSError) as error:
        refused = refusal(error)
        sys.stderr.write(as_typed(f"{printable_lines(refused or str(error))}\n"))
        return 2 if refused else 1
    except ShareDone as done:
        sys.stdout.write(f"{done}\n")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command continues\n")
        return INTERRUPTED
    return 0


def _table(rows: Rows) -> str:
    """One line per row, the values aligned."""
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in rows)


def require_source(settings: DataPrepSettings) -> SourceSettings:
    """The source to collect from. Raises SettingsError listing the sources where none is given."""
    if settings.source is None:
        raise SettingsError(
            f"no source is given; add +source=NAME, one of {', '.join(choices('source'))}"
        )
    return settings.source

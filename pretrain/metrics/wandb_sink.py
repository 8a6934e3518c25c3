"""Figures to Weights & Biases: one run id through all starts and phases, each step once and rising.

wandb is only a view of metrics.jsonl, so nothing that befalls it may stop a run, or hold it up: it is
spoken to by a thread of its own, with time-outs, and without an answer it writes offline. A start
first sends from metrics.jsonl what wandb lacks, because a killed process took it along, or the server
was away; and it passes over the steps that wandb has, which a start from a checkpoint makes again.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import orjson

from pretrain.config.settings import LogSettings
from pretrain.run_folder.jsonl import readable_lines

if TYPE_CHECKING:
    from pretrain.model.fill_mask import Guesses

logger = logging.getLogger(__name__)

_LAST_FLUSH_S = 1.0  # wandb's own file is at most so far behind: what a SIGKILL takes along
_PROBE_S = 3.0
_WORK_S = 60.0
_PASSED_OVER = "Not for `wandb sync`: a later start has sent again what this file holds.\n"

Row = tuple[int, Mapping[str, Any]]  # a step; figures, and the table of guesses under its own name
GUESSES = "eval/guesses"


class Wandb:
    """The wandb run of one process, through its phases and rewinds."""

    def __init__(
        self, run_folder: Path, name: str, log: LogSettings, config: dict[str, Any], first_step: int
    ) -> None:
        """Start in the background; metrics.jsonl holds the records up to `first_step`."""
        self._folder = run_folder
        self._log, self._name, self._config = log, name, config
        self._first_step = first_step
        self._is_given_up = False
        self._earlier = readable_lines(run_folder / "events.jsonl")
        self._queue: queue.SimpleQueue[Row | Callable[[Any], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def record(self, step: int, figures: Mapping[str, float | str]) -> None:
        self._queue.put((step, figures))

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        if kind == "expectation":  # the other events stand in events.jsonl alone
            self._queue.put(lambda run: self._alert(run, facts))

    def guesses(self, step: int, filled: dict[str, Guesses]) -> None:
        self._queue.put((step, {GUESSES: filled}))

    def artifact(self, folder: Path) -> None:
        """Send the exported model in `folder` as an artifact of the run."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", self._name)  # all that wandb takes
        self._queue.put(lambda run: run.log_artifact(str(folder), name=name, type="model"))

    def close(self) -> None:
        """Wait until wandb has it all, or has had its time to start, to end, to be forgotten and to work."""
        self._queue.put(None)
        self._thread.join(3 * self._log.timeout_s + _WORK_S)
        if self._thread.is_alive():
            logger.warning("wandb has not ended in time. %s", self._cure())
            self._is_given_up = True
            _forget_wandb(self._log.timeout_s)

    def _work(self) -> None:
        """All that is done with wandb. Whatever goes wrong is said once, and training goes on."""
        try:
            if (run := self._start()) is None:
                return
            last_step = self._catch_up(run)
            self._follow(run, last_step)
            run.finish()
            if not run.offline and _has_given_up(Path(run.settings.log_internal)):
                logger.warning("wandb's server has not taken all figures. %s", self._cure())
        except Exception as error:  # noqa: BLE001  of wandb's many kinds none may end a run
            if self._is_given_up:  # and said
                return
            logger.warning("wandb has failed (%s). %s", _in_a_line(error), self._cure())
            _forget_wandb(self._log.timeout_s)

    def _start(self) -> Any:
        """A wandb run: online where there is a key and a server that answers, else offline.

        None where WANDB_MODE=disabled.
        """
        os.environ.setdefault(
            "WANDB_ERROR_REPORTING", "false"
        )  # it would wait for wandb's own site

        try:
            mode = _mode()
            if mode != "offline":
                return None if mode == "disabled" else self._init("online")
        except Exception as error:  # noqa: BLE001
            logger.warning(
                "wandb's server did not start the run (%s): this start is written offline. %s",
                _in_a_line(error),
                self._cure(),
            )
            _forget_wandb(self._log.timeout_s)  # its service takes the run's id for used
        return self._init("offline")

    def _init(self, mode: Literal["online", "offline"]) -> Any:
        import wandb

        (self._folder / "wandb").mkdir(exist_ok=True)
        run_id = self._folder / "wandb" / "run-id"
        if not run_id.exists():
            run_id.write_text(uuid.uuid4().hex[:12])
        run = wandb.init(
            project=self._log.project,
            entity=self._log.entity,
            name=self._name,
            id=run_id.read_text(),
            resume="allow",
            dir=str(self._folder),
            config=self._config,
            mode=mode,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=self._log.timeout_s,
                finish_timeout=self._log.timeout_s,
                finish_timeout_raises=True,
                x_transaction_log_flush_interval=_LAST_FLUSH_S,
            ),
        )
        for axis in ("data/sequences", "data/tokens"):  # beside the step, for any chart
            run.define_metric(axis)
        print(f"wandb: {mode}, run {run.id} in {self._folder / 'wandb'}", file=sys.stderr)
        return run

    def _catch_up(self, run: Any) -> int:
        """Send the records up to the first step that wandb lacks; the last step that it then has.

        The server knows what it has. Offline it is what the files of earlier starts hold together, in
        the order in which `wandb sync` sends them; a file that a killed process left unfinished would
        stop it there, so what that one holds is sent again.
        """
        last_step = 0 if run.offline else run.starting_step - 1
        for file in earlier_files(self._folder, Path(run.settings.sync_file)):
            if run.offline and (file.is_whole or file.was_sent):
                last_step = max(last_step, file.last_step)
            if not (run.offline and file.is_whole):
                file.pass_over()
        for event in self._earlier:
            if event["event"] == "expectation" and event["step"] > last_step:
                self._alert(run, event)
        for step, figures in _whole_rows(self._folder, self._first_step):
            if step > last_step:
                _send(run, step, figures)
                last_step = step
        return max(last_step, 0)

    def _follow(self, run: Any, last_step: int) -> None:
        """Send rows as they come, until None comes. A row goes out once it is whole.

        It is when a later one begins: an evaluation adds to the row of its step. So a row that a
        killed process has begun is not in wandb, and the next start sends it whole.
        """
        held: Row | None = None
        while True:
            row = self._queue.get()
            if callable(row):
                row(run)
                continue
            if held is not None and (row is None or row[0] != held[0]):
                step, figures = held
                if step > last_step:
                    _send(run, step, figures)
                    last_step = step
                held = None
            if row is None:
                return
            held = (row[0], {**(held[1] if held else {}), **row[1]})

    def _alert(self, run: Any, facts: dict[str, Any]) -> None:
        text = "\n".join([facts["text"], *facts["findings"]])
        run.alert(f"{self._name}: the loss is not as expected", text)

    def _cure(self) -> str:
        return (
            f"All figures stand in {self._folder / 'metrics.jsonl'}; the next start sends those "
            f"that are missing, and after the last one: wandb sync --include-online "
            f"{self._folder / 'wandb'}"
        )


@dataclass(frozen=True)
class RunFile:
    """What an earlier start of the run has left in wandb's own format."""

    path: Path
    last_step: int  # 0: none
    is_whole: bool  # ended by its process; False: it may stop `wandb sync` with an error

    @property
    def was_sent(self) -> bool:
        """Whether the server has it, by a start that was online or by `wandb sync`."""
        return self.path.with_suffix(".wandb.syncstate").exists()

    def pass_over(self) -> None:
        """Make `wandb sync` leave it out."""
        _marker(self.path).write_text(_PASSED_OVER)


def earlier_files(run_folder: Path, own: Path) -> list[RunFile]:
    """wandb's files of the run, but its `own` and those to be passed over, by wandb's own reader."""
    files = []
    for path in sorted((run_folder / "wandb").glob("*run-*/*.wandb")):
        is_link = path.parent.is_symlink()  # latest-run
        is_passed_over = (marker := _marker(path)).exists() and marker.stat().st_size > 0
        if path != own and not is_link and not is_passed_over:
            files.append(_read(path))
    return files


def _read(path: Path) -> RunFile:
    from wandb.util import get_core_path

    command = [get_core_path(), "leet", "inspect", "-no-observability", "-json", "-summary"]
    read = subprocess.run([*command, "-run-file", str(path)], capture_output=True)
    try:
        found = orjson.loads(read.stdout)
    except orjson.JSONDecodeError:
        reason = " ".join(read.stderr.decode(errors="replace").split())
        logger.warning("wandb cannot read %s and passes over it: %s", path, reason)
        return RunFile(path, 0, is_whole=False)
    return RunFile(path, int(found["step"] or 0), is_whole=found["exit_code"] is not None)


def _marker(path: Path) -> Path:
    """The file for whose sake `wandb sync` leaves `path` out; wandb's own are empty."""
    return path.with_suffix(".wandb.synced")


def _whole_rows(run_folder: Path, last_step: int) -> list[Row]:
    """What the run's files hold up to a step, all of one step as one row, ascending."""
    rows: dict[int, dict[str, Any]] = {}
    for path in (run_folder / "metrics.jsonl", run_folder / "guesses.jsonl"):
        for record in readable_lines(path):
            step, time = record.pop("step"), datetime.datetime.fromisoformat(record.pop("time"))
            if step > last_step:
                continue
            filled = record.pop("guesses", None)
            figures = {name: math.nan if v is None else v for name, v in record.items()}
            if filled is not None:
                figures[GUESSES] = filled
            rows.setdefault(step, {}).update(figures, _timestamp=time.timestamp())
    return sorted(rows.items())


def _send(run: Any, step: int, row: Mapping[str, Any]) -> None:
    """One whole row. The guesses of a step become a table, a line a sentence."""
    import wandb

    filled = row.get(GUESSES)
    if filled is not None:
        lines = [[sentence, *_words(guesses)] for sentence, guesses in filled.items()]
        places = [f"guess {number}" for number in range(1, len(lines[0]))]
        row = {**row, GUESSES: wandb.Table(columns=["sentence", *places], data=lines)}
    run.log(dict(row), step=step, commit=True)


def _words(guesses: Guesses) -> list[str]:
    return [f"{word} {probability:.1%}" for word, probability in guesses]


def _forget_wandb(timeout_s: float) -> None:
    """Leave nothing to wandb's own exit handler, which would fail again, with a stack on the terminal.

    wandb lets go of its service at once, then waits for its end without bound: one that hangs is left
    behind, and ends with this process.
    """
    import wandb

    def tear_down() -> None:
        with contextlib.suppress(Exception):
            wandb.teardown()

    thread = threading.Thread(target=tear_down, name="wandb-teardown", daemon=True)
    thread.start()
    thread.join(timeout_s)


def _has_given_up(log: Path) -> bool:
    """Whether wandb has stopped uploading, as after a 401: it says so nowhere but in its own log."""
    return log.exists() and b"filestream: fatal error" in log.read_bytes()


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _mode() -> Literal["online", "offline", "disabled"]:
    """WANDB_MODE, or online where there is a key and the server's port answers."""
    import wandb

    for mode in get_args(Literal["online", "offline", "disabled"]):
        if os.environ.get("WANDB_MODE") == mode:
            return mode  # type: ignore[no-any-return]
    if not wandb.login(prompt=False, verify=False):
        return "offline"
    address = urllib.parse.urlparse(wandb.setup().settings.base_url)
    port = address.port or (443 if address.scheme == "https" else 80)
    socket.create_connection((address.hostname, port), timeout=_PROBE_S).close()
    return "online"

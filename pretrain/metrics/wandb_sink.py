"""Metrics to Weights & Biases: one run id for all starts and phases, each step once and ascending.

wandb only shows metrics.jsonl, so no failure of it may stop or delay a run. A thread of its own
talks to it, with time-outs; if the server does not answer, it writes offline. A start first sends
from metrics.jsonl what wandb lacks, because a process was killed or the server was away. It skips
the steps that wandb has, which a start from a checkpoint makes again.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
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
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import orjson

from pretrain.config.settings import LogSettings
from pretrain.metrics.monitor import Sink
from pretrain.metrics.names import AXES
from pretrain.run_folder.jsonl import readable_lines

if TYPE_CHECKING:
    from pretrain.model.fill_mask import Guesses

_bypasses = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
logger = logging.getLogger(__name__)

_LAST_FLUSH_S = 1.0  # most that a SIGKILL costs wandb's own file
_PROBE_S = 3.0
_PORTS = {"http": 80, "https": 443, "socks5": 1080}
_WORK_S = 60.0
_REPLACED = "Not for `wandb sync`: a later start has sent again what this file holds.\n"

Row = tuple[int, Mapping[str, Any]]  # a step; its metrics, and its guesses under GUESSES
GUESSES = "eval/guesses"


class Wandb(Sink):
    """The wandb run of one process, through its phases and rewinds."""

    def __init__(
        self, run_folder: Path, name: str, log: LogSettings, config: dict[str, Any], first_step: int
    ) -> None:
        """Start in the background. metrics.jsonl holds the records up to `first_step`."""
        self._folder = run_folder
        self._log, self._name, self._config = log, name, config
        self._first_step = first_step
        self._is_given_up = False
        self._earlier = readable_lines(run_folder / "events.jsonl")
        self._queue: queue.SimpleQueue[Row | Callable[[Any], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def record(self, step: int, metrics: Mapping[str, float | str]) -> None:
        self._queue.put((step, metrics))

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        if kind == "expectation":  # the other events are in events.jsonl alone
            self._queue.put(lambda run: self._alert(run, facts))

    def guesses(self, step: int, filled: dict[str, Guesses]) -> None:
        self._queue.put((step, {GUESSES: filled}))

    def artifact(self, folder: Path) -> None:
        """Send the exported model in `folder` as an artifact of the run."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", self._name)  # all that wandb takes
        self._queue.put(lambda run: run.log_artifact(str(folder), name=name, type="model"))

    def close(self) -> None:
        """Wait until wandb has everything, but no longer than its time-outs together."""
        self._queue.put(None)
        self._thread.join(3 * self._log.timeout_s + _WORK_S)
        if self._thread.is_alive():
            logger.warning("wandb did not end in time. %s", self._cure())
            self._is_given_up = True
            _forget_wandb(self._log.timeout_s)

    def _work(self) -> None:
        """The thread. An error is logged once, and training goes on."""
        try:
            if (run := self._start()) is None:
                return
            last_step = self._catch_up(run)
            self._follow(run, last_step)
            run.finish()
            if not run.offline and _has_given_up(Path(run.settings.log_internal)):
                logger.warning("wandb's server did not take all metrics. %s", self._cure())
        except Exception as error:  # noqa: BLE001  none of wandb's many errors may end a run
            if not self._is_given_up:  # otherwise logged before
                logger.warning("wandb failed (%s). %s", _in_a_line(error), self._cure())
                _forget_wandb(self._log.timeout_s)

    def _start(self) -> Any:
        """A wandb run: online if there is a key and a server that answers, otherwise offline.

        None if WANDB_MODE=disabled.
        """
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would wait for wandb's site
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
            _forget_wandb(self._log.timeout_s)  # its service has the run's id in use
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
        for axis in AXES:
            run.define_metric(axis)
        print(f"wandb: {mode}, run {run.id} in {self._folder / 'wandb'}", file=sys.stderr)
        return run

    def _catch_up(self, run: Any) -> int:
        """Send the earlier records that wandb lacks; return the last step that it then has.

        The server knows what it has. Offline, wandb has what the files of earlier starts hold,
        which `wandb sync` sends in their order. It may stop at a file that a killed process left
        unfinished, so such a file is replaced, except for what was already sent from it.
        """
        last_step = 0 if run.offline else run.starting_step - 1
        for path in earlier_files(self._folder, Path(run.settings.sync_file)):
            if run.offline:
                held, is_whole = read_file(path)
                # wandb leaves .syncstate where it, or `wandb sync`, has sent a file
                if is_whole or path.with_suffix(".wandb.syncstate").exists():
                    last_step = max(last_step, held)
                if is_whole:
                    continue
            _marker(path).write_text(_REPLACED)
        for event in self._earlier:
            if event["event"] == "expectation" and event["step"] > last_step:
                self._alert(run, event)
        for step, row in _whole_rows(self._folder, self._first_step):
            if step > last_step:
                _send(run, step, row)
                last_step = step
        return max(last_step, 0)

    def _follow(self, run: Any, last_step: int) -> None:
        """Send rows from the queue until None comes, each once it is whole.

        A row is whole when a later one begins: an evaluation adds to the row of its step. If the
        process is killed in between, the next start sends the row.
        """
        held: Row | None = None
        while True:
            row = self._queue.get()
            if callable(row):
                row(run)
                continue
            if held is not None and (row is None or row[0] != held[0]):
                if held[0] > last_step:
                    _send(run, *held)
                    last_step = held[0]
                held = None
            if row is None:
                return
            held = (row[0], {**(held[1] if held else {}), **row[1]})

    def _alert(self, run: Any, facts: dict[str, Any]) -> None:
        text = "\n".join([facts["text"], *facts["findings"]])
        run.alert(f"{self._name}: the loss is not as expected", text)

    def _cure(self) -> str:
        return (
            f"All metrics are in {self._folder / 'metrics.jsonl'}. The next start sends what is "
            "missing; after the last start run: wandb sync --include-online "
            f"{self._folder / 'wandb'}"
        )


def earlier_files(run_folder: Path, own: Path) -> list[Path]:
    """The run's files in wandb's format, without `own` and those that were replaced."""
    return [
        path
        for path in sorted((run_folder / "wandb").glob("*run-*/*.wandb"))
        if path != own
        and not path.parent.is_symlink()  # latest-run
        and not (_marker(path).exists() and _marker(path).stat().st_size)
    ]


def read_file(path: Path) -> tuple[int, bool]:
    """The last step in a file of wandb's (0: none), and whether its process ended it.

    wandb's own reader counts: how much of a killed process reached the disk is known nowhere else.
    """
    from wandb.util import get_core_path

    command = [get_core_path(), "leet", "inspect", "-no-observability", "-json", "-summary"]
    read = subprocess.run([*command, "-run-file", str(path)], capture_output=True)
    try:
        found = orjson.loads(read.stdout)
    except orjson.JSONDecodeError:
        reason = " ".join(read.stderr.decode(errors="replace").split())
        logger.warning("wandb cannot read %s; it is sent again: %s", path, reason)
        return 0, False
    return int(found["step"] or 0), found["exit_code"] is not None


def _marker(path: Path) -> Path:
    """The file that makes `wandb sync` skip `path`; wandb's own markers are empty."""
    return path.with_suffix(".wandb.synced")


def _whole_rows(run_folder: Path, last_step: int) -> list[Row]:
    """The run's records up to a step, one row per step, ascending."""
    rows: dict[int, dict[str, Any]] = {}
    for path in (run_folder / "metrics.jsonl", run_folder / "guesses.jsonl"):
        for record in readable_lines(path):
            step, time = record.pop("step"), datetime.datetime.fromisoformat(record.pop("time"))
            if step > last_step:
                continue
            filled = record.pop("guesses", None)
            row = {name: math.nan if v is None else v for name, v in record.items()}
            if filled is not None:
                row[GUESSES] = filled
            rows.setdefault(step, {}).update(row, _timestamp=time.timestamp())
    return sorted(rows.items())


def _send(run: Any, step: int, row: Mapping[str, Any]) -> None:
    """Send one whole row. The guesses of a step become a table with a line per sentence."""
    import wandb

    filled = row.get(GUESSES)
    if filled is not None:
        lines = [
            [sentence, *(f"{word} {probability:.1%}" for word, probability in guesses)]
            for sentence, guesses in filled.items()
        ]
        columns = ["sentence", *(f"guess {number}" for number in range(1, len(lines[0])))]
        row = {**row, GUESSES: wandb.Table(columns=columns, data=lines)}
    run.log(dict(row), step=step, commit=True)


def _forget_wandb(timeout_s: float) -> None:
    """Leave nothing to wandb's exit handler, which would fail again with a stack on the terminal.

    wandb's tear-down waits for its service without bound: one that hangs ends with this process.
    """
    import wandb

    def tear_down() -> None:
        with contextlib.suppress(Exception):
            wandb.teardown()

    thread = threading.Thread(target=tear_down, name="wandb-teardown", daemon=True)
    thread.start()
    thread.join(timeout_s)


def _has_given_up(log: Path) -> bool:
    """Whether wandb stopped uploading, as after a 401; only its own log tells."""
    return log.exists() and b"filestream: fatal error" in log.read_bytes()


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _mode() -> Literal["online", "offline", "disabled"]:
    """WANDB_MODE; without it, online if there is a key and the server, or its proxy, answers."""
    import wandb

    for mode in get_args(Literal["online", "offline", "disabled"]):
        if os.environ.get("WANDB_MODE") == mode:
            return mode  # type: ignore[no-any-return]
    if not wandb.login(prompt=False, verify=False):
        return "offline"
    settings = wandb.setup().settings
    given = {"http": settings.http_proxy, "https": settings.https_proxy}
    address = first_hop(settings.base_url, {k: url for k, url in given.items() if url})
    socket.create_connection(address, timeout=_PROBE_S).close()
    return "online"


def first_hop(url: str, given: Mapping[str, str]) -> tuple[str, int]:
    """Host and port to which wandb's client connects for `url`: the server's, or a proxy's.

    `given` are proxies by scheme, of wandb's own settings. Otherwise HTTP_PROXY and HTTPS_PROXY
    hold, also in lower case, except for this machine and for the hosts and networks of NO_PROXY. As
    other programs in Go, it does not use ALL_PROXY.
    """
    server = urllib.parse.urlsplit(url)
    host = server.hostname or ""
    proxies = urllib.request.getproxies_environment()
    proxy = given.get(server.scheme) or proxies.get(server.scheme)
    if proxy and not given and _is_direct(host, proxies):
        proxy = None
    if not proxy:
        return host, server.port or _PORTS.get(server.scheme, 80)
    through = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return through.hostname or "", through.port or _PORTS.get(through.scheme, 80)


def _is_direct(host: str, proxies: Mapping[str, str]) -> bool:
    """Whether the environment's proxies are not for this host."""
    if host == "localhost" or _bypasses(host, dict(proxies)):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    networks = [part.strip() for part in proxies.get("no", "").split(",") if "/" in part]
    return address.is_loopback or any(
        address in ipaddress.ip_network(network, strict=False) for network in networks
    )

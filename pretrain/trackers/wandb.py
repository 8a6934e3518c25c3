"""Weights & Biases: one run id for all starts and phases.

If the server does not answer, a start is written offline. What wandb has, its server or its own
files tell.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from pretrain.metrics.names import AXES
from pretrain.trackers.tracker import GUESSES, Row, Tracker, guesses_table, in_a_line

_bypasses = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
logger = logging.getLogger(__name__)

_LAST_FLUSH_S = 1.0  # most that a SIGKILL costs wandb's own file
_PROBE_S = 3.0
_PORTS = {"http": 80, "https": 443, "socks5": 1080}
_REPLACED = "Not for `wandb sync`: a later start has sent again what this file holds.\n"


class Wandb(Tracker):
    """The wandb run of one process, through its phases and rewinds."""

    _run: Any = None  # wandb's own; nothing is typed

    def start(self) -> int | None:
        """As `Tracker.start`; None with WANDB_MODE=disabled.

        The server knows what it has. Offline, wandb has what the files of earlier starts hold,
        which `wandb sync` sends in their order. It may stop at a file that a killed process left
        unfinished, so such a file is replaced, except for what was already sent from it.
        """
        run = self._begin()
        if run is None:
            return None
        self._run = run
        last_step = 0 if run.offline else run.starting_step - 1
        for path in earlier_files(self.run.folder, Path(run.settings.sync_file)):
            if run.offline:
                held, is_whole = read_file(path)
                # wandb leaves .syncstate where it, or `wandb sync`, has sent a file
                if is_whole or path.with_suffix(".wandb.syncstate").exists():
                    last_step = max(last_step, held)
                if is_whole:
                    continue
            _marker(path).write_text(_REPLACED)
        return max(last_step, 0)

    def send(self, rows: Sequence[Row]) -> None:
        """Send whole rows. The guesses of a step become a table with a line per sentence."""
        import wandb

        for row in rows:
            values = {**row.metrics, "_timestamp": row.time}
            if row.guesses:
                columns, lines = guesses_table(row.guesses)
                values[GUESSES] = wandb.Table(columns=columns, data=lines)
            self._run.log(values, step=row.step, commit=True)

    def alert(self, step: int, title: str, text: str) -> None:
        self._run.alert(title, text)

    def artifact(self, folder: Path) -> None:
        name = re.sub(r"[^A-Za-z0-9._-]", "-", self.run.name)  # all that wandb takes
        self._run.log_artifact(str(folder), name=name, type="model")

    def finish(self) -> None:
        self._run.finish()
        if not self._run.offline and _has_given_up(Path(self._run.settings.log_internal)):
            logger.warning("wandb's server did not take all metrics. %s", self.cure())

    def abandon(self) -> None:
        _forget_wandb(self.run.log.timeout_s)

    def cure(self) -> str:
        synced = self.run.folder / "wandb"
        return f"{super().cure()}; after the last start run: wandb sync --include-online {synced}"

    def _begin(self) -> Any:
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
                in_a_line(error),
                self.cure(),
            )
            _forget_wandb(self.run.log.timeout_s)  # its service has the run's id in use
        return self._init("offline")

    def _init(self, mode: Literal["online", "offline"]) -> Any:
        import wandb

        (self.run.folder / "wandb").mkdir(exist_ok=True)
        run_id = self.run.folder / "wandb" / "run-id"
        if not run_id.exists():
            run_id.write_text(uuid.uuid4().hex[:12])
        run = wandb.init(
            project=self.run.log.project,
            entity=self.run.log.entity,
            name=self.run.name,
            id=run_id.read_text(),
            resume="allow",
            dir=str(self.run.folder),
            config=self.run.config,
            mode=mode,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=self.run.log.timeout_s,
                finish_timeout=self.run.log.timeout_s,
                finish_timeout_raises=True,
                x_transaction_log_flush_interval=_LAST_FLUSH_S,
            ),
        )
        for axis in AXES:
            run.define_metric(axis)
        print(f"wandb: {mode}, run {run.id} in {self.run.folder / 'wandb'}", file=sys.stderr)
        return run


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

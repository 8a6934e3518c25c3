"""wandb has every step once, in order, whatever ends a start and whatever its server does."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from tracked import tensorboard_scalars, trackio_rows
from wandb_files import history
from wandb_stand_in import StandIn

from pretrain.trackers.wandb import earlier_files, first_hop, read_file

START = Path(__file__).parents[2] / "support" / "tracker_start.py"
KEY = "a" * 32 + "5ec2e75e"  # of the form of a real one
LIMIT_S = 120


class Starts:
    """The starts of one run in `folder`; `url` is wandb's server, empty: there is no key."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.url = folder, ""
        self.more: dict[str, str] = {}  # variables
        self.trackers: tuple[str, ...] = ()  # (): wandb
        self._home = home
        folder.mkdir()
        home.mkdir()

    @property
    def environment(self) -> dict[str, str]:
        ours = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
        ours |= {"HOME": str(self._home), "TRACKIO_DIR": str(self._home)}
        ours |= self.more
        return ours | ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": self.url} if self.url else {})

    def ended(self, first: int, last: int, timeout_s: float = 20) -> str:
        """Run a start to its end; what it printed."""
        start = self._start(first, last, timeout_s, "end")
        output = start.communicate(timeout=LIMIT_S)[0]
        assert start.returncode == 0, output
        return output

    def killed(self, first: int, last: int, until: Any) -> None:
        """Run a start and kill all its processes once `until()` is true."""
        start = self._start(first, last, 20, "hold")
        try:
            while not until():
                assert start.poll() is None, start.communicate()[0]
        finally:
            os.killpg(start.pid, signal.SIGKILL)
            start.communicate()

    def _start(self, first: int, last: int, timeout_s: float, ending: str) -> subprocess.Popen[str]:
        arguments = [str(self.folder), str(first), str(last), str(timeout_s), ending]
        arguments += self.trackers
        return subprocess.Popen(
            [sys.executable, str(START), *arguments], env=self.environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def last_step(self) -> int:
        """The last step in wandb's files so far."""
        return max((read_file(path)[0] for path in earlier_files(self.folder, Path())), default=0)

    def sync(self) -> str:
        """Run `wandb sync`; what it printed."""
        command = [sys.executable, "-m", "wandb", "sync", str(self.folder / "wandb")]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr


@pytest.fixture
def starts(tmp_path: Path) -> Starts:
    return Starts(tmp_path / "run", tmp_path / "home")


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


@pytest.mark.slow
def test_three_trackers_at_once_each_have_every_step_once_after_a_kill(starts, tmp_path) -> None:
    starts.trackers = ("wandb", "tensorboard", "trackio")
    files = [tmp_path / "home" / "p.db", tmp_path / "run" / "tensorboard"]
    starts.killed(0, 35, until=lambda: starts.last_step() and all(f.exists() for f in files))
    output = starts.ended(30, 45)
    assert "WARNING" not in output
    steps = [*range(1, 46)]
    assert [row["_step"] for row in history(starts.folder)] == steps
    assert [step for step, _ in tensorboard_scalars(starts.folder, "train/loss")] == steps
    assert [row["step"] for row in trackio_rows(tmp_path / "home", starts.folder)] == steps


def assert_complete(server: StandIn, last: int) -> None:
    assert [row["_step"] for row in server.rows] == list(range(1, last + 1))
    for row in server.rows:
        assert row["train/loss"] == pytest.approx(1 / row["_step"])
        assert ("eval/loss" in row) == (row["_step"] % 10 == 0)


@pytest.mark.slow
def test_offline_starts_killed_and_ended_send_every_step_once(starts, server) -> None:
    starts.killed(0, 35, until=lambda: starts.last_step() > 0)
    starts.ended(30, 45)
    starts.ended(40, 50)  # as after an exception: its file holds 41 to 45, and is whole
    starts.url = server.url
    starts.sync()
    assert_complete(server, 50)


@pytest.mark.slow
def test_an_online_run_continues_after_its_server_s_last_step(starts, server) -> None:
    starts.url = server.url
    starts.killed(0, 35, until=lambda: server.rows)
    starts.ended(30, 40)
    assert_complete(server, 40)


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set these variables, and no others of proxies."""

    def set_them(**given: str) -> None:
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    return set_them


SERVER = "https://api.wandb.ai"


@pytest.mark.parametrize(
    ("url", "variables", "expected"),
    [
        (SERVER, {}, ("api.wandb.ai", 443)),
        (SERVER, {"HTTPS_PROXY": "http://proxy:3128"}, ("proxy", 3128)),
        (SERVER, {"https_proxy": "http://user:word@proxy"}, ("proxy", 80)),
        (SERVER, {"HTTPS_PROXY": "proxy:3128"}, ("proxy", 3128)),
        (SERVER, {"HTTP_PROXY": "http://proxy:3128"}, ("api.wandb.ai", 443)),
        ("http://wandb:8080", {"HTTP_PROXY": "http://proxy:3128"}, ("proxy", 3128)),
        (SERVER, {"ALL_PROXY": "http://proxy:3128"}, ("api.wandb.ai", 443)),
        (SERVER, {"HTTPS_PROXY": "http://proxy", "NO_PROXY": "a,.wandb.ai"}, ("api.wandb.ai", 443)),
        (SERVER, {"https_proxy": "http://proxy", "no_proxy": "*"}, ("api.wandb.ai", 443)),
        (SERVER, {"HTTPS_PROXY": "http://proxy", "NO_PROXY": "wandb.example"}, ("proxy", 80)),
        ("http://10.1.2.3", {"HTTP_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, ("10.1.2.3", 80)),
        ("http://10.1.2.3", {"HTTP_PROXY": "http://p", "NO_PROXY": "11.0.0.0/8"}, ("p", 80)),
        ("http://127.0.0.1:99", {"HTTP_PROXY": "http://proxy"}, ("127.0.0.1", 99)),
        ("http://localhost:99", {"HTTP_PROXY": "http://proxy"}, ("localhost", 99)),
    ],
)
def test_the_probe_goes_where_wandbs_client_connects_to(proxies, url, variables, expected) -> None:
    proxies(**variables)
    assert first_hop(url, {}) == expected


def test_a_proxy_of_wandbs_own_settings_holds_before_the_environments(proxies) -> None:
    proxies(HTTPS_PROXY="http://proxy:3128", NO_PROXY="api.wandb.ai")
    assert first_hop(SERVER, {"https": "http://own:1"}) == ("own", 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "WANDB_HTTP_PROXY"])
def test_a_server_behind_a_proxy_alone_gets_every_step(starts, server, name, proxies) -> None:
    """The stand-in is its own proxy: a request to a proxy has the server's whole address."""
    proxies(**({} if name.startswith("WANDB") else {name: server.url}))
    starts.url = "http://wandb.invalid"
    starts.more = {name: server.url}
    starts.ended(0, 12)
    assert_complete(server, 12)


@pytest.mark.slow
def test_a_start_that_reaches_the_server_sends_what_earlier_ones_kept_offline(
    starts: Starts, server: StandIn
) -> None:
    starts.ended(0, 20)
    starts.url = server.url
    starts.ended(20, 30)
    assert_complete(server, 30)
    assert "No runs to sync" in starts.sync()


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [401, 500, "hang", "refuses"])
def test_a_server_that_does_not_start_the_run_delays_nothing(starts, server, trouble) -> None:
    server.trouble = trouble if trouble != "refuses" else None
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{unused.getsockname()[1]}"
        starts.url = refusing if trouble == "refuses" else server.url
        output = starts.ended(0, 20, timeout_s=5)
    assert_training_went_on(starts, output)
    assert starts.last_step() == 20
    server.trouble = None
    starts.url = server.url
    starts.sync()
    assert_complete(server, 20)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_hanging_process_of_wandb_leaves_one_warning(starts, number) -> None:
    start = starts._start(0, 20, 1, "hold")  # `scancel --signal=TERM` reaches all processes
    while starts.last_step() == 0:
        assert start.poll() is None, start.communicate()[0]
    children = psutil.Process(start.pid).children(recursive=True)
    for child in children:
        child.send_signal(number)
    start.stdin.close()
    try:
        returncode = start.wait(timeout=LIMIT_S)
    finally:
        for child in children:  # they hold the pipe
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    with start.stdout:
        output = start.stdout.read()
    assert returncode == 0, output
    assert_training_went_on(starts, output)
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [401, 500, "hang"])
def test_a_server_that_fails_in_mid_run_delays_nothing(starts, server, trouble) -> None:
    server.trouble, server.after_uploads = trouble, 1
    starts.url = server.url
    assert_training_went_on(starts, starts.ended(0, 20, timeout_s=5))
    server.trouble = None
    starts.ended(20, 30)
    assert_complete(server, 30)


def assert_training_went_on(starts: Starts, output: str) -> None:
    (longest,) = re.findall(r"longest (\S+)", output)
    assert float(longest) < 1, "a step waited for wandb"
    lines = (starts.folder / "metrics.jsonl").read_bytes().splitlines()
    assert len(lines) == 20 + 2
    assert orjson.loads(lines[-1])["eval/loss"] == 2 / 20
    warnings = [line for line in output.splitlines() if "pretrain.trackers" in line]
    assert len(warnings) == 1, output
    assert "wandb sync" in warnings[0]
    assert KEY not in output
    for path in starts.folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path

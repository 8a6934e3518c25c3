"""export.push_to: the upload after a run, which nothing that happens to it can harm."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from run_in_fork import TINY, finished_run
from writable_hub import TOKEN, Fault, Hub, writable_hub

from data_prep.core.config import SettingsError
from pretrain import run
from pretrain.config.load import load
from pretrain.config.settings import ExportSettings
from pretrain.distributed.signals import StopRequest
from pretrain.hub.at_end import push_at_end

HOUR = ExportSettings("me/x", private=True, timeout_s=3600)


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the place of Python."""
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))

    def write(body: str) -> None:
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)

    return write


@pytest.mark.parametrize("status", [0, 1, 2, 139])
def test_however_the_upload_ends_the_run_goes_on(python, status, capfd) -> None:
    python(f'echo "$@"; exit {status}')
    assert push_at_end(Path("runs/x"), HOUR, StopRequest()) is None
    assert capfd.readouterr().out == "-m pretrain.push run=runs/x to=me/x\n"


def test_it_is_no_rank_and_draws_no_bars(python, monkeypatch, capfd) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    python("env")
    push_at_end(Path("runs/x"), HOUR, StopRequest())
    names = {line.partition("=")[0] for line in capfd.readouterr().out.splitlines()}
    assert not names & {"RANK", "WORLD_SIZE", "MASTER_ADDR"}
    assert {"HF_HUB_DISABLE_PROGRESS_BARS", "PATH"} <= names


@pytest.mark.parametrize("is_signal", [False, True])
def test_an_upload_that_takes_too_long_or_a_signal_ends_it_with_the_command_for_later(
    python, is_signal
) -> None:
    python("exec sleep 600")
    stop = StopRequest()
    stop.requested, stop.signal_name = is_signal, "SIGTERM"
    settings = ExportSettings("me/x", private=False, timeout_s=3600 if is_signal else 0.2)
    began = time.monotonic()
    line = push_at_end(Path("runs/a b"), settings, stop)
    assert time.monotonic() - began < 60
    why = "SIGTERM came" if is_signal else "0.2 s are over"
    assert line == (
        f"the upload to me/x is not finished ({why}); continue it with: python -m pretrain.push "
        "'run=runs/a b' to=me/x private=false"
    )


@pytest.fixture
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))


def test_a_new_run_without_a_token_is_refused_and_one_that_continues_is_warned(
    no_token, tmp_path, capsys
) -> None:
    settings, _ = load(["+model=tiny", f"run.dir={tmp_path}", "export.push_to=me/x"], 1)
    cure = "log in with `hf auth login`, or set HF_TOKEN"
    with pytest.raises(SettingsError, match=f"^export.push_to=me/x: there is no token.*{cure}"):
        run._check_token(settings)
    (tmp_path / str(settings.run.name) / "checkpoints" / "step-00000010").mkdir(parents=True)
    run._check_token(settings)
    assert "warning: export.push_to=me/x: there is no token" in capsys.readouterr().err


def test_a_name_that_no_repository_can_have_is_refused_with_the_settings() -> None:
    with pytest.raises(SettingsError, match=r"export\.push_to=x: it takes OWNER/NAME"):
        load(["+model=tiny", "export.push_to=x"], 1)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub for processes of their own."""
    with writable_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("PYTHONPATH", os.getcwd())
        yield server


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("fault", [None, 500, "hang"])
def test_a_run_is_uploaded_and_its_token_is_nowhere(sample_dir, tmp_path, hub, fault) -> None:
    if fault is not None:
        hub.faults.append(Fault("POST", fault, times=999, text=f"not with {TOKEN}"))
    output = finished_run(
        [*TINY, f"data.dir={sample_dir}", "schedule.total_steps=4", "checkpoint.every_steps=2",
         "eval.every_steps=4", "eval.max_examples=8", "export.push_to=me/x",
         f"export.timeout_s={8 if fault == 'hang' else 240}"],
        tmp_path,
    )  # fmt: skip
    if fault is None:
        assert set(hub.repositories["models/me/x"].branches) == {"main", "step-2", "step-4"}
    else:
        why = {500: "the upload to me/x failed", "hang": "the upload to me/x is not finished"}
        again = "continue it with: python -m pretrain.push run=runs/x to=me/x\n"
        assert output.count(why[fault]) == output.count(again) == 1
    stored = [path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert (tmp_path / "runs/x/export/model.safetensors").exists()
    assert not any(TOKEN.encode() in content for content in [*stored, output.encode()])

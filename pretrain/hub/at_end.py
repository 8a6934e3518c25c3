"""Uploads a finished run without any effect on the run itself."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from pretrain.config.settings import ExportSettings
from pretrain.distributed.signals import StopRequest

_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def push_at_end(run_folder: Path, settings: ExportSettings, stop: StopRequest) -> str | None:
    """Upload the run in a process of its own, for at most `export.timeout_s` or until a signal.

    It prints what it has done, or why it failed and the command that continues it. Returns such a
    line if the time was over.
    """
    words = [f"run={run_folder}", f"to={settings.push_to}"]
    if not settings.private:
        words.append("private=false")
    command = ["-m", "pretrain.push", *words]
    environment = {name: v for name, v in os.environ.items() if name not in _LAUNCHERS}
    child = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        env={**environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    end = time.monotonic() + settings.timeout_s
    try:
        while child.poll() is None and not stop.requested and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        is_cut = child.poll() is None
        if is_cut:
            child.kill()
            child.wait()
    if not is_cut:
        return None
    why = f"{stop.signal_name} came" if stop.requested else f"{settings.timeout_s:g} s are over"
    again = shlex.join(["python", *command])
    return f"the upload to {settings.push_to} is not finished ({why}); continue it with: {again}"

"""Native stacks of a process that is about to end, by a debugger in time, or a line why not."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.distributed import native_stacks

PROGRAM = """
import sys
from pretrain.distributed.native_stacks import write_native_stacks
with open(sys.argv[1], "w") as file:
    write_native_stacks(file, float(sys.argv[2]))
print("goes on")
"""
needs_a_debugger = pytest.mark.skipif(
    not any(map(shutil.which, native_stacks._TOOLS)), reason="no debugger is installed"
)


def written(path: Path, limit_s: float) -> str:
    words = [sys.executable, "-c", PROGRAM, str(path), str(limit_s)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout == "goes on\n"
    return path.read_text(errors="replace")


@pytest.mark.slow
@needs_a_debugger
def test_the_stacks_below_python_are_written_and_the_process_goes_on(tmp_path: Path) -> None:
    found = written(tmp_path / "log", 60.0)
    assert found.startswith("native stacks by ")
    assert "#0 " in found
    assert "waitpid" in found or "wait4" in found, "where this process waits for the debugger"


@needs_a_debugger
def test_a_debugger_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    assert "within 0.001 s" in written(tmp_path / "log", 0.001)


def test_a_debugger_that_is_ended_while_it_stops_this_process_leaves_it_running(
    monkeypatch, tmp_path: Path
) -> None:
    debugger = tmp_path / "eu-stack"
    debugger.write_text("#!/bin/sh\nkill -STOP $2\nexec sleep 1000\n")
    debugger.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "eu-stack ended with status 137 within 0.1 s" in written(tmp_path / "log", 0.1)


def test_without_a_debugger_a_line_names_those_that_would_do(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    file = io.StringIO()
    native_stacks.write_native_stacks(file, 1.0)
    assert file.getvalue() == "no native stacks: install one of eu-stack, gdb to have them\n"

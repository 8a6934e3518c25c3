"""A command that is given no run says so before it imports torch, which takes seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pretrain.{command} import main
status = main(["run=runs/none"])
sys.exit(99 if "torch" in sys.modules else status)
"""


@pytest.mark.parametrize("command", ["average", "evaluate", "export", "report", "verify"])
def test_a_run_that_is_not_there_is_refused_without_importing_torch(
    command: str, tmp_path: Path
) -> None:
    project = Path(__file__).resolve().parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(command=command)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.startswith(f"pretrain.{command}: ")
    assert "runs/none" in answer.stderr
    assert answer.stderr.count("\n") == 1

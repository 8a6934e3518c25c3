"""Commands end without a traceback: closed output, a folder they may not use, Ctrl-C."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.core.command import CLOSED_OUTPUT, INTERRUPTED, status_of

ROOT = Path(__file__).parents[3]
COMMANDS = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("data_prep", "pretrain", "scripts")
    for path in sorted((ROOT / folder).glob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_its_status_from_status_of(command: str) -> None:
    code = (ROOT / command.replace(".", "/")).with_suffix(".py").read_text()
    end = code[code.index('if __name__ == "__main__"') :]
    assert "status_of(" in end or "exit_with(main)" in end


@pytest.mark.parametrize(
    "command", ["data_prep.collect", "pretrain.run", "pretrain.runs", "scripts.bag_of_words"]
)
def test_a_reader_that_closes_the_output_ends_a_command_without_a_traceback(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [sys.executable, "-m", command, "--help"], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (CLOSED_OUTPUT, b"")


def test_a_broken_connection_is_still_an_error() -> None:
    def fail() -> int:
        raise BrokenPipeError(errno.EPIPE, "of a socket")

    with pytest.raises(BrokenPipeError):
        status_of(fail)


INTERRUPTED_IMPORT = """
import os, signal, sys
class Ctrl_C:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Ctrl_C())
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("data_prep.encode", "pyarrow"),
        ("pretrain.report", "matplotlib"),
        ("pretrain.export", "torch"),
        ("scripts.finetune_tagging", "transformers"),
    ],
)
def test_ctrl_c_while_a_command_imports_is_one_line(tmp_path: Path, command, module) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED_IMPORT.format(module=module))
    ran = subprocess.run(
        [sys.executable, "-m", command], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (INTERRUPTED, f"{command}: interrupted\n")


def test_ctrl_c_in_a_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    assert status_of(interrupt) == INTERRUPTED
    assert capsys.readouterr().err.endswith(": interrupted\n")


def test_other_programs_keep_their_stack_of_ctrl_c(tmp_path: Path) -> None:
    code = "import data_prep; raise KeyboardInterrupt"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stderr.startswith("Traceback")


@pytest.mark.parametrize(
    "number",
    [
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EEXIST,
        errno.EISDIR,
    ],
)
def test_a_folder_that_is_refused_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def fail() -> int:
        raise OSError(number, os.strerror(number), "/somebody/else")

    assert status_of(fail) == 2
    told = capsys.readouterr().err
    assert "/somebody/else: " + os.strerror(number) in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("error", [OSError(errno.EIO, "disk", "a"), ValueError("a bug")])
def test_other_errors_keep_their_traceback(error: Exception) -> None:
    def fail() -> int:
        raise error

    with pytest.raises(type(error)):
        status_of(fail)

"""Commands whose output is closed, or that may not use a folder, end without a traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.core.command import CLOSED_OUTPUT, status_of

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


@pytest.mark.parametrize(
    "number",
    [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG],
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

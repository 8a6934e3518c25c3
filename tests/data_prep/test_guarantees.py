"""The jobs as they are typed: the same bytes through kills; memory does not grow with the input."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = 20
LIMIT_S = 120  # of one job, on a busy machine

# Runs a command, waits for all of its descendants too, and says the largest one's peak memory.
PEAK_OF_ALL = """
import ctypes, os, resource, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans become ours to wait for
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
try:
    while True:
        os.wait()
except ChildProcessError:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def _jobs(texts: Path, data_dir: Path, *overrides: str) -> list[list[str]]:
    """The commands from texts to shards."""
    commands = [
        ["collect", "+source=books", f"source.path={texts}", "source.language=null"],
        ["vocab", "vocab_size=1000"],
        ["encode", "heldout_fraction=0.1"],
        ["build", "seq_len=128", "audit.fewest_documents=2"],
    ]
    every = [f"data_dir={data_dir}", *overrides]
    return [[sys.executable, "-m", f"data_prep.{name}", *rest, *every] for name, *rest in commands]


def _write_texts(folder: Path, count: int, characters: int) -> None:
    """`count` texts of sentences of words, no two of which are alike."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlu"))
    words = ["".join(rng.choice(letters, 1 + rng.poisson(4))) for _ in range(2000)]
    folder.mkdir(parents=True)
    for number in range(count):
        lines: list[str] = []
        while sum(map(len, lines)) < characters:
            drawn = [words[place] for place in rng.zipf(1.3, 400) % len(words)]
            sentences = [" ".join(drawn[i : i + 10]).capitalize() + "." for i in range(0, 400, 10)]
            lines.append(" ".join(sentences))
        (folder / f"text-{number:04d}.txt").write_text("\n\n".join(lines))


def _digests(data_dir: Path) -> dict[str, str]:
    """Of every file that the jobs hand on; what they note of their own course is not among them."""
    return {
        path.relative_to(data_dir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(data_dir.rglob("*"))
        if path.is_file() and "logs" not in path.parts
    }


def _run(commands: Sequence[Sequence[str]]) -> None:
    for command in commands:
        subprocess.run(command, cwd=ROOT, check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL)


def _killed(command: Sequence[str], after_s: float, group: bool) -> bool:
    """Start a job and kill -9 it `after_s` seconds later, alone or with its workers.

    False where it ended before.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def test_twenty_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    _write_texts(tmp_path / "texts", 60, 50_000)
    overrides = ["characters_per_part=200_000", "num_workers=2"]
    seconds = []
    for command in _jobs(tmp_path / "texts", tmp_path / "whole", *overrides):
        began = time.monotonic()
        _run([command])
        seconds.append(time.monotonic() - began)

    rng = np.random.default_rng(int(os.environ.get("KILL_SEED", "1")))
    stores = ("documents", "vocab", "tokens", "len128")
    jobs = _jobs(tmp_path / "texts", tmp_path / "killed", *overrides)
    for command, duration, store in zip(jobs, seconds, stores, strict=True):
        kills = 0
        while kills < KILLS // len(jobs):
            # Of the parent alone, it leaves workers that go on beside those of the next start
            if _killed(command, rng.uniform(0.1, duration), group=bool(rng.integers(2))):
                kills += 1
            else:  # it came after the end: from the start again
                shutil.rmtree(tmp_path / "killed" / store, ignore_errors=True)
        _run([command])

    assert _digests(tmp_path / "killed") == _digests(tmp_path / "whole")


def test_ten_times_the_text_takes_less_than_a_tenth_more_memory(tmp_path: Path) -> None:
    peaks: dict[int, list[int]] = {}
    for count in (40, 400):
        texts, data_dir = tmp_path / f"texts-{count}", tmp_path / f"data-{count}"
        _write_texts(texts, count, 75_000)
        peaks[count] = []
        for command in _jobs(texts, data_dir, "characters_per_part=1_000_000", "num_workers=1"):
            out = subprocess.run(
                [sys.executable, "-c", PEAK_OF_ALL, *command],
                cwd=ROOT, check=True, timeout=10 * LIMIT_S, capture_output=True, text=True,
            ).stdout  # fmt: skip
            peaks[count].append(int(out))
    for small, large in zip(peaks[40], peaks[400], strict=True):
        assert large < 1.1 * small, peaks

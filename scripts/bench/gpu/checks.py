"""The tests that need a GPU, `pytest -m gpu`. Without a GPU they are collected and skipped.

    python -m scripts.bench.gpu.checks

Status: 0; 1 if a test failed, which the last line names, or if there is none.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from xml.etree.ElementTree import Element, parse

from scripts.bench.parts import harness

PROJECT = Path(__file__).resolve().parents[3]
MARK = "mark.gpu"  # in the files that are collected
OUTCOMES = ("failed", "error", "skipped")


def main() -> int:
    """The tests; their counts are printed as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        paths = (PROJECT / "tests").rglob("test_*.py")
        files = [str(path) for path in paths if MARK in path.read_text(encoding="utf-8")]
        words = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
        subprocess.run([sys.executable, *words, f"--junit-xml={report}"], cwd=PROJECT, check=False)
        if not report.exists():
            print("pytest wrote no report")
            return 1
        outcomes = dict(outcomes_of(parse(report).getroot().iter("testcase")))
    counts = Counter(outcomes.values())
    failed = [name for name, outcome in outcomes.items() if outcome in ("failed", "error")]
    found = {"tests": len(outcomes), **{kind: counts[kind] for kind in ("passed", *OUTCOMES)}}
    print(json.dumps({"benchmark": "checks", **found, "machine": harness.machine()}))
    if failed or not outcomes:
        print(f"failed: {', '.join(failed)}" if failed else "no test was found")
        return 1
    return 0


def outcomes_of(cases: Iterable[Element]) -> Iterable[tuple[str, str]]:
    """The tests of a report by name: passed, failed, error or skipped."""
    for case in cases:
        kinds = [child.tag.replace("failure", "failed") for child in case]
        yield case.get("name", ""), next((kind for kind in kinds if kind in OUTCOMES), "passed")


if __name__ == "__main__":
    harness.run(main)

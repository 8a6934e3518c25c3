"""The messages that docs/troubleshooting.md quotes are those of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PAGE = (PROJECT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
PACKAGES = ("data_prep", "pretrain", "scripts")
VALUE = "\0"  # in place of what an f-string fills in


def quotes() -> Iterator[str]:
    """First cells of the tables whose first column is headed "message"."""
    for table in re.findall(r"^\| message \|.*\n(?:\|.*\n)+", PAGE, re.M):
        for row in table.splitlines()[2:]:
            yield from re.findall(r"`([^`]+)`", row.split(" | ")[0])


def strings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.fixture(scope="module")
def messages() -> str:
    files = sorted(path for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))
    texts = [text for path in files for text in strings(path.read_text(encoding="utf-8"))]
    texts += [path.read_text(encoding="utf-8") for path in sorted((PROJECT / "slurm").iterdir())]
    return "\n".join(texts)


@pytest.mark.parametrize("quote", sorted(set(quotes())))
def test_every_part_of_a_quoted_message_is_in_the_code(quote: str, messages: str) -> None:
    parts = [part.strip(" ,.:;()") for part in quote.split("...")]
    assert any(parts)
    assert [part for part in parts if part not in messages] == []


def test_offline_runs_of_wandb_are_sent_by_the_command_that_the_tracker_prints() -> None:
    code = (PROJECT / "pretrain" / "trackers" / "wandb.py").read_text(encoding="utf-8")
    (printed,) = re.findall(r"run: (wandb sync [^{]*)\{", code)
    assert set(re.findall(r"`(wandb sync[^`]*)`", PAGE)) == {f"{printed}runs/first/wandb"}

"""Real files: the few in tests/fixtures, and those of ../shared/data, without which tests skip."""

import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def packed(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs ../shared/data/{name}")
    return path


def unpacked(name: str, target: Path) -> Path:
    """The folder of an archive, such as glue/RTE."""
    with tarfile.open(packed(f"{name}.tar.xz")) as archive:
        archive.extractall(target, filter="data")
    return next(
        path for path in target.rglob("*") if path.is_dir() and path.name == Path(name).name
    )


def unpacked_all(name: str, target: Path) -> Path:
    """`target`, with the contents of all archives of a folder, such as books/novels."""
    for path in sorted(packed(name).glob("*.tar.xz")):
        with tarfile.open(path) as archive:
            archive.extractall(target, filter="data")
    return target


def read_json(name: str) -> Any:
    return json.loads(lzma.decompress(packed(f"{name}.xz").read_bytes()))

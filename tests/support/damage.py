"""Damages files as a bad disk or copy does."""

from pathlib import Path


def flip_a_bit(path: Path, place: int | None = None) -> None:
    """Change one bit of the byte at `place`; None: in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)

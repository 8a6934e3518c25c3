"""Packed files, .gz, .zst, .bz2 and .xz, as streams that deliver everything before damage."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from typing import BinaryIO, cast

import zstandard

PACKINGS = (".gz", ".zst", ".bz2", ".xz")
UNPACKED = 4  # times the size of text, packed; an estimate to cut by

_INPUT = 4 << 10  # packed bytes of .zst at a time; they may stand for 32,768 times as many
_STARTS = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"PK\x03\x04")
FAULTS = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def endings_of(name: str) -> tuple[str, str]:
    """(".jsonl", ".gz") of a.JSONL.gz, and (".jsonl", "") of a.jsonl, in lower case."""
    rest = name.lower()
    packing = next((ending for ending in PACKINGS if rest.endswith(ending)), "")
    rest = rest.removesuffix(packing).rpartition("/")[2]
    return (f".{rest.rpartition('.')[2]}" if "." in rest else ""), packing


def is_packed(start: bytes) -> bool:
    """Whether a file that begins with these bytes is packed, whatever its name."""
    return start.startswith(_STARTS)


def unpacked(raw: BinaryIO, packing: str) -> BinaryIO:
    """The content of a file as a stream; `raw` itself if `packing` is empty.

    Reading raises what `fault_of` knows where the file breaks off or is corrupt.
    """
    if packing == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if packing == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(raw))
    if packing == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(raw))
    return io.BufferedReader(_Frames(raw), 1 << 20) if packing == ".zst" else raw


def fault_of(error: BaseException) -> str | None:
    """Why a packed file cannot be unpacked; None for any other error."""
    if isinstance(error, FAULTS) or (isinstance(error, OSError) and error.errno is None):
        return f"breaks off or is corrupt: {error}"
    return None


class _Frames(io.RawIOBase):
    """The frames of a .zst file. zstandard's own reader takes one that breaks off as whole."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._packed, self._ready = b"", memoryview(b"")
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            if not self._packed and not (packed := self._raw.read(_INPUT)):
                if self._frame is not None:
                    raise EOFError("the file ended before the end of its last frame")
                return 0
            self._packed = self._packed or packed
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(self._packed))
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

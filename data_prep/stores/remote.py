"""Files of a remote store, by URLs that fsspec opens: read, fetched, sent, listed, removed.

Keys come from the environment (AWS_ACCESS_KEY_ID, HF_TOKEN ...), never from a URL. A call that a
cut connection ends is made again after a pause; a download goes on where it was cut.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from data_prep.core.config import SettingsError
from data_prep.core.files import MOST_JSON_BYTES, whole_or_absent
from data_prep.core.settings import is_url

BLOCK = 8 << 20  # bytes of one request
PAUSES_S = (1.0, 4.0, 16.0)  # before each further try; clients try again by themselves, too
CURE = (
    "check the name, and the keys in the environment or in the store's own file "
    "(~/.aws/credentials)"
)
_CLIENTS = ("aiohttp", "botocore", "aiobotocore", "huggingface_hub", "httpx", "httpx2", "gcsfs",
            "requests")  # fmt: skip
_PACKAGES = ("s3", "s3a", "http", "https")  # of the extra `remote`

T = TypeVar("T")
logger = logging.getLogger(__name__)


def system_of(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL and the path in it. Raises SettingsError if it has none."""
    import fsspec

    kind = url.partition("://")[0].lower()
    try:
        system, path = fsspec.url_to_fs(url)
    except ImportError as error:
        cure = "pip install 'bert-pretraining[remote]'" if kind in _PACKAGES else str(error)
        raise SettingsError(f"{kind}:// needs a package that is not installed: {cure}") from error
    except ValueError as error:
        raise SettingsError(f"{url} cannot be read: {error}") from error
    return system, path


@contextlib.contextmanager
def network_errors(at: str) -> Iterator[None]:
    """What the clients of remote stores raise as an OSError that names the file."""
    try:
        yield
    except Exception as error:
        is_ours = type(error).__module__.partition(".")[0] in _CLIENTS or _is_outage(error)
        is_timeout = isinstance(error, TimeoutError | ConnectionError)
        if isinstance(error, OSError) and error.errno is not None:
            if error.filename is None and is_url(at):
                raise type(error)(error.errno, error.strerror or str(error), at) from error
        elif is_ours or is_timeout:
            why = error.__cause__ if _is_outage(error) else error
            raise OSError(errno.EIO, f"{type(why).__name__}: {why}", at) from error
        elif isinstance(error, FileNotFoundError | PermissionError):  # fsspec's have no number
            number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EACCES
            raise type(error)(number, str(error), at) from error
        raise


def _is_outage(error: Exception) -> bool:
    """Whether fsspec calls it a FileNotFoundError that a web server does not answer, or refuses."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or isinstance(cause, FileNotFoundError):
        return False
    is_aiohttps = type(cause).__module__.startswith("aiohttp.")  # without a status: no answer
    status = getattr(cause, "status", 0 if is_aiohttps else 404)
    return isinstance(cause, OSError) or status not in (404, 410)


def why(error: Exception) -> str:
    """An error of this module in words: the file first."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def read(url: str, most: int = MOST_JSON_BYTES) -> bytes:
    """The bytes of a small file. Raises OSError, and SettingsError if it has more than `most`."""
    found = bytearray()
    for block in _blocks(url):
        found += block
        if len(found) > most:
            raise SettingsError(
                f"{url} has more than {most:,} bytes, the most for a file of its kind; put the "
                "right file in its place"
            )
    return bytes(found)


def fetch(url: str, path: Path, size: int, checksum: str) -> None:
    """Copy a remote file to `path`, whole or not at all.

    Raises ValueError naming both checksums (xxh3_128) or sizes if its bytes are not those that the
    manifest states; OSError if the store fails or the disk is full.
    """
    digest, done = xxhash.xxh3_128(), 0
    with whole_or_absent(path) as temporary, temporary.open("wb") as file:
        for block in _blocks(url):
            file.write(block)
            digest.update(block)
            done += len(block)
            if done > size:
                break
        if done != size:
            more = " or more" if done > size else ""
            raise ValueError(f"{url} has {done:,} bytes{more}, the manifest says {size:,}")
        if (found := digest.hexdigest()) != checksum:
            raise ValueError(f"{url} has checksum {found}, the manifest says {checksum}")


def send(path: Path, url: str) -> None:
    """Copy a file to a URL, whole or not at all where the store has whole objects."""

    def put() -> None:
        system, at = system_of(url)
        if "file" in system.protocol:  # other stores need no folders
            system.makedirs(at.rpartition("/")[0], exist_ok=True)
        system.put_file(str(path), at)

    _retried(url, put)


def names_below(url: str) -> list[str]:
    """The files below a URL, by name, sorted; [] if nothing is there. Raises OSError."""

    def find() -> list[str]:
        system, at = system_of(url)
        system.invalidate_cache()  # others write there, too
        prefix = f"{at.rstrip('/')}/"
        found = [str(name) for name in system.find(at) if str(name).startswith(prefix)]
        return sorted(name.removeprefix(prefix) for name in found)

    return _retried(url, find)


def remove(url: str) -> None:
    """Remove a file, if it is there. Raises OSError."""

    def rm_file() -> None:
        system, at = system_of(url)
        with contextlib.suppress(FileNotFoundError):
            system.rm_file(at)

    _retried(url, rm_file)


def _retried(url: str, call: Callable[[], T]) -> T:
    """The result of a call to a store. Raises OSError after the last try."""
    for pause in itertools.chain(PAUSES_S, [None]):
        try:
            with network_errors(url):
                return call()
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            if pause is None:
                raise
            _wait(pause, error)
    raise AssertionError("the last try returns or raises")


def _blocks(url: str) -> Iterator[bytes]:
    """The bytes of a remote file, in order, through cut connections. Raises OSError."""
    done, pauses = 0, iter(PAUSES_S)
    while True:
        try:
            with network_errors(url):
                system, path = system_of(url)
                system.invalidate_cache()
                with system.open(path, "rb", block_size=BLOCK, cache_type="none") as file:
                    _skip(file, done)
                    while block := file.read(BLOCK):
                        done, pauses = done + len(block), iter(PAUSES_S)
                        yield block
                    if file.size is None or done >= file.size:
                        return
                    raise ConnectionError(f"cut after {done:,} of {file.size:,} bytes")
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            if (pause := next(pauses, None)) is None:
                raise
            _wait(pause, error)


def _skip(file: Any, size: int) -> None:
    """Go to a place; a server that sends whole files only sends what is before it again."""
    try:
        file.seek(size)
    except ValueError:
        while size and (block := file.read(min(BLOCK, size))):
            size -= len(block)


def _wait(pause: float, error: OSError) -> None:
    logger.info("%s; again in %g s", why(error), pause)
    time.sleep(pause)

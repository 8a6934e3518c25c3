"""Harmed files for readers: a child process under a memory limit, so that a crash is a failure.

A reader may read a harmed file or refuse it with a SettingsError of one printable line. A signal,
another exception, and more memory than the limit are failures, reported with the try's number.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from data_prep.core.config import SettingsError

MEMORY = 1 << 30  # bytes that a try may take on top of what the process has
TRY_S = 20  # a try that takes longer hangs

# Numbers at which bounds and conversions break
NUMBERS = (-1, 0, 1, 2**15, 2**16, 2**31 - 1, 2**31, 2**53 + 1, 2**62, 2**63, 2**64, 10**40, 1e308)
VALUES = (None, True, "", "\x1b[2J", "../x", "/dev/zero", "\0", "a" * 10_000, [], {}, [[]], -0.5)


def harmed_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """The bytes of a file with one to three harms: flips, numbers put in place, cuts, copies."""
    harmed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place, size = int(rng.integers(len(harmed) + 1)), int(rng.integers(1, 17))
        match rng.integers(6):
            case 0:
                harmed[place : place + 1] = rng.bytes(1)
            case 1:  # aligned as Arrow's offsets are
                number = int(rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**31, len(harmed)]))
                harmed[place & -4 : (place & -4) + 4] = number.to_bytes(4, "little")
            case 2:
                number = int(rng.choice(np.array([2**62, 2**40, 2**31, 2**20, 0], object)))
                harmed[place & -8 : (place & -8) + 8] = number.to_bytes(8, "little")
            case 3:
                del harmed[place:]
            case 4:
                harmed[place : place + size] = harmed[:size]
            case _:
                del harmed[place : place + size]
    return bytes(harmed)


def harmed_json(rng: np.random.Generator, data: bytes) -> bytes:
    """A JSON file with one value, key or number changed, or harmed as bytes."""
    if rng.random() < 0.3:
        return harmed_bytes(rng, data)
    tree = orjson.loads(data)
    places = list(_places(tree))
    owner, key = places[rng.integers(len(places))]
    match rng.integers(4):
        case 0:
            del owner[key]
        case 1 if isinstance(owner, dict):
            owner[VALUES[rng.integers(2, 7)]] = owner[key]
        case 2:
            owner[key] = VALUES[rng.integers(len(VALUES))]
        case _:
            owner[key] = "NUMBER"
    number = str(NUMBERS[rng.integers(len(NUMBERS))]).encode()
    return orjson.dumps(tree).replace(b'"NUMBER"', number)


def harmed_header(rng: np.random.Generator, data: bytes) -> bytes:
    """A safetensors file whose header has harms: of its JSON, its length or any bytes of it."""
    size = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + size], data[8 + size :]
    match rng.integers(4):
        case 0:
            return harmed_bytes(rng, data[: 8 + size]) + rest
        case 1:
            number = int(NUMBERS[rng.integers(1, 10)])
            return (number % 2**64).to_bytes(8, "little") + data[8:]
        case 2:
            return data[: rng.integers(len(data))]
        case _:
            harmed = harmed_json(rng, header)
            return len(harmed).to_bytes(8, "little") + harmed + rest


def _places(tree: Any) -> Any:
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def refusals(
    path: Path,
    harm: Callable[[np.random.Generator, bytes], bytes],
    read: Callable[[], object],
    tries: int,
    seed: int = 0,
) -> int:
    """Call `read` on so many harmed versions of the file at `path`; how many were refused.

    Raises AssertionError, naming the try, on any other outcome than a value or a refusal. The
    harmed file of a failed try stays at `path`.
    """
    read()  # compiles what is compiled, outside of the limit
    whole = path.read_bytes()
    context = multiprocessing.get_context("fork")
    received, sent = context.Pipe(duplex=False)
    arguments = (path, whole, harm, read, tries, seed, sent)
    child = context.Process(target=_tries, args=arguments)
    child.start()
    sent.close()
    last: Any = ("nothing", 0)
    while child.is_alive() or received.poll():
        try:
            last = received.recv()
        except EOFError:
            break
    child.join()
    assert last[0] == "refused", f"{last[0]} at try {last[1]}, exit code {child.exitcode}"
    path.write_bytes(whole)
    return int(last[1])


def _tries(
    path: Path,
    whole: bytes,
    harm: Callable[[np.random.Generator, bytes], bytes],
    read: Callable[[], object],
    tries: int,
    seed: int,
    sent: Any,
) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    refused, status = 0, 0
    for number in range(tries):
        sent.send((f"a crash of the seed {seed}", number))
        signal.alarm(TRY_S)
        rng = np.random.default_rng([seed, number])
        path.unlink(missing_ok=True)  # a mapping of the former file stays whole
        path.write_bytes(harm(rng, whole))
        try:
            read()
        except SettingsError as error:
            refused += 1
            if not str(error).isprintable():
                sent.send((f"a message of more than a line ({str(error)!r})", number))
                status = 1
        except BaseException:  # noqa: BLE001  every kind is the finding
            sent.send((traceback.format_exc(), number))
            status = 1
        if status:
            break
    else:
        sent.send(("refused", refused))
    sent.close()
    os._exit(status)

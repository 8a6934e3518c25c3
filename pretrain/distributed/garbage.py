"""Python's garbage collector, after the same steps on all ranks.

By itself it runs whenever a process has made enough objects: at other steps on each rank, and all
wait for the one that collects. torch and DeepSpeed alone are half a million objects.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collected_by_calls() -> Iterator[None]:
    """No garbage is collected in this context but by `gc.collect`.

    That leaves out the objects that there were at its start, and so takes no time.
    """
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()

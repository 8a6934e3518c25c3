"""torch's flight recorder: the last collectives of this rank, of which one may never end.

On a GPU the host only queues collectives, and its stack shows where it waits for the device. The
recorder knows which collective the device is in.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

from data_prep.core.files import new_temporary

FOLDER = "collectives"
_VARIABLES = (
    "TORCH_FR_BUFFER_SIZE",
    "TORCH_NCCL_TRACE_BUFFER_SIZE",
)  # one setting; the older name works and warns
_MOST_KEPT = "2000"


def record_collectives() -> None:
    """Keep the last collectives, unless the variables say otherwise. Before the process group."""
    if not any(name in os.environ for name in _VARIABLES):
        os.environ[_VARIABLES[0]] = _MOST_KEPT


def dump_collectives(run_folder: Path, rank: int) -> str:
    """Write the recorder's trace into the run folder; returns the collective this rank is in.

    The file is torch's own format, for `torchfrtrace FOLDER`. Waits for no other rank.
    """
    path = run_folder / FOLDER / f"rank_{rank:05d}"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = new_temporary(path)
    try:
        temporary.write_bytes(_recorder("_trace")())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return describe(orjson.loads(_recorder("_trace_json")()))


def describe(trace: dict[str, Any]) -> str:
    """The first collective that has not ended, or the last one if all have."""
    entries = sorted(trace.get("entries", []), key=lambda entry: entry["record_id"])
    pending = [entry for entry in entries if not entry["retired"] and entry["state"] != "completed"]
    if pending:
        first = pending[0]
        queued = f", and {len(pending) - 1} queued after it" if len(pending) > 1 else ""
        return f"in {_name(first)}{queued}"
    return f"in no collective, the last was {_name(entries[-1])}" if entries else "in no collective"


def _name(entry: dict[str, Any]) -> str:
    kind = entry["profiling_name"].rpartition(":")[2]
    group = entry["process_group"][1] or entry["process_group"][0]
    sizes = " ".join(
        f"{dtype}{size}"
        for dtype, size in zip(entry["input_dtypes"], entry["input_sizes"], strict=False)
    )
    return f"{kind} {entry['collective_seq_id']} of {group} ({sizes})"


def _recorder(suffix: str) -> Any:
    """torch's function that dumps the trace of this rank's backend; NCCL has a recorder of its own,
    where torch is built with it."""
    import torch

    c10d: Any = torch._C._distributed_c10d
    is_nccl = torch.distributed.get_backend() == "nccl"
    kind = "nccl" if is_nccl and hasattr(c10d, f"_dump_nccl{suffix}") else "fr"
    return getattr(c10d, f"_dump_{kind}{suffix}")

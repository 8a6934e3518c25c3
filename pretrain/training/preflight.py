"""The preflight: checks at the start for faults that would spoil or end the run later.

Every rank compares itself with rank 0 and sends only what differs, usually nothing: a thousand
ranks cost as much as two. A difference that many ranks share is reported once.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import data_prep
import pretrain
from data_prep.core.config import SettingsError, as_dict
from data_prep.core.files import checksum
from data_prep.core.objectives import Pairing
from data_prep.core.printable import printable
from data_prep.stores.shard_records import ShardsManifest
from pretrain.config.phases import phases_of
from pretrain.config.settings import (
    Compile,
    DataSettings,
    EngineSettings,
    ModelSettings,
    OptimizerName,
    Settings,
)
from pretrain.data.corpus import folder_of, manifest_of
from pretrain.distributed.ranks import Ranks
from pretrain.distributed.rendezvous import RankInfo, rank_info, some_of
from pretrain.engine.snapshot import state_bytes
from pretrain.model.bert import BertForPreTraining
from pretrain.model.compile import compile_fault, wants_compile
from pretrain.optim.matrices import matrix_elements
from pretrain.run_folder.environment import package_versions
from pretrain.run_folder.jsonl import append_event

PACKAGES = ("torch", "deepspeed", "numpy", "numba")
MOST_SHOWN = 3  # differences per rank and kind that are shown; all are counted
ROUNDS = 5
_VARIABLES = ("NCCL_", "TORCH_NCCL_", "GLOO_")
REDUCED_BYTES = {"cuda": 64 << 20, "cpu": 4 << 20}

_CURES = {
    "code": "bring the project's folder on that node up to date, or use one that all nodes share",
    "versions": "give all nodes one environment: a folder that they share, or a container image",
    "settings": "give every rank the same arguments and the same conf/",
    "data": "check that the file system is mounted and up to date on that node",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankMismatch:
    """What differs between a rank and rank 0."""

    kind: str  # a key of _CURES
    shown: tuple[tuple[str, str, str], ...]  # name, here, on rank 0
    more: int  # beyond those shown


@dataclass(frozen=True)
class Preflight:
    """The findings, which rank 0 logs, and the manifests, the same on every rank."""

    manifests: list[ShardsManifest]  # of each phase's shards
    infos: list[RankInfo]
    facts: dict[str, Any]  # of the event
    compile: Compile  # true or false, the same on every rank
    warnings: list[str] = field(default_factory=list)

    def record(self, run_folder: Path) -> None:
        """Log the ranks and the warnings, and append the event."""
        width = max(len(info.host) for info in self.infos)
        rows = [
            f"  rank {i.rank:<5} {i.host:{width}}  process {i.process:<8} {i.device} {i.unit}"
            for i in self.infos
        ]
        logger.info("the ranks:\n%s", "\n".join(map(str.rstrip, rows)))
        for warning in self.warnings:
            logger.warning("%s", warning)
        append_event(run_folder, "preflight", self.facts)

    def lines(self) -> list[str]:
        """The summary to print; [] for a single rank."""
        if len(self.infos) == 1:
            return []
        environment = self.facts.get("environment", {})
        how = [" ".join(f"{name}={value}" for name, value in environment.items())]
        return [
            f"{summary(self.infos)}; all-reduce of {self.facts['all_reduce_mb']:g} MB at "
            f"{self.facts['algorithm_gb_per_s']:.2f} GB/s (bus {self.facts['bus_gb_per_s']:.2f})",
            *(f"collectives: {text}" for text in how if text),
        ]


def preflight(ranks: Ranks, settings: Settings) -> Preflight:
    """Check versions, code, settings, data, all-reduce and disk, before a model is built.
    Collective.

    Raises SettingsError on every rank, with one line per fault.
    """
    infos = ranks.gather(rank_info(ranks.rank, ranks.device))
    phases = phases_of(settings)
    data = [phase.settings.data for phase in phases]
    own = {
        "code": _code(),
        "versions": _versions(ranks.device.type == "cuda"),
        "settings": _flat(settings),
        "data": {f"{d.dir}/len{d.seq_len}/manifest.json": _shards(d) for d in data},
    }
    differences = compare(own, ranks.broadcast(own))
    _raise(explain(ranks.gather(differences), infos))
    manifests = [manifest_of(d) for d in data]
    facts: dict[str, Any] = {"hosts": len({s.host for s in infos}), "device": infos[0].device}
    if ranks.world_size > 1:
        facts |= measure_all_reduce(ranks, infos)
        if environment := collectives_environment(ranks.device.type == "cuda"):
            facts["environment"] = environment
    vocab_size = manifests[0].vocab_size
    size = checkpoint_bytes(settings.model, vocab_size, settings.data.pairs, settings.optim.name)
    keep = max(phase.settings.checkpoint.keep for phase in phases)
    folder = Path(settings.run.dir) / str(settings.run.name) / "checkpoints"
    free = free_bytes(folder) if ranks.rank == 0 else 0
    fault, warning = ranks.broadcast(_judge_disk(folder, size, keep, free))
    _raise([fault] if fault else [])
    facts |= {"checkpoint_mb": round(size / 1e6, 1), "free_mb": round(free / 1e6, 1)}
    compile, fallback = resolve_compile(ranks, infos, settings.engine)
    warnings = [text for text in (warning, fallback) if text]
    return Preflight(manifests, infos, facts, compile, warnings)


def summary(infos: Sequence[RankInfo]) -> str:
    """For example `32 ranks on 4 hosts, 8 each: NVIDIA A100-SXM4-80GB, 79 GiB`."""
    counts = sorted(Counter(info.host for info in infos).values())
    hosts = "1 host" if len(counts) == 1 else f"{len(counts)} hosts"
    each = (
        f", {counts[0]} each" if counts[0] == counts[-1] else f", {counts[0]} to {counts[-1]} each"
    )
    return f"{len(infos)} ranks on {hosts}{each if len(counts) > 1 else ''}: {infos[0].device}"


def compare(
    own: Mapping[str, Mapping[str, str]], of_rank_0: Mapping[str, Mapping[str, str]]
) -> list[RankMismatch]:
    """What differs between this rank and rank 0."""
    differences = []
    for kind, values in own.items():
        others = of_rank_0[kind]
        names = [n for n in sorted({*values, *others}) if values.get(n) != others.get(n)]
        if names:
            shown = tuple(
                (name, values.get(name, "nowhere"), others.get(name, "nowhere"))
                for name in names[:MOST_SHOWN]
            )
            differences.append(RankMismatch(kind, shown, len(names) - len(shown)))
    return differences


def explain(differences: Sequence[Sequence[RankMismatch]], infos: Sequence[RankInfo]) -> list[str]:
    """One sentence per difference, which names the first of the ranks that share it."""
    sharing: dict[RankMismatch, list[RankInfo]] = {}
    for info, of_rank in zip(infos, differences, strict=True):
        for difference in of_rank:
            sharing.setdefault(difference, []).append(info)
    sentences = []
    for difference, who in sharing.items():
        things = ", ".join(
            f"{n} {here} (rank 0 has {there})" for n, here, there in difference.shown
        )
        more = f" and {difference.more} more that differ" if difference.more else ""
        has = "has" if len(who) == 1 else "have"
        sentences.append(
            f"{some_of(who, len(infos))} {has} {things}{more}; {_CURES[difference.kind]}"
        )
    return sentences


def measure_all_reduce(ranks: Ranks, infos: Sequence[RankInfo]) -> dict[str, float]:
    """Measure the all-reduce of a few megabytes: median bandwidths in GB/s (10^9).

    The algorithm bandwidth is the message's bytes per second; the bus bandwidth, which each link
    carries, is 2 (n - 1) / n of it. Raises SettingsError on every rank if a sum is wrong.
    """
    n, is_cuda = ranks.world_size, ranks.device.type == "cuda"
    size = REDUCED_BYTES[ranks.device.type]
    values = torch.empty(size // 4, device=ranks.device)
    expected = n * (n + 1) // 2  # exact in fp32 up to 5,792 ranks
    seconds, fault = [], None
    for _ in range(1 + ROUNDS):
        values.fill_(ranks.rank + 1)
        ranks.barrier()
        if is_cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        torch.distributed.all_reduce(values)
        if is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        wrong = values != expected
        if fault is None and bool(wrong.any()):
            first = int(wrong.int().argmax())
            fault = f"{values[first].item():g} at index {first:,}", int(wrong.sum())
    faults = ranks.gather(fault)
    who = [info for info, of_rank in zip(infos, faults, strict=True) if of_rank]
    if who:
        value, count = next(of_rank for of_rank in faults if of_rank)
        raise SettingsError(
            f"{some_of(who, n)} got a wrong sum from an all-reduce of {values.numel():,} numbers: "
            f"{value} instead of {expected} ({count:,} are wrong); a device or a link is broken: "
            "start without that node, and have it tested (NCCL_DEBUG=INFO logs the data's path)"
        )
    gb_per_s = size / statistics.median(seconds[1:]) / 1e9  # the first one opens the connections
    return {
        "all_reduce_mb": size / 2**20,
        "algorithm_gb_per_s": round(gb_per_s, 3),
        "bus_gb_per_s": round(gb_per_s * 2 * (n - 1) / n, 3),
    }


def resolve_compile(
    ranks: Ranks, infos: Sequence[RankInfo], engine: EngineSettings
) -> tuple[Compile, str | None]:
    """Whether all ranks compile their layers, and under `auto` a warning if one of them cannot.
    Collective.

    Raises SettingsError on every rank if compilation is asked for and one of them cannot.
    """
    if not wants_compile(engine, ranks.device):
        return Compile.false, None
    faults = ranks.gather(compile_fault(ranks.device))
    who = [info for info, fault in zip(infos, faults, strict=True) if fault]
    if not who:
        return Compile.true, None
    fault = next(fault for fault in faults if fault)
    text = (
        f"{some_of(who, len(infos))} cannot compile: {fault}; install gcc, g++ and the headers of "
        "Python (apt-get install g++ python3-dev)"
    )
    if engine.compile is Compile.true:
        raise SettingsError(f"engine.compile=true, and {text}, or set engine.compile=false")
    return Compile.false, f"the layers are not compiled: {text} for faster steps"


def checkpoint_bytes(
    model: ModelSettings, vocab_size: int, pairing: Pairing, optimizer: OptimizerName
) -> int:
    """Bytes of a checkpoint, within a few kilobytes, from the shapes alone."""
    with torch.device("meta"):
        count = BertForPreTraining(model, vocab_size, pairing).num_parameters
    return state_bytes(count, matrix_elements(model, optimizer))


def free_bytes(folder: Path) -> int:
    """Free bytes in `folder`, which need not exist. Unfinished saves count as free."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    leftovers = [path for rest in folder.glob(".step-*.tmp") for path in rest.iterdir()]
    return shutil.disk_usage(existing).free + sum(path.stat().st_size for path in leftovers)


def _judge_disk(folder: Path, size: int, keep: int, free: int) -> tuple[str | None, str | None]:
    """A fault or a warning, if room is short. Old checkpoints go after the new one is complete."""
    here = min(keep, len(list(folder.glob("step-*"))))
    room = f"{folder} has room for {free / 1e6:,.1f} MB"
    if free < size:
        return (
            f"{room}, and a checkpoint takes {size / 1e6:,.1f} MB; make room, or set run.dir to a "
            "larger disk"
        ), None
    need = size * (keep + 1 - here)
    if free < need:
        return None, (
            f"{room}, and the {keep} checkpoints to keep (checkpoint.keep) and the next one take "
            f"{need / 1e6:,.1f} MB more than those already there; make room, or lower "
            "checkpoint.keep"
        )
    return None, None


def _shards(data: DataSettings) -> str:
    """The manifest's checksum, which covers all shards, or why it cannot be read."""
    try:
        manifest_of(data)
        return f"of checksum {checksum(folder_of(data) / 'manifest.json')[:8]}"
    except (OSError, ValueError) as error:  # a SettingsError is a ValueError
        return f"unreadable: {error}"


def _code() -> dict[str, str]:
    """Checksums of the project's own source files."""
    found = {}
    for package in (pretrain, data_prep):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            found[str(path.relative_to(root.parent))] = f"of checksum {checksum(path)[:8]}"
    return found


def collectives_environment(is_cuda: bool) -> dict[str, str]:
    """The version of NCCL on GPUs, and the variables that decide how this rank's data travels."""
    version = {"NCCL": _nccl_version()} if is_cuda else {}
    chosen = {k: printable(v) for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)}
    return version | chosen


def _nccl_version() -> str:
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def _versions(is_cuda: bool) -> dict[str, str]:
    found = {name: str(version) for name, version in package_versions(PACKAGES).items()}
    found |= {"python": platform.python_version(), "CUDA": str(torch.version.cuda)}
    if is_cuda:
        found["NCCL"] = _nccl_version()
    return found


def _flat(settings: Settings) -> dict[str, str]:
    return {
        f"{group}.{name}" if name else group: str(value)
        for group, values in as_dict(settings).items()
        for name, value in (values.items() if isinstance(values, dict) else [("", values)])
    }


def _raise(sentences: Sequence[str]) -> None:
    if sentences:
        raise SettingsError("\n".join(sentences))

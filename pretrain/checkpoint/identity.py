"""The identity of a run: what determines its numbers, and may not change while it continues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import xxhash

from data_prep.core.config import as_dict
from data_prep.stores.shard_records import ShardEntry, ShardsManifest
from pretrain.config.phases import phases_of
from pretrain.config.settings import Settings

# Entries of an identity that are read again; the file has these names
INIT_FROM, VOCAB_CHECKSUM = "run.init_from", "data (checksum of the vocabulary)"

# Groups of settings that determine the numbers, and that a phase may change
_DECIDING = ("data", "optim", "schedule")


def identity(
    settings: Settings, manifests: Sequence[ShardsManifest], initial: dict[str, str] | None = None
) -> dict[str, Any]:
    """Everything that determines a run's numbers, by the name it has in state.json.

    `manifests` are those of each phase's shards; `initial` is the entry of run.init_from. The
    number of ranks, the ZeRO stage and engine.shard are free. So is the token budget, unless it
    determines how many sequences a step has.
    """
    everything = as_dict(settings)
    budget = {
        f"engine.tokens_per_micro_batch of phase {phase.number}": (
            phase.settings.engine.tokens_per_micro_batch
        )
        for phase in phases_of(settings)
        if phase.settings.optim.tokens_per_step is not None
    }
    return {
        INIT_FROM: initial,
        **budget,
        "place in the data": "examples taken",  # earlier versions counted batches
        "run.seed": settings.run.seed,
        "engine.precision": settings.engine.precision.name,
        **({"engine.fp8": True} if settings.engine.fp8 else {}),
        "data.masking": settings.data.masking.name,
        "data.pairs": settings.data.pairs.name,
        "data.seq_len": settings.data.seq_len,
        **{  # earlier versions had neither mixture nor mask rate
            f"data.{name}": value
            for name, value in everything["data"].items()
            if name.startswith(("mixture", "mask_rate")) and value is not None
        },
        VOCAB_CHECKSUM: manifests[0].vocab_checksum,
        "data (training shards)": _together(manifests[0].splits["train"].shards),
        "phases": [
            {
                # earlier versions kept the positions always, and did not say so
                **{n: v for n, v in phase.items() if (n, v) != ("positions", "kept")},
                "changes": {g: v for g, v in phase["changes"].items() if g in _DECIDING},
            }
            for phase in everything["phases"]
        ],
        **{
            f"data (training shards of phase {number})": _together(m.splits["train"].shards)
            for number, m in enumerate(manifests[1:], start=2)
        },
        **{
            f"{group}.{name}": value
            for group in ("model", "optim", "schedule")
            for name, value in everything[group].items()
            if not _is_unset(getattr(settings, group), name)
        },
    }


def _is_unset(group: object, name: str) -> bool:
    """Whether a setting has its field's default: earlier versions lacked those that have one."""
    return hasattr(type(group), name) and getattr(group, name) == getattr(type(group), name)


def _together(shards: Sequence[ShardEntry]) -> str:
    """One checksum for the shards of a split, in their order."""
    return xxhash.xxh3_128("".join(shard.checksum for shard in shards).encode()).hexdigest()


def init_from_of(identity: dict[str, Any]) -> dict[str, str] | None:
    """The {"folder", "checksum"} of run.init_from; None if the run began with random weights."""
    return cast("dict[str, str] | None", identity.get(INIT_FROM))


def vocab_checksum_of(identity: dict[str, Any]) -> str:
    """The checksum of the run's vocab.txt."""
    return cast(str, identity[VOCAB_CHECKSUM])

"""The loaders of a phase, opened as its settings say."""

from __future__ import annotations

from typing import Any

from data_prep.stores.shard_reader import Shards
from data_prep.stores.shard_records import ShardsManifest
from pretrain.config.settings import Settings
from pretrain.data.corpus import folder_of
from pretrain.data.eval_loader import EvalLoader
from pretrain.data.mask_rate import MaskRate, training_rule
from pretrain.data.mixture import MixedOrder
from pretrain.data.shuffle import order_seed
from pretrain.data.train_loader import TrainLoader


def open_loaders(
    settings: Settings,
    phase: int,
    manifest: ShardsManifest,
    *,
    rank: int,
    world_size: int,
    static: bool,
    pinned: bool = False,
    is_verified: bool = False,
) -> tuple[TrainLoader, EvalLoader]:
    """Training and held-out examples of phase number `phase`, for this rank.

    The caller closes the training loader. `static`: micro-batches have few shapes, for compiled
    code. `pinned`: they are in page-locked memory, for a GPU. Raises SettingsError if a shard
    differs from the manifest, or the mixture does not fit the sources.
    """
    data, folder = settings.data, folder_of(settings.data)
    cut: dict[str, Any] = {
        "rank": rank,
        "world_size": world_size,
        "token_budget": settings.engine.tokens_per_micro_batch,
        "static": static,
        "pinned": pinned,
    }
    held_out = EvalLoader(
        Shards.open(folder, "heldout", is_verified), max_examples=settings.eval.max_examples, **cut
    )
    shards, seed = Shards.open(folder, "train", is_verified), order_seed(settings.run.seed, phase)
    totals = manifest.splits["train"]
    mixture = MixedOrder.open(shards, data, seed) if data.is_mixed else None
    mean_length = totals.tokens / totals.rows if mixture is None else mixture.mean_length
    train = TrainLoader(
        shards,
        global_batch=settings.optim.global_batch,
        tokens_per_step=settings.optim.tokens_per_step,
        seed=seed,
        mixture=mixture,
        masking=data.masking,
        rule=training_rule(data, manifest),
        mask_rate=MaskRate.of(settings, mean_length),
        **cut,
    )
    return train, held_out

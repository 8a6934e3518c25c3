"""One trial: the rehearsal and a few steps with given settings, on every rank.

    python -m pretrain.tuning.trial RESULT STEPS OVERRIDE...

`pretrain.tune` starts it; it writes an `Outcome` into the file RESULT. What does not fit the memory
ends this process and no other.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.core.caches import use_private_compile_caches
from data_prep.core.config import SettingsError
from data_prep.core.files import write_json
from data_prep.stores.shard_records import ShardsManifest
from pretrain.config.load import load
from pretrain.config.phases import Phase
from pretrain.config.settings import Compile, OptimSettings, Settings
from pretrain.data.balancing import micro_steps
from pretrain.data.corpus import manifest_of
from pretrain.distributed.ranks import Ranks, environment_world_size, exit_with, start
from pretrain.tuning.search import Outcome

if TYPE_CHECKING:
    from pretrain.data.static_shapes import Shapes
    from pretrain.data.train_loader import GlobalBatch
    from pretrain.engine.engine import Engine

MOST_MICRO_BATCHES = 4  # per rank and step of a trial; longer steps are computed from shorter ones
WARM_UP = 2  # steps before those that count


def main() -> int:
    """Write the outcome: 0, or 1 if the trial failed."""
    result, steps, *typed = sys.argv[1:]
    settings, _ = load(typed, environment_world_size())
    if settings.engine.compile is not Compile.false:
        use_private_compile_caches(settings.engine.compile_cache)
    import torch

    ranks = start(settings.engine.timeout_minutes, settings.engine.device.name)
    try:
        outcome = _measure(settings, ranks, int(steps))
    except (RuntimeError, SettingsError) as error:  # of this rank: the others are ended
        is_memory = isinstance(error, torch.OutOfMemoryError) or "does not fit" in str(error)
        text = "does not fit the memory" if is_memory else str(error).splitlines()[0][:200]
        write_json(Path(result), Outcome(fault=text, is_too_large=is_memory))
        return 1
    if ranks.rank == 0:
        write_json(Path(result), outcome)
    return 0


def shortened(settings: Settings, manifest: ShardsManifest, ranks: int) -> OptimSettings:
    """The batch of a trial: that of the run, or less, of MOST_MICRO_BATCHES per rank."""
    optim, train = settings.optim, manifest.splits["train"]
    slots = MOST_MICRO_BATCHES * ranks * settings.engine.tokens_per_micro_batch
    if optim.tokens_per_step is not None:
        return replace(optim, tokens_per_step=min(slots, optim.tokens_per_step))
    fitting = max(ranks, math.floor(slots * train.rows / train.tokens) // ranks * ranks)
    return replace(optim, global_batch=min(fitting, optim.global_batch))


def _measure(settings: Settings, ranks: Ranks, steps: int) -> Outcome:
    """Rehearse, then time `steps` steps. Collective. Raises RuntimeError if it does not fit."""
    from pretrain.data.open_loaders import open_loaders
    from pretrain.engine.deepspeed_setup import resolve_precision
    from pretrain.metrics.throughput import Work, memory_metrics, model_flop, peak_tflops
    from pretrain.model.bert import padded_vocab_size
    from pretrain.planning.host_memory import check_host_memory

    settings.engine.precision = resolve_precision(settings.engine, ranks.device)
    manifest, is_cuda = manifest_of(settings.data), ranks.device.type == "cuda"
    phases = [Phase(1, settings)]
    check_host_memory(phases, [manifest], ranks.world_size, ranks.world_size, not is_cuda)
    whole = micro_steps(settings, manifest, ranks.world_size)  # of the run's step
    settings.optim = shortened(settings, manifest, ranks.world_size)
    loader, _ = open_loaders(
        settings, 1, manifest, rank=ranks.rank, world_size=ranks.world_size,
        static=settings.engine.compile is Compile.true, pinned=is_cuda,
    )  # fmt: skip
    engine = _rehearsed(settings, manifest, ranks, loader.shapes)
    seconds_per_token, work = [], Work()
    with loader:
        batches = zip(range(WARM_UP + steps), loader.batches(0, []), strict=False)
        for number, uncounted in batches:
            batch = uncounted.counted(ranks.sum)
            total, own = _timed(engine, batch)
            work.add(batch, slots=0)
            longer = max(1.0, whole / len(batch.micro_batches))  # the run's step, than this one
            if number >= WARM_UP:
                tokens = longer * batch.num_tokens
                seconds_per_token.append((total + (longer - 1) * own) / tokens)
    rate = 1 / statistics.median(seconds_per_token)
    peak = peak_tflops(settings.monitor.peak_tflops, ranks.device, settings.engine.precision)
    flop = model_flop(settings.model, padded_vocab_size(manifest.vocab_size, settings.model), work)
    tflops = flop / work.tokens * rate / ranks.world_size / 1e12
    memory = memory_metrics(ranks.device)
    return Outcome(
        tokens_per_second=rate,
        peak_share=None if peak is None else tflops / peak,
        memory_gb=memory.get("perf/device_memory_gb", memory["perf/host_memory_gb"]),
    )


def _rehearsed(
    settings: Settings, manifest: ShardsManifest, ranks: Ranks, shapes: Shapes | None
) -> Engine:
    """The model under the engine, after the run's own rehearsal at the largest size."""
    import torch

    from pretrain.data.static_shapes import Shapes
    from pretrain.engine.engine import Engine
    from pretrain.model.bert import BertForPreTraining
    from pretrain.training.memory_probe import rehearse

    model = BertForPreTraining(settings.model, manifest.vocab_size, settings.data.pairs)
    model.initialize(torch.Generator().manual_seed(settings.run.seed))
    engine = Engine(model, settings.optim, settings.engine, ranks)
    # the other shapes are compiled when they are met; the median leaves such steps out
    largest = None if shapes is None else Shapes(shapes.usual[-1:], manifest.seq_len)
    rehearse(engine, Phase(1, settings), manifest, largest)
    return engine


def _timed(engine: Engine, batch: GlobalBatch) -> tuple[float, float]:
    """Seconds of one step, and of its forward and backward passes."""
    import torch

    engine.own_time.take()
    began = time.perf_counter()
    engine.train_step(batch, 0.0)
    if engine.ranks.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, engine.own_time.take()


if __name__ == "__main__":
    exit_with(main)

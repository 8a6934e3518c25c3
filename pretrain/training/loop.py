"""The training loop, on one screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from pretrain.checkpoint.progress import Progress
from pretrain.checkpoint.saver import Saver
from pretrain.config.settings import Precision, Settings
from pretrain.data.checksums import batch_checksum, together
from pretrain.data.eval_loader import EvalLoader
from pretrain.data.train_loader import GlobalBatch
from pretrain.distributed.clock import TrainingClock
from pretrain.distributed.ranks import Ranks
from pretrain.distributed.signals import StopRequest
from pretrain.distributed.watchdog import Watchdog
from pretrain.engine.engine import Engine
from pretrain.metrics.monitor import Monitor
from pretrain.metrics.reference_curves import Expectation
from pretrain.metrics.throughput import Meter, Work
from pretrain.model.fill_mask import MaskedSentences
from pretrain.optim.lamb import layer_means
from pretrain.optim.schedules import is_over, learning_rate
from pretrain.training.anomalies import Guard
from pretrain.training.evaluation import evaluate, means

GUESSES = 3  # of each masked sentence


@dataclass
class LogWindow:
    """Sums since the last record: over micro-batches and ranks, divided once."""

    sums: torch.Tensor
    first_position: int
    started: float = field(default_factory=time.perf_counter)
    work: Work = field(default_factory=Work)
    checksum: int = 0  # of its batches, this rank's part


@dataclass
class LoopState:
    """All that the loop works with."""

    settings: Settings
    engine: Engine
    ranks: Ranks
    monitor: Monitor
    progress: Progress
    guard: Guard
    batches: Iterator[GlobalBatch]
    held_out: EvalLoader
    saver: Saver
    stop: StopRequest
    watchdog: Watchdog
    meter: Meter
    sentences: MaskedSentences | None
    expectation: Expectation | None  # rank 0's, in the first phase

    def begin(self, what: str) -> None:
        """Tell the watchdog what comes next: on every rank the same things in the same order."""
        self.watchdog.reach(what, self.progress.step)

    @property
    def is_over(self) -> bool:
        """Whether the phase's last update is made: the same answer on every rank."""
        now = self.progress
        return is_over(now.step - now.first_step, self.settings.schedule, now.elapsed_s)

    def due(self, every_steps: int) -> bool:
        """Whether something that happens every so many steps, and at the last one, is due."""
        return self.progress.step % every_steps == 0 or self.is_over


def train(run: LoopState, now: Callable[[], float] = time.monotonic) -> bool:
    """Train up to the phase's last step; False when a signal ended it before, a checkpoint saved.

    `now`: seconds since any moment, for schedule.budget_hours. Collective. Raises what `Guard`
    raises: RuntimeError, or Rewind to go back to a checkpoint.
    """
    settings, progress, engine = run.settings, run.progress, run.engine
    pairing = settings.data.pairs
    slots = run.ranks.world_size * settings.engine.tokens_per_micro_batch
    window = _window(run)
    clock = TrainingClock(run.ranks, progress.elapsed_s, now)
    while not run.is_over:
        run.begin("reading a batch")
        asked = time.perf_counter()
        batch = next(run.batches)
        window.work.waited_s += time.perf_counter() - asked
        run.begin("the training step")
        peak = settings.optim.learning_rate
        in_phase = progress.step - progress.first_step
        rate = learning_rate(in_phase, settings.schedule, peak, progress.elapsed_s)
        result = engine.train_step(batch, rate)
        progress.position = batch.end
        if not result.applied:
            run.guard.skipped(progress, batch, result.loss_scale)
            continue
        progress.step += 1
        if settings.schedule.budget_hours is not None:  # so that no skipped batch is the last
            progress.elapsed_s = clock.read()
        progress.sequences += batch.num_sequences
        progress.tokens += batch.num_tokens
        window.sums += result.sums
        window.work.add(batch, len(batch.micro_batches) * slots)
        if settings.monitor.batch_checksums:
            window.checksum += batch_checksum(batch)

        must_stop = False
        # Before a checkpoint, too: no record spans one, so that a resumed run writes the same ones.
        # Only here does the host wait for the device.
        if run.due(settings.monitor.every_steps) or run.due(settings.checkpoint.every_steps):
            run.begin("adding up figures")
            grad_norm = float(result.grad_norm)
            figures = {
                **_figures(window, run),
                "optim/learning_rate": rate,
                "optim/grad_norm": grad_norm,
                "optim/skipped_steps": progress.skipped_steps,
                **layer_means(engine.trust_ratios()),
                **_seen(progress),
            }
            if settings.engine.precision is Precision.fp16:
                figures["optim/loss_scale"] = result.loss_scale
            if settings.schedule.budget_hours is not None:
                figures["perf/training_hours"] = progress.elapsed_s / 3600
            if batch.num_shapes:
                figures["data/shapes"] = batch.num_shapes
            if run.expectation is not None:
                figures |= run.expectation.see(progress.step, figures, run.monitor)
            checksum = {}
            if settings.monitor.batch_checksums:
                checksum["data/batch"] = together(run.ranks.gather(window.checksum))
            run.monitor.record(progress.step, {**figures, **checksum})
            run.guard.watch_loss(progress, figures["train/loss"], window.first_position)
            window = _window(run)
            signals, is_written = run.ranks.sum([run.stop.requested, run.saver.has_ended])
            must_stop = signals > 0
            if is_written:
                run.saver.settle()
        paused = time.perf_counter()
        if run.due(settings.eval.every_steps):
            run.begin("an evaluation")
            held_out = evaluate(engine, run.held_out, run.ranks, pairing)
            run.monitor.record(progress.step, {**held_out, **_seen(progress)})
            if run.sentences is not None:
                filled = run.sentences.read(engine.masked_logits(run.sentences.batch), GUESSES)
                by_sentence = dict(zip(run.sentences.sentences, filled, strict=True))
                run.monitor.guesses(progress.step, by_sentence)
        if run.due(settings.checkpoint.every_steps) or must_stop:
            run.begin("saving a checkpoint")
            saving = time.perf_counter()
            run.saver.save(progress, is_last=must_stop or run.is_over)
            window.work.checkpoint_s = time.perf_counter() - saving
        window.started += time.perf_counter() - paused  # speed is that of training alone
        if must_stop and not run.is_over:
            run.monitor.event("stopped", step=progress.step, signal=run.stop.signal_name)
            return False
    return True


def _window(run: LoopState) -> LogWindow:
    sums = torch.zeros(4, dtype=torch.float64, device=run.ranks.device)
    return LogWindow(sums, run.progress.position)


def _figures(window: LogWindow, run: LoopState) -> dict[str, float]:
    """Means over the window's examples on all ranks, and how training went."""
    work, ranks = window.work, run.ranks
    *totals, waited_s = ranks.sum([*window.sums.tolist(), work.waited_s])
    seconds = time.perf_counter() - window.started
    return {
        **means(totals, work.masked, work.sequences, "train", run.settings.data.pairs),
        **run.meter.figures(work, seconds, waited_s / ranks.world_size),
    }


def _seen(progress: Progress) -> dict[str, float]:
    """How much the model has been trained on, over all phases and starts: the axes of charts."""
    return {"data/sequences": progress.sequences, "data/tokens": progress.tokens}

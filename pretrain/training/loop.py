"""The training loop, on one screen."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from pretrain.checkpoint.progress import Progress
from pretrain.checkpoint.saver import Saver
from pretrain.config.settings import Precision, Settings
from pretrain.data.checksums import together
from pretrain.data.eval_loader import EvalLoader
from pretrain.data.train_loader import GlobalBatch
from pretrain.distributed.clock import StopCheck, TrainingClock
from pretrain.distributed.garbage import collected_by_calls
from pretrain.engine.engine import Engine, StepResult
from pretrain.metrics.monitor import Monitor
from pretrain.metrics.profiler import StepProfiler
from pretrain.metrics.reference_curves import Expectation
from pretrain.metrics.stragglers import RankWatch
from pretrain.metrics.throughput import Meter
from pretrain.model.fill_mask import MaskedSentences
from pretrain.optim.lamb import layer_means
from pretrain.optim.schedules import is_over, learning_rate
from pretrain.training.anomalies import Guard
from pretrain.training.context import RunContext
from pretrain.training.evaluation import evaluate
from pretrain.training.log_window import LogWindow

GUESSES = 3  # of each masked sentence


@collected_by_calls()
def train(run: Trainer, now: Callable[[], float] = time.monotonic) -> bool:
    """Train to the phase's last step; False if it was stopped earlier, after a checkpoint.

    `now`: seconds since any moment, for schedule.budget_hours. Collective. Raises what `Guard`
    raises: DivergedError, or Rewind to go back to a checkpoint.
    """
    settings, progress, window = run.settings, run.progress, run.new_window()
    clock = TrainingClock(run.context.ranks, progress.elapsed_s, now)
    while not run.is_over:
        with window.paused():
            run.profiler.begin_step(progress.step + 1)
        batch = run.read_batch(window)
        rate = run.learning_rate
        result = run.step(batch, rate)
        if not result.applied:
            run.guard.skipped(progress, batch, result.loss_scale)
            continue
        run.count(batch, clock)
        window.add(batch, result.sums)

        # Before a checkpoint, too: no record spans one, so a resumed run writes the same records.
        is_due = run.due(settings.monitor.every_steps) or run.is_saved
        if is_due:
            run.record(window, batch, result, rate)
            window = run.new_window()
        stops = (is_due or run.stop_check.is_due(progress.step)) and run.ranks_agree_to_stop()
        if stops and not is_due:  # the record of fewer steps is no measure of spikes
            run.record(window, batch, result, rate, is_watched=False)
        with window.paused():
            run.profiler.end_step(progress.step)
            if run.due(settings.eval.every_steps):
                run.evaluate()
            if run.is_saved or stops:
                run.save(window, is_last=stops or run.is_over)
        if stops and not run.is_over:
            run.monitor.event("stopped", **run.context.why_stopped(progress.step))
            return False
    return True


@dataclass(frozen=True)
class Trainer:
    """What the loop works with, and its steps. Every rank calls the methods in the same order."""

    context: RunContext
    settings: Settings
    engine: Engine
    progress: Progress
    batches: Iterator[GlobalBatch]
    source_metrics: Callable[[int, int, list[list[int]]], dict[str, float]]
    held_out: EvalLoader
    sentences: MaskedSentences | None
    guard: Guard
    saver: Saver
    stop_check: StopCheck
    monitor: Monitor
    meter: Meter
    profiler: StepProfiler
    rank_watch: RankWatch
    expectation: Expectation | None  # rank 0's, in the first phase

    @property
    def is_over(self) -> bool:
        """Whether the phase's last update is made: the same answer on every rank."""
        now = self.progress
        return is_over(now.step - now.first_step, self.settings.schedule, now.elapsed_s)

    @property
    def learning_rate(self) -> float:
        """Rate of the next update."""
        now, peak = self.progress, self.settings.optim.learning_rate
        return learning_rate(now.step - now.first_step, self.settings.schedule, peak, now.elapsed_s)

    def due(self, every_steps: int) -> bool:
        """Whether something is due that happens every `every_steps` steps and at the last one."""
        return self.progress.step % every_steps == 0 or self.is_over

    @property
    def is_saved(self) -> bool:
        """Whether this step is one with a checkpoint, unless a signal asks for one: at every
        interval, at the end, and before a decay from which the run may be extended."""
        is_enough, progress = self.context.is_enough(self.progress.step), self.progress
        is_before_decay = progress.step == progress.last_before_decay(self.settings.schedule)
        return is_enough or is_before_decay or self.due(self.settings.checkpoint.every_steps)

    def begin(self, activity: str) -> None:
        """Note for the watchdog what this rank does next."""
        self.context.watchdog.begin(activity, self.progress.step)

    def new_window(self) -> LogWindow:
        """An empty window that begins at the next example."""
        ranks = self.context.ranks
        return LogWindow(
            sums=torch.zeros(4, dtype=torch.float64, device=ranks.device),
            first_position=self.progress.position,
            slots=ranks.world_size * self.settings.engine.tokens_per_micro_batch,
            checksum=0 if self.settings.monitor.batch_checksums else None,
        )

    def read_batch(self, window: LogWindow) -> GlobalBatch:
        """The next global batch."""
        self.begin("reading a batch")
        with window.waiting_for_data():
            batch = next(self.batches)
        if not batch.is_counted:  # dynamic masks of whole words
            self.begin("counting the masked tokens")
        return batch.counted(self.context.ranks.sum)

    def step(self, batch: GlobalBatch, rate: float) -> StepResult:
        """One update of the weights, unless a loss or gradient is not finite."""
        self.begin("the training step")
        result = self.engine.train_step(batch, rate)
        self.progress.position = batch.end
        return result

    def count(self, batch: GlobalBatch, clock: TrainingClock) -> None:
        """Advance the progress by an update that was made."""
        self.progress.step += 1
        if self.settings.schedule.budget_hours is not None:  # so that no skipped batch is the last
            self.progress.elapsed_s = clock.read()
        self.progress.sequences += batch.num_sequences
        self.progress.tokens += batch.num_tokens

    def record(
        self,
        window: LogWindow,
        batch: GlobalBatch,
        result: StepResult,
        rate: float,
        is_watched: bool = True,
    ) -> None:
        """Log the window's metrics. Only here does the host wait for the device, and is garbage
        collected: after the same steps on all ranks."""
        self.begin("summing metrics")
        settings, progress, ranks = self.settings, self.progress, self.context.ranks
        grad_norm = float(result.grad_norm)
        metrics = {
            **window.metrics(ranks, self.meter, settings.data.pairs),
            **self.rank_watch.metrics(self.engine.own_time, progress.step),
            "optim/learning_rate": rate,
            "optim/grad_norm": grad_norm,
            "optim/skipped_steps": progress.skipped_steps,
            **layer_means(self.engine.trust_ratios()),
            **self._examples_seen(),
            **self.source_metrics(window.first_position, progress.position, progress.skipped),
        }
        if settings.engine.precision is Precision.fp16:
            metrics["optim/loss_scale"] = result.loss_scale
        if settings.schedule.budget_hours is not None:
            metrics["perf/training_hours"] = progress.elapsed_s / 3600
        if batch.num_shapes:
            metrics["data/shapes"] = batch.num_shapes
        if self.expectation is not None:
            metrics |= self.expectation.check(progress.step, metrics, self.monitor)
        checksum = {}
        if window.checksum is not None:
            checksum["data/batch"] = together(ranks.gather(window.checksum))
        self.monitor.record(progress.step, {**metrics, **checksum})
        gc.collect()
        if is_watched:
            self.guard.watch_loss(progress, metrics["train/loss"], window.first_position)

    def ranks_agree_to_stop(self) -> bool:
        """Whether any rank was told to stop, or this start has made its steps (run.stop_after).

        Also logs a checkpoint that was written meanwhile.
        """
        step, ranks = self.progress.step, self.context.ranks
        step_s = self.stop_check.step_s(step) if ranks.rank == 0 else 0.0
        own = [self.context.stop.requested, self.saver.has_ended, step_s]
        signals, is_written, step_s = ranks.sum(own)
        self.stop_check.begin(step, step_s)
        if is_written:
            self.saver.settle()
        return signals > 0 or self.context.is_enough(self.progress.step)

    def evaluate(self) -> None:
        """Log held-out metrics, and the guesses for masked sentences."""
        self.begin("an evaluation")
        pairing, step = self.settings.data.pairs, self.progress.step
        metrics = evaluate(self.engine, self.held_out, self.context.ranks, pairing)
        self.monitor.record(step, {**metrics, **self._examples_seen()})
        self.guard.watch_evaluation(step, metrics["eval/loss"])
        if self.sentences is not None:
            logits = self.engine.masked_logits(self.sentences.batch)
            filled = self.sentences.read(logits, GUESSES)
            self.monitor.guesses(step, dict(zip(self.sentences.sentences, filled, strict=True)))

    def save(self, window: LogWindow, is_last: bool) -> None:
        """Save a checkpoint; the last one is waited for."""
        self.begin("saving a checkpoint")
        started = time.perf_counter()
        self.saver.save(self.progress, is_last)
        window.work.checkpoint_s = time.perf_counter() - started

    def _examples_seen(self) -> dict[str, float]:
        """How much the model was trained on, over all phases and starts: the axes of charts."""
        return {"data/sequences": self.progress.sequences, "data/tokens": self.progress.tokens}

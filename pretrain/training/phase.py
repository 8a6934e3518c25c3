"""One phase of a run: all that its loop needs is built here, trained, and closed again."""

from __future__ import annotations

import functools
import logging
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import orjson
import torch

from data_prep.core.config import SettingsError, as_dict
from data_prep.core.files import checksum, read_json
from data_prep.tokenizer.vocab_file import read_vocab
from pretrain.checkpoint.files import load_checkpoint
from pretrain.checkpoint.identity import init_from_of
from pretrain.checkpoint.progress import Progress, ResumePoint
from pretrain.checkpoint.saver import Saver
from pretrain.config.settings import Compile, OnSpike, Settings
from pretrain.data.balancing import fullest
from pretrain.data.corpus import folder_of
from pretrain.data.open_loaders import open_loaders
from pretrain.data.static_shapes import usual_shapes
from pretrain.distributed.clock import StopCheck
from pretrain.engine.engine import Engine
from pretrain.huggingface import init_from
from pretrain.huggingface.load import load_tokenizer
from pretrain.metrics import slurm_status
from pretrain.metrics.console import CompileLines, Screen
from pretrain.metrics.monitor import JsonLines, Monitor, Sink
from pretrain.metrics.profiler import StepProfiler
from pretrain.metrics.reference_curves import Expectation
from pretrain.metrics.stragglers import RankWatch
from pretrain.metrics.throughput import Goodput, Meter
from pretrain.model.bert import BertForPreTraining, padded_vocab_size
from pretrain.model.fill_mask import MaskedSentences
from pretrain.run_folder.jsonl import append_event
from pretrain.trackers.choose import start_trackers
from pretrain.trackers.tracker import TrackedRun
from pretrain.training.anomalies import Guard, Rewind, rewound
from pretrain.training.context import RunContext
from pretrain.training.diverged import DivergedError
from pretrain.training.evaluation import frequency_baseline
from pretrain.training.loop import Trainer, train
from pretrain.training.memory_probe import rehearse

logger = logging.getLogger(__name__)


class PhaseTraining:
    """One phase while it trains. All methods are collective."""

    def __init__(self, context: RunContext, start: ResumePoint, checkpoint: Path | None) -> None:
        """Build all that the phase needs, and continue from `checkpoint`; None: from step 0.

        Raises SettingsError on every rank if the weights of run.init_from do not fit.
        """
        self._context, self._phase, self._checkpoint = context, start.phase, checkpoint
        settings, number = start.phase.settings, start.phase.number
        self._settings, ranks = settings, context.ranks
        self._manifest = context.manifests[number - 1]
        self._is_main = ranks.rank == 0
        self._is_compiled = settings.engine.compile is Compile.true
        self._loader, self._held_out = open_loaders(
            settings, number, self._manifest,
            rank=ranks.rank, world_size=ranks.world_size, static=self._is_compiled,
            pinned=ranks.device.type == "cuda",
            is_verified=True,  # by pretrain.run, a share of the shards on each rank
        )  # fmt: skip
        self._engine = self._build_engine()
        self._sentences = _masked_sentences(settings)
        self._progress = Progress.begin() if checkpoint is None else self._load(checkpoint)
        if settings.log.names and self._is_main and not context.lasting:
            name, config = str(settings.run.name), _tracked_config(context)
            run = TrackedRun(context.folder, name, settings.log, config)
            context.lasting.extend(start_trackers(run, self._progress.step))
        self._expectation = None
        if self._is_main and number == 1:
            self._expectation = Expectation(
                settings, context.folder, lambda: frequency_baseline(settings, self._manifest)
            )
        self._monitor = Monitor([])  # each stretch has its own
        self._saver = Saver(
            context.folder, self._engine, ranks, settings.checkpoint, context.identity,
            lambda kind, **facts: self._monitor.event(kind, **facts),
            self._progress.last_before_decay(settings.schedule), context.mirror,
        )  # fmt: skip

    def train(self) -> bool:
        """Train to the end of the phase; False if the run stops before its own end.

        Raises what `Guard` raises.
        """
        how = "started" if self._checkpoint is None else "resumed"
        with self._context.stop.saving(), self._loader, self._saver:
            try:
                while (finished := self._train_stretch(how)) is None:
                    how = "rewound"
            except DivergedError as error:
                if self._is_main:
                    facts = {"step": self._progress.step, "text": str(error)}
                    append_event(self._context.folder, "diverged", facts)
                raise
        self._engine.close()  # not after an exception: the process ends
        return finished

    def _train_stretch(self, how: str) -> bool | None:
        """Train from the progress on; None if the run went back to a checkpoint."""
        context, settings, progress = self._context, self._settings, self._progress
        sinks = _sinks(settings, context.folder, progress) if self._is_main else []
        self._monitor = Monitor(sinks, context.lasting)
        goodput = Goodput.read(context.folder) if self._is_main else None
        try:
            self._log_start(how)
            if self._checkpoint is None and settings.survival.on_spike is OnSpike.rewind:
                self._saver.save(progress)  # so that there is always one to go back to
            vocab_rows = padded_vocab_size(self._manifest.vocab_size, settings.model)
            profiler = StepProfiler(
                settings.profile, context.folder, context.ranks, self._monitor, context.watchdog,
                self._engine.wait_for_weights,
            )  # fmt: skip
            trainer = Trainer(
                context=context,
                settings=settings,
                engine=self._engine,
                progress=progress,
                batches=self._loader.batches(progress.position, progress.skipped),
                source_metrics=self._loader.source_metrics,
                held_out=self._held_out,
                sentences=self._sentences,
                guard=Guard(settings, context.folder, self._loader, self._monitor, self._saver),
                saver=self._saver,
                stop_check=StopCheck(progress.step),
                monitor=self._monitor,
                meter=Meter(settings, vocab_rows, context.ranks, goodput),
                profiler=profiler,
                rank_watch=RankWatch(context.ranks, self._monitor),
                expectation=self._expectation,
            )
            with profiler:
                finished = train(trainer)
            if not finished:
                return False
            self._monitor.event("finished", phase=self._phase.number, step=progress.step)
            if self._phase is not context.phases[-1] and context.is_enough(progress.step):
                self._monitor.event("stopped", **context.why_stopped(progress.step))
                return False
            return True
        except Rewind as rewind:
            self._go_back(rewind)
            return None
        finally:
            self._monitor.close()

    def _log_start(self, how: str) -> None:
        step, ranks = self._progress.step, self._context.ranks.world_size
        self._monitor.event(how, step=step, ranks=ranks, compiled=self._is_compiled)
        extension = self._context.extension
        if how == "resumed" and extension and step == self._context.first_step:
            changes = msgspec.to_builtins(extension.changes)
            self._monitor.event("extended", step=step, changes=changes)
        if self._phase.number > 1 and step == self._progress.first_step:
            facts = self._phase.facts()
            self._monitor.event("phase", number=self._phase.number, step=step, **facts)

    def _go_back(self, rewind: Rewind) -> None:
        """Load the newest checkpoint, and pass over the batches of the spike from now on."""
        self._saver.settle()
        self._checkpoint = self._context.newest_checkpoint()
        stored = self._load(self._checkpoint)
        self._progress = rewound(stored, rewind, self._settings.survival.max_rewinds)

    def _load(self, path: Path) -> Progress:
        """Load a checkpoint into the engine. Raises RuntimeError if it is of another phase."""
        self._context.watchdog.begin("loading a checkpoint")
        point = self._context.resume_point(path)
        if point.phase is not self._phase:
            raise RuntimeError(
                f"{path}, the newest whole checkpoint, is of phase {point.phase.number}, and phase "
                f"{self._phase.number} cannot go back to it; start the same command again, it "
                "continues from there"
            )
        ranks = self._context.ranks
        state = load_checkpoint(path, self._engine, ranks, point.forgets, point.tiles)
        return Progress.at(point, state)

    def _build_engine(self) -> Engine:
        """The model with its first weights, under the engine, after the memory rehearsal."""
        context, settings, watchdog = self._context, self._settings, self._context.watchdog
        watchdog.begin("building the model")
        model = BertForPreTraining(settings.model, self._manifest.vocab_size, settings.data.pairs)
        model.initialize(torch.Generator().manual_seed(settings.run.seed))
        if self._checkpoint is None and context.origin is not None:
            watchdog.begin(f"reading the weights in {context.origin.folder}")
            self._load_init_weights(context.origin, model)
        engine = Engine(model, settings.optim, settings.engine, context.ranks)
        if settings.survival.rehearse:
            self._rehearse(engine)
        return engine

    def _rehearse(self, engine: Engine) -> None:
        """Try this phase and all later ones, which may be days away. Compiles this phase's code."""
        for coming in self._context.phases[self._phase.number - 1 :]:
            manifest, shapes = self._context.manifests[coming.number - 1], self._loader.shapes
            most = fullest(coming.settings, self._context.ranks.world_size)
            if shapes is not None and coming is not self._phase:
                train, rate = manifest.splits["train"], coming.settings.data.largest_mask_rate
                shapes = usual_shapes(manifest, train.tokens / train.rows, [most], rate)
            if self._is_main:
                of_phase = f" of phase {coming.number}" if len(self._context.phases) > 1 else ""
                count = "" if shapes is None else f", compiling {len(shapes.usual)} shapes"
                line = f"rehearsing a step{of_phase}: {most:,} tokens at once{count}"
                print(line, file=sys.stderr)
            lines = CompileLines(len(shapes.usual)) if self._is_main and shapes else None
            begin = functools.partial(self._begin_size, coming.number, lines)
            rehearse(engine, coming, manifest, shapes, begin)
            if lines is not None:
                lines.show(len(lines))
        # its micro-batches may be larger than those of a small step
        if self._is_compiled or self._context.ranks.device.type == "cuda":
            engine.evaluate_step(next(iter(self._held_out)).batch)

    def _begin_size(self, number: int, lines: CompileLines | None, done: int) -> None:
        """Note that phase `number` is rehearsed at a further size, which may compile for long."""
        self._context.watchdog.begin(f"the rehearsal of phase {number}, size {done + 1}")
        if lines is not None and done:
            lines.show(done)

    def _load_init_weights(self, origin: init_from.InitWeights, model: BertForPreTraining) -> None:
        """Give `model` the weights of run.init_from, on every rank.

        Raises SettingsError on all ranks if one cannot read them, or they do not fit the model.
        """
        context = self._context
        tokens = read_vocab(self._settings.data.folder / "vocab" / "vocab.txt")
        fault = None
        try:
            weights, facts = origin.weights(model, tokens, self._manifest.form)
            model.load_weights(weights)
        except SettingsError as error:
            fault = str(error)
        if faults := sorted({text for text in context.ranks.gather(fault) if text}):
            raise SettingsError("\n".join(faults))
        if self._is_main:
            begun_from = init_from_of(context.identity)
            assert begun_from is not None, "the run has run.init_from"
            append_event(context.folder, "init_from", {**begun_from, **facts})
            summary = init_from.summary(begun_from, facts, self._manifest.vocab_size)
            logger.info("%s", summary)
            print(summary, file=sys.stderr)


def _masked_sentences(settings: Settings) -> MaskedSentences | None:
    if not settings.monitor.sentences:
        return None
    tokenizer = load_tokenizer(settings.data.folder / "vocab")
    longest = settings.model.max_position_embeddings
    return MaskedSentences(settings.monitor.sentences, tokenizer, longest)


def _tracked_config(context: RunContext) -> dict[str, Any]:
    """All that the run came from: settings, plan, data, code and machine; and its report."""
    manifests = [folder_of(phase.settings.data) / "manifest.json" for phase in context.phases]
    config = {
        **as_dict(context.phases[0].settings),
        "plan": read_json(context.folder / "plan.json"),
        "manifests": {str(path): checksum(path) for path in manifests},
        "environment": read_json(context.folder / "environment.json"),
        "report": str((context.folder / "report.html").absolute()),
    }
    plain: dict[str, Any] = orjson.loads(orjson.dumps(config, option=orjson.OPT_NON_STR_KEYS))
    return plain


def _sinks(settings: Settings, run_folder: Path, progress: Progress) -> list[Sink]:
    in_phase = settings.schedule.last_step
    sinks: list[Sink] = [
        JsonLines(run_folder, progress.step),
        Screen(progress.step, None if in_phase is None else progress.first_step + in_phase),
    ]
    if path := os.environ.get(slurm_status.VARIABLE):
        sinks.append(slurm_status.BatchJob(Path(path)))
    return sinks

"""One phase of a run: all that its loop needs is built here, trained, and taken down again."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from data_prep.core.config import SettingsError, as_dict
from data_prep.core.files import checksum, read_json
from data_prep.tokenizer.vocab_file import read_vocab
from pretrain.checkpoint import identity as identity_module
from pretrain.checkpoint.files import STATE_FILE, load_checkpoint, newest_whole
from pretrain.checkpoint.progress import Progress, ResumePoint, resume_point
from pretrain.checkpoint.saver import Saver
from pretrain.config.phases import Phase
from pretrain.config.settings import Compile, OnSpike, Settings
from pretrain.data.corpus import folder_of
from pretrain.data.open_loaders import open_loaders
from pretrain.distributed.ranks import Ranks
from pretrain.distributed.signals import StopRequest
from pretrain.distributed.watchdog import Watchdog
from pretrain.engine.engine import Engine
from pretrain.huggingface import init_from
from pretrain.huggingface.load import load_tokenizer
from pretrain.metrics import slurm_status
from pretrain.metrics.console import Screen
from pretrain.metrics.monitor import JsonLines, Monitor, Sink
from pretrain.metrics.reference_curves import Expectation
from pretrain.metrics.throughput import Goodput, Meter
from pretrain.metrics.wandb_sink import Wandb
from pretrain.model.bert import BertForPreTraining, padded_vocab_size
from pretrain.model.fill_mask import MaskedSentences
from pretrain.run_folder.jsonl import append_event
from pretrain.training.anomalies import Guard, Rewind, rewound
from pretrain.training.evaluation import frequency_baseline
from pretrain.training.loop import LoopState, train
from pretrain.training.memory_probe import rehearse

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """What all phases of a run have in common."""

    folder: Path
    phases: Sequence[Phase]
    manifests: Sequence[dict[str, Any]]  # of each phase's data
    identity: dict[str, Any]
    origin: (
        init_from.InitWeights | None
    )  # where the weights of the first phase come from; None: drawn
    ranks: Ranks
    stop: StopRequest
    watchdog: Watchdog
    lasting: list[Wandb] = field(default_factory=list)  # sinks that go on into the next phase

    def newest_checkpoint(self) -> Path:
        """The newest whole checkpoint, from which training goes on. Collective.

        Raises RuntimeError where there is none.
        """
        self.watchdog.reach("looking for a checkpoint")
        newest = self.ranks.broadcast(newest_whole(self.folder) if self.ranks.rank == 0 else None)
        if newest is None:
            raise RuntimeError(f"{self.folder} has no whole checkpoint to go on from")
        return newest


def place_in(context: RunContext, checkpoint: Path | None) -> ResumePoint:
    """The phase that goes on from `checkpoint`, the first without one."""
    state = None if checkpoint is None else read_json(checkpoint / STATE_FILE)
    return resume_point(context.phases, state)


def train_phase(context: RunContext, place: ResumePoint, checkpoint: Path | None) -> bool:
    """Train the phase, from `checkpoint` or from its beginning; whether it finished. Collective.

    Raises SettingsError where run.init_from does not fit, on every rank, and what `Guard` raises.
    """
    ranks, watchdog, run_folder = context.ranks, context.watchdog, context.folder
    settings, number = place.phase.settings, place.phase.number
    manifest = context.manifests[number - 1]
    is_compiled = settings.engine.compile is Compile.true
    engine = _build_engine(context, place.phase, checkpoint)
    loader, held_out = open_loaders(
        settings, number, manifest, rank=ranks.rank, world_size=ranks.world_size, static=is_compiled
    )
    sentences = _masked_sentences(settings)

    def tell(kind: str, **facts: Any) -> None:
        monitor.event(kind, **facts)  # that of the stretch which is being trained

    def load(path: Path) -> Progress:
        watchdog.reach("loading a checkpoint")
        here = place_in(context, path)
        if here.phase is not place.phase:
            raise RuntimeError(
                f"{path}, the newest whole checkpoint, is of phase {here.phase.number}, and phase "
                f"{number} cannot go back to it; start again: the same command goes on from there"
            )
        return Progress.at(here, load_checkpoint(path, engine, ranks, here.forgets, here.tiles))

    progress = Progress() if checkpoint is None else load(checkpoint)
    how = "started" if checkpoint is None else "resumed"
    if settings.log.wandb and ranks.rank == 0 and not context.lasting:
        name, config = str(settings.run.name), _origins(context)
        context.lasting.append(Wandb(run_folder, name, settings.log, config, progress.step))
    expectation = None
    if ranks.rank == 0 and number == 1:
        expectation = Expectation(
            settings, run_folder, lambda: frequency_baseline(settings, manifest)
        )
    vocab_rows = padded_vocab_size(manifest["vocab_size"], settings.model)
    finished = None
    saver = Saver(run_folder, engine, ranks, settings.checkpoint, context.identity, tell)
    with loader, saver:
        while finished is None:
            own = _sinks(settings, run_folder, progress) if ranks.rank == 0 else []
            monitor = Monitor(own, context.lasting)
            goodput = Goodput.read(run_folder) if ranks.rank == 0 else None
            try:
                monitor.event(how, step=progress.step, ranks=ranks.world_size, compiled=is_compiled)
                if number > 1 and progress.step == progress.first_step:
                    facts = place.phase.facts()
                    monitor.event("phase", number=number, step=progress.step, **facts)
                if checkpoint is None and settings.survival.on_spike is OnSpike.rewind:
                    saver.save(progress)  # so that there is always one to go back to
                batches = loader.batches(progress.position, progress.skipped)
                guard = Guard(settings, run_folder, loader, monitor, saver)
                run = LoopState(
                    settings, engine, ranks, monitor, progress, guard, batches, held_out, saver,
                    context.stop, watchdog, Meter(settings, vocab_rows, ranks, goodput), sentences,
                    expectation,
                )  # fmt: skip
                finished = train(run)
                if finished:
                    monitor.event("finished", phase=number, step=progress.step)
            except Rewind as rewind:
                saver.settle()
                checkpoint = context.newest_checkpoint()
                progress = rewound(load(checkpoint), rewind, settings.survival.max_rewinds)
                how = "rewound"
            finally:
                monitor.close()
    engine.close()  # not after an exception: the process ends
    return finished


def _build_engine(context: RunContext, phase: Phase, checkpoint: Path | None) -> Engine:
    """The model with its first weights, under the engine, with the rehearsal behind it. Collective."""
    settings, manifest = phase.settings, context.manifests[phase.number - 1]
    context.watchdog.reach("building the model")
    model = BertForPreTraining(settings.model, manifest["vocab_size"], settings.data.pairs)
    model.initialize(torch.Generator().manual_seed(settings.run.seed))
    if checkpoint is None and context.origin is not None:
        context.watchdog.reach(f"reading the weights in {context.origin.folder}")
        _start_from(context.origin, model, settings, manifest, context)
    engine = Engine(model, settings.optim, settings.engine, context.ranks)
    if settings.survival.rehearse:  # later phases, too: theirs may come days from now
        for coming in context.phases[phase.number - 1 :]:
            context.watchdog.reach(f"the rehearsal of phase {coming.number}")
            rehearse(engine, coming, context.manifests[coming.number - 1])
    return engine


def _masked_sentences(settings: Settings) -> MaskedSentences | None:
    if not settings.monitor.sentences:
        return None
    tokenizer = load_tokenizer(Path(settings.data.dir) / "vocab")
    longest = settings.model.max_position_embeddings
    return MaskedSentences(settings.monitor.sentences, tokenizer, longest)


def _start_from(
    origin: init_from.InitWeights,
    model: BertForPreTraining,
    settings: Settings,
    manifest: dict[str, Any],
    context: RunContext,
) -> None:
    """Give `model` the weights of run.init_from, on every rank. Collective.

    Raises SettingsError on all where a rank cannot read them, or they are not those of such a model.
    """
    tokens = read_vocab(Path(settings.data.dir) / "vocab" / "vocab.txt")
    fault = None
    try:
        weights, facts = origin.weights(model, tokens, manifest["lowercase"])
        model.load_weights(weights)
    except SettingsError as error:
        fault = str(error)
    if faults := sorted({said for said in context.ranks.gather(fault) if said}):
        raise SettingsError("\n".join(faults))
    if context.ranks.rank == 0:
        begun_from = context.identity[identity_module.IDENTITY]
        append_event(context.folder, "init_from", {**begun_from, **facts})
        said = init_from.summary(begun_from, facts)
        logger.info("%s", said)
        print(said, file=sys.stderr)


def _origins(context: RunContext) -> dict[str, Any]:
    """All that a run came from, for wandb: settings, plan, data, code and machine."""
    manifests = [folder_of(phase.settings.data) / "manifest.json" for phase in context.phases]
    return {
        **as_dict(context.phases[0].settings),
        "plan": read_json(context.folder / "plan.json"),
        "manifests": {str(path): checksum(path) for path in manifests},
        "environment": read_json(context.folder / "environment.json"),
    }


def _sinks(settings: Settings, run_folder: Path, progress: Progress) -> list[Sink]:
    in_phase = settings.schedule.last_step
    sinks: list[Sink] = [
        JsonLines(run_folder, progress.step),
        Screen(progress.step, None if in_phase is None else progress.first_step + in_phase),
    ]
    if path := os.environ.get(slurm_status.VARIABLE):
        sinks.append(slurm_status.BatchJob(Path(path)))
    return sinks

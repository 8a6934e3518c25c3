"""The entry point: settings -> checks -> data -> train -> evaluate -> export.

    python -m pretrain.run +model=base data=wikibooks_512 run.name=x optim.learning_rate=2e-4

Starts alike from a bare shell, torchrun, the deepspeed launcher and srun.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from data_prep.configuration import SettingsError, as_dict, as_yaml, choices, compose
from data_prep.files import checksum, read_json
from pretrain import batch_job, initial, survival
from pretrain.phases import Phase, Place, check_phases, phases_of, place_of
from pretrain.prepared import folder_of, manifest_of, prepare_sample
from pretrain.ranks import environment_rank, environment_world_size
from pretrain.run_folder import folder_of_run, identity, open_run_folder
from pretrain.run_lock import RunLock
from pretrain.settings import Compile, OnSpike, Settings
from pretrain.speaking import Voice, speak_on_rank_0
from pretrain.watchdog import Watchdog

if TYPE_CHECKING:
    from pretrain.guard import Progress
    from pretrain.model import BertForPreTraining
    from pretrain.monitor import Sink
    from pretrain.ranks import Ranks
    from pretrain.wandb_sink import Wandb

T = TypeVar("T")

logger = logging.getLogger(__name__)

HELP = """\
python -m pretrain.run +model={model} [GROUP=NAME ...] [SETTING=VALUE ...]

groups: data={data}   engine={engine}
        optim={optim}   log={log}
        recipe={recipe}
settings: run.name=x run.resume=auto|must|never optim.global_batch=256 schedule.total_steps=1000 ...
          --cfg prints all of them with their values
example: torchrun --nproc-per-node 8 -m pretrain.run +model=base data=wikibooks_128 run.name=first
"""

MOST_FAULTS = 10  # shown; all are counted

SAMPLE_LINE = (
    "data: the embedded sample corpus; for real data prepare your own (README, 'Your own data') and "
    "give data=wikibooks_128 or data.dir=FOLDER"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line and return the exit status.

    0: done, or stopped by a signal with all saved. 2: wrong settings, one message from rank 0.
    130: interrupted from the keyboard.
    """
    arguments = [
        a for a in (sys.argv[1:] if argv is None else argv) if not a.startswith("--local_rank")
    ]
    stop = survival.StopRequest.install()  # before torch is imported, which takes seconds
    with speak_on_rank_0(environment_rank()) as voice:
        try:
            if "--help" in arguments or "-h" in arguments:
                print(_help(), end="")
                return 0
            settings, on_sample = load(
                [a for a in arguments if a != "--cfg"], environment_world_size()
            )
            if "--cfg" in arguments:
                print(as_yaml(settings), end="")
                return 0
            return _run(settings, on_sample, stop, voice)
        except SettingsError as error:
            if environment_rank() == 0:
                print(f"pretrain.run: {error}", file=sys.stderr)
            else:  # the launcher ends all ranks with the first: not before rank 0 has spoken
                stop.wait(limit_s=30)
            return 2
        except KeyboardInterrupt:
            if environment_rank() == 0:
                print(
                    "pretrain.run: interrupted; the same command continues from the last checkpoint",
                    file=sys.stderr,
                )
            return 130


def load(overrides: Sequence[str], world_size: int) -> tuple[Settings, bool]:
    """Checked settings from what was typed, and whether they ask for the sample corpus.

    They do where data=sample was typed or neither data= nor data.dir= was: whoever names a folder
    of their own and mistypes it is told so, and does not train on the sample. Raises SettingsError,
    listing the models where none is named.
    """
    typed = {override.split("=", 1)[0].lstrip("+") for override in overrides}
    if "model" not in typed:
        raise SettingsError(
            f"no model is named; add +model= and one of {', '.join(choices('model'))}"
        )
    settings, chosen = compose("config", Settings, overrides)
    if settings.run.name is None:
        corpus = Path(settings.data.dir).name
        settings.run.name = f"{chosen['model']}-{corpus}-{settings.data.seq_len}"
    check_phases(settings, world_size)
    return settings, chosen["data"] == "sample" and ("data" in typed or "data.dir" not in typed)


def _run(settings: Settings, on_sample: bool, stop: survival.StopRequest, voice: Voice) -> int:
    """One run, from checked settings to the last table."""
    is_main = environment_rank() == 0
    if on_sample:
        print(SAMPLE_LINE, flush=True)
    for data in [phase.settings.data for phase in phases_of(settings)]:
        if on_sample and is_main and not (folder_of(data) / "manifest.json").exists():
            print(f"preparing the sample corpus in {folder_of(data)}", flush=True)
            prepare_sample(data)
        if not is_main and on_sample:
            continue  # these ranks wait for rank 0 to have made the sample
        try:
            manifest_of(data)  # refused before torch is imported
        except SettingsError:
            if not is_main:  # does rank 0 see the same, and end all, or this rank alone?
                stop.wait(limit_s=30)
            if is_main or stop.requested:
                raise  # else the preflight names this rank
    if is_main:  # refused before torch is imported
        initial.begin(settings, folder_of_run(settings))
    from pretrain import ranks as ranks_module

    ranks = ranks_module.start(settings.engine.timeout_minutes)
    ranks.barrier()
    try:
        status = _with_ranks(settings, ranks, stop, voice)
    except SettingsError:  # raised on every rank
        ranks.stop()
        raise
    ranks.stop()  # not after another exception: peers that hang would be waited for
    return status


def _help() -> str:
    groups = ("model", "data", "engine", "optim", "log", "recipe")
    return HELP.format(**{group: "|".join(choices(group)) for group in groups})


def _with_ranks(settings: Settings, ranks: Ranks, stop: survival.StopRequest, voice: Voice) -> int:
    """Train, and close the run on rank 0. Collective."""
    from pretrain.checkpoint import STATE_FILE
    from pretrain.compiling import resolve_compile
    from pretrain.engine import resolve_precision
    from pretrain.forecast import forecast
    from pretrain.forecast import write as write_plan
    from pretrain.monitor import Monitor
    from pretrain.preflight import preflight

    found = preflight(ranks, settings)
    settings.engine.precision = resolve_precision(settings.engine, ranks.device)
    settings.engine.compile = resolve_compile(settings.engine, ranks.device)
    phases, manifests = phases_of(settings), found.manifests
    run_folder = folder_of_run(settings)
    log = run_folder / "logs" / f"rank-{ranks.rank:05d}.log"
    with contextlib.ExitStack() as held:

        def open_folder() -> tuple[Path | None, dict[str, Any], initial.Origin | None]:
            held.enter_context(RunLock(run_folder))
            voice.log_to(log)  # a broken checkpoint that is passed over is named there
            begun_from, origin = initial.begin(settings, run_folder)
            now = identity(settings, manifests, begun_from)
            return open_run_folder(run_folder, settings, now), now, origin

        def plan_run() -> None:
            outline = forecast(settings, ranks.world_size)
            write_plan(run_folder, outline)
            print("\n".join([f"run {run_folder}", *outline.short_lines()]), file=sys.stderr)

        checkpoint, run_identity, origin = _on_rank_0(ranks, open_folder)
        if ranks.rank == 0:
            found.record(run_folder)
            print("".join(f"{line}\n" for line in found.lines()), end="", file=sys.stderr)
        else:
            voice.log_to(log)
        # before the collectives' own time-out, which writes no stacks and knows no rank
        limit_s = 0.8 * 60 * settings.engine.timeout_minutes
        with Watchdog(
            run_folder, log, ranks.rank, ranks.world_size, limit_s, voice.tell
        ) as watchdog:
            for folder in dict.fromkeys(folder_of(phase.settings.data) for phase in phases):
                watchdog.reach(f"checking the shards in {folder}")
                _check_shards(folder, ranks)
            watchdog.reach(
                "planning"
            )  # with the lengths of all examples, now that shards are sound
            _on_rank_0(ranks, plan_run)
            lasting: list[Wandb] = []
            held.callback(lambda: Monitor([*lasting]).close())
            while True:
                state = None if checkpoint is None else read_json(checkpoint / STATE_FILE)
                place = place_of(phases, state)
                finished = _train(
                    place, phases, manifests, run_identity, run_folder, checkpoint, origin, ranks,
                    stop, watchdog, lasting,
                )  # fmt: skip
                if not finished or place.phase is phases[-1]:
                    break
                gc.collect()  # the phase's engine, before the next one's is built
                checkpoint = _newest(run_folder, ranks, watchdog)
        if ranks.rank == 0 and finished:
            from pretrain.closing import close_run
            from pretrain.outcome import plan_and_outcome

            close_run(run_folder, place.phase.settings, manifests[-1])
            print("\n".join(["", *plan_and_outcome(run_folder, settings)]))
            if settings.log.artifact:
                for sink in lasting:
                    sink.artifact(run_folder / "export")
        ranks.barrier()
    return 0


def _train(
    place: Place,
    phases: Sequence[Phase],
    manifests: Sequence[dict[str, Any]],
    run_identity: dict[str, Any],
    run_folder: Path,
    checkpoint: Path | None,
    origin: initial.Origin | None,
    ranks: Ranks,
    stop: survival.StopRequest,
    watchdog: Watchdog,
    lasting: list[Wandb],
) -> bool:
    """Build all, continue from `checkpoint` or begin with `origin`'s weights if there is one, train a
    phase. Whether it finished.

    `lasting` takes the sinks that go on into the next phase.
    """
    import torch

    from data_prep.masking import MaskingRule
    from data_prep.shards import Shards
    from pretrain.batches.loader import EvalLoader, TrainLoader
    from pretrain.checkpoint import STATE_FILE, load_checkpoint
    from pretrain.closing import frequency_baseline
    from pretrain.engine import Engine
    from pretrain.expectation import Expectation
    from pretrain.export import load_tokenizer
    from pretrain.guard import Guard, Progress, Rewind, rewound
    from pretrain.guesses import MaskedSentences
    from pretrain.model import BertForPreTraining, padded_vocab_size
    from pretrain.monitor import Monitor
    from pretrain.plan import order_seed
    from pretrain.rehearsal import rehearse
    from pretrain.saving import Saver
    from pretrain.throughput import Goodput, Meter
    from pretrain.train import Run, train
    from pretrain.wandb_sink import Wandb

    settings, number = place.phase.settings, place.phase.number
    manifest = manifests[number - 1]
    watchdog.reach("building the model")
    model = BertForPreTraining(settings.model, manifest["vocab_size"], settings.data.pairs)
    vocab_rows = padded_vocab_size(manifest["vocab_size"], settings.model)
    model.initialize(torch.Generator().manual_seed(settings.run.seed))
    if checkpoint is None and origin is not None:
        watchdog.reach(f"reading the weights in {origin.folder}")
        _start_from(origin, model, settings, manifest, run_identity, run_folder, ranks)
    engine = Engine(model, settings.optim, settings.engine, ranks)
    if settings.survival.rehearse:  # later phases, too: theirs may come days from now
        for phase in phases[number - 1 :]:
            watchdog.reach(f"the rehearsal of phase {phase.number}")
            rehearse(engine, phase, manifests[phase.number - 1])
    folder = folder_of(settings.data)
    cut: dict[str, Any] = {
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "token_budget": settings.engine.tokens_per_micro_batch,
        "static": settings.engine.compile is Compile.true,
    }
    held_out = EvalLoader(
        Shards.open(folder, "heldout"), max_examples=settings.eval.max_examples, **cut
    )
    loader = TrainLoader(
        Shards.open(folder, "train"),
        global_batch=settings.optim.global_batch,
        tokens_per_step=settings.optim.tokens_per_step,
        seed=order_seed(settings.run.seed, number),
        masking=settings.data.masking,
        rule=MaskingRule.from_manifest(manifest, Path(settings.data.dir) / "vocab" / "vocab.txt"),
        **cut,
    )
    sentences = None
    if settings.monitor.sentences:
        tokenizer = load_tokenizer(Path(settings.data.dir) / "vocab")
        longest = settings.model.max_position_embeddings
        sentences = MaskedSentences(settings.monitor.sentences, tokenizer, longest)

    def tell(kind: str, **facts: Any) -> None:
        monitor.event(kind, **facts)  # that of the stretch which is being trained

    def load(path: Path) -> Progress:
        watchdog.reach("loading a checkpoint")
        here = place_of(phases, read_json(path / STATE_FILE))
        if here.phase is not place.phase:
            raise RuntimeError(
                f"{path}, the newest whole checkpoint, is of phase {here.phase.number}, and phase "
                f"{number} cannot go back to it; start again: the same command goes on from there"
            )
        return Progress.at(here, load_checkpoint(path, engine, ranks, here.forgets))

    progress = Progress() if checkpoint is None else load(checkpoint)
    how = "started" if checkpoint is None else "resumed"
    if settings.log.wandb and ranks.rank == 0 and not lasting:
        name, config = str(settings.run.name), _origins(phases, run_folder)
        lasting.append(Wandb(run_folder, name, settings.log, config, progress.step))
    expectation = None
    if ranks.rank == 0 and number == 1:
        expectation = Expectation(
            settings, run_folder, lambda: frequency_baseline(settings, manifest)
        )
    finished = None
    saver = Saver(run_folder, engine, ranks, settings.checkpoint, run_identity, tell)
    with loader, saver:
        while finished is None:
            own = _sinks(settings, run_folder, progress) if ranks.rank == 0 else []
            monitor = Monitor(own, lasting)
            goodput = Goodput.read(run_folder) if ranks.rank == 0 else None
            try:
                is_compiled = settings.engine.compile is Compile.true
                monitor.event(how, step=progress.step, ranks=ranks.world_size, compiled=is_compiled)
                if number > 1 and progress.step == progress.first_step:
                    facts = place.phase.facts()
                    monitor.event("phase", number=number, step=progress.step, **facts)
                if checkpoint is None and settings.survival.on_spike is OnSpike.rewind:
                    saver.save(progress)  # so that there is always one to go back to
                batches = loader.batches(progress.position, progress.skipped)
                guard = Guard(settings, run_folder, loader, monitor, saver)
                run = Run(
                    settings, engine, ranks, monitor, progress, guard, batches, held_out, saver,
                    stop, watchdog, Meter(settings, vocab_rows, ranks, goodput), sentences,
                    expectation,
                )  # fmt: skip
                finished = train(run)
                if finished:
                    monitor.event("finished", phase=number, step=progress.step)
            except Rewind as rewind:
                saver.settle()
                checkpoint = _newest(run_folder, ranks, watchdog)
                progress = rewound(load(checkpoint), rewind, settings.survival.max_rewinds)
                how = "rewound"
            finally:
                monitor.close()
    engine.close()  # not after an exception: the process ends
    return finished


def _start_from(
    origin: initial.Origin,
    model: BertForPreTraining,
    settings: Settings,
    manifest: dict[str, Any],
    run_identity: dict[str, Any],
    run_folder: Path,
    ranks: Ranks,
) -> None:
    """Give `model` the weights of run.init_from, on every rank. Collective.

    Raises SettingsError on all where a rank cannot read them, or they are not those of such a model.
    """
    from data_prep.wordpiece import read_vocab
    from pretrain.monitor import append_event

    tokens = read_vocab(Path(settings.data.dir) / "vocab" / "vocab.txt")
    fault = None
    try:
        weights, facts = origin.weights(model, tokens, manifest["lowercase"])
        model.load_weights(weights)
    except SettingsError as error:
        fault = str(error)
    if faults := sorted({said for said in ranks.gather(fault) if said}):
        raise SettingsError("\n".join(faults))
    if ranks.rank == 0:
        begun_from = run_identity[initial.IDENTITY]
        append_event(run_folder, "init_from", {**begun_from, **facts})
        said = initial.summary(begun_from, facts)
        logger.info("%s", said)
        print(said, file=sys.stderr)


def _newest(run_folder: Path, ranks: Ranks, watchdog: Watchdog) -> Path:
    """The newest whole checkpoint, from which training goes on. Collective."""
    from pretrain.checkpoint import newest_whole

    watchdog.reach("looking for a checkpoint")
    newest = ranks.broadcast(newest_whole(run_folder) if ranks.rank == 0 else None)
    if newest is None:
        raise RuntimeError(f"{run_folder} has no whole checkpoint to go on from")
    return newest


def _check_shards(folder: Path, ranks: Ranks) -> None:
    """Read every shard once, each rank its share: SettingsError on all where a byte is wrong.

    Batches take their examples from all over the shards, so that the first ones would touch nearly
    every shard anyway; and what is read now, the memory holds when training starts.
    """
    from data_prep.shards import verify

    faults = list(itertools.chain(*ranks.gather(verify(folder, ranks.rank, ranks.world_size))))
    if faults:
        raise SettingsError(
            f"{len(faults)} of the shards in {folder} are not those that were built:\n"
            + "".join(f"  {fault}\n" for fault in faults[:MOST_FAULTS])
            + (f"  and {len(faults) - MOST_FAULTS} more\n" if len(faults) > MOST_FAULTS else "")
            + f"Copy the folder again, or delete {folder} and run data_prep.build again"
        )


def _on_rank_0(ranks: Ranks, decide: Callable[[], T]) -> T:
    """What rank 0 decides, on every rank; a SettingsError of rank 0 is raised on every rank."""
    answer: tuple[T | None, str | None] = (None, None)
    if ranks.rank == 0:
        try:
            answer = (decide(), None)
        except SettingsError as error:
            answer = (None, str(error))
    decided, refusal = ranks.broadcast(answer)
    if refusal is not None:
        raise SettingsError(refusal)
    return cast(T, decided)


def _origins(phases: Sequence[Phase], run_folder: Path) -> dict[str, Any]:
    """All that a run came from, for wandb: settings, plan, data, code and machine."""
    manifests = [folder_of(phase.settings.data) / "manifest.json" for phase in phases]
    return {
        **as_dict(phases[0].settings),
        "plan": read_json(run_folder / "plan.json"),
        "manifests": {str(path): checksum(path) for path in manifests},
        "environment": read_json(run_folder / "environment.json"),
    }


def _sinks(settings: Settings, run_folder: Path, progress: Progress) -> list[Sink]:
    from pretrain.monitor import JsonLines, Screen

    in_phase = settings.schedule.last_step
    sinks: list[Sink] = [
        JsonLines(run_folder, progress.step),
        Screen(progress.step, None if in_phase is None else progress.first_step + in_phase),
    ]
    if path := os.environ.get(batch_job.VARIABLE):
        sinks.append(batch_job.BatchJob(Path(path)))
    return sinks


if __name__ == "__main__":
    sys.exit(main())

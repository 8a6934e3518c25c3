"""The entry point: settings -> checks -> data -> train -> evaluate -> export.

    python -m pretrain.run +model=base data=wikibooks_512 run.name=x optim.learning_rate=2e-4

Starts alike from a bare shell, torchrun, the deepspeed launcher and srun.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from data_prep.core.config import SettingsError, as_yaml, choices
from pretrain.checkpoint.identity import identity
from pretrain.config.load import folder_of_run
from pretrain.config.phases import phases_of
from pretrain.config.settings import Settings
from pretrain.data.corpus import folder_of, manifest_of, prepare_sample
from pretrain.distributed import signals
from pretrain.distributed.rank_logs import Voice, speak_on_rank_0
from pretrain.distributed.ranks import environment_rank, environment_world_size, exit_with
from pretrain.distributed.watchdog import Watchdog, forget
from pretrain.huggingface import init_from
from pretrain.run_folder.folder import open_run_folder
from pretrain.run_folder.lock import RunLock

if TYPE_CHECKING:
    from pretrain.distributed.ranks import Ranks
from pretrain.config.load import load

T = TypeVar("T")


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
    "data: the embedded sample corpus; for real data prepare your own (docs/data.md) and "
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
    stop = signals.StopRequest.install()  # before torch is imported, which takes seconds
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


def _run(settings: Settings, on_sample: bool, stop: signals.StopRequest, voice: Voice) -> int:
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
        init_from.begin(settings, folder_of_run(settings))
    from pretrain.distributed import ranks as ranks_module

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


def _with_ranks(settings: Settings, ranks: Ranks, stop: signals.StopRequest, voice: Voice) -> int:
    """Train, and close the run on rank 0. Collective."""
    from pretrain.engine.deepspeed_setup import resolve_precision
    from pretrain.metrics.monitor import Monitor
    from pretrain.model.compile import resolve_compile
    from pretrain.planning import table
    from pretrain.planning.estimate import forecast
    from pretrain.training.phase import RunContext, place_in, train_phase
    from pretrain.training.preflight import preflight

    found = preflight(ranks, settings)
    settings.engine.precision = resolve_precision(settings.engine, ranks.device)
    settings.engine.compile = resolve_compile(settings.engine, ranks.device)
    phases, manifests = phases_of(settings), found.manifests
    run_folder = folder_of_run(settings)
    log = run_folder / "logs" / f"rank-{ranks.rank:05d}.log"
    with contextlib.ExitStack() as held:

        def open_folder() -> tuple[Path | None, dict[str, Any], init_from.InitWeights | None]:
            held.enter_context(RunLock(run_folder))
            forget(run_folder)
            voice.log_to(log)  # a broken checkpoint that is passed over is named there
            begun_from, origin = init_from.begin(settings, run_folder)
            now = identity(settings, manifests, begun_from)
            return open_run_folder(run_folder, settings, now), now, origin

        def plan_run() -> None:
            outline = forecast(settings, ranks.world_size)
            table.write(run_folder, outline)
            print("\n".join([f"run {run_folder}", *table.short_lines(outline)]), file=sys.stderr)

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
            context = RunContext(
                run_folder, phases, manifests, run_identity, origin, ranks, stop, watchdog
            )
            held.callback(lambda: Monitor([*context.lasting]).close())
            while True:
                place = place_in(context, checkpoint)
                finished = train_phase(context, place, checkpoint)
                if not finished or place.phase is phases[-1]:
                    break
                gc.collect()  # the phase's engine, before the next one's is built
                checkpoint = context.newest_checkpoint()
        if ranks.rank == 0 and finished:
            from pretrain.planning.plan_vs_actual import plan_and_outcome
            from pretrain.training.summary import close_run

            close_run(run_folder, place.phase.settings, manifests[-1])
            print("\n".join(["", *plan_and_outcome(run_folder, settings)]))
            if settings.log.artifact:
                for sink in context.lasting:
                    sink.artifact(run_folder / "export")
        ranks.barrier()
    return 0


def _check_shards(folder: Path, ranks: Ranks) -> None:
    """Read every shard once, each rank its share: SettingsError on all where a byte is wrong.

    Batches take their examples from all over the shards, so that the first ones would touch nearly
    every shard anyway; and what is read now, the memory holds when training starts.
    """
    from data_prep.stores.shards import verify

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


if __name__ == "__main__":
    exit_with(main)

"""Train a BERT: settings -> checks -> data -> train -> evaluate -> export.

    python -m pretrain.run +model={model} [GROUP=NAME ...] [SETTING=VALUE ...]

groups: data={data}
        engine={engine}
        optim={optim}
        schedule={schedule}
        recipe={recipe}
        log={log}
        cluster={cluster}
settings: run.name=x run.resume=auto|must|never optim.global_batch=256 schedule.total_steps=1000 ...
          --cfg prints all of them with their values
example: torchrun --nproc-per-node 8 -m pretrain.run +model=base data=wikibooks_128 run.name=first
demo:    python -m pretrain.run +model=tiny recipe=demo run.name=demo, minutes on two CPU cores

Starts the same way from a bare shell, torchrun, the deepspeed launcher and srun.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from data_prep.core.caches import use_private_compile_caches
from data_prep.core.command import INTERRUPTED, as_typed
from data_prep.core.config import SettingsError, as_yaml
from data_prep.plugins.entry_points import find_plugin
from pretrain.checkpoint.extension import Extension
from pretrain.checkpoint.files import newest_step, read_state
from pretrain.checkpoint.identity import identity
from pretrain.checkpoint.mirror import LONGEST_FAREWELL_S, LONGEST_WAIT_S, Mirror, fetch_newest
from pretrain.config.hub_access import token
from pretrain.config.load import folder_of_run, load
from pretrain.config.phases import phases_of
from pretrain.config.settings import Compile, DataSettings, Device, Resume, Settings
from pretrain.data.corpus import folder_of, manifest_of, prepare_sample
from pretrain.distributed import signals
from pretrain.distributed.device import bind_to_gpu, why_on_cpu
from pretrain.distributed.rank_logs import RankOutput, rank_output
from pretrain.distributed.ranks import (
    environment_local_rank,
    environment_rank,
    environment_world_size,
    exit_with,
)
from pretrain.distributed.watchdog import Watchdog, remove_heartbeats
from pretrain.hub.at_end import push_at_end
from pretrain.metrics import slurm_status
from pretrain.run_folder.folder import open_run_folder, removed_if_refused
from pretrain.run_folder.jsonl import append_event
from pretrain.run_folder.lock import RunLock
from pretrain.trackers.choose import check_trackers
from pretrain.training.diverged import DivergedError

if TYPE_CHECKING:
    from pretrain.distributed.ranks import Ranks
    from pretrain.huggingface.init_from import InitWeights
    from pretrain.training.context import RunContext

T = TypeVar("T")


MOST_FAULTS = 10  # shown; all are counted

SAMPLE_LINE = (
    "data: the embedded sample corpus; for texts of your own: python -m data_prep.collect, vocab, "
    "encode and build (docs/data.md), then data.dir=FOLDER"
)


@dataclass(frozen=True)
class _Opened:
    """What rank 0 found in the run's folder."""

    checkpoint: Path | None
    extension: Extension | None
    identity: dict[str, Any]
    origin: InitWeights | None

    @property
    def step(self) -> int:
        """Updates made before this start."""
        return 0 if self.checkpoint is None else read_state(self.checkpoint).step


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line and return the exit status.

    0: done, or stopped by a signal after a checkpoint. 1: diverged. 2: wrong settings. Both are one
    message from rank 0.
    130: interrupted from the keyboard, where possible after a checkpoint.
    """
    typed = sys.argv[1:] if argv is None else argv
    arguments = [argument for argument in typed if not argument.startswith("--local_rank")]
    stop = signals.StopRequest.install()  # before torch is imported, which takes seconds
    is_main = environment_rank() == 0
    if not is_main:
        stop.next_start = str  # "": rank 0 prints
    with rank_output(environment_rank()) as output:
        try:
            return _run(arguments, stop, output)
        except SettingsError as error:
            text, status = str(error), 2
            if not is_main:  # the launcher ends all ranks with the first: not before rank 0 prints
                with contextlib.suppress(KeyboardInterrupt):
                    stop.wait(limit_s=30)
        except DivergedError as error:
            text, status = str(error), 1
            if not is_main:
                stop.wait(limit_s=30)
        except (KeyboardInterrupt, Exception) as error:
            if not stop.was_interrupted:
                raise
            is_plain = isinstance(error, KeyboardInterrupt)  # or other ranks have ended first
            why = "" if is_plain else f" ({' '.join(f'{type(error).__name__}: {error}'.split())})"
            text = f"interrupted{why}; the same command continues from {stop.next_start()}"
            status = INTERRUPTED
            if not (is_plain or is_main):
                traceback.print_exc()  # into its log
        if is_main:
            print(as_typed(f"pretrain.run: {text}"), file=sys.stderr)
        return status


def _run(arguments: list[str], stop: signals.StopRequest, output: RankOutput) -> int:
    """Read the settings, check the data's manifests, join the other ranks and train."""
    world_size = environment_world_size()
    settings, on_sample = load([a for a in arguments if a != "--cfg"], world_size)
    if "--cfg" in arguments:
        print(as_yaml(settings), end="")
        return 0
    if settings.engine.compile is not Compile.false:
        use_private_compile_caches(settings.engine.compile_cache)  # torch's workers keep these
    _check_plugins(settings)
    _check_manifests(settings, on_sample, stop)
    from pretrain.huggingface import init_from

    if environment_rank() == 0:
        stop.next_start = lambda: f"step {newest_step(folder_of_run(settings)):,}"
        if settings.checkpoint.mirror is None:  # which may have the checkpoint to continue from
            init_from.begin(settings, folder_of_run(settings))  # refused before torch is imported
        _check_token(settings)
    from pretrain.distributed import ranks as ranks_module

    ranks = ranks_module.start(settings.engine.timeout_minutes, settings.engine.device.name)
    if ranks.rank == 0 and ranks.device.type == "cpu":
        is_chosen = settings.engine.device is Device.cpu
        why = "engine.device=cpu" if is_chosen else why_on_cpu()
        print(f"training on the CPU: {why}", file=sys.stderr, flush=True)
    if settings.engine.bind_to_gpu:
        bind_to_gpu(ranks.device)
    ranks.barrier()
    mirror = _mirror(settings) if ranks.rank == 0 else None
    try:
        is_finished = _train_and_export(settings, ranks, stop, output, mirror)
    except SettingsError:  # raised on every rank
        ranks.stop()
        raise
    ranks.stop()  # not after another exception: it would wait for ranks that hang
    if mirror is not None:
        if line := mirror.close(LONGEST_WAIT_S if is_finished else LONGEST_FAREWELL_S):
            print(f"warning: {line}; the next start sends it", file=sys.stderr, flush=True)
    if is_finished and ranks.rank == 0 and settings.export.push_to is not None:
        if line := push_at_end(folder_of_run(settings), settings.export, stop):
            print(as_typed(line), file=sys.stderr)
    return 0 if is_finished else _stopped(ranks, stop)


def _check_plugins(settings: Settings) -> None:
    """Refuse trackers and an optimizer that are not installed; their imports may import torch."""
    check_trackers(settings.log)
    if settings.optim.plugin is not None:
        find_plugin("optimizers", settings.optim.plugin, "optim.plugin")


def _stopped(ranks: Ranks, stop: signals.StopRequest) -> int:
    """The exit status of a run that was stopped after a checkpoint."""
    if ranks.rank == 0:
        text = f"pretrain.run: stopped; the same command continues from {stop.next_start()}"
        print(as_typed(text), file=sys.stderr)
        if not slurm_status.is_told_of_stop():
            return 1
    return INTERRUPTED if stop.was_interrupted else 0


def _check_token(settings: Settings) -> None:
    """Refuse a new run that is to be uploaded without a token; one that continues is warned."""
    if settings.export.push_to is None:
        return
    try:
        token()
    except SettingsError as error:
        text = f"export.push_to={settings.export.push_to}: {error}"
        if not newest_step(folder_of_run(settings)):
            raise SettingsError(f"{text}; or set export.push_to=null") from error
        print(f"warning: {text}", file=sys.stderr, flush=True)


def _check_manifests(settings: Settings, on_sample: bool, stop: signals.StopRequest) -> None:
    """Refuse missing or wrong data before torch is imported; rank 0 first makes a missing
    sample."""
    from pretrain.data.mixture import check_mixture  # and numba, which takes half a second
    from pretrain.data.staging import stage_manifest

    is_main, phases = environment_rank() == 0, phases_of(settings)
    if on_sample:
        print(as_typed(SAMPLE_LINE), flush=True)
    for data in [phase.settings.data for phase in phases]:
        if on_sample and is_main and not (folder_of(data) / "manifest.json").exists():
            print(f"preparing the sample corpus in {folder_of(data)}", flush=True)
            prepare_sample(data)
        if not is_main and on_sample:
            continue  # these ranks wait until rank 0 has made the sample
        if data.is_remote and environment_local_rank() != 0:
            continue  # and these until the first rank of their node has fetched the manifest
        try:
            if data.is_remote and (line := stage_manifest(data)) and is_main:
                print(line, file=sys.stderr, flush=True)
            manifest_of(data, has_one_length=len(phases) == 1)
        except SettingsError:
            if not is_main:  # does rank 0 find the same and end all, or is it this rank alone?
                stop.wait(limit_s=30)
            if is_main or stop.requested:
                raise  # otherwise the preflight names this rank
        if is_main and not data.is_remote:
            check_mixture(data)
        if is_main and not on_sample and not data.is_remote:
            _warn_of_changes(data)


def _warn_of_changes(data: DataSettings) -> None:
    """Print a line if the shards are not of the documents and tokens that are there now."""
    from data_prep.status import out_of_date

    with contextlib.suppress(ValueError, OSError):  # data_prep.status names what is broken
        if stages := out_of_date(Path(data.dir), data.seq_len):
            text = (
                f"warning: {folder_of(data)} is trained on as it is, but out of date are "
                f"{', '.join(stages)}; python -m data_prep.status data_dir={data.dir} prints what "
                "to run"
            )
            print(as_typed(text), file=sys.stderr, flush=True)


def _train_and_export(
    settings: Settings,
    ranks: Ranks,
    stop: signals.StopRequest,
    output: RankOutput,
    mirror: Mirror | None,
) -> bool:
    """Check all ranks and shards, train, and on rank 0 export the model. Collective.

    Returns False if a signal stopped it before its last step.
    """
    from pretrain.data.staging import stage_shards
    from pretrain.engine.deepspeed_setup import resolve_precision
    from pretrain.huggingface import init_from
    from pretrain.metrics.monitor import Monitor
    from pretrain.training.context import RunContext
    from pretrain.training.preflight import preflight

    _on_rank_0(ranks, lambda: _check_memory(settings, ranks))
    found = preflight(ranks, settings)
    settings.engine.precision = resolve_precision(settings.engine, ranks.device)
    settings.engine.compile = found.compile
    run_folder, phases = folder_of_run(settings), phases_of(settings)
    log = run_folder / "logs" / f"rank-{ranks.rank:05d}.log"
    with (
        removed_if_refused(run_folder, ranks.rank == 0, ranks.barrier),
        contextlib.ExitStack() as held,
    ):

        def open_folder() -> _Opened:
            held.enter_context(RunLock(run_folder))
            remove_heartbeats(run_folder)
            output.log_to(log)  # a broken checkpoint that is skipped is named there
            if mirror is not None:
                may_resume = settings.run.resume is not Resume.never
                if line := fetch_newest(run_folder, mirror.url, may_resume):
                    print(line, file=sys.stderr, flush=True)
            begun_from, origin = init_from.begin(settings, run_folder)
            now = identity(settings, found.manifests, begun_from)
            checkpoint, extension = open_run_folder(run_folder, settings, now)
            return _Opened(checkpoint, extension, now, origin)

        opened = _on_rank_0(ranks, open_folder)
        if ranks.rank == 0:
            found.record(run_folder)
            print("".join(f"{line}\n" for line in found.lines()), end="", file=sys.stderr)
        else:
            output.log_to(log)
        # before the collectives' own time-out, which writes no stacks and names no rank
        limit_s = 0.8 * 60 * settings.engine.timeout_minutes
        with Watchdog(
            run_folder,
            log,
            ranks.rank,
            ranks.world_size,
            limit_s,
            output.print_to_terminal,
            ranks.local_rank,
        ) as watchdog:
            all_data = [phase.settings.data for phase in phases]
            if settings.data.is_remote and not stage_shards(
                all_data, ranks, watchdog, stop, lambda line: print(line, file=sys.stderr)
            ):
                return False
            for data in {folder_of(data): data for data in all_data}.values():
                watchdog.begin(f"checking the shards in {folder_of(data)}")
                _check_shards(data, ranks)
            if settings.data.is_remote:
                _on_rank_0(ranks, lambda: _check_mixtures(all_data))
            watchdog.begin("planning")  # from the lengths of all examples: the shards are sound
            _on_rank_0(ranks, lambda: _plan(settings, ranks.world_size, opened))
            context = RunContext(
                run_folder, phases, found.manifests, opened.identity, opened.origin, ranks, stop,
                watchdog, opened.step, opened.extension, mirror,
            )  # fmt: skip
            held.callback(lambda: Monitor([*context.lasting]).close())
            if mirror is not None and opened.checkpoint is not None:
                mirror.offer(opened.checkpoint)  # the start before may not have sent it
            is_finished = _train_phases(context, opened.checkpoint)
        if ranks.rank == 0 and is_finished:
            _export(settings, context)
        ranks.barrier()
    return is_finished


def _mirror(settings: Settings) -> Mirror | None:
    """What copies the run's checkpoints to checkpoint.mirror; None without it."""
    if settings.checkpoint.mirror is None:
        return None
    url = f"{settings.checkpoint.mirror.rstrip('/')}/{settings.run.name}"
    return Mirror(url, functools.partial(append_event, folder_of_run(settings)))


def _check_memory(settings: Settings, ranks: Ranks) -> None:
    """Refuse numbers that cannot fit this host, before anything is made of them."""
    from pretrain.planning.host_memory import check_host_memory

    phases = phases_of(settings)
    manifests = [manifest_of(phase.settings.data) for phase in phases]
    here = min(ranks.world_size, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    check_host_memory(phases, manifests, ranks.world_size, here, ranks.device.type == "cpu")


def _check_mixtures(phases: Sequence[DataSettings]) -> None:
    """Refuse shares of sources that staged shards do not have; others are checked earlier."""
    from pretrain.data.mixture import check_mixture

    for data in phases:
        check_mixture(data)


def _check_shards(data: DataSettings, ranks: Ranks) -> None:
    """Read every shard once, each rank its share: SettingsError on all ranks if a byte is wrong.

    Staged shards are read on every node, because each has its own copy.

    Batches take their examples from all over the shards, so the first ones would touch nearly every
    shard anyway; and what is read now is in the page cache when training starts.
    """
    from data_prep.stores.shard_checks import verify

    folder = folder_of(data)
    share, of = ranks.on_this_node() if data.is_remote else (ranks.rank, ranks.world_size)
    faults = list(itertools.chain(*ranks.gather(verify(folder, share, of))))
    if faults:
        again = "start again, which fetches them" if data.is_remote else "run data_prep.build again"
        raise SettingsError(
            f"{len(faults)} of the shards in {folder} are not those that were built:\n"
            + "".join(f"  {fault}\n" for fault in faults[:MOST_FAULTS])
            + (f"  and {len(faults) - MOST_FAULTS} more\n" if len(faults) > MOST_FAULTS else "")
            + f"Copy the folder again, or delete {folder} and {again}"
        )


def _plan(settings: Settings, world_size: int, opened: _Opened) -> None:
    """Write plan.json and print the forecast, and how the run was extended."""
    from pretrain.planning import table
    from pretrain.planning.estimate import forecast

    run_folder, outline = folder_of_run(settings), forecast(settings, world_size)
    table.write(run_folder, outline)
    print("\n".join([f"run {run_folder}", *table.short_lines(outline)]), file=sys.stderr)
    if opened.extension is not None:
        print("\n".join(opened.extension.lines(opened.step)), file=sys.stderr)


def _train_phases(context: RunContext, checkpoint: Path | None) -> bool:
    """Train from `checkpoint` to the end of the last phase; False if it was stopped earlier."""
    from pretrain.training.phase import PhaseTraining

    while True:
        point = context.resume_point(checkpoint)
        if not PhaseTraining(context, point, checkpoint).train():
            return False
        if point.phase is context.phases[-1]:
            return True
        gc.collect()  # the phase's engine, before the next one's is built
        checkpoint = context.newest_checkpoint()


def _export(settings: Settings, context: RunContext) -> None:
    """Export the trained model and print the results. On rank 0."""
    from pretrain.planning.plan_vs_actual import plan_and_outcome
    from pretrain.reporting.ending import ending
    from pretrain.training.summary import close_run

    print("\n".join(["", *plan_and_outcome(context.folder, settings)]))
    close_run(context.folder, context.phases[-1].settings, context.manifests[-1])
    print("\n".join(ending(context.folder)), flush=True)
    if settings.log.artifact:
        for sink in context.lasting:
            sink.artifact(context.folder / "export")


def _on_rank_0(ranks: Ranks, decide: Callable[[], T]) -> T:
    """Rank 0's result of `decide`, on every rank, or its SettingsError, raised on every rank."""
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

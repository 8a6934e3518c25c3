"""The faults of the drill, each with what is expected of it."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pretrain.checkpoint.files import STATE_FILE
from pretrain.data.corpus import folder_of, manifest_of
from pretrain.verification.run_watcher import until
from scripts.drills.harness import (
    EVERY,
    HANG_MINUTES,
    KILLED_AT,
    LIMIT_S,
    NAN_BATCH,
    RANKS,
    STEPS,
    Drill,
    Outcome,
    Seen,
)


def kill(drill: Drill) -> Outcome:
    """One rank is killed."""
    run = drill.run("kill")
    with run.start() as ranks:
        run.reach(KILLED_AT, ranks)
        began = time.time()
        ranks.send(signal.SIGKILL, [1])
        statuses = ranks.wait(LIMIT_S, grace_s=LIMIT_S)
    seen = Seen(time.time() - began, "rank 0 loses its peer and ends")
    return drill.goes_on(run, seen, _unless(statuses[0] == 1, f"rank 0 ended with {statuses[0]}"))


def kill_all(drill: Drill) -> Outcome:
    """All ranks are killed at once."""
    return drill.goes_on(*drill.killed("kill_all"))


def kill_saving(drill: Drill) -> Outcome:
    """All ranks are killed while a checkpoint is being written."""
    run = drill.run("kill_saving")
    step = 2 * EVERY
    with run.start(fault="slow_disk") as ranks:
        half = f".{run.checkpoint(step).name}.*/*"
        until(
            lambda: any((run.folder / "checkpoints").glob(half)),
            ranks,
            LIMIT_S,
            "half a checkpoint",
        )
        began = time.time()
        ranks.send(signal.SIGKILL)
        ranks.wait(LIMIT_S)
    seen = Seen(time.time() - began, "all ranks end; half a checkpoint counts for none")
    whole = run.checkpoint(step).exists()
    return drill.goes_on(run, seen, _unless(not whole, "the checkpoint was whole already"))


def hang(drill: Drill) -> Outcome:
    """A rank stands still (SIGSTOP), and with it the others."""
    run = drill.run("hang", f"engine.timeout_minutes={HANG_MINUTES}")
    with run.start() as ranks:
        run.reach(KILLED_AT, ranks)
        began = time.time()
        ranks.send(signal.SIGSTOP, [1])
        until(lambda: ranks.statuses[0] is not None, ranks, LIMIT_S, "rank 0 to give up")
        seen = Seen(
            time.time() - began, f"the watchdog ({HANG_MINUTES} min): rank 0 waits for rank 1"
        )
        statuses = ranks.wait(LIMIT_S)
    named = run.said("waiting for rank 1") is not None
    return drill.goes_on(
        run,
        seen,
        _unless(named, "nothing printed says who waits for whom")
        + _unless(statuses == [1, -signal.SIGKILL], f"the ranks ended with {statuses}"),
    )


def cut(drill: Drill) -> Outcome:
    """The newest checkpoint is cut off, between two starts."""
    return _damaged(drill, "cut", lambda data: data[: len(data) // 2])


def flip(drill: Drill) -> Outcome:
    """One byte of the newest checkpoint is another one."""
    return _damaged(drill, "flip", _flip)


def nan(drill: Drill) -> Outcome:
    """The loss of one batch is not a number, on one rank."""
    run, told = drill.run("nan"), drill.run("nan_left_out")
    with run.start(fault="nan") as ranks:
        skipped = until(
            lambda: run.events("skipped_step"), ranks, LIMIT_S, "the update to be skipped"
        )
        began, step = run.injected.stat().st_mtime, skipped[0]["after"]
        seen = Seen(
            time.time() - began, f"skipped, its {len(skipped[0]['examples'])} examples logged"
        )
        until(lambda: run.step > step, ranks, LIMIT_S, "the next step")
        first_s = time.time() - began
        statuses = ranks.wait(LIMIT_S)
    with told.start(fault="without") as ranks:
        ranks.wait(LIMIT_S)
    outcome = drill.judged(run, seen, statuses, (), 0, first_s)
    # what is in the state tells a batch that was tried from one that was left out
    mine, its, undisturbed = (
        {name: value for name, value in checksums.items() if name != STATE_FILE}
        for checksums in (run.checksums(STEPS), told.checksums(STEPS), drill.reference)
    )
    is_equal = bool(its) and mine == its != undisturbed
    wrong = [reason for reason in outcome.wrong if "undisturbed" not in reason]
    wrong += _unless(is_equal, "the weights are not those of a run without that batch")
    wrong += _unless(skipped[0]["position"] == NAN_BATCH, f"another batch was skipped: {skipped}")
    text = "equal to a run's that left that batch out" if is_equal else "NOT EQUAL"
    return dataclasses.replace(outcome, weights=text, wrong=tuple(wrong))


def full_disk(drill: Drill) -> Outcome:
    """No room for a checkpoint, and checkpoint.on_failure=go_on."""
    run = drill.run("full_disk", "checkpoint.on_failure=go_on")
    with run.start(fault="small_disk") as ranks:
        until(lambda: run.events("checkpoint_failed"), ranks, LIMIT_S, "the failure to be seen")
        began, step = run.injected.stat().st_mtime, run.step
        seen = Seen(time.time() - began, "checkpoint failed, it trains on and saves the next")
        until(lambda: run.step > step, ranks, LIMIT_S, "the next step")
        first_s = time.time() - began
        statuses = ranks.wait(LIMIT_S)
    saved = {event["step"] for event in run.events("checkpoint")}
    wrong = _unless(saved == {EVERY, 3 * EVERY, STEPS}, f"the checkpoints written are {saved}")
    return drill.judged(run, seen, statuses, wrong, 0, first_s)


def full_disk_stop(drill: Drill) -> Outcome:
    """No room for a checkpoint, and checkpoint.on_failure=stop."""
    run = drill.run("full_disk_stop", "checkpoint.on_failure=stop")
    with run.start(fault="small_disk") as ranks:
        statuses = ranks.wait(LIMIT_S, grace_s=LIMIT_S)
    seen = Seen(
        time.time() - run.injected.stat().st_mtime, "all ranks end; the one before is whole"
    )
    said = run.said("could not be written") is not None
    return drill.goes_on(
        run,
        seen,
        _unless(statuses == [1] * RANKS, f"the ranks ended with {statuses}")
        + _unless(said, "nothing printed says that a checkpoint could not be written"),
    )


def sigterm(drill: Drill) -> Outcome:
    """SIGTERM to all ranks, as at a preemption."""
    return _told_to_end(drill, "sigterm", signal.SIGTERM, None)


def sigusr1(drill: Drill) -> Outcome:
    """SIGUSR1, Slurm's warning before the time limit, to one rank alone."""
    return _told_to_end(drill, "sigusr1", signal.SIGUSR1, [1])


def second_job(drill: Drill) -> Outcome:
    """The same command while the run is there: it stands still meanwhile, so as not to end first."""
    run = drill.run("second_job")
    with run.start() as first:
        run.reach(KILLED_AT, first)
        first.send(signal.SIGSTOP)
        began = time.time()
        with run.start() as second:
            refused = second.wait(LIMIT_S)[0]
        seen = Seen(time.time() - began, "the second says who is there and ends with status 2")
        first.send(signal.SIGCONT)
        statuses = first.wait(LIMIT_S)
    said = run.said(f"is in use by process {first.processes[0].pid}") is not None
    wrong = _unless(refused == 2, f"the second ended with status {refused}")
    wrong += _unless(said, "nothing printed says who is there")
    return drill.judged(run, seen, statuses, wrong)


def wandb(drill: Drill) -> Outcome:
    """The server of wandb answers every request with an internal error."""
    run = drill.run("wandb", "log=wandb", "log.timeout_s=10")
    began = time.time()
    with _broken_server() as address:
        key = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
        with run.start(environment=key) as ranks:
            until(lambda: run.said("offline"), ranks, LIMIT_S, "wandb to be written offline")
            seen = Seen(time.time() - began, "from the start on: written offline, it trains on")
            statuses = ranks.wait(LIMIT_S)
    written = any((run.folder / "wandb").glob("offline-run-*/*.wandb"))
    return drill.judged(run, seen, statuses, _unless(written, "there is no offline run"))


def shard(drill: Drill) -> Outcome:
    """One byte of a shard is another one: in a copy of the corpus."""
    data, copy = drill.settings.data, drill.folder / "shard_data"
    folder = copy / folder_of(data).name
    shutil.copytree(folder_of(data), folder)
    shutil.copytree(Path(data.dir) / "vocab", copy / "vocab")
    run = drill.run("shard", f"data.dir={copy}")
    path = folder / "train" / manifest_of(data)["splits"]["train"]["shards"][0]["name"]
    whole = path.read_bytes()
    path.write_bytes(_flip(whole))
    began = time.time()
    with run.start() as ranks:
        refused = ranks.wait(LIMIT_S)[0]
    seen = Seen(time.time() - began, "named, with both checksums, before the first step")
    wrong = _unless(refused == 2, f"rank 0 ended with status {refused}")
    wrong += _unless(run.said(str(path)) is not None, "the shard is not named")
    wrong += _unless(run.step == 0, "it was trained on")
    path.write_bytes(whole)
    began = time.time()
    with run.start() as ranks:
        until(lambda: run.step, ranks, LIMIT_S, "the first step")
        first_s = time.time() - began
        statuses = ranks.wait(LIMIT_S)
    return drill.judged(run, seen, statuses, wrong, 0, first_s)


FAULTS: dict[str, Callable[[Drill], Outcome]] = {
    fault.__name__: fault
    for fault in (
        kill, kill_all, kill_saving, hang, cut, flip, nan, full_disk, full_disk_stop, sigterm,
        sigusr1, second_job, wandb, shard,
    )
}  # fmt: skip


def _damaged(drill: Drill, name: str, damage: Callable[[bytes], bytes]) -> Outcome:
    """The newest checkpoint's largest file is another one when the run is started again."""
    run, _ = drill.killed(name)
    newest = max((run.folder / "checkpoints").glob("step-*"))
    path = max(newest.iterdir(), key=lambda file: file.stat().st_size)
    path.write_bytes(damage(path.read_bytes()))
    return drill.goes_on(run, passed_over=newest)


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _told_to_end(
    drill: Drill, name: str, number: signal.Signals, to_ranks: Sequence[int] | None
) -> Outcome:
    run = drill.run(name)
    with run.start() as ranks:
        run.reach(KILLED_AT, ranks)
        began = time.time()
        ranks.send(number, to_ranks)
        statuses = ranks.wait(LIMIT_S, grace_s=LIMIT_S)
    seen = Seen(time.time() - began, "all ranks save and end with status 0")
    wrong = _unless(statuses == [0] * RANKS, f"the ranks ended with {statuses}")
    wrong += _unless(run.step < STEPS, "the run was over before it was told to end")
    return drill.goes_on(run, seen, wrong, lost=0)


def _unless(holds: bool, reason: str) -> list[str]:
    return [] if holds else [reason]


class _Broken(BaseHTTPRequestHandler):
    """Status 500, whatever is asked."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_HEAD = _answer

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on the terminal."""


@contextmanager
def _broken_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()

"""The faults of the drill, each with its expectations."""

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
    failures = _unless(statuses[0] == 1, f"rank 0 ended with status {statuses[0]}")
    return drill.continued(run, seen, failures)


def kill_all(drill: Drill) -> Outcome:
    """All ranks are killed at once."""
    return drill.continued(*drill.killed("kill_all"))


def kill_saving(drill: Drill) -> Outcome:
    """All ranks are killed while a checkpoint is being written."""
    run = drill.run("kill_saving")
    checkpoint = run.checkpoint(2 * EVERY)
    with run.start(fault="slow_disk") as ranks:
        unfinished = f".{checkpoint.name}.*/*"
        run.until(
            lambda: any(checkpoint.parent.glob(unfinished)), ranks, "an unfinished checkpoint"
        )
        began = time.time()
        ranks.send(signal.SIGKILL)
        ranks.wait(LIMIT_S)
    seen = Seen(time.time() - began, "all ranks end; the unfinished checkpoint is ignored")
    failures = _unless(not checkpoint.exists(), "the checkpoint was finished already")
    return drill.continued(run, seen, failures)


def hang(drill: Drill) -> Outcome:
    """One rank is stopped (SIGSTOP), and the others wait for it."""
    run = drill.run("hang", f"engine.timeout_minutes={HANG_MINUTES}")
    with run.start() as ranks:
        run.reach(KILLED_AT, ranks)
        began = time.time()
        ranks.send(signal.SIGSTOP, [1])
        statuses = ranks.wait(LIMIT_S)  # until rank 0 gives up; then rank 1 is killed
    how = f"the watchdog ({HANG_MINUTES} min): rank 0 waits for rank 1"
    seen = Seen(time.time() - began, how)
    failures = _unless(run.printed("waiting for rank 1"), "no line names the rank waited for")
    failures += _unless(
        statuses == [1, -signal.SIGKILL], f"the ranks ended with statuses {statuses}"
    )
    return drill.continued(run, seen, failures)


def cut(drill: Drill) -> Outcome:
    """The newest checkpoint is cut off between two starts."""
    return _damaged(drill, "cut", lambda data: data[: len(data) // 2])


def flip(drill: Drill) -> Outcome:
    """One bit of the newest checkpoint is flipped."""
    return _damaged(drill, "flip", _flip)


def nan(drill: Drill) -> Outcome:
    """The loss of one batch is NaN on one rank."""
    run, expected = drill.run("nan"), drill.run("nan_left_out")
    with run.start(fault="nan") as ranks:
        skipped = run.until(lambda: run.events("skipped_step"), ranks, "the update to be skipped")
        began, step = run.injected.stat().st_mtime, skipped[0]["after"]
        how = f"skipped, its {len(skipped[0]['examples'])} examples logged"
        seen = Seen(time.time() - began, how)
        run.until(lambda: run.step > step, ranks, "the next step")
        first_s = time.time() - began
        statuses = ranks.wait(LIMIT_S)
    with expected.start(fault="without") as ranks:
        ranks.wait(LIMIT_S)
    outcome = drill.judged(run, seen, statuses, (), 0, first_s)
    # The state file tells a batch that was tried from one that was left out
    ours, theirs, undisturbed = (
        {name: value for name, value in checksums.items() if name != STATE_FILE}
        for checksums in (run.checksums(STEPS), expected.checksums(STEPS), drill.reference)
    )
    is_equal = bool(theirs) and ours == theirs != undisturbed
    failures = [reason for reason in outcome.failures if "undisturbed" not in reason]
    failures += _unless(is_equal, "the weights are not those of a run without that batch")
    failures += _unless(
        skipped[0]["position"] == NAN_BATCH, f"another batch was skipped: {skipped}"
    )
    text = "equal to a run that left that batch out" if is_equal else "NOT EQUAL"
    return dataclasses.replace(outcome, weights=text, failures=tuple(failures))


def full_disk(drill: Drill) -> Outcome:
    """The disk is full at a checkpoint, with checkpoint.on_failure=go_on."""
    run = drill.run("full_disk", "checkpoint.on_failure=go_on")
    with run.start(fault="small_disk") as ranks:
        run.until(lambda: run.events("checkpoint_failed"), ranks, "the failure to be logged")
        began, step = run.injected.stat().st_mtime, run.step
        seen = Seen(time.time() - began, "training continues and saves the next")
        run.until(lambda: run.step > step, ranks, "the next step")
        first_s = time.time() - began
        statuses = ranks.wait(LIMIT_S)
    saved = {event["step"] for event in run.events("checkpoint")}
    failures = _unless(saved == {EVERY, 3 * EVERY, STEPS}, f"the checkpoints written are {saved}")
    return drill.judged(run, seen, statuses, failures, 0, first_s)


def full_disk_stop(drill: Drill) -> Outcome:
    """The disk is full at a checkpoint, with checkpoint.on_failure=stop."""
    run = drill.run("full_disk_stop", "checkpoint.on_failure=stop")
    with run.start(fault="small_disk") as ranks:
        statuses = ranks.wait(LIMIT_S, grace_s=LIMIT_S)
    after_s = time.time() - run.injected.stat().st_mtime
    seen = Seen(after_s, "all ranks end; the checkpoint before is whole")
    failures = _unless(statuses == [1] * RANKS, f"the ranks ended with statuses {statuses}")
    failures += _unless(run.printed("could not be written"), "no line says that a save failed")
    return drill.continued(run, seen, failures)


def sigterm(drill: Drill) -> Outcome:
    """All ranks get SIGTERM, as at a preemption."""
    return _told_to_end(drill, "sigterm", signal.SIGTERM, None)


def sigusr1(drill: Drill) -> Outcome:
    """One rank gets SIGUSR1, Slurm's warning before the time limit."""
    return _told_to_end(drill, "sigusr1", signal.SIGUSR1, [1])


def second_job(drill: Drill) -> Outcome:
    """The same command is typed while the run, stopped for the test, exists."""
    run = drill.run("second_job")
    with run.start() as first:
        run.reach(KILLED_AT, first)
        first.send(signal.SIGSTOP)  # or it might end first
        began = time.time()
        with run.start() as second:
            status = second.wait(LIMIT_S)[0]
        seen = Seen(time.time() - began, "refused with status 2, the first job's process named")
        first.send(signal.SIGCONT)
        statuses = first.wait(LIMIT_S)
    failures = _unless(status == 2, f"the second job ended with status {status}")
    line = f"is in use by process {first.processes[0].pid}"
    failures += _unless(run.printed(line), "no line names the process of the first job")
    return drill.judged(run, seen, statuses, failures)


def wandb(drill: Drill) -> Outcome:
    """The server of wandb answers every request with an internal error."""
    run = drill.run("wandb", "log=wandb", "log.timeout_s=10")
    began = time.time()
    with _broken_server() as address:
        key = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
        with run.start(environment=key) as ranks:
            run.until(lambda: run.printed("offline"), ranks, "wandb to be written offline")
            seen = Seen(time.time() - began, "written offline from the start; training continues")
            statuses = ranks.wait(LIMIT_S)
    written = any((run.folder / "wandb").glob("offline-run-*/*.wandb"))
    return drill.judged(run, seen, statuses, _unless(written, "there is no offline run"))


def shard(drill: Drill) -> Outcome:
    """One bit of a shard is flipped, in a copy of the corpus."""
    data, copy = drill.settings.data, drill.folder / "shard_data"
    folder = copy / folder_of(data).name
    shutil.copytree(folder_of(data), folder)
    shutil.copytree(Path(data.dir) / "vocab", copy / "vocab")
    run = drill.run("shard", f"data.dir={copy}")
    path = folder / "train" / manifest_of(data).splits["train"].shards[0].name
    whole = path.read_bytes()
    path.write_bytes(_flip(whole))
    began = time.time()
    with run.start() as ranks:
        status = ranks.wait(LIMIT_S)[0]
    seen = Seen(time.time() - began, "named, with both checksums, before the first step")
    failures = _unless(status == 2, f"rank 0 ended with status {status}")
    failures += _unless(run.printed(str(path)), "no line names the shard")
    failures += _unless(run.step == 0, "training used it")
    path.write_bytes(whole)
    began = time.time()
    with run.start() as ranks:
        run.until(lambda: run.step, ranks, "the first step")
        first_s = time.time() - began
        statuses = ranks.wait(LIMIT_S)
    return drill.judged(run, seen, statuses, failures, 0, first_s)


FAULTS: dict[str, Callable[[Drill], Outcome]] = {
    fault.__name__: fault
    for fault in (
        kill, kill_all, kill_saving, hang, cut, flip, nan, full_disk, full_disk_stop, sigterm,
        sigusr1, second_job, wandb, shard,
    )
}  # fmt: skip


def _damaged(drill: Drill, name: str, damage: Callable[[bytes], bytes]) -> Outcome:
    """Damage the largest file of the newest checkpoint, and start the run again."""
    run, _ = drill.killed(name)
    newest = max((run.folder / "checkpoints").glob("step-*"))
    path = max(newest.iterdir(), key=lambda file: file.stat().st_size)
    path.write_bytes(damage(path.read_bytes()))
    return drill.continued(run, passed_over=newest)


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
    failures = _unless(statuses == [0] * RANKS, f"the ranks ended with statuses {statuses}")
    failures += _unless(run.step < STEPS, "the run had ended before the signal")
    return drill.continued(run, seen, failures, lost=0)


def _unless(holds: object, reason: str) -> list[str]:
    return [] if holds else [reason]


class _Broken(BaseHTTPRequestHandler):
    """Answers every request with status 500."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_HEAD = _answer

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


@contextmanager
def _broken_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()

"""A fault drill: a small run on two ranks, hurt in one way after the other, and what came of it.

    python -m scripts.drill [data.dir=FOLDER data.seq_len=128] [faults=kill,hang,...] [out=FOLDER]

The run makes {STEPS} steps, on the embedded sample where no data.dir is named, with a checkpoint
every {EVERY}: once undisturbed, then once for each fault, with the same command typed again where
the fault ended it. All of them has to end with the weights of the undisturbed run, bit for bit.

faults: {FAULTS}
out     keeps the table as drill.md and the runs with their logs, in a folder that is new or empty
Further settings of pretrain.run's groups data, model, optim and engine are passed on.

What the table says:
  noticed after      from the fault until the ranks ended, or said what is wrong and went on
  steps lost         steps that had been made and are not in the checkpoint it went on from
  new step after     from the next start (where nothing ended: from the fault) to the first new step
  final weights      last checkpoint against the undisturbed run's, by the checksums of its files
Status: 0 where everything held that should, 1 where something did not, 2 for wrong settings.
"""

from __future__ import annotations

import dataclasses
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data_prep.core.config import SettingsError
from pretrain.checkpoint.files import STATE_FILE
from pretrain.config.settings import Settings
from pretrain.data.corpus import folder_of, manifest_of, prepare_sample
from pretrain.run import SAMPLE_LINE, load
from pretrain.verification.launcher import RUN, Launched, launch
from scripts.drills.run_watcher import NotSeenError, Observed, until

STEPS, EVERY, RANKS, BATCH = 40, 10, 2, 16
KILLED_AT = 17  # or a step later
LIMIT_S = 240.0  # for anything that is waited for
SIZES = (
    "+model=tiny", "model.hidden_size=64", "model.intermediate_size=256", f"optim.global_batch={BATCH}",
)  # fmt: skip
RHYTHM = (
    f"schedule.total_steps={STEPS}", f"checkpoint.every_steps={EVERY}", "monitor.every_steps=1",
    f"eval.every_steps={STEPS}", "eval.max_examples=64",
)  # fmt: skip
PASSED_ON = ("data", "model", "optim", "engine")
HANG_MINUTES = 0.6  # of which a start, too, takes a part: on a busy machine most
# where scripts.drills.faulty_rank acts: global batches, by the positions of their first examples
NAN_BATCH = 17 * BATCH
FULL_BATCHES = (18 * BATCH, 29 * BATCH)  # nothing large is written from the first to the second
SLOW_BATCH = 15 * BATCH  # and on


@dataclass(frozen=True)
class Seen:
    """When and how a fault showed."""

    after_s: float | None
    how: str


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    fault: str
    seen: Seen
    steps_lost: int | None = None
    new_step_s: float | None = None
    weights: str = ""
    wrong: tuple[str, ...] = ()  # what did not hold


class Run(Observed):
    """One of the drill's runs; each start of it is the same command."""

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        super().__init__(folder)
        self.overrides = [*overrides, f"run.dir={folder.parent}", f"run.name={folder.name}"]
        self.output = folder.with_suffix(".output")
        self.injected = folder.with_suffix(".injected")  # made by drill_rank

    def start(
        self, fault: str | None = None, environment: Mapping[str, str] | None = None
    ) -> Launched:
        """The command, with one of drill_rank's faults in it where one is named."""
        program = RUN if fault is None else ("-m", "scripts.drills.faulty_rank", fault)
        environment = {**(environment or {}), "DRILL_INJECTED": str(self.injected)}
        return launch(self.overrides, RANKS, self.output, program, environment)

    def reach(self, step: int, ranks: Launched) -> None:
        """Wait until this step is made, and the first checkpoint there."""
        until(
            lambda: self.step >= step and self.checkpoint(EVERY).exists(),
            ranks, LIMIT_S, f"step {step}",
        )  # fmt: skip

    def said(self, words: str) -> str | None:
        """The last printed line that has these words; None where there is none."""
        if not self.output.exists():
            return None
        lines = self.output.read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if words in line), None)


class Drill:
    """What the faults share: the folder, the settings, the undisturbed run."""

    def __init__(self, folder: Path, overrides: Sequence[str], settings: Settings) -> None:
        self.folder, self.overrides, self.settings = folder, overrides, settings

    def run(self, name: str, *more: str) -> Run:
        return Run(self.folder / name, [*self.overrides, *more])

    def undisturbed(self) -> Outcome:
        """The run that the others are measured by."""
        run, began = self.run("undisturbed"), time.time()
        with run.start() as ranks:
            until(lambda: run.step, ranks, LIMIT_S, "the first step")
            first_s = time.time() - began
            statuses = ranks.wait(LIMIT_S)
        self.reference = run.checksums(STEPS)
        wrong = [] if statuses == [0] * RANKS and self.reference else [f"statuses {statuses}"]
        return Outcome("none", Seen(None, ""), None, first_s, "", tuple(wrong))

    @cached_property
    def _killed(self) -> tuple[Path, Seen]:
        """The folder of a run with two checkpoints, all ranks of which were killed."""
        run, second = self.run("killed"), 2 * EVERY
        with run.start() as ranks:
            run.reach(KILLED_AT + EVERY, ranks)
            until(run.checkpoint(second).exists, ranks, LIMIT_S, f"the checkpoint of step {second}")
            began = time.time()
            ranks.send(signal.SIGKILL)
            ranks.wait(LIMIT_S)
        return run.folder, Seen(time.time() - began, "all ranks end")

    def killed(self, name: str) -> tuple[Run, Seen]:
        """A killed run under this name: several faults begin where it stands."""
        folder, seen = self._killed
        run = self.run(name)
        shutil.copytree(folder, run.folder)
        return run, seen

    def goes_on(
        self,
        run: Run,
        seen: Seen | None = None,
        wrong: Sequence[str] = (),
        *,
        lost: int | None = None,
        passed_over: Path | None = None,
    ) -> Outcome:
        """The same command again, and to the end.

        Just `lost` steps may be lost, where that is given. Instead of having been `seen`, a fault
        may show now: the checkpoint `passed_over` is one that this start has to name and not to use.
        """
        reached, count, began = run.step, len(run.events("resumed")), time.time()
        with run.start() as ranks:
            if passed_over is not None:
                line = f"checkpoint {passed_over} is broken and passed over"
                until(lambda: run.said(line), ranks, LIMIT_S, f"{line!r} to be said")
                how = str(run.said(line)).partition("over: ")[2]
                seen = Seen(time.time() - began, f"passed over: {how}")
            start = until(lambda: run.events("resumed")[count:], ranks, LIMIT_S, "the run to go on")
            step = start[0]["step"]
            until(lambda: run.step > step, ranks, LIMIT_S, "the first new step")
            first_s = time.time() - began
            statuses = ranks.wait(LIMIT_S)
        assert seen is not None
        wrong = list(wrong)
        if run.checkpoint(step) == passed_over:
            wrong.append(f"it went on from {passed_over}")
        if lost is not None and reached - step != lost:
            wrong.append(f"it went on from step {step}, having reached {reached}")
        return self.judged(run, seen, statuses, wrong, reached - step, first_s)

    def judged(
        self,
        run: Run,
        seen: Seen,
        statuses: Sequence[int | None],
        wrong: Sequence[str] = (),
        steps_lost: int | None = 0,
        new_step_s: float | None = None,
    ) -> Outcome:
        """A run that has come to its end: its statuses, figures and last checkpoint."""
        wrong = list(wrong)
        if list(statuses) != [0] * RANKS:
            wrong.append(f"the last start ended with statuses {statuses}")
        if (steps := list(run.figures())) != list(range(1, STEPS + 1)):
            wrong.append(f"metrics.jsonl holds the steps {steps}")
        weights = "equal" if run.checksums(STEPS) == self.reference else "NOT EQUAL"
        if weights != "equal":
            wrong.append("the last checkpoint is not that of the undisturbed run")
        name = run.folder.name
        return Outcome(name, seen, steps_lost, new_step_s, weights, tuple(wrong))


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


def table(outcomes: Sequence[Outcome], markdown: bool = False) -> str:
    """The outcomes, a line each, as aligned text or as markdown; below it what did not hold."""
    head = ("fault", "noticed after", "how", "steps lost", "new step after", "final weights")
    rows = [head, *(_row(outcome) for outcome in outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if markdown:
        rows.insert(1, tuple("-" * width for width in widths))
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip())
    wrong = [f"{each.fault}: {reason}" for each in outcomes for reason in each.wrong]
    lines += ["", *(f"DOES NOT HOLD  {line}" for line in wrong)] if wrong else []
    return "\n".join(lines)


def _row(outcome: Outcome) -> tuple[str, ...]:
    seen = outcome.seen
    return (
        outcome.fault,
        _seconds(seen.after_s),
        seen.how,
        "" if outcome.steps_lost is None else str(outcome.steps_lost),
        _seconds(outcome.new_step_s),
        outcome.weights,
    )


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"


def drill(
    names: Sequence[str], folder: Path, overrides: Sequence[str], settings: Settings
) -> list[Outcome]:
    """The undisturbed run, then these faults in the order of FAULTS; each is told as it ends."""
    shared = Drill(folder, overrides, settings)
    outcomes = [shared.undisturbed()]
    if outcomes[0].wrong:
        return outcomes
    for name, fault in FAULTS.items():
        if name in names:
            print(f"{name}: {fault.__doc__}", flush=True)
            try:
                outcomes.append(fault(shared))
            except (NotSeenError, OSError, ValueError) as error:
                outcomes.append(Outcome(name, Seen(None, ""), wrong=(str(error),)))
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, run the drill, print the table; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        print((__doc__ or "").format(STEPS=STEPS, EVERY=EVERY, FAULTS=", ".join(FAULTS)))
        return 0
    try:
        names, out, typed = _parse(arguments)
        overrides = [*SIZES, *typed, *RHYTHM]
        settings, on_sample = load(overrides, RANKS)
        if on_sample:
            print(SAMPLE_LINE, flush=True)
            if not (folder_of(settings.data) / "manifest.json").exists():
                prepare_sample(settings.data)
        manifest_of(settings.data)
    except SettingsError as error:
        print(f"scripts.drill: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no rank is left behind
    folder = Path(tempfile.mkdtemp(prefix="drill-")) if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    outcomes = drill(names, folder, overrides, settings)
    holds = not any(outcome.wrong for outcome in outcomes)
    print(f"\n{table(outcomes)}\n\n{len(outcomes) - 1} faults in {time.time() - began:.0f} s")
    if out is not None:
        (folder / "drill.md").write_text(f"{table(outcomes, markdown=True)}\n", encoding="utf-8")
    if out is None and holds:
        shutil.rmtree(folder)
    else:
        print(f"runs and logs: {folder}")
    return 0 if holds else 1


def _parse(arguments: Sequence[str]) -> tuple[list[str], Path | None, list[str]]:
    """Names of faults, the folder to keep, and what goes on to pretrain.run."""
    names, out, typed = list(FAULTS), None, []
    for word in arguments:
        key, _, value = word.partition("=")
        if key == "faults":
            names = value.split(",")
            if unknown := [name for name in names if name not in FAULTS]:
                raise SettingsError(
                    f"faults={unknown[0]} is not known; there are {', '.join(FAULTS)}"
                )
        elif key == "out":
            out = Path(value)
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise SettingsError(f"out={value} is there and not empty; name a new folder")
        elif key.split(".")[0] in PASSED_ON:
            typed.append(word)
        else:
            raise SettingsError(
                f"{word!r} is no setting of the drill; it takes faults=, out= and pretrain.run's "
                f"groups {', '.join(PASSED_ON)}"
            )
    return names, out, typed


if __name__ == "__main__":
    sys.exit(main())

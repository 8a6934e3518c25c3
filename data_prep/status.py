"""Show how far the preparation of a corpus is: python -m data_prep.status data_dir=FOLDER.

Reads only manifests and the records that tasks leave in the logs, so any machine that sees the
folder can show the progress of jobs on others. The time left of a job is the mean time of its
finished tasks, times the unfinished ones, shared by those that run now or, if none does, by
num_workers. The exit status is 1 if something failed.

Settings are typed as name=value or group.name=value:

{data_prep.yaml}
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from data_prep.core.command import status_of
from data_prep.core.config import choices
from data_prep.core.files import checksum, place, read_json
from data_prep.core.job import start
from data_prep.core.records import read_record
from data_prep.core.settings import DataPrepSettings, Duplicates
from data_prep.stores.documents import DocumentsManifest
from data_prep.stores.shards import ShardsManifest
from data_prep.stores.tokens import TokensManifest
from data_prep.tokenizer.store import VocabManifest

LONG = 5  # times the longest finished task: after that a task on another host may be dead
SHOWN = 10  # notes per stage

# Input of a result: what it was made of, and what is there now.
T = TypeVar("T")
Inputs = dict[str, tuple[Any, Any]]
Faults = dict[Path, str]  # of manifests that cannot be read


@dataclass
class Stage:
    name: str
    command: str  # runs it, or what is left of it
    state: str = "not begun"  # running, stopped, failed, faulty, out of date, done
    tasks: str = ""
    left_s: float | None = None
    notes: list[str] = field(default_factory=list)
    is_broken: bool = False  # a task has failed, or there are faults


def main(argv: Sequence[str] | None = None) -> int:
    """Print the state of every stage and the next command to type."""
    return start(run, argv, summary=_summary, faults=_broken)


def run(settings: DataPrepSettings) -> list[Stage]:
    return stages_of(settings, time.time())


def stages_of(settings: DataPrepSettings, now: float) -> list[Stage]:
    """All stages in order; `now` in unix seconds. Raises ValueError if none has begun."""
    root = Path(settings.data_dir)
    unreadable: Faults = {}
    plan = list(_plan(root, settings, unreadable))
    if not any(path.parent.exists() for _, path, _, _ in plan):
        raise ValueError(
            f"{root} holds no corpus; begin with python -m data_prep.collect +source=NAME "
            f"data_dir={root}, NAME one of {', '.join(choices('source'))}"
        )
    stages = []
    for name, path, options, inputs in plan:
        command = f"python -m data_prep.{name.split()[0]} data_dir={root} {options}".rstrip()
        logs, result = path.parent / "logs", _read(path)
        job = _read(logs / "job.json")
        stage = Stage(name, job.get("command", command))
        planned = dict(zip(job.get("tasks", []), job.get("fingerprints", []), strict=True))
        to_do = _judge_tasks(stage, logs, planned, settings.workers, now)
        changed = [what for what, (then, there) in inputs.items() if then != there]
        faults = [*result.get("faults", []), *result.get("damaged", [])]
        if path in unreadable:
            changed, faults = [], [unreadable[path]]
        if result and not to_do:
            stage.state = "out of date" if changed else "faulty" if faults else "done"
            stage.notes += [f"other {what} than it was made of" for what in changed] or faults
            stage.is_broken = stage.state == "faulty"
        if stage.state == "done" and (copies := result.get("dropped_characters")):
            stage.notes.append(
                f"{result['dropped']:,} copies of other documents, {copies / 1e6:,.1f} million "
                "characters, are left out by vocab and encode"
            )
        stages.append(stage)
    return stages


def _plan(
    root: Path, settings: DataPrepSettings, unreadable: Faults
) -> Iterator[tuple[str, Path, str, Inputs]]:
    """Name, last file of the result, options of the command and inputs of each stage.

    Fills in `unreadable` with the manifests that are not as this version writes them.
    """
    documents: dict[str, str] = {}
    for folder in sorted(path for path in (root / "documents").glob("*") if path.is_dir()):
        path = folder / "manifest.json"
        yield f"collect {folder.name}", path, f"+source={folder.name}", {}
        if collected := _manifest(path, DocumentsManifest, unreadable):
            documents |= {f"{folder.name}/{part.name}": part.checksum for part in collected.parts}
    vocab_path, tokens_path = root / "vocab" / "manifest.json", root / "tokens" / "manifest.json"
    vocab = _manifest(vocab_path, VocabManifest, unreadable)
    tokens = _manifest(tokens_path, TokensManifest, unreadable)
    copies_path = root / "documents" / "duplicates.json"
    compared = _read(copies_path).get("made_from", {}).get("documents")
    # A token store without them was encoded with duplicates=keep
    if settings.duplicates is Duplicates.drop and (compared or not tokens):
        yield "dedup", copies_path, "", {"documents": (compared, documents)}
    options, learnt = "", documents
    there: dict[str, str | None] = {**documents}
    if vocab:
        options = f"vocab_size={vocab.vocab_size} lowercase={str(vocab.lowercase).lower()}"
        if vocab.settings.language:
            options += f" language={vocab.settings.language}"
        learnt = vocab.settings.documents or documents  # a released one was trained on none
        if len(learnt) < vocab.parts:  # trained on a sample: other documents do not matter
            there = {name: documents.get(name) for name in learnt}
    yield "vocab", vocab_path, options, {"documents": (learnt, there)}
    encoded = tokens and tokens.settings.documents
    ids = (
        tokens and (tokens.vocab_checksum, tokens.settings.strip_accents),
        vocab and (vocab.checksum, vocab.strip_accents),
    )
    yield "encode", tokens_path, "", {"documents": (encoded, documents), "vocabulary": ids}
    lengths = [int(path.name[3:]) for path in root.glob("len*") if path.name[3:].isdigit()]
    for length in sorted(lengths) or [settings.seq_len]:
        path = root / f"len{length}" / "manifest.json"
        audit_path = root / "audit" / str(length) / "audit.json"
        built = _manifest(path, ShardsManifest, unreadable)
        store = (built and built.tokens_checksum, _checksum(tokens_path))
        shards = (_read(audit_path).get("shards_checksum"), _checksum(path))
        yield f"build {length}", path, f"seq_len={length}", {"token store": store}
        yield f"audit {length}", audit_path, f"seq_len={length}", {"shards": shards}


def _judge_tasks(
    stage: Stage, logs: Path, planned: dict[str, str], workers: int, now: float
) -> int:
    """Fill in the state from the records of `planned`, name: fingerprint; count unfinished ones."""
    finished, running, failed = (
        _records(logs / kind) for kind in ("finished", "running", "failed")
    )
    is_same = {name: finished.get(name, {}).get("fingerprint") == planned[name] for name in planned}
    seconds = [finished[name]["seconds"] for name in planned if is_same[name]]
    ages, broken = [], []
    for name in (name for name in planned if not is_same[name]):
        log = f"(log: {logs / name}.log)"
        if record := running.get(name):
            here, age = record.get("place") == place(), now - record["started"]
            process = f"{name}: process {record['pid']} on {record['host']}"
            if here and not _is_alive(record["pid"]):
                broken.append(f"{process} ended without a record {log}")
                continue
            ages.append(age)
            if not here and seconds and age > LONG * max(seconds):
                stage.notes.append(f"{process} has run for {_duration(age)}, may be dead {log}")
        elif name in failed:
            broken.append(f"{name}: {' '.join(failed[name]['reason'].split())} {log}")
    waiting = len(planned) - len(seconds) - len(ages)
    if planned:
        stage.state = "running" if ages else "failed" if broken else "stopped"
        stage.tasks = f"{len(seconds)} of {len(planned)}" + (f", {len(ages)} run" if ages else "")
    stage.notes, stage.is_broken = [*broken, *stage.notes], bool(broken)
    if seconds and (waiting or ages):
        mean = sum(seconds) / len(seconds)
        work = mean * waiting + sum(max(mean - age, 0) for age in ages)
        stage.left_s = work / (len(ages) or min(workers, waiting))
    return waiting + len(ages)


def _summary(settings: DataPrepSettings, stages: list[Stage]) -> str:
    lines = [f"{'stage':26}{'state':13}{'tasks':22}left"]
    for stage in stages:
        left = "" if stage.left_s is None else f"about {_duration(stage.left_s)}"
        lines.append(f"{stage.name:26}{stage.state:13}{stage.tasks:22}{left}".rstrip())
        more = [f"... and {len(stage.notes) - SHOWN} more"] if len(stage.notes) > SHOWN else []
        lines += [f"    {note}" for note in [*stage.notes[:SHOWN], *more]]
    train = f"python -m pretrain.run +model=base data.dir={settings.data_dir} data.seq_len=..."
    todo = next((stage for stage in stages if stage.state != "done"), None)
    following = todo.command if todo else train
    if todo and todo.state == "running":
        following = "wait for the running tasks"
    return "\n".join([*lines, "", f"next: {following}"]) + "\n"


def _broken(stages: list[Stage]) -> str:
    names = ", ".join(stage.name for stage in stages if stage.is_broken)
    return f"failed or faulty: {names}" if names else ""


def _is_alive(pid: int) -> bool:
    """False for a zombie, too: where nothing reaps orphans, as in many containers, it stays."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _read(path: Path) -> Any:
    """The content of a JSON file; {} if it is missing: records come and go meanwhile."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}


def _manifest(path: Path, kind: type[T], faults: Faults) -> T | None:
    """A store's manifest; None if the store is not finished, or if another version wrote it."""
    try:
        return read_record(path, kind, "delete it and run its job again")
    except FileNotFoundError:
        return None
    except ValueError as error:
        faults[path] = str(error)
        return None


def _records(folder: Path) -> dict[str, Any]:
    read = {path.stem: _read(path) for path in folder.glob("*.json")}
    return {name: record for name, record in read.items() if record}


def _checksum(path: Path) -> str | None:
    return checksum(path) if path.exists() else None


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} seconds"


if __name__ == "__main__":
    sys.exit(status_of(main))

"""How far the preparation of a corpus is: python -m data_prep.status data_dir=FOLDER.

It reads manifests and the records that tasks leave in the logs, nothing else: any machine that sees
the folder can ask while jobs run on others. What is left of a job is the mean time of its finished
tasks for each of the others, shared by those that run now, or by num_workers where none does. The
exit status is 1 where something failed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.core.config import choices
from data_prep.core.files import checksum, read_json
from data_prep.core.job import start
from data_prep.core.settings import DataPrepSettings

LONG = 5  # times the longest finished task: what runs so long on another host may be dead
SHOWN = 10  # notes of a stage

# What a result was made of, as it was then and as it is now.
Inputs = dict[str, tuple[Any, Any]]


@dataclass
class Stage:
    name: str
    command: str  # does it, or what is left of it
    state: str = "not begun"  # running, stopped, failed, faulty, out of date, done
    tasks: str = ""
    left_s: float | None = None
    notes: list[str] = field(default_factory=list)
    is_broken: bool = False  # a task has failed, or there are faults


def main(argv: Sequence[str] | None = None) -> int:
    return start(_show, argv, has_shares=False)


def stages_of(settings: DataPrepSettings, now: float) -> list[Stage]:
    """All stages in their order; `now` in unix seconds. Raises ValueError where none has begun."""
    root = Path(settings.data_dir)
    plan = list(_plan(root, settings.seq_len))
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
        if result and not to_do:
            stage.state = "out of date" if changed else "faulty" if faults else "done"
            stage.notes += [f"other {what} than it was made of" for what in changed] or faults
            stage.is_broken = stage.state == "faulty"
        stages.append(stage)
    return stages


def _plan(root: Path, seq_len: int) -> Iterator[tuple[str, Path, str, Inputs]]:
    """Of each stage its name, the file that its result ends with, options of its command, inputs."""
    documents = {}
    for folder in sorted(path for path in (root / "documents").glob("*") if path.is_dir()):
        path = folder / "manifest.json"
        yield f"collect {folder.name}", path, f"+source={folder.name}", {}
        for part in _read(path).get("parts", []):
            documents[f"{folder.name}/{part['name']}"] = part["checksum"]
    vocab_path, tokens_path = root / "vocab" / "manifest.json", root / "tokens" / "manifest.json"
    vocab, tokens = _read(vocab_path), _read(tokens_path)
    learnt = vocab.get("settings", {}).get("documents", documents)  # a released one lacks them
    is_sample = len(learnt) < vocab.get("parts", len(learnt))  # then the others may be others now
    there = {name: documents.get(name) for name in learnt} if is_sample else documents
    casing = str(vocab.get("lowercase", True)).lower()
    options = f"vocab_size={vocab['vocab_size']} lowercase={casing}" if vocab else ""
    yield "vocab", vocab_path, options, {"documents": (learnt, there)}
    encoded = tokens.get("settings", {}).get("documents")
    ids = (tokens.get("vocab_checksum"), vocab.get("checksum"))
    yield "encode", tokens_path, "", {"documents": (encoded, documents), "vocabulary": ids}
    lengths = [int(path.name[3:]) for path in root.glob("len*") if path.name[3:].isdigit()]
    for length in sorted(lengths) or [seq_len]:
        path = root / f"len{length}" / "manifest.json"
        audit_path = root / "audit" / str(length) / "audit.json"
        store = (_read(path).get("tokens_checksum"), _checksum(tokens_path))
        shards = (_read(audit_path).get("shards_checksum"), _checksum(path))
        yield f"build {length}", path, f"seq_len={length}", {"token store": store}
        yield f"audit {length}", audit_path, f"seq_len={length}", {"shards": shards}


def _judge_tasks(
    stage: Stage, logs: Path, planned: dict[str, str], workers: int, now: float
) -> int:
    """Fill in what the records of `planned`, name: fingerprint, say; return how many are to be done."""
    finished, running, failed = (
        _records(logs / kind) for kind in ("finished", "running", "failed")
    )
    is_same = {name: finished.get(name, {}).get("fingerprint") == planned[name] for name in planned}
    seconds = [finished[name]["seconds"] for name in planned if is_same[name]]
    ages, broken = [], []
    for name in (name for name in planned if not is_same[name]):
        log = f"(log: {logs / name}.log)"
        if record := running.get(name):
            here, age = record["host"] == os.uname().nodename, now - record["started"]
            process = f"{name}: process {record['pid']} on {record['host']}"
            if here and not _is_alive(record["pid"]):
                broken.append(f"{process} ended without a word {log}")
                continue
            ages.append(age)
            if not here and seconds and age > LONG * max(seconds):
                stage.notes.append(f"{process} has run for {_duration(age)}, perhaps dead {log}")
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


def _show(settings: DataPrepSettings) -> None:
    stages = stages_of(settings, time.time())
    lines = [f"{'stage':26}{'state':13}{'tasks':22}left"]
    for stage in stages:
        left = "" if stage.left_s is None else f"about {_duration(stage.left_s)}"
        lines.append(f"{stage.name:26}{stage.state:13}{stage.tasks:22}{left}".rstrip())
        more = [f"... and {len(stage.notes) - SHOWN} more"] if len(stage.notes) > SHOWN else []
        lines += [f"    {note}" for note in [*stage.notes[:SHOWN], *more]]
    todo = next((stage for stage in stages if stage.state != "done"), None)
    train = f"python -m pretrain.run +model=base data.dir={settings.data_dir} data.seq_len=..."
    following = todo.command if todo else train
    is_running = todo is not None and todo.state == "running"
    lines += ["", "next: wait for what runs" if is_running else f"next: {following}"]
    sys.stdout.write("\n".join(lines) + "\n")
    if broken := [stage.name for stage in stages if stage.is_broken]:
        raise RuntimeError(f"not as it should be: {', '.join(broken)}")


def _is_alive(pid: int) -> bool:
    """A zombie is not: where nobody waits for orphans, as in many containers, it stays for ever."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _read(path: Path) -> Any:
    """What a JSON file holds, or {} where there is none: records come and go while we look."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}


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
    sys.exit(main())

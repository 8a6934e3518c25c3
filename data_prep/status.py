"""Show how far the preparation of a corpus is: python -m data_prep.status data_dir=FOLDER.

Reads only manifests and the records that tasks leave in the logs, and looks whether the files are
there, so any machine that sees the folder can show the progress of jobs on others. The next command
is the first that has to be run: a vocabulary serves more documents as it is, and what only finished
stages have read may be missing. The time left of a job is the mean time of its
finished tasks, times the unfinished ones, shared by those that run now or, if none does, by
num_workers. The exit status is 1 if something failed.

Settings are typed as name=value or group.name=value:

{data_prep.yaml}
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from data_prep.core.command import status_of
from data_prep.core.config import choices
from data_prep.core.files import checksum, place, read_json
from data_prep.core.job import start
from data_prep.core.records import read_record, typed
from data_prep.core.settings import DataPrepSettings, Duplicates
from data_prep.duplicates.search import STAGES
from data_prep.encoding.held_out import FEWEST_DOCUMENTS
from data_prep.quality.corpus import counts_path
from data_prep.stores.documents import DocumentsManifest, FilteredManifest, PartEntry
from data_prep.stores.shard_checks import size_faults
from data_prep.stores.shard_records import ShardsManifest
from data_prep.stores.token_records import SPLITS, TokensManifest
from data_prep.tokenizer.hf_files import TOKENIZER_FILES
from data_prep.tokenizer.store import VocabManifest

LONG = 5  # times the longest finished task: after that a task on another host may be dead
SHOWN = 10  # notes per stage

T = TypeVar("T")
Faults = dict[Path, str]  # of manifests that cannot be read
READERS = {  # of a stage's result; a missing one is made again only for these
    "collect": ("filter", "dedup", "vocab", "encode"),
    "filter": ("dedup", "vocab", "encode"),
    "dedup": ("vocab", "encode"),
    "encode": ("build", "audit"),
}


@dataclass
class Planned:
    """A stage as its manifest describes it."""

    name: str
    result: Path  # the last file of it
    options: str = ""  # of its command
    # Of each input: what the result was made of, and what is there now; None or empty: nothing
    inputs: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)  # what is missing of its files
    note: str = ""
    logs: Path | None = None  # of its tasks; None: next to the result
    cure: str = ""  # the command to type instead, where its own would be refused

    @property
    def changed(self) -> list[str]:
        pairs = self.inputs.items()
        return [what for what, (then, now) in pairs if then is not None and now and then != now]


@dataclass
class Stage:
    name: str
    command: str  # runs it, or what is left of it
    state: str = "not begun"  # running, stopped, failed, faulty, out of date, incomplete, done
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
    keeps_copies = settings.duplicates is Duplicates.keep
    plan = list(_plan(root, settings.seq_len, keeps_copies, unreadable))
    if not any(planned.result.parent.exists() for planned in plan):
        raise ValueError(
            f"{root} holds no corpus; begin with python -m data_prep.collect +source=NAME "
            f"data_dir={root}, NAME one of {', '.join(choices('source'))}"
        )
    stages = []
    for planned in plan:
        job_name, path = planned.name.split()[0], planned.result
        command = f"python -m data_prep.{job_name} data_dir={root} {planned.options}".rstrip()
        logs, result = planned.logs or path.parent / "logs", _read(path)
        job = _read(logs / "job.json")
        stage = Stage(planned.name, planned.cure or job.get("command", command))
        tasks = dict(zip(job.get("tasks", []), job.get("fingerprints", []), strict=True))
        to_do = _judge_tasks(stage, logs, tasks, settings.workers, now)
        changed, lost = planned.changed, planned.lost
        faults = [*result.get("faults", []), *result.get("damaged", [])]
        if path in unreadable:
            changed, lost, faults = [], [], [unreadable[path]]
        if result and not to_do:
            _judge_result(stage, changed, lost, faults)
        if stage.state == "out of date" and job_name == "build" and "replace=" not in stage.command:
            stage.command += " replace=true"
        if stage.state == "done" and planned.note:
            stage.notes.append(planned.note)
        stages.append(stage)
    return stages


def _judge_result(
    stage: Stage, changed: Sequence[str], lost: Sequence[str], faults: Sequence[str]
) -> None:
    """The state of a stage whose tasks are finished."""
    stage.state = "done"
    for state, notes in (
        ("out of date", [f"other {what} than it was made of" for what in changed]),
        ("incomplete", lost),
        ("faulty", faults),
    ):
        if notes:
            stage.state = state
            stage.notes += notes
            stage.is_broken = state == "faulty"
            return


def out_of_date(root: Path, seq_len: int) -> list[str]:
    """The stages up to the shards of `seq_len` tokens whose inputs have changed since, and how.

    Reads manifests alone; one that cannot be read is passed over.
    """
    return [
        f"{planned.name} ({' and '.join(f'other {what}' for what in planned.changed)})"
        for planned in _plan(root, seq_len, True, {})
        if planned.changed and planned.name in ("encode", f"build {seq_len}")
    ]


def _plan(root: Path, seq_len: int, keeps_copies: bool, unreadable: Faults) -> Iterator[Planned]:
    """All stages, in order; `seq_len` is that of shards to come where there are none.

    Fills in `unreadable` with the manifests that are not as this version writes them.
    """
    documents: dict[str, PartEntry] = {}
    folders = sorted(path for path in (root / "documents").glob("*") if path.is_dir())
    for folder in folders:
        path = folder / "manifest.json"
        is_kind = folder.name in choices("source")
        source = folder.name if is_kind else f"NAME source.name={folder.name}"
        planned = Planned(f"collect {folder.name}", path, f"+source={source}")
        if collected := _manifest(path, DocumentsManifest, unreadable):
            documents |= {f"{folder.name}/{part.name}": part for part in collected.parts}
            planned.lost = _lost(folder / part.name for part in collected.parts)
        yield planned
    if not folders:
        yield Planned("collect", root / "documents" / "manifest.json", "+source=NAME")
    for folder in sorted(path for path in (root / "filtered").glob("*") if path.is_dir()):
        yield _plan_filter(folder, documents, unreadable)
    yield from _plan_texts(root, documents, keeps_copies, unreadable)
    yield from _plan_shards(root, seq_len, unreadable)


def _plan_filter(folder: Path, documents: dict[str, PartEntry], unreadable: Faults) -> Planned:
    """The filters of one source; replaces its parts in `documents` by the filtered ones."""
    source, path = folder.name, folder / "manifest.json"
    planned = Planned(f"filter {source}", path, f"filters=[...] filter.sources=[{source}]")
    if filtered := _manifest(path, FilteredManifest, unreadable):
        keys = [key for key in documents if key.startswith(f"{source}/")]
        own = {key: documents.pop(key).checksum for key in keys}
        then = {f"{source}/{name}": digest for name, digest in filtered.made_from.items()}
        planned.inputs = {"documents": (then, own)}
        documents |= {f"{source}/{part.name}": part for part in filtered.parts}
        planned.lost = _lost(folder / part.name for part in filtered.parts)
        planned.note = (
            f"{', '.join(filtered.filters)}: {filtered.documents:,} of "
            f"{filtered.documents_before:,} documents and "
            f"{filtered.characters / max(filtered.characters_before, 1):.1%} of the text are kept"
        )
    return planned


def _plan_texts(
    root: Path, parts: dict[str, PartEntry], keeps_copies: bool, unreadable: Faults
) -> Iterator[Planned]:
    """dedup, vocab and encode of the documents in these parts."""
    documents = {key: part.checksum for key, part in parts.items()}
    vocab_path, tokens_path = root / "vocab" / "manifest.json", root / "tokens" / "manifest.json"
    vocab = _manifest(vocab_path, VocabManifest, unreadable)
    tokens = _manifest(tokens_path, TokensManifest, unreadable)
    copies_path = root / "documents" / "duplicates.json"
    copies = _read(copies_path)
    compared = copies.get("made_from", {}).get("documents")
    # A token store without them was encoded with duplicates=keep
    if not keeps_copies and (compared or not tokens):
        dedup = Planned("dedup", copies_path, inputs={"documents": (compared, documents)})
        dedup.lost = _lost([copies_path.with_suffix(".parquet")])
        stages = [root / "duplicates" / stage / "logs" for stage in STAGES]
        dedup.logs = next((logs for logs in stages[::-1] if logs.exists()), None)
        if characters := copies.get("dropped_characters"):
            dedup.note = (
                f"{copies['dropped']:,} copies of other documents, {characters / 1e6:,.1f} million "
                "characters, are left out by vocab and encode"
            )
        yield dedup
    planned = Planned("vocab", vocab_path)
    if vocab:
        size = "vocab_file=FILE" if vocab.settings.vocab_file else f"vocab_size={vocab.vocab_size}"
        planned.options = f"{size} {vocab.form}"
        if vocab.settings.language:  # its profile has defaults of its own
            planned.options = f"{size} {typed(vocab.rules)} language={vocab.settings.language}"
        planned.lost = _lost(vocab_path.with_name(name) for name in TOKENIZER_FILES)
        learnt = vocab.settings.documents or {}  # a released one was trained on none
        if documents and any(documents.get(name) != learnt[name] for name in learnt):
            planned.note = "trained on other documents; it serves those of now as it is"
    yield planned
    encoded = tokens and tokens.settings.documents
    ids = (
        tokens and (tokens.vocab_checksum, tokens.settings.form),
        vocab and (vocab.checksum, vocab.form),
    )
    encode = Planned("encode", tokens_path)
    encode.inputs = {"documents": (encoded, documents), "vocabulary": ids}
    if parts and sum(part.rows for part in parts.values()) < 2 * FEWEST_DOCUMENTS:
        encode.cure = f"python -m data_prep.collect data_dir={root} +source=NAME"
    if tokens:
        written = [(split, part.name) for split in SPLITS for part in tokens.splits[split]]
        encode.lost = _lost(tokens_path.parent / split / name for split, name in written)
        encode.lost += _lost([counts_path(root)])
    yield encode


def _plan_shards(root: Path, seq_len: int, unreadable: Faults) -> Iterator[Planned]:
    """build and audit of each length."""
    tokens_checksum = _checksum(root / "tokens" / "manifest.json")
    lengths = [int(path.name[3:]) for path in root.glob("len*") if path.name[3:].isdigit()]
    for length in sorted(lengths) or [seq_len]:
        path = root / f"len{length}" / "manifest.json"
        audit_path = root / "audit" / str(length) / "audit.json"
        built = _manifest(path, ShardsManifest, unreadable)
        store = (built and built.tokens_checksum, tokens_checksum)
        shards = (_read(audit_path).get("shards_checksum", ""), _checksum(path))
        options = f"seq_len={length}"
        build = Planned(f"build {length}", path, options, {"token store": store})
        if built:
            build.lost = [
                fault for split in SPLITS for fault in size_faults(path.parent, built, split)
            ]
            build.lost += _lost([path.with_name("token_counts.npy")])
        yield build
        yield Planned(f"audit {length}", audit_path, options, {"shards": shards})


def _lost(files: Iterable[Path]) -> list[str]:
    return [f"{path} is missing" for path in files if not path.is_file()]


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
    todo = next(iter(_due(stages)), None)
    following = todo.command if todo else train
    if todo and todo.state == "running":
        following = "wait for the running tasks"
    return "\n".join([*lines, "", f"next: {following}"]) + "\n"


def _due(stages: Sequence[Stage]) -> list[Stage]:
    """The stages that have to be run, in order.

    A result that is missing is made again only if a stage that reads it has to be run.
    """
    due: list[Stage] = []
    for stage in reversed(stages):
        readers = READERS.get(stage.name.split()[0])
        is_read = any(later.name.split()[0] in (readers or ()) for later in due)
        is_missing = stage.state in ("not begun", "incomplete")
        if stage.state != "done" and (readers is None or is_read or not is_missing):
            due.append(stage)
    return due[::-1]


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

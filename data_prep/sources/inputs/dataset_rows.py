"""A data set of rows as an input: from the Hugging Face hub or local parquet and jsonl files.

`datasets` downloads and converts once. Its Arrow files are then memory-mapped, so a task opens no
network connection and holds only its own rows.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from data_prep.core.config import SettingsError
from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.plan import SourcePlan
from data_prep.sources.inputs.row_bounds import check_json, check_parquet
from data_prep.sources.inputs.text_files import NO_FILE, list_files, not_read, paths_of, shown

_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
_TEXT = ("string", "large_string", "null")
_ROW_OVERHEAD = 16  # bytes of ids and offsets, an estimate to cut by
_BATCH_ROWS = 1_000
_BATCH_BYTES = 64 << 20
_HUB_TIMEOUT_S = 10


def plan_rows(
    source: SourceSettings,
    characters_per_part: int,
    cache: Path,
    columns: Sequence[str],
    multiple_of: int,
) -> SourcePlan:
    """Tasks of {files, first, rows}: row ranges of about characters_per_part, by the mean row.

    Ranges start at multiples of `multiple_of` rows. The inputs name the hub's commit, which
    source.revision pins. Raises SettingsError if the data set is unavailable or lacks a column.
    """
    others: list[Path] = []
    if source.path is None:
        dataset = _from_hub(source)
    else:
        reader, local, others = _local_files(source)
        dataset = _from_files(source, reader, local, cache)
    if missing := [name for name in columns if name not in dataset.column_names]:
        raise SettingsError(
            f"{_where(source)} has the columns {', '.join(dataset.column_names)}, and lacks "
            f"{', '.join(missing)}; point source.path at files with {', '.join(columns)}"
        )
    kinds = {name: str(dataset.data.schema.field(name).type) for name in columns if name != "id"}
    if wrong := [f"{name} of {kind}" for name, kind in kinds.items() if kind not in _TEXT]:
        raise SettingsError(
            f"{_where(source)} has the columns {', '.join(wrong)}, and they must hold text"
        )
    if not len(dataset):
        raise SettingsError(f"{_where(source)} has no rows; point source.path at other files")
    files = [entry["filename"] for entry in dataset.cache_files]
    row_bytes = dataset.data.nbytes // len(dataset) + _ROW_OVERHEAD
    rows = max(1, characters_per_part // row_bytes // multiple_of) * multiple_of
    starts = range(0, len(dataset), rows)
    return SourcePlan(
        tasks=[{"files": files, "first": s, "rows": min(rows, len(dataset) - s)} for s in starts],
        inputs={"rows": len(dataset), **_commit(files), **not_read(source, others)},
        # The folders' names have the hub's commit, or a hash of the local files and their times.
        states=[[Path(file).parts[-4:] for file in files]] * len(starts),
    )


def read_rows(task: dict[str, Any], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of one task, in order. Raises ValueError for a row that is not UTF-8."""
    maps = [pa.memory_map(file) for file in task["files"]]
    tables = [pa.ipc.open_stream(file).read_all().select(list(columns)) for file in maps]
    table = pa.concat_tables(tables).slice(task["first"], task["rows"])
    number = task["first"]
    for batch in _in_memory(table):
        try:
            yield from batch.to_pylist()
        except UnicodeDecodeError as error:
            number += next(row for row in range(len(batch)) if not _is_readable(batch, row))
            raise ValueError(
                f"row {number} of the data set (the first is 0) is not UTF-8: {error}; correct or "
                "remove it"
            ) from error
        number += len(batch)


def _in_memory(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """The rows in batches that fit into memory as text."""
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        is_small = batch.nbytes <= _BATCH_BYTES
        yield from [batch] if is_small else (batch.slice(row, 1) for row in range(len(batch)))


def _is_readable(batch: pa.RecordBatch, row: int) -> bool:
    try:
        batch.slice(row, 1).to_pylist()
    except UnicodeDecodeError:
        return False
    return True


def _from_files(source: SourceSettings, reader: str, files: list[Path], cache: Path) -> Any:
    """All local files as one datasets.Dataset on disk."""
    columns = None
    try:
        if reader == "parquet":
            columns = check_parquet(files, cache)
        else:
            check_json(files)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise SettingsError(f"{_where(source)} cannot be read as {reader}: {error}") from error
    datasets = _quiet_datasets()
    times = [(str(path), str(path.stat().st_mtime_ns)) for path in files]
    # A plain list would be one of patterns: `wiki [en]` would be no path, and `w*` several
    found = datasets.data_files.DataFilesList([str(path.absolute()) for path in files], times)
    more = {"columns": columns} if columns else {}
    try:
        return datasets.load_dataset(
            reader, data_files={"train": found}, split="train", cache_dir=str(cache), **more
        )
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        fault = _first_broken_line(files) or str(error.__cause__ or error)
        raise SettingsError(f"{_where(source)} cannot be read as {reader}: {fault}") from error


def _from_hub(source: SourceSettings) -> Any:
    """One split of a data set of the Hugging Face hub as a datasets.Dataset on disk."""
    datasets = _quiet_datasets()
    no_answer = _ask_once(source)
    try:
        return datasets.load_dataset(
            source.dataset, source.subset, revision=source.revision, split=source.split
        )
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        # As the hub names its files: 20231101.en/train-00000-of-00041.parquet, data/en-00000-...
        files_of = f"{source.subset}/*" if source.subset else f"*/{source.split}[-/]*"
        why = no_answer or f"{type(error).__name__}: {_first_line(error)}"
        raise SettingsError(
            f"the data set {source.dataset} at revision {source.revision} is not available from "
            f"the Hugging Face hub ({why}). On a machine with a network, fetch its parquet files "
            f"by: hf download {source.dataset} --repo-type dataset --revision {source.revision} "
            f'--include "{files_of}" --local-dir FOLDER; then set source.path=FOLDER'
        ) from error


def _quiet_datasets() -> Any:
    """The module `datasets`, which takes a second to load, without its own messages."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it also raises what it logs
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    return datasets


def _ask_once(source: SourceSettings) -> str | None:
    """Try the hub once; without an answer, use earlier downloads instead of retrying for 30 s.

    Returns why the connection failed, or None if the hub has answered.
    """
    import datasets
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(str(source.dataset), timeout=_HUB_TIMEOUT_S)
    except huggingface_hub.errors.HfHubHTTPError:
        return None  # it has answered; load_dataset raises what is wrong
    except Exception as error:  # noqa: BLE001 (of the HTTP client; huggingface_hub has had several)
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
        return f"it does not answer: {_first_line(error)}"
    return None


def _commit(files: list[str]) -> dict[str, str]:
    """The hub's commit: the name of the folder of datasets' files; none for local files."""
    folder = Path(files[0]).parent.name
    return {"commit": folder} if re.fullmatch("[0-9a-f]{40}", folder) else {}


def _first_broken_line(files: list[Path]) -> str | None:
    """The first line of a .jsonl file that is no JSON object; None if all are."""
    for path in files:
        if path.suffix.lower() != ".jsonl":
            continue
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    if not isinstance(orjson.loads(line), dict):
                        return f"{path}, line {number}: no JSON object"
                except ValueError as error:
                    return f"{path}, line {number}: {error}"
    return None


def _local_files(source: SourceSettings) -> tuple[str, list[Path], list[Path]]:
    """The name of the reader, its files, sorted, and the files that are not read."""
    found, others = list_files(paths_of(source), lambda path: _reader_of(path) is not None)
    readers = {reader for path in found if (reader := _reader_of(path))}
    if len(readers) != 1 or not all(map(_reader_of, found)):
        held = " and ".join(sorted(readers)) if readers else "neither .parquet nor .jsonl"
        raise SettingsError(
            f"source.path={source.path} holds {held}; point source.path at files of one kind, "
            ".parquet or .jsonl"
        )
    if broken := next((path for path in found if not path.is_file()), None):
        raise SettingsError(f"{broken} {NO_FILE}")
    if odd := [path for path in map(str, found) if "::" in path or shown(path) != path]:
        raise SettingsError(
            f"{shown(odd[0])}: `datasets` reads no path that holds :: or is not UTF-8; rename it"
        )
    return readers.pop(), found, others


def _reader_of(path: Path) -> str | None:
    return _READERS.get(path.suffix.lower())


def _where(source: SourceSettings) -> str:
    return f"source.path={source.path}" if source.path else f"the data set {source.dataset}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]

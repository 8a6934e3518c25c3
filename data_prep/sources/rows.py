"""A data set of rows as an input: from the Hugging Face hub or from local parquet and jsonl files.

`datasets` downloads and converts, once; its Arrow files are then read by rows, memory-mapped, so a
task opens no network connection and holds only its own rows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.configuration import SettingsError
from data_prep.settings import SourceSettings
from data_prep.sources import Plan
from data_prep.sources.folders import list_files

_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
_COLUMN_OVERHEAD = 16  # bytes a row of ids and offsets, next to the text; for the cut alone
_BATCH_ROWS = 1_000


def plan_rows(
    source: SourceSettings,
    characters_per_part: int,
    cache: Path,
    columns: Sequence[str],
    multiple_of: int,
) -> Plan:
    """Tasks of {files, first, rows}: row ranges of about characters_per_part, by the mean row.

    Ranges start at multiples of `multiple_of` rows. Raises SettingsError where the data set cannot
    be had or lacks one of the columns.
    """
    dataset = _load(source, cache)
    if missing := [name for name in columns if name not in dataset.column_names]:
        raise SettingsError(
            f"{_where(source)} has the columns {', '.join(dataset.column_names)}, and lacks "
            f"{', '.join(missing)}; point source.path at files with {', '.join(columns)}"
        )
    if not len(dataset):
        raise SettingsError(f"{_where(source)} has no rows; point source.path at other files")
    files = [entry["filename"] for entry in dataset.cache_files]
    bytes_a_row = dataset.data.nbytes // len(dataset) + _COLUMN_OVERHEAD
    rows = max(1, characters_per_part // bytes_a_row // multiple_of) * multiple_of
    starts = range(0, len(dataset), rows)
    return Plan(
        tasks=[{"files": files, "first": s, "rows": min(rows, len(dataset) - s)} for s in starts],
        inputs={"rows": len(dataset)},
        # The folders' names hold the hub's commit, or a hash of the local files and their times.
        state=[Path(file).parts[-4:] for file in files],
    )


def read_rows(task: dict[str, Any], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of one task, in order."""
    maps = [pa.memory_map(file) for file in task["files"]]
    tables = [pa.ipc.open_stream(file).read_all().select(list(columns)) for file in maps]
    table = pa.concat_tables(tables).slice(task["first"], task["rows"])
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        yield from batch.to_pylist()


def _load(source: SourceSettings, cache: Path) -> Any:
    """The data set's only split, as a datasets.Dataset that lies on the disk."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry
    if source.path is not None:
        reader, files = _local_files(Path(source.path))
        try:
            return datasets.load_dataset(
                reader, data_files={"train": files}, split="train", cache_dir=str(cache)
            )
        except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
            raise SettingsError(
                f"{_where(source)} cannot be read as {reader}: {error.__cause__ or error}"
            ) from error
    try:
        return datasets.load_dataset(
            source.dataset, source.subset, revision=source.revision, split="train"
        )
    except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
        only = "" if source.subset is None else f'--include "{source.subset}/*" '
        raise SettingsError(
            f"the data set {source.dataset} at revision {source.revision} cannot be had from the "
            f"Hugging Face hub ({type(error).__name__}: {_first_line(error)}). Where there is a "
            f"network, fetch its parquet files by: hf download {source.dataset} --repo-type dataset "
            f"--revision {source.revision} {only}--local-dir FOLDER; then set source.path=FOLDER"
        ) from error


def _local_files(path: Path) -> tuple[str, list[str]]:
    """The reader's name and the files to give it, sorted."""
    found = [path] if path.is_file() else list_files(path, lambda file: file.suffix in _READERS)
    readers = sorted({_READERS[file.suffix] for file in found if file.suffix in _READERS})
    if not readers or len(readers) > 1:
        held = " and ".join(readers) if readers else "neither .parquet nor .jsonl"
        raise SettingsError(
            f"source.path={path} holds {held}; point source.path at files of one kind, .parquet "
            "or .jsonl"
        )
    return readers[0], [str(file) for file in found]


def _where(source: SourceSettings) -> str:
    return f"source.path={source.path}" if source.path else f"the data set {source.dataset}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]

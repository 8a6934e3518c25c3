"""Tables of text in every kind of file that the source `rows` reads, written by other libraries."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

Rows = list[dict[str, str | None]]
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": lambda data: gzip.compress(data, mtime=0), ".zst": zstandard.compress,
    ".bz2": bz2.compress, ".xz": lzma.compress,
}  # fmt: skip


def _jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _json(rows: Rows) -> bytes:
    return json.dumps(rows, indent=1).encode()


def _csv(rows: Rows, delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return out.getvalue().encode()


def _tsv(rows: Rows) -> bytes:
    return _csv(rows, "\t")


def _parquet(rows: Rows) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=4)
    return out.getvalue()


def _arrow(new: Callable[..., pa.ipc.RecordBatchStreamWriter]) -> Callable[[Rows], bytes]:
    def write(rows: Rows) -> bytes:
        table, out = pa.Table.from_pylist(rows), io.BytesIO()
        with new(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
        return out.getvalue()

    return write


KINDS: dict[str, Callable[[Rows], bytes]] = {
    ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet,
    "_stream.arrow": _arrow(pa.ipc.new_stream), "_file.arrow": _arrow(pa.ipc.new_file),
}  # fmt: skip

"""A stand-in for the Hugging Face hub on this machine, with one data set of a few files."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

COMMIT = "a" * 40
CARD = """---
configs:
- config_name: de
  data_files:
  - split: train
    path: de/*.jsonl
---
"""
Requests = list[tuple[str, str]]  # method and path


def _answer(path: str, files: dict[str, bytes]) -> Any:
    """What the hub answers about its data set, or the content of a file, or None."""
    path, _, query = path.partition("?")
    if "/resolve/" in path:
        return files.get(path.split("/resolve/")[1].partition("/")[2])
    if "/tree/" in path:
        below = path.split("/tree/")[1].partition("/")[2]
        names = [name for name in files if name.startswith(below)]
        folders = {name.partition("/")[0] for name in names if "/" in name}
        if not below and "recursive=true" not in query.lower():
            names = [name for name in names if "/" not in name]
            return [
                *map(_entry, names),
                *({**_entry(name), "type": "directory"} for name in folders),
            ]
        return [_entry(name, files.get(name)) for name in names]
    if path.startswith("/api/datasets/me/set"):
        when = "2026-01-01T00:00:00.000Z"
        return {
            "id": "me/set", "sha": COMMIT, "siblings": [_entry(name) for name in files], "tags": [],
            "private": False, "downloads": 0, "likes": 0, "lastModified": when, "createdAt": when,
        }  # fmt: skip
    return None


def _entry(name: str, data: bytes | None = b"") -> dict[str, Any]:
    """A file, or a folder if it has no data."""
    kind, size = ("directory", 0) if data is None else ("file", len(data))
    return {"type": kind, "path": name, "rfilename": name, "size": size, "oid": f"oid-{name}"}


@contextlib.contextmanager
def hub(files: dict[str, bytes]) -> Iterator[tuple[str, Requests]]:
    """The address of a hub with the data set me/set, and the requests that it has had."""
    asked: Requests = []
    all_files = {"README.md": CARD.encode(), **files}

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.command, self.path))
            found = _answer(self.path, all_files)
            body = found if isinstance(found, bytes) else json.dumps(found or {}).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("ETag", f'"{len(body)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_POST = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""A small local stand-in for wandb's server, which can fail as a real one does."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class StandIn(ThreadingHTTPServer):
    """Keeps what was uploaded of one run. As a context manager it listens at `url`.

    `trouble`: None; the status of every answer; or "hang": it accepts and never answers. Trouble
    begins after `after_uploads` uploads of metrics.
    """

    daemon_threads = True

    def __init__(self, trouble: int | str | None = None, after_uploads: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.trouble, self.after_uploads = trouble, after_uploads
        self.rows: list[dict[str, Any]] = []  # of the run's history, as uploaded
        self.config: dict[str, Any] = {}
        self.uploads = 0
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.released.set()
        self.shutdown()
        self.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer of wandb's server to a request, with as little as its client needs."""
        if path.endswith("/file_stream"):
            self.uploads += 1
            history = body.get("files", {}).get("wandb-history.jsonl")
            if history:
                rows = [json.loads(line) for line in history["content"]]
                self.rows[history["offset"] :] = rows
            return {}
        query = body.get("query", "")
        name = (re.search(r"(?:query|mutation)\s+(\w+)", query) or [None, ""])[1]
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        if name == "UpsertBucket":
            if config := body["variables"].get("config"):
                self.config = json.loads(config)
            bucket = {
                "id": "b", "name": body["variables"]["name"], "displayName": "x",
                "description": None, "config": None, "sweepName": None, "project": project,
                "historyLineCount": len(self.rows),
            }  # fmt: skip
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": not self.rows}}}
        if name == "RunResumeStatus":
            tail = json.dumps([json.dumps(row) for row in self.rows[-1:]])
            bucket = {
                "id": "b", "name": body["variables"]["name"], "summaryMetrics": "{}",
                "displayName": "x", "logLineCount": 0, "historyLineCount": len(self.rows),
                "eventsLineCount": 0, "historyTail": tail, "eventsTail": "[]", "config": "{}",
                "tags": [], "notes": None, "wandbConfig": '{"t": 1}',
            }  # fmt: skip
            model = {"id": "p", "name": "p", "entity": project["entity"]}
            return {"data": {"model": {**model, "bucket": bucket if self.rows else None}}}
        if name == "CreateRunFiles":
            files = [
                {"name": file, "uploadUrl": f"{self.url}/file"}
                for file in body["variables"]["files"]
            ]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        viewer = {
            "id": "v", "entity": "e", "username": "u", "email": None, "flags": "{}",
            "teams": {"edges": []},
        }  # fmt: skip
        return {"data": {"viewer": viewer, "serverInfo": {"features": []}}}


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_troubled = self.server.uploads >= self.server.after_uploads
        trouble = self.server.trouble if is_troubled else None
        if trouble == "hang":
            self.server.released.wait()
            return
        status = trouble or 200
        is_asked = status == 200 and self.path.endswith(("/graphql", "/file_stream"))
        answer = self.server.answer(self.path, json.loads(text or b"{}")) if is_asked else {}
        content = json.dumps(answer).encode()
        self.send_response(int(status))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        pass

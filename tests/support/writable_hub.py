"""A stand-in for the Hugging Face hub on this machine that takes uploads, and faults on demand.

It speaks what huggingface_hub calls for a push and for reading it back: repositories, branches,
commits, LFS objects and files. Contents are in memory.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right_token_of_the_tests"
Answer = tuple[int, Any]  # status; JSON, or bytes of a file


def missing(what: str) -> Answer:
    """A 404 as the hub tells it: `what` is Repo, Revision or Entry."""
    return 404, {"error": f"{what} not found", "code": f"{what}NotFound"}


@dataclass
class Repository:
    is_private: bool
    commits: list[dict[str, bytes]] = field(default_factory=list)  # files by path
    heads: dict[str, int] = field(default_factory=dict)  # number of each branch's last commit

    @property
    def branches(self) -> dict[str, dict[str, bytes]]:
        """The files of each branch."""
        return {name: self.commits[number] for name, number in self.heads.items()}

    def number(self, revision: str) -> int | None:
        """That of a branch's last commit, or of a commit by its name."""
        if revision.startswith("commit-"):
            return int(revision.removeprefix("commit-"))
        return self.heads.get(revision)


@dataclass
class Fault:
    """What is answered instead to requests whose method and path match: to `times` of them, after
    the first `after`."""

    pattern: str
    answer: int | str  # a status; "cut": half of the body is read; "hang": until the end of the hub
    times: int = 1
    after: int = 0
    text: str = "no luck"


class Hub(http.server.ThreadingHTTPServer):
    """`repositories` by "models/me/x"; `log` of "METHOD path"; `faults` to come."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by sha256
        self.log: list[str] = []
        self.faults: list[Fault] = []
        self.ended = threading.Event()

    def count(self, pattern: str) -> int:
        """Requests so far whose "METHOD path" matches."""
        return sum(re.search(pattern, line) is not None for line in self.log)

    def fault(self, request: str) -> Fault | None:
        """What is to happen to this request, if anything."""
        for fault in self.faults:
            if re.search(fault.pattern, request):
                if fault.after:
                    fault.after -= 1
                elif fault.times:
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, *_: object) -> None: ...

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        if method == "PUT" and (found := re.fullmatch("/lfs/([0-9a-f]{64})", path)):
            if hashlib.sha256(body).hexdigest() != found[1]:
                return 400, {"error": "other bytes than announced"}
            self.objects[found[1]] = body
            return 200, {}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return 200, {"transfer": "basic", "objects": self._batch(json.loads(body)["objects"])}
        if found := re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/(.+))?", path):
            if (repository := self.repositories.get(found[1])) is None:
                return missing("Repo")
            return self._api(repository, found[1], found[2] or "", body)
        if found := re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository = self.repositories.get(f"{found[1] or 'models'}/{found[2]}")
            if repository is None:
                return missing("Repo")
            if (number := repository.number(unquote(found[3]))) is None:
                return missing("Revision")
            data = repository.commits[number].get(unquote(found[4]))
            return missing("Entry") if data is None else (200, data)
        return 404, {"error": f"no such address: {path}"}

    def _create(self, asked: dict[str, Any]) -> Answer:
        kind, name = f"{asked.get('type', 'model')}s", f"{asked['organization']}/{asked['name']}"
        if f"{kind}/{name}" in self.repositories:
            return 409, {"error": "it exists"}
        repository = Repository(asked.get("visibility") == "private" or asked.get("private", False))
        repository.commits.append({".gitattributes": b"*.safetensors filter=lfs\n"})
        repository.heads["main"] = 0
        self.repositories[f"{kind}/{name}"] = repository
        prefix = "" if kind == "models" else f"{kind}/"
        return 200, {"url": f"{self.url}/{prefix}{name}", "name": name, "id": name}

    def _batch(self, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Where to send what is not here."""
        upload = [{"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}} for wanted in asked]
        return [
            wanted if wanted["oid"] in self.objects else {**wanted, "actions": actions}
            for wanted, actions in zip(asked, upload, strict=True)
        ]

    def _api(self, repository: Repository, key: str, rest: str, body: bytes) -> Answer:
        what, _, argument = rest.partition("/")
        revision, _, below = argument.partition("/")
        revision = unquote(revision) or "main"
        if what == "branch":
            if revision in repository.heads:
                return 409, {"error": "the branch exists"}
            start = repository.number(json.loads(body).get("startingPoint", "main"))
            if start is None:
                return missing("Revision")
            repository.heads[revision] = start
            return 200, {}
        if (number := repository.number(revision)) is None:
            return missing("Revision")
        files = repository.commits[number]
        if what in ("", "revision"):
            return 200, {
                "id": key.partition("/")[2], "private": repository.is_private, "tags": [],
                "sha": f"commit-{number}", "downloads": 0, "likes": 0,
                "siblings": [{"rfilename": name} for name in files],
            }  # fmt: skip
        if what == "tree":
            return 200, [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(name, data)}
                for name, data in files.items() if name.startswith(unquote(below))
            ]  # fmt: skip
        if what == "commits":
            return 200, [
                {"id": f"commit-{number}", "title": "", "message": "", "authors": [],
                 "date": "2026-01-01T00:00:00.000Z"}
                for number in reversed(range(len(repository.commits)))
            ]  # fmt: skip
        if what == "preupload":
            return 200, {"files": [
                {"path": (name := wanted["path"]), "shouldIgnore": False,
                 "uploadMode": "lfs" if _is_large(name) else "regular",
                 "oid": _oid(name, files[name]) if name in files else None}
                for wanted in json.loads(body)["files"]
            ]}  # fmt: skip
        if what == "commit":
            return self._commit(repository, key, revision, body)
        return 404, {"error": f"no such call: {rest}"}

    def _commit(self, repository: Repository, key: str, branch: str, body: bytes) -> Answer:
        files = dict(repository.branches[branch])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return 400, {"error": f"{value['path']} was not uploaded"}
                files[value["path"]] = self.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        repository.heads[branch] = len(repository.commits)
        sha = f"commit-{len(repository.commits)}"
        repository.commits.append(files)
        return 200, {"commitUrl": f"{self.url}/{key}/commit/{sha}", "commitOid": sha}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        hub, path = self.server, urlsplit(self.path).path
        hub.log.append(f"{self.command} {path}")
        fault = hub.fault(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None:
            if isinstance(fault.answer, str):
                self.rfile.read(length // 2)
                if fault.answer == "hang":
                    hub.ended.wait()
                self.close_connection = True
                return
        body = self.rfile.read(length)
        if fault is not None:
            self._send(int(fault.answer), {"error": fault.text})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}" and self.command != "PUT":
            self._send(401, {"error": "Invalid credentials in Authorization header"})
        else:
            self._send(*hub.answer(self.command, path, body))

    do_HEAD = do_POST = do_PUT = do_GET

    def _send(self, status: int, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if isinstance(content, bytes):
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "c" * 40)
        elif status >= 400:
            self.send_header("X-Error-Message", content["error"])
            self.send_header("X-Error-Code", content.get("code", ""))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".arrow"))


def _oid(name: str, data: bytes) -> str:
    """As the hub compares files: by sha256 if large, otherwise as git does."""
    if _is_large(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def writable_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        hub.shutdown()
        thread.join()
        hub.server_close()

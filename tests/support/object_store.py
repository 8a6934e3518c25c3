"""An object store on this machine that speaks S3, by moto; and a relay that cuts connections."""

import contextlib
import os
import re
import select
import socket
import socketserver
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAOFATEST", "AWS_SECRET_ACCESS_KEY": "aSecretOfATest"}


@contextlib.contextmanager
def object_store() -> Iterator[tuple[Any, dict[str, str]]]:
    """A client of a new store with the bucket `texts`, and the environment that finds it."""
    import boto3
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket="texts")
    # one made for an earlier store, which the environment named then, is kept by its arguments
    S3FileSystem.clear_instance_cache()
    try:
        yield client, {**KEYS, "AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
    finally:
        client.close()
        server.stop()


@contextlib.contextmanager
def keys_are_checked(environment: dict[str, str]) -> Iterator[None]:
    """The store refuses keys that it does not know, as all are."""

    def let(count: bytes) -> None:
        url = f"{environment['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        kind = {"Content-Type": "application/octet-stream"}
        urllib.request.urlopen(urllib.request.Request(url, count, kind, method="POST")).close()

    let(b"0")
    try:
        yield
    finally:
        let(b"1000000000")


class Proxy:
    """A relay in front of a store: it keeps the requests, and cuts answers or refuses all."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.requests: list[str] = []  # "GET /texts/a"
        self.cuts: list[int] = []  # each cuts the next longer answer after so many bytes
        self.cut_where = b""  # only answers to requests with this text
        self.is_down = False
        relay = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                if not relay.is_down:
                    with socket.create_connection(target) as store:
                        relay._pass_on(self.request, store)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads, block_on_close = True, False

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def count(self, method: str, ending: str) -> int:
        """Requests of a method for paths with this ending."""
        return sum(r.startswith(f"{method} ") and r.endswith(ending) for r in self.requests)

    def _pass_on(self, client: socket.socket, store: socket.socket) -> None:
        answered, may_cut = 0, False
        while True:
            for source in select.select([client, store], [], [])[0]:
                try:
                    data = source.recv(1 << 16)
                    if not data or self.is_down:
                        return
                    if source is client:
                        if found := re.match(rb"([A-Z]+ [^ ?]+)", data):
                            self.requests.append(found[1].decode())
                            answered, may_cut = 0, self.cut_where in data
                        store.sendall(data)
                        continue
                    answered += len(data)
                    if self.cuts and may_cut and answered > self.cuts[0]:
                        client.sendall(data[: len(data) - answered + self.cuts.pop(0)])
                        return
                    client.sendall(data)
                except OSError:
                    return


@contextlib.contextmanager
def proxy_of(url: str) -> Iterator[Proxy]:
    """A relay in front of the store at `url`."""
    parts = urllib.parse.urlsplit(url)
    assert parts.hostname
    assert parts.port
    proxy = Proxy((parts.hostname, parts.port))
    thread = threading.Thread(target=proxy.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        thread.join()
        proxy.server.server_close()


@contextlib.contextmanager
def relayed_store() -> Iterator[tuple[Any, Proxy]]:
    """A store behind a relay, which the environment names: its own client, and the relay."""
    with (
        object_store() as (client, environment),
        proxy_of(environment["AWS_ENDPOINT_URL"]) as proxy,
    ):
        given = {**environment, "AWS_ENDPOINT_URL": proxy.url, "AWS_MAX_ATTEMPTS": "1"}
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        try:
            yield client, proxy
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def upload(client: Any, folder: Path, prefix: str) -> None:
    """Put all files below a folder into the bucket `texts`."""
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder)}"
            client.put_object(Bucket="texts", Key=key, Body=path.read_bytes())

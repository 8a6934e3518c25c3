"""An object store on this machine that speaks S3, by moto."""

import contextlib
import urllib.request
from collections.abc import Iterator
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAOFATEST", "AWS_SECRET_ACCESS_KEY": "aSecretOfATest"}


@contextlib.contextmanager
def object_store() -> Iterator[tuple[Any, dict[str, str]]]:
    """A client of a new store with the bucket `texts`, and the environment that finds it."""
    import boto3
    from moto.server import ThreadedMotoServer

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

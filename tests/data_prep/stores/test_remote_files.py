"""Files of a remote store through cut connections, wrong bytes and outages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import Proxy, relayed_store

from data_prep.core.files import checksum
from data_prep.stores import remote

DATA = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[Any, Proxy]]:
    with relayed_store() as (client, proxy):
        client.put_object(Bucket="texts", Key="a.bin", Body=DATA, ACL="public-read")
        yield client, proxy


@pytest.fixture
def proxy(store, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    monkeypatch.setattr(remote, "PAUSES_S", (0.0,) * 5)
    monkeypatch.setattr(remote, "BLOCK", 1 << 18)
    store[1].requests.clear()
    store[1].cut_where = b""
    return store[1]


@pytest.fixture
def whole(tmp_path: Path) -> str:
    (tmp_path / "whole").write_bytes(DATA)
    return checksum(tmp_path / "whole")


@pytest.mark.parametrize(("scheme", "cuts"), [("s3", 7), ("http", 4)])  # s3fs tries again, too
def test_a_download_goes_on_where_its_connection_was_cut(
    proxy: Proxy, tmp_path: Path, whole: str, scheme: str, cuts: int
) -> None:
    url = "s3://texts/a.bin" if scheme == "s3" else f"{proxy.url}/texts/a.bin"
    proxy.cuts, proxy.cut_where = [100_000] * cuts, b"bytes=524288-"  # the third quarter
    remote.fetch(url, tmp_path / "a", len(DATA), whole)
    assert (tmp_path / "a").read_bytes() == DATA
    assert proxy.cuts == []
    assert proxy.count("GET", "/a.bin") == 4 + cuts  # a quarter each, and those that were cut


def test_a_download_that_never_comes_further_fails_and_leaves_nothing(
    proxy: Proxy, tmp_path: Path, whole: str
) -> None:
    proxy.cuts = [1000] * 50
    with pytest.raises(OSError, match=r"/texts/a\.bin"):
        remote.fetch(f"{proxy.url}/texts/a.bin", tmp_path / "a", len(DATA), whole)
    assert len(proxy.cuts) == 50 - 6
    proxy.cuts = []
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_a_wrong_byte_is_named_with_both_checksums(proxy: Proxy, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"s3://texts/a\.bin has checksum [0-9a-f]{32}, .* says 12$"
    ):
        remote.fetch("s3://texts/a.bin", tmp_path / "a", len(DATA), "12")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("size", [5, len(DATA) + 1])
def test_another_size_than_the_manifest_says_is_named(
    proxy: Proxy, tmp_path: Path, whole: str, size: int
) -> None:
    with pytest.raises(ValueError, match=rf"a\.bin has .* bytes.*, the manifest says {size:,}"):
        remote.fetch("s3://texts/a.bin", tmp_path / "a", size, whole)


def test_what_is_sent_is_listed_and_can_be_removed(proxy: Proxy, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"content")
    for url in ("s3://texts/sent", f"file://{tmp_path}/sent"):
        remote.send(tmp_path / "b", f"{url}/in/b")
        assert remote.names_below(url) == ["in/b"]
        assert remote.read(f"{url}/in/b") == b"content"
        for _ in range(2):  # also when it is gone
            remote.remove(f"{url}/in/b")
        assert remote.names_below(url) == []


def test_a_missing_file_is_not_asked_for_again(proxy: Proxy) -> None:
    with pytest.raises(FileNotFoundError) as failed:
        remote.read("s3://texts/nothing")
    assert remote.why(failed.value).startswith("s3://texts/nothing: ")
    assert proxy.count("HEAD", "/nothing") == 1


def test_an_outage_is_waited_for_a_bounded_number_of_times(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(remote, "PAUSES_S", (1.0, 2.0))
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    proxy.is_down = True
    try:
        with pytest.raises(OSError, match=r"/texts/a\.bin"):
            remote.read(f"{proxy.url}/texts/a.bin")
    finally:
        proxy.is_down = False
    assert waited == [1.0, 2.0]


def test_a_small_file_is_bounded(proxy: Proxy) -> None:
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        remote.read("s3://texts/a.bin", most=1000)

"""Inputs in remote stores: S3 by a server on this machine, HTTP, memory; keys stay secret."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import COMMIT, hub
from object_store import KEYS, keys_are_checked, object_store
from row_tables import KINDS, PACKINGS
from source_reading import read_all, source_of, texts

from data_prep.core.config import SettingsError
from data_prep.core.job import load
from data_prep.core.settings import SourceSettings
from data_prep.sources import rows
from data_prep.stores.documents import Damage, read_documents_manifest

ROWS = [{"url": f"u{n}", "text": f"Text number {n} of some."} for n in range(12)]
TEXTS = {row["url"]: row["text"] for row in ROWS}


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[Any, dict[str, str]]]:
    with object_store() as (client, environment):
        for number, packing in enumerate((".gz", ".zst", "")):
            share = KINDS[".jsonl"](ROWS[number * 4 : number * 4 + 4])
            client.put_object(
                Bucket="texts", Key=f"in/{number}.jsonl{packing}", Body=PACKINGS[packing](share)
            )
        client.put_object(Bucket="texts", Key="in/README.md", Body=b"about")
        client.put_object(Bucket="texts", Key="wide/a.parquet", Body=KINDS[".parquet"](ROWS))
        yield client, environment


@pytest.fixture
def client(store, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in store[1].items():
        monkeypatch.setenv(name, value)
    return store[0]


def _at(path: str) -> SourceSettings:
    source = source_of("rows", text_column="text")
    source.path = path
    return source


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("path", "first", "last"),
    [
        ("s3://texts/in", 0, 12),
        ("s3://texts/in/*.jsonl.gz", 0, 4),
        ("s3://texts/in/1.jsonl.zst", 4, 8),
        ("[s3://texts/in/2.jsonl,s3://texts/in/1.jsonl.zst]", 4, 12),
        ("s3://texts/wide", 0, 12),
    ],
)
@pytest.mark.parametrize("characters", [50, 10**9])
def test_objects_are_read_where_they_are(path: str, first: int, last: int, characters) -> None:
    expected = dict(list(TEXTS.items())[first:last])
    assert texts(read_all(_at(path), characters)) == expected


@pytest.mark.usefixtures("client")
def test_large_objects_are_cut_as_files_are(tmp_path: Path) -> None:
    tasks = rows.plan(_at("s3://texts/in/2.jsonl"), 50).tasks
    assert len(tasks) > 3
    assert len(rows.plan(_at("s3://texts/wide"), 50).tasks) == 3
    assert rows.plan(_at("s3://texts/in"), 50).inputs["not_read"] == ["1 .md: README.md"]


def test_a_changed_object_changes_the_state_of_its_task(client: Any, tmp_path: Path) -> None:
    def put(text: str) -> list[Any]:
        client.put_object(Bucket="texts", Key="new/a.jsonl", Body=f'{{"text": "{text}"}}'.encode())
        return rows.plan(_at("s3://texts/new"), 50).states

    before = put("one")
    assert put("one") == before
    assert put("two") != before


def test_an_object_that_is_gone_is_damage_that_stops_no_other(client: Any, tmp_path: Path) -> None:
    for name in "ab":
        client.put_object(Bucket="texts", Key=f"less/{name}.jsonl", Body=KINDS[".jsonl"](ROWS))
    plan = rows.plan(_at("s3://texts/less"), 10**6)
    client.delete_object(Bucket="texts", Key="less/a.jsonl")
    damage, *others = rows.read(_at("s3://texts/less"), plan.tasks[0])
    assert isinstance(damage, Damage)
    assert (damage.input, len(others)) == ("a.jsonl", 12)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("s3://nobodys-bucket/x", "cannot be listed: nothing of this name is there.*bucket does"),
        ("s3://texts/nothing", "holds no file of rows"),
        ("s3://texts/in/*.md", "holds no file of rows.*there are 1 .md"),
        ("http://127.0.0.1:9/a.jsonl", "cannot be listed: ClientConnectorError: Cannot connect"),
        ("nosuch://a/b", "nosuch"),
    ],
)
def test_a_place_that_cannot_be_listed_is_refused(path: str, said: str, tmp_path) -> None:
    with pytest.raises(SettingsError, match=said):
        rows.plan(_at(path), 50)


@pytest.mark.usefixtures("client")
def test_wrong_keys_are_refused_and_not_shown(store, tmp_path: Path) -> None:
    with keys_are_checked(store[1]), pytest.raises(SettingsError) as refused:
        rows.plan(_at("s3://texts/in"), 50)
    assert "source.path=s3://texts/in cannot be listed: " in str(refused.value)
    assert "the keys in the environment" in str(refused.value)
    assert not any(key in str(refused.value) for key in KEYS.values())


@pytest.mark.slow
def test_keys_reach_no_file_and_no_output(store, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "data_prep.collect", "+source=rows", "source.path=s3://texts/in",
         f"data_dir={tmp_path}", "num_workers=1"],
        env={**os.environ, **store[1]}, capture_output=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 4
    for secret in KEYS.values():
        assert not any(secret.encode() in data for data in [ran.stdout, ran.stderr, *written])


@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret4711@host/a.jsonl", "https://host/a.jsonl?X-Amz-Signature=secret4711",
        "https://host/a.jsonl?t=secret4711secret", "https://host/a?token=", "s3://k:secret4711@b/x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("typed", ["{}", "[/tmp,{}]"])
def test_a_url_with_a_key_is_refused_and_not_shown(tmp_path: Path, url: str, typed: str) -> None:
    given = ["+source=rows", f"source.path={typed.format(url)}", f"data_dir={tmp_path}"]
    with pytest.raises(SettingsError, match="holds a key") as refused:
        load(given)
    assert "4711" not in str(refused.value)


@pytest.mark.parametrize("url", ["https://host/a.jsonl?download=true", "hf://datasets/a/b@main/c"])
def test_a_url_without_a_key_is_taken(tmp_path: Path, url: str) -> None:
    load(["+source=rows", f"source.path={url}", f"data_dir={tmp_path}"])


def test_a_source_of_local_files_names_those_that_read_urls(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"only the sources of rows \(.*, lines and warc read URLs"
    ):
        load(["+source=books", "source.path=s3://texts/in", f"data_dir={tmp_path}"])


def test_a_missing_package_is_named_with_the_extra(tmp_path: Path, monkeypatch) -> None:
    import fsspec

    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(SettingsError, match=r"pip install 'bert-pretraining\[remote\]'"):
        rows.plan(_at("s3://texts/in"), 50)
    with pytest.raises(SettingsError, match="gs:// needs a package that is not installed"):
        rows.plan(_at("gs://texts/in"), 50)


def test_lines_are_read_from_any_store_of_fsspec() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/texts/a.txt", b"One.\nTwo.\n\n" * 20)
    source = source_of("lines")
    source.path = "memory://texts"
    try:
        assert len(read_all(source, 60)) == 20
    finally:
        memory.rm("/texts", recursive=True)


@contextlib.contextmanager
def _web_server(folder: Path) -> Iterator[str]:
    """The address of a server of a folder's files, which it sends as a whole."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_server_that_sends_only_whole_files_is_read(tmp_path: Path, name: str) -> None:
    kind, packing = (".parquet", "") if name == "a.parquet" else (".jsonl", name[7:])
    (tmp_path / name).write_bytes(PACKINGS[packing](KINDS[kind](ROWS)))
    with _web_server(tmp_path) as address:
        assert texts(read_all(_at(f"{address}/{name}"), 50)) == TEXTS


def test_a_file_that_a_server_has_lost_is_damage_and_a_silent_server_fails_the_task(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jsonl").write_bytes(KINDS[".jsonl"](ROWS))
    with _web_server(tmp_path) as address:
        source = _at(f"{address}/a.jsonl")
        (task,) = rows.plan(source, 10**6).tasks
        (tmp_path / "a.jsonl").unlink()
        (damage,) = rows.read(source, task)
        assert isinstance(damage, Damage)
    with pytest.raises(OSError, match=r"a\.jsonl") as failed:  # so that the next start reads it
        list(rows.read(source, task))
    assert not isinstance(failed.value, FileNotFoundError)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "documents"), [("rows", 12), ("wikipedia", 12), ("bookcorpus", 1), ("gutenberg", 12)]
)
def test_a_data_set_of_the_hub_is_read_at_its_commit_and_not_downloaded(
    tmp_path: Path, source: str, documents: int
) -> None:
    pages = [{"id": f"{n}", "title": "T", **row} for n, row in enumerate(ROWS)]
    files = {f"de/{n}.jsonl": KINDS[".jsonl"](pages[n * 4 : n * 4 + 4]) for n in range(3)}
    arguments = [
        f"+source={source}", "source.dataset=me/set", "source.subset=de", "source.split=train",
        "source.language=null", "source.min_characters=null", "num_workers=1",
    ]  # fmt: skip
    homes = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    with hub({**files, "en/0.jsonl": b'{"text": "No."}'}) as (address, asked):
        ran = subprocess.run(
            [sys.executable, "-m", "data_prep.collect", *arguments, f"data_dir={tmp_path}"],
            env={**os.environ, **homes, "HF_ENDPOINT": address},
            capture_output=True, text=True, cwd=Path(__file__).parents[3],
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    manifest = read_documents_manifest(tmp_path / "documents" / source)
    size = sum(map(len, files.values()))
    assert manifest.inputs.items() >= {"files": 3, "bytes": size, "commit": COMMIT}.items()
    assert manifest.documents == documents
    data = [path for _, path in asked if ".jsonl" in path]
    assert data
    assert all(f"/resolve/{COMMIT}/de/" in path for path in data)
    assert not [path for path in (tmp_path / "hf").rglob("*.arrow")]

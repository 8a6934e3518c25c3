"""Shards at a URL: what is fetched, what is kept, and what is refused before it is fetched."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_shards import vouch, write_folder
from saver_samples import ALONE

from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, only_process
from data_prep.core.objectives import Pairing
from data_prep.stores import remote
from pretrain.config.settings import DataSettings, MaskMode
from pretrain.data import staging
from pretrain.data.corpus import folder_of, manifest_of
from pretrain.data.staging import check_room, stage_manifest, stage_shards

SILENT: Any = SimpleNamespace(begin=lambda activity: None, requested=False)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSettings:
    """Three shards in a store that is a folder of this machine."""
    monkeypatch.setattr(remote, "PAUSES_S", ())
    store = tmp_path / "store"
    write_folder(store / "len128", [10, 20, 30])
    (store / "len128" / "token_counts.npy").write_bytes(b"counts")
    for name in ("vocab/vocab.txt", "documents/own/manifest.json"):
        (store / name).parent.mkdir(parents=True)
        (store / name).write_text("{}")
    stage = str(tmp_path / "stage")
    return DataSettings(f"file://{store}/", 128, Pairing.nsp, MaskMode.static, stage=stage)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that are fetched."""
    names: list[str] = []
    fetch = remote.fetch

    def noted(url: str, path: Path, size: int, checksum: str) -> None:
        names.append(path.name)
        fetch(url, path, size, checksum)

    monkeypatch.setattr(remote, "fetch", noted)
    return names


def store_of(data: DataSettings) -> Path:
    return Path(data.dir.removeprefix("file://")) / "len128"


def stage(data: DataSettings) -> list[str]:
    """All of it, as a run does; the lines that are reported."""
    lines = [stage_manifest(data) or ""]
    assert stage_shards([data], ALONE, SILENT, SILENT, lines.append)
    return [line for line in lines if line]


def copies_are_whole(data: DataSettings) -> bool:
    files = [path for path in store_of(data).rglob("*") if path.is_file()]
    copies = [folder_of(data) / path.relative_to(store_of(data)) for path in files]
    return [*map(checksum, files)] == [*map(checksum, copies)]


def test_a_second_start_fetches_nothing(data: DataSettings, fetched: list[str]) -> None:
    begin, end = stage(data)
    assert begin.startswith("staging 3 shards, 0.")
    assert end.startswith("staged in ")
    assert copies_are_whole(data)
    assert (data.folder / "documents/own/manifest.json").is_file()
    assert len(fetched) == 3
    assert stage(data) == []
    assert len(fetched) == 3


def test_a_start_after_a_cut_one_fetches_what_is_missing(
    data: DataSettings, fetched: list[str]
) -> None:
    stage(data)
    (folder_of(data) / "train/shard-00001.arrow").unlink()
    (folder_of(data) / "train/shard-00002.arrow").write_bytes(b"half")
    stage(data)
    assert sorted(fetched[3:]) == ["shard-00001.arrow", "shard-00002.arrow"]
    assert copies_are_whole(data)


def test_a_new_manifest_is_noticed_and_only_other_bytes_are_fetched_again(
    data: DataSettings, fetched: list[str]
) -> None:
    stage(data)
    path = store_of(data) / "train/shard-00001.arrow"
    body = bytearray(path.read_bytes())
    body[-1] ^= 1  # of the same size
    path.write_bytes(body)
    vouch(store_of(data), 1)
    assert "len128/manifest.json has changed" in stage(data)[0]
    assert fetched[3:] == ["shard-00001.arrow"]
    assert copies_are_whole(data)


def test_a_store_that_does_not_answer_leaves_the_copy_in_use(
    data: DataSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(data)

    def silent(url: str) -> bytes:
        raise OSError(5, "no answer", url)

    monkeypatch.setattr(remote, "read", silent)
    assert "no answer): the copy in" in stage(data)[0]
    other = DataSettings(data.dir, 512, Pairing.nsp, MaskMode.static, stage=data.stage)
    with pytest.raises(SettingsError, match=r"cannot be read: .*no answer; check the name"):
        stage_manifest(other)


def test_a_wrong_byte_is_refused_with_file_and_checksums(data: DataSettings) -> None:
    path = store_of(data) / "train/shard-00001.arrow"
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    with pytest.raises(SettingsError, match=r"train/shard-00001\.arrow has checksum .* says"):
        stage(data)
    assert not (folder_of(data) / "train/shard-00001.arrow").exists()


def test_more_than_the_quota_is_refused_before_a_shard_is_fetched(
    data: DataSettings, fetched: list[str]
) -> None:
    data.stage_quota_gb = 1e-6
    with pytest.raises(
        SettingsError, match=r"needs 0\.\d+ GB more in .*; set data.stage_quota_gb="
    ):
        stage(data)
    assert fetched == []


def test_the_quota_that_the_refusal_names_is_enough(data: DataSettings) -> None:
    data.stage_quota_gb = 1e-6
    with pytest.raises(SettingsError) as refused:
        stage(data)
    data.stage_quota_gb = float(str(refused.value).split("set data.stage_quota_gb=")[1].split()[0])
    stage(data)
    data.stage_quota_gb = 1e-6  # all is there: nothing more is needed
    stage(data)


def test_a_disk_that_is_too_small_is_refused(data: DataSettings) -> None:
    stage_manifest(data)
    with pytest.raises(SettingsError, match="GB are free; make room, or set data"):
        check_room(data, 2**60)


def test_two_runs_of_a_node_do_not_fetch_at_the_same_time(
    data: DataSettings, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "POLL_S", 0.01)
    stage_manifest(data)
    thread = threading.Thread(target=stage, args=(data,))
    with only_process(data.folder / staging._LOCK):
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert fetched == []
    thread.join()
    assert len(fetched) == 3


def test_a_signal_ends_the_staging(data: DataSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "POLL_S", 0.01)
    stage_manifest(data)
    told = SimpleNamespace(requested=True)
    with only_process(data.folder / staging._LOCK):
        assert not stage_shards([data], ALONE, SILENT, told, print)


def test_a_name_of_the_store_that_leads_elsewhere_is_not_followed(
    data: DataSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "names_below", lambda url: ["../manifest.json"])
    stage(data)
    assert not (data.folder / "manifest.json").exists()


def test_a_folder_of_others_is_not_staged_to(
    data: DataSettings, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(staging, "is_private", lambda folder: False)
    data.stage = None
    with pytest.raises(SettingsError, match="not a folder that only you can write; set data"):
        stage_manifest(data)


def test_data_that_is_not_staged_names_what_stages_it(data: DataSettings) -> None:
    with pytest.raises(SettingsError, match=r"is not staged on this machine .*pretrain\.run"):
        manifest_of(data)

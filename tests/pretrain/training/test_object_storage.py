"""Runs with shards and checkpoints in an object store: its failures change no weight."""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from object_store import Proxy, relayed_store, upload
from run_in_fork import TINY, finished_run, pretrain_run

from data_prep.core.files import checksum
from data_prep.stores import remote
from pretrain.checkpoint.files import newest_step
from pretrain.run_folder.jsonl import readable_lines

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(600)]

RUN = (
    *TINY, "schedule.total_steps=6", "checkpoint.every_steps=2", "eval.every_steps=6",
    "eval.max_examples=8", "survival.rehearse=false", "data.masking=dynamic", "data.seq_len=128",
    "model.attention_probs_dropout_prob=0.1",
)  # fmt: skip
MIRROR = "checkpoint.mirror=s3://texts/mirror"


@pytest.fixture(scope="module")
def store(sample_dir: Path) -> Iterator[tuple[Any, Proxy]]:
    with relayed_store() as (client, proxy):
        for part in ("vocab", "len128"):
            upload(client, sample_dir / part, f"corpus/{part}")
        yield client, proxy


@pytest.fixture
def proxy(store) -> Iterator[Proxy]:
    client, proxy = store
    proxy.requests.clear()
    yield proxy
    proxy.is_down = False
    found = client.list_objects_v2(Bucket="texts", Prefix="mirror/").get("Contents", ())
    for entry in found:
        client.delete_object(Bucket="texts", Key=entry["Key"])


@pytest.fixture(scope="module")
def straight(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checksum of the weights of the run that was never stopped, on the local shards."""
    folder = tmp_path_factory.mktemp("straight")
    finished_run([*RUN, f"data.dir={sample_dir}"], folder)
    return weights(folder)


def weights(folder: Path) -> str:
    return checksum(folder / "runs/x/checkpoints/step-00000006/model.safetensors")


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [e for e in readable_lines(folder / "runs/x/events.jsonl") if e["event"] == kind]


def without_pauses(rank: int) -> None:
    remote.PAUSES_S = ()


def killed_at(name: str) -> Callable[[int], None]:
    """A hook that kills the process when it begins to send this file."""

    def hook(rank: int) -> None:
        send = remote.send

        def sent(path: Path, url: str) -> None:
            if url.endswith(name):
                os.kill(os.getpid(), signal.SIGKILL)
            send(path, url)

        remote.send = sent

    return hook


def test_two_ranks_of_a_node_stage_once_and_a_second_start_fetches_no_shard(
    proxy: Proxy, sample_dir: Path, tmp_path: Path
) -> None:
    shards = [f"/{p.parent.name}/{p.name}" for p in (sample_dir / "len128").glob("*/*.arrow")]
    staged = [*RUN, "data.dir=s3://texts/corpus", f"data.stage={tmp_path}/stage"]
    proxy.cuts = [10_000] * 3
    output = finished_run(staged, tmp_path, ranks=2)
    assert proxy.cuts == []
    assert f"{len(shards)} of {len(shards)} shards" in output
    assert all(proxy.count("HEAD", name) == 1 for name in shards)
    first = weights(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    finished_run([*RUN, f"data.dir={sample_dir}"], tmp_path, ranks=2)
    assert weights(tmp_path) == first
    shutil.rmtree(tmp_path / "runs")
    proxy.requests.clear()
    finished_run(staged, tmp_path, ranks=2)
    assert [r for r in proxy.requests if r.startswith("GET") and "corpus" in r] == [
        "GET /texts/corpus/len128/manifest.json"
    ]
    assert weights(tmp_path) == first


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["data.stage_quota_gb=0.0001"], "data.stage_quota_gb=0.0001 is the most; set"),
        (["data.dir=s3://texts/wrong"], r"checksum [0-9a-f]{32}, the manifest says [0-9a-f]{32}"),
        (["data.dir=s3://texts/nothing"], "there are no shards of 128 tokens at s3://texts/nothing"),
    ],
)  # fmt: skip
def test_shards_that_cannot_be_staged_are_refused_before_a_step(
    store, proxy: Proxy, sample_dir: Path, tmp_path: Path, more: Sequence[str], said: str
) -> None:
    if "wrong" in more[0]:
        for part in ("vocab", "len128"):
            upload(store[0], sample_dir / part, f"wrong/{part}")
        path = min((sample_dir / "len128/train").glob("*.arrow"))
        body = bytearray(path.read_bytes())
        body[len(body) // 2] ^= 1
        store[0].put_object(Bucket="texts", Key=f"wrong/len128/train/{path.name}", Body=bytes(body))
    statuses, output = pretrain_run(
        [*RUN, "data.dir=s3://texts/corpus", f"data.stage={tmp_path}/stage", *more], tmp_path
    )
    assert statuses == [2]
    assert re.search(said, output), output
    assert not (tmp_path / "runs").exists()


def test_a_run_whose_folder_is_lost_goes_on_from_the_mirror_to_the_same_weights(
    proxy: Proxy, sample_dir: Path, straight: str, tmp_path: Path
) -> None:
    mirrored = [*RUN, f"data.dir={sample_dir}", MIRROR]
    finished_run([*mirrored, "run.stop_after=4"], tmp_path)
    assert [event["step"] for event in events(tmp_path, "mirrored")][-1] == 4
    shutil.rmtree(tmp_path / "runs")
    output = finished_run(mirrored, tmp_path)
    assert "fetched step-00000004 from s3://texts/mirror/x" in output
    assert [event["step"] for event in events(tmp_path, "resumed")] == [4]
    assert weights(tmp_path) == straight


def test_a_kill_during_a_copy_leaves_the_copy_before(
    proxy: Proxy, sample_dir: Path, straight: str, tmp_path: Path
) -> None:
    mirrored = [*RUN, f"data.dir={sample_dir}", MIRROR]
    finished_run([*mirrored, "run.stop_after=2"], tmp_path)
    hook = killed_at("step-00000004/optimizer.safetensors")
    statuses, _ = pretrain_run([*mirrored, "run.stop_after=2"], tmp_path, hook=hook)
    assert statuses == [-signal.SIGKILL]
    shutil.rmtree(tmp_path / "runs")
    output = finished_run(mirrored, tmp_path)
    assert "fetched step-00000002 from" in output
    assert weights(tmp_path) == straight


def test_a_store_that_is_down_costs_no_step_and_the_next_start_sends_the_checkpoint(
    store, proxy: Proxy, sample_dir: Path, straight: str, tmp_path: Path
) -> None:
    mirrored = [*RUN, f"data.dir={sample_dir}", MIRROR]
    finished_run([*mirrored, "run.stop_after=2"], tmp_path)
    proxy.is_down = True
    output = finished_run(mirrored, tmp_path, hook=without_pauses)
    assert "cannot be read" in output
    assert output.count("is not copied to") == 1
    assert "the last checkpoint is not at s3://texts/mirror/x" in output
    failed = events(tmp_path, "mirror_failed")
    assert [event["failures"] for event in failed] == [*range(1, len(failed) + 1)]
    assert weights(tmp_path) == straight
    proxy.is_down = False
    finished_run(mirrored, tmp_path)
    assert events(tmp_path, "mirrored")[-1]["step"] == 6
    assert newest_step(tmp_path / "runs/x") == 6


def test_a_new_run_with_a_mirror_that_cannot_be_read_is_refused(
    proxy: Proxy, sample_dir: Path, tmp_path: Path
) -> None:
    proxy.is_down = True
    statuses, output = pretrain_run(
        [*RUN, f"data.dir={sample_dir}", MIRROR], tmp_path, hook=without_pauses
    )
    assert statuses == [2]
    assert "checkpoint.mirror: s3://texts/mirror/x cannot be read" in output
    assert not (tmp_path / "runs").exists()

"""What a run's start finds wrong: each is a sentence on every rank, however many ranks share it."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks_harness import run_ranks
from run_in_fork import TINY, finished_run

from data_prep.core.config import SettingsError
from data_prep.core.files import read_json, write_json
from pretrain.config import load
from pretrain.config.settings import Compile, Settings
from pretrain.distributed.ranks import Ranks
from pretrain.distributed.rendezvous import RankInfo
from pretrain.run_folder.jsonl import readable_lines
from pretrain.training import preflight as preflight_module
from pretrain.training.preflight import Preflight, RankMismatch, explain, preflight, summary

SMALL = (*TINY, "eval.max_examples=8", "engine.timeout_minutes=2", "schedule.total_steps=2")

Change = Callable[[Ranks, Settings], None]


def no_change(ranks: Ranks, settings: Settings) -> None:
    """All ranks are alike."""


def look(ranks: Ranks, change: Change, data_dir: Path, folder: Path) -> Any:
    """What a preflight on this rank says; `change` is made to the rank before."""
    arguments = [*SMALL, f"data.dir={data_dir}", f"run.dir={folder}"]
    settings, _ = load.load(arguments, ranks.world_size)
    change(ranks, settings)
    started = time.perf_counter()
    try:
        found = preflight(ranks, settings)
    except SettingsError as error:
        return str(error)
    return found.lines(), found.facts, found.warnings, time.perf_counter() - started


def another_version(ranks: Ranks, settings: Settings) -> None:
    if ranks.rank == 2:
        versions = preflight_module._versions(False)
        preflight_module._versions = lambda _: {**versions, "torch": "2.0.0"}


def another_checkout(ranks: Ranks, settings: Settings) -> None:
    """The last rank's node has a package in which one file is an older one."""
    if ranks.rank == 2:
        old = Path(settings.run.dir) / "old/pretrain"
        shutil.copytree(Path(str(preflight_module.pretrain.__file__)).parent, old)
        (old / "engine/engine.py").write_text("# of last week\n")
        preflight_module.pretrain.__file__ = str(old / "__init__.py")


def other_settings(ranks: Ranks, settings: Settings) -> None:
    if ranks.rank > 0:
        settings.optim.learning_rate = 0.5


def another_manifest(ranks: Ranks, settings: Settings) -> None:
    if ranks.rank == 1:
        stale = Path(settings.run.dir) / "stale"
        shutil.copytree(settings.data.dir, stale)
        manifest = read_json(stale / "len128/manifest.json")
        write_json(stale / "len128/manifest.json", {**manifest, "tokens_checksum": "another"})
        see_instead(settings.data.dir, stale)


def no_file_system(ranks: Ranks, settings: Settings) -> None:
    if ranks.rank == 1:
        see_instead(settings.data.dir, Path("/nowhere"))


def see_instead(data_dir: str, stale: Path) -> None:
    """This rank's node has other files under the same path."""
    manifest_of, checksum = preflight_module.manifest_of, preflight_module.checksum

    def moved(path: Path) -> Path:
        return stale / path.relative_to(data_dir) if path.is_relative_to(data_dir) else path

    def manifest_there(data: Any) -> Any:
        own, data.dir = data.dir, str(moved(Path(data.dir)))
        try:
            return manifest_of(data)
        finally:
            data.dir = own

    preflight_module.manifest_of = manifest_there
    preflight_module.checksum = lambda path: checksum(moved(path))


def a_wrong_sum(ranks: Ranks, settings: Settings) -> None:
    """On one rank one bit of the sum is another, as from a broken link."""
    all_reduce = torch.distributed.all_reduce

    def broken(values: torch.Tensor, *args: Any, **more: Any) -> Any:
        answer = all_reduce(values, *args, **more)
        if ranks.rank == 1 and values.numel() > 1000:
            values[4711] = 4.0
        return answer

    torch.distributed.all_reduce = broken


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (another_version,
         r"rank 2 on \S+ has torch 2.0.0 \(rank 0 has 2\.\S+\); give all nodes one"),
        (another_checkout,
         r"rank 2 on \S+ has pretrain/engine/engine.py of checksum \w+ \(rank 0 has of checksum "
         r"\w+\); bring the project's folder on that node up to date"),
        (other_settings,
         r"2 of 3 ranks, the first of them rank 1 on \S+, have optim.learning_rate 0.5 "
         r"\(rank 0 has 0.0015\); give every rank the same arguments"),
        (another_manifest,
         r"rank 1 on \S+ has \S+/len128/manifest.json of checksum \w+ \(rank 0 has of checksum "
         r"\w+\); check that the file system is mounted and up to date on that node"),
        (no_file_system,
         r"rank 1 on \S+ has \S+/len128/manifest.json unreadable: there are no shards of 128 "
         "tokens"),
        (a_wrong_sum,
         r"rank 1 on \S+ got a wrong sum from an all-reduce of 1,048,576 numbers: "
         r"4 at index 4,711 instead of 6 \(1 are wrong\)"),
    ],
)  # fmt: skip
def test_a_rank_that_is_not_like_rank_0_is_named_on_every_rank(
    change: Change, sentence: str, sample_dir: Path, tmp_path: Path
) -> None:
    texts = run_ranks(look, 3, change=change, data_dir=sample_dir, folder=tmp_path)
    assert isinstance(texts[0], str), "it was not refused"
    assert texts == [texts[0]] * 3
    assert re.match(sentence, texts[0]), texts[0]
    assert "\n" not in texts[0], "one thing is wrong: one sentence"


def test_what_a_thousand_ranks_share_is_reported_once() -> None:
    infos = [RankInfo(rank, f"node{rank // 8}", rank, "a CPU", "") for rank in range(1000)]
    old = RankMismatch("versions", (("torch", "2.12.0", "2.13.0"),), 0)
    differences = [[old] if rank >= 500 else [] for rank in range(1000)]
    (sentence,) = explain(differences, infos)
    ranks = "500 of 1000 ranks, the first of them rank 500 on node62"
    assert sentence.startswith(f"{ranks}, have torch 2.12.0 (rank 0 has 2.13.0); ")


def test_the_ranks_are_summed_up_in_a_line() -> None:
    infos = [RankInfo(rank, f"node{rank // 8}", rank, "NVIDIA A100", "") for rank in range(32)]
    assert summary(infos) == "32 ranks on 4 hosts, 8 each: NVIDIA A100"
    assert summary(infos[:13]) == "13 ranks on 2 hosts, 5 to 8 each: NVIDIA A100"
    assert summary(infos[:2]) == "2 ranks on 1 host: NVIDIA A100"


def disk_with(checkpoints: float) -> Change:
    """A disk with room for so many of rank 0's checkpoints."""

    def change(ranks: Ranks, settings: Settings) -> None:
        size = preflight_module.checkpoint_bytes(
            settings.model, 4096, settings.data.pairs, settings.optim.name
        )
        usage = SimpleNamespace(free=int(checkpoints * size))
        preflight_module.shutil.disk_usage = lambda path: usage

    return change


@pytest.mark.distributed
def test_a_disk_without_room_for_one_checkpoint_is_refused_on_every_rank(
    sample_dir: Path, tmp_path: Path
) -> None:
    texts = run_ranks(look, 2, change=disk_with(0.9), data_dir=sample_dir, folder=tmp_path)
    assert re.match(r"\S+/x/checkpoints has room for [\d.]+ MB, and a checkpoint takes", texts[0])
    assert texts[0] == texts[1]


@pytest.mark.distributed
def test_a_disk_without_room_for_those_to_be_kept_is_warned_of(sample_dir, tmp_path) -> None:
    def warnings_with(checkpoints: float) -> list[str]:
        change = disk_with(checkpoints)
        return run_ranks(look, 1, change=change, data_dir=sample_dir, folder=tmp_path)[0][2]

    (warning,) = warnings_with(3.9)
    assert "the 3 checkpoints to keep (checkpoint.keep) and the next one" in warning
    assert warnings_with(4) == []
    (tmp_path / "x/checkpoints/step-00000001").mkdir(parents=True)
    assert warnings_with(3) == [], "one of them is there"


@pytest.mark.distributed
def test_rests_of_a_killed_save_do_not_count_as_used(sample_dir: Path, tmp_path: Path) -> None:
    rest = tmp_path / "x/checkpoints/.step-00000001.tmp"
    rest.mkdir(parents=True)
    with (rest / "model.safetensors").open("wb") as file:
        file.truncate(10**9)
    arguments = {"data_dir": sample_dir, "folder": tmp_path}
    facts = run_ranks(look, 1, change=disk_with(0.5), **arguments)[0][1]
    assert facts["free_mb"] > 1000


@pytest.mark.distributed
def test_ranks_that_are_alike_start_and_the_all_reduce_is_measured(sample_dir, tmp_path) -> None:
    found = run_ranks(look, 2, change=no_change, data_dir=sample_dir, folder=tmp_path)
    lines, facts, *_ = found[0]
    assert re.fullmatch(
        r"2 ranks on 1 host: a CPU; all-reduce of 4 MB at [\d.]+ GB/s \(bus [\d.]+\)", lines[0]
    )
    algorithm = facts["algorithm_gb_per_s"]
    assert algorithm > 0
    assert facts["bus_gb_per_s"] == pytest.approx(algorithm, rel=1e-2), "2 (n-1)/n"


def test_variables_of_the_collectives_are_printed_once_and_recorded(monkeypatch) -> None:
    for name, value in {
        "NCCL_SOCKET_IFNAME": "ib0",
        "NCCL_DEBUG": "IN\x1bFO",
        "OTHER": "x",
    }.items():
        monkeypatch.setenv(name, value)
    found = preflight_module.collectives_environment(is_cuda=False)
    assert found["NCCL_SOCKET_IFNAME"] == "ib0"
    assert "OTHER" not in found
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    found = preflight_module.collectives_environment(is_cuda=True)
    info = RankInfo(0, "n0", 1, "a CPU", "")
    facts = {"all_reduce_mb": 4, "algorithm_gb_per_s": 1.0, "bus_gb_per_s": 1.0}
    lines = Preflight([], [info, info], {**facts, "environment": found}, Compile.false).lines()
    assert lines[1].startswith(
        "collectives: NCCL=2.27.3 NCCL_DEBUG=IN\\x1bFO NCCL_SOCKET_IFNAME=ib0"
    )
    assert len(Preflight([], [info, info], facts, Compile.false).lines()) == 1


@pytest.mark.distributed
def test_a_run_of_two_ranks_records_its_preflight_and_writes_the_map_of_ranks(
    sample_dir: Path, tmp_path: Path
) -> None:
    arguments = [*SMALL, f"data.dir={sample_dir}"]
    output = finished_run(arguments, tmp_path, ranks=2)
    assert len(re.findall(r"2 ranks on 1 host: a CPU; all-reduce", output)) == 1
    event = readable_lines(tmp_path / "runs/x/events.jsonl")[0]
    assert event["event"] == "preflight"
    assert event["bus_gb_per_s"] > 0
    assert event["checkpoint_mb"] < event["free_mb"]
    log = (tmp_path / "runs/x/logs/rank-00000.log").read_text()
    assert re.search(r"the ranks:\n  rank 0 .* process \d+ .*\n  rank 1 .* process \d+", log)

"""Checkpoints that are written while training goes on."""

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_samples import build_engine, build_model, global_batch, save_state
from ranks_harness import run_ranks
from safetensors.torch import load_file, save_file
from saver_samples import FileEngine, full_disk, saver_of

from data_prep.core.files import checksum, read_json
from pretrain.checkpoint import saver as saving
from pretrain.checkpoint.files import newest_whole, path_of
from pretrain.checkpoint.progress import Progress
from pretrain.checkpoint.saver import NotSavedError
from pretrain.config.settings import OnFailure, OptimizerName
from pretrain.distributed.ranks import Ranks
from pretrain.engine import snapshot
from pretrain.engine.snapshot import Layout, Snapshot

pytestmark = pytest.mark.distributed


class Held:
    """The middle of a writing, which lasts until `go`."""

    def __init__(self) -> None:
        self.is_reached, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.is_reached.set()
        assert self.go.wait(60)


def test_a_save_returns_while_the_checkpoint_is_being_written(tmp_path: Path) -> None:
    held, events = Held(), []
    saver = saver_of(tmp_path, FileEngine(10, held), events=events)
    saver.save(Progress.begin(step=10))
    assert held.is_reached.wait(60)
    assert not saver.has_ended
    assert newest_whole(tmp_path) is None
    assert events == []
    held.go.set()
    saver.settle()
    assert newest_whole(tmp_path) == path_of(tmp_path, 10)
    (event,) = events
    assert (event["event"], event["step"]) == ("checkpoint", 10)
    files = read_json(path_of(tmp_path, 10) / "manifest.json")["files"]
    assert event["bytes"] == sum(facts["bytes"] for facts in files.values())


def test_the_copy_is_not_overwritten_before_it_is_on_the_disk(tmp_path: Path) -> None:
    held = Held()
    engine = FileEngine(10, held)
    saver = saver_of(tmp_path, engine)
    saver.save(Progress.begin(step=10))
    thread = saver._write.thread
    join = thread.join
    thread.join = lambda *_: (held.go.set(), join())
    engine.number = 20
    saver.save(Progress.begin(step=20), is_last=True)
    for step in (10, 20):
        path = path_of(tmp_path, step)
        assert (path / "model.safetensors").read_text() == f"weights {step}"
        assert (path / "optimizer.safetensors").read_text() == f"moments {step}"


def trained(ranks: Ranks, folder: Path, stage: int) -> None:
    """Two steps, a save that is held up during two more, and a blocking save to compare it with."""
    engine = build_engine(ranks, stage, model=build_model(dropout=0.2))
    train_on(engine, 0, 2)
    blocking = folder / "blocking"
    if ranks.rank == 0:
        blocking.mkdir()
    save_state(engine, blocking)
    held, write = Held(), Snapshot.write

    def held_up(self: Snapshot, path: Path) -> dict[str, str]:
        held()
        return write(self, path)

    Snapshot.write = held_up
    saver = saver_of(folder, engine, ranks)
    saver.save(Progress.begin(step=2))
    train_on(engine, 2, 4)
    held.go.set()
    saver.settle()


def train_on(engine: Any, first: int, last: int) -> None:
    for position in range(first, last):
        batch = global_batch(position, engine.ranks.rank, engine.ranks.world_size)
        assert engine.train_step(batch, 1e-2).applied


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (1, 1), (3, 1), (0, 2), (2, 2)])
def test_a_checkpoint_is_that_of_its_step_though_training_has_gone_on(
    stage: int, ranks: int, tmp_path: Path
) -> None:
    run_ranks(trained, ranks, folder=tmp_path, stage=stage)
    path = newest_whole(tmp_path)
    for file in ("model.safetensors", "optimizer.safetensors", "engine.json"):
        assert (path / file).read_bytes() == (tmp_path / "blocking" / file).read_bytes()


def a_mistake() -> None:
    raise TypeError("a mistake in the code")


def save_until_it_fails(ranks: Ranks, run_folder: Path, fault: Callable[[], None]) -> str:
    """Rank 0 alone notices; the others learn of it where all come together."""
    saver = saver_of(run_folder, FileEngine(1, fault), ranks)
    if ranks.rank > 0:
        saver._snapshot = None
    saver.save(Progress.begin(step=1))
    while not ranks.any(saver.has_ended):
        pass  # as steps from record to record
    with pytest.raises(NotSavedError) as failure:
        saver.settle()
    return str(failure.value)


@pytest.mark.parametrize(
    ("fault", "reason"), [(full_disk, "No space left"), (a_mistake, "TypeError: a mistake")]
)
def test_a_failure_in_the_background_ends_every_rank(fault, reason, tmp_path) -> None:
    texts = run_ranks(save_until_it_fails, 2, run_folder=tmp_path, fault=fault)
    for text in texts:
        assert "step-00000001 could not be written" in text
        assert reason in text
    assert list((tmp_path / "checkpoints").iterdir()) == [], "its bytes may be the last"


def save_on_too_small_a_disk(ranks: Ranks, run_folder: Path) -> str:
    engine: Any = FileEngine(1)
    engine.state_bytes = 10**18
    engine.take = None  # no rank comes so far
    with pytest.raises(NotSavedError) as failure:
        saver_of(run_folder, engine, ranks).save(Progress.begin(step=1))
    return str(failure.value)


def test_a_full_disk_of_rank_0_ends_every_rank(tmp_path: Path) -> None:
    texts = run_ranks(save_on_too_small_a_disk, 2, run_folder=tmp_path)
    assert all("MB are free" in text for text in texts)


def test_with_go_on_a_failed_save_is_tried_again_at_the_next_interval(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    engine = FileEngine(10, full_disk)
    saver = saver_of(tmp_path, engine, on_failure=OnFailure.go_on, events=events)
    saver.save(Progress.begin(step=10))
    saver.settle()
    saver._snapshot.between = lambda: None
    saver.save(Progress.begin(step=20))
    saver.settle()
    assert newest_whole(tmp_path) == path_of(tmp_path, 20)
    assert [(e["event"], e["step"]) for e in events] == [
        ("checkpoint_failed", 10),
        ("checkpoint", 20),
    ]


def test_with_go_on_the_last_save_must_succeed(tmp_path: Path) -> None:
    saver = saver_of(tmp_path, FileEngine(10, full_disk), on_failure=OnFailure.go_on)
    with pytest.raises(NotSavedError):
        saver.save(Progress.begin(step=10), is_last=True)


def test_an_exception_waits_for_what_is_being_written(tmp_path: Path) -> None:
    held = Held()

    def break_off() -> None:
        with saver_of(tmp_path, FileEngine(10, held)) as saver:
            saver.save(Progress.begin(step=10))
            held.go.set()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert newest_whole(tmp_path) == path_of(tmp_path, 10)


def save_for_ever(run_folder: Path) -> None:
    saving.LONGEST_FAREWELL_S = 0.1
    with saver_of(run_folder, FileEngine(10, threading.Event().wait)) as saver:
        saver.save(Progress.begin(step=10))
        raise SystemExit(3)


def test_a_disk_that_hangs_keeps_no_process_alive_and_leaves_no_half_checkpoint(tmp_path) -> None:
    process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(tmp_path,))
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == 3
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [".step-00000010.tmp"]


def test_the_checksum_of_a_file_is_known_without_reading_it_again(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = {"b.weight": (3, 5), "a.bias": (7,), "c.one": (1, 1)}
    tensors = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    path = tmp_path / "model.safetensors"
    assert snapshot._write_tensors(path, tensors) == checksum(path)


def test_what_is_damaged_on_its_way_to_the_disk_is_found(tmp_path, monkeypatch) -> None:
    def damaged(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save_file({**tensors, "w": tensors["w"] + 1}, path)

    monkeypatch.setattr(snapshot, "save_file", damaged)
    path = tmp_path / "model.safetensors"
    expected = snapshot._write_tensors(path, {"w": torch.ones(4)})
    assert load_file(path)["w"].tolist() == [2, 2, 2, 2]
    assert checksum(path) != expected


def test_a_host_without_memory_for_the_copy_is_a_clear_error() -> None:
    layout = Layout(OptimizerName.adamw.name, {"w": [10**15]}, {"w": "decayed"})
    said = r"lacks 12,000,000\.0 GB for the copy of weights and mom"
    with pytest.raises(RuntimeError, match=said):
        Snapshot.allocate(layout, torch.device("cpu"))

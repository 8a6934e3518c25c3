import errno
import itertools
import logging
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from damage import flip_a_bit
from engine_samples import (
    MANY_MICRO_STEPS,
    build_engine,
    build_model,
    gathered,
    global_batch,
    save_state,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks_harness import run_ranks
from safetensors.torch import load_file
from saver_samples import ALONE, FileEngine, full_disk, saver_of
from slow_cases import slow_but

from data_prep.core.config import SettingsError, compose
from data_prep.core.files import read_json
from pretrain.checkpoint.files import find_fault, load_checkpoint, newest_whole, path_of
from pretrain.checkpoint.progress import Progress
from pretrain.checkpoint.saver import NotSavedError
from pretrain.config.settings import OptimizerName, Precision, Settings
from pretrain.distributed.ranks import Ranks
from pretrain.engine.deepspeed_setup import GatheredParameters
from pretrain.engine.engine import Engine

FP32, AUTOCAST = Precision.fp32, Precision.bf16_autocast
BF16, FP16 = Precision.bf16, Precision.fp16  # which the tests make DeepSpeed allow


STEPS = [5, 10, 15, 20, 25, 30]


def save(
    run_folder: Path, step: int, keep: int = 9, between: Any = lambda: None, **more: Any
) -> Path:
    saver = saver_of(run_folder, FileEngine(step, between), keep=keep, **more)
    saver.save(msgspec.structs.replace(Progress.begin(step=step), position=7), is_last=True)
    return path_of(run_folder, step)


def names(run_folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder / "checkpoints").iterdir())


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) is None
    path = save(tmp_path, 1000)
    assert path == newest_whole(tmp_path) == tmp_path / "checkpoints" / "step-00001000"
    engine: Any = FileEngine()
    state = load_checkpoint(path, engine, ALONE)
    assert engine.number == 1000
    assert (state.step, state.position, state.identity) == (1000, 7, {"run.seed": 1})


@pytest.mark.parametrize(
    ("keep", "keep_every", "kept_step", "kept"),
    [
        (2, None, None, [25, 30]), (1, 10, None, [10, 20, 30]), (9, None, None, STEPS),
        (1, None, 15, [15, 30]),
    ],
)  # fmt: skip
def test_the_newest_are_kept_and_every_so_many_steps_one_for_good(
    tmp_path, keep, keep_every, kept_step, kept
) -> None:
    for step in STEPS:
        save(tmp_path, step, keep=keep, keep_every=keep_every, kept_step=kept_step)
    assert names(tmp_path) == [f"step-{step:08d}" for step in kept]


def test_later_broken_checkpoints_do_not_push_out_a_whole_one(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step-00000020" / "manifest.json").unlink()
    path = save(tmp_path, 15, keep=1)
    assert newest_whole(tmp_path) == path
    assert names(tmp_path) == ["step-00000015", "step-00000020"]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Files of these names cannot be removed: they are held open on NFS, or are mount points."""
    held, unlink = set[str](), os.unlink

    def refusing(path: Any, *, dir_fd: int | None = None) -> None:
        if Path(os.fspath(path)).name in held:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refusing)
    return held


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning_and_the_new_one_counts(
    tmp_path: Path, held: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 5, keep=1)
    (path_of(tmp_path, 5) / ".nfs0001").touch()
    held.add(".nfs0001")
    for step in (10, 15):
        assert save(tmp_path, step, keep=1) == newest_whole(tmp_path)
    (stays,) = [name for name in names(tmp_path) if name.startswith(".")]
    assert names(tmp_path) == [stays, "step-00000015"]
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 1, "once, though each save tries again"
    assert "step-00000005" in warnings[0]
    assert "Device or resource busy" in warnings[0]
    held.clear()
    save(tmp_path, 20, keep=1)
    assert names(tmp_path) == ["step-00000020"]


def test_what_a_killed_save_left_and_cannot_be_removed_is_not_part_of_the_next(
    tmp_path: Path, held: set[str]
) -> None:
    left = tmp_path / "checkpoints/.step-00000005.tmp"
    left.mkdir(parents=True)
    (left / ".nfs0001").touch()
    held.add(".nfs0001")
    path = save(tmp_path, 5)
    assert newest_whole(tmp_path) == path
    assert not (path / ".nfs0001").exists()


def test_a_broken_checkpoint_that_cannot_be_removed_is_replaced(tmp_path, held) -> None:
    broken = save(tmp_path, 5)
    (broken / "model.safetensors").write_text("")
    held.add("model.safetensors")
    assert save(tmp_path, 5) == newest_whole(tmp_path)


def test_an_old_checkpoint_that_cannot_even_be_renamed_stays_whole(tmp_path, monkeypatch) -> None:
    save(tmp_path, 5, keep=1)
    rename = os.rename

    def refusing(source: Any, target: Any) -> None:
        if "step-00000005" in str(source):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", refusing)
    save(tmp_path, 10, keep=1)
    assert find_fault(path_of(tmp_path, 5)) is None
    assert newest_whole(tmp_path) == path_of(tmp_path, 10)


def test_a_step_saved_again_replaces_a_broken_checkpoint(tmp_path: Path) -> None:
    (save(tmp_path, 10) / "model.safetensors").unlink()
    path = save(tmp_path, 10)
    assert newest_whole(tmp_path) == path
    assert names(tmp_path) == ["step-00000010"]


def test_the_manifest_vouches_for_every_other_file(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    files = {file.name for file in path.iterdir()} - {"manifest.json"}
    assert read_json(path / "manifest.json")["files"].keys() == files
    assert files == {"model.safetensors", "optimizer.safetensors", "state.json"}


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: os.truncate(path, path.stat().st_size - 1), "bytes instead of"),
        (lambda path: flip_a_bit(path, -1), "checksum"),
        (Path.unlink, "missing"),
    ],
)
def test_a_broken_checkpoint_is_passed_over_and_named(
    tmp_path, caplog, file, damage, reason
) -> None:
    whole, broken = save(tmp_path, 10), save(tmp_path, 20)
    damage(broken / file)
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path) == whole
    assert re.search(f"{broken} is broken and passed over: {file} .*{reason}", caplog.text)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    run_folder = tmp_path_factory.mktemp("run")
    return save(run_folder, 10), save(run_folder, 20)


@given(data=st.data())
@settings(max_examples=100)
def test_any_byte_of_any_file_of_a_checkpoint_is_vouched_for(two_checkpoints, data) -> None:
    """One bit is another, or the file ends there; the manifest's own bytes are no exception."""
    older, newer = two_checkpoints
    path = data.draw(st.sampled_from(sorted(newer.iterdir())))
    content = path.read_bytes()
    last = len(content) - (2 if path.suffix == ".json" else 1)  # without its newline it is the same
    place = data.draw(st.integers(0, last))
    bit = data.draw(st.none() | st.integers(0, 7))
    changed = b"" if bit is None else bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
    path.write_bytes(content[:place] + changed)
    try:
        fault = find_fault(newer)
        assert fault is not None
        assert path.name in fault or path.name == "manifest.json"
        assert newest_whole(older.parents[1]) == older
    finally:
        path.write_bytes(content)


LATER = b'{"schema_version": 2, "files": {}}'


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, ""), (b"", ""), (b"{", ""), (b"[]", ""), (b'{"files": 3}', ""),
     (LATER, "Invalid enum value 2 - at `$.schema_version`")],
)  # fmt: skip
def test_a_broken_manifest_or_one_of_a_later_schema_is_a_fault(tmp_path, content, said) -> None:
    path = save(tmp_path, 10)
    (path / "manifest.json").unlink()
    if content is not None:
        (path / "manifest.json").write_bytes(content)
    fault = find_fault(path)
    assert fault
    assert said in fault
    assert newest_whole(tmp_path) is None


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(*arguments: Any) -> None:
    """A `save` in another process, which is killed in it."""
    process = multiprocessing.get_context("fork").Process(target=save, args=arguments)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


def test_a_kill_in_the_middle_of_a_save_leaves_the_older_one(tmp_path: Path) -> None:
    older = save(tmp_path, 10)
    killed(tmp_path, 20, 9, die)
    assert newest_whole(tmp_path) == older
    assert names(tmp_path) == [".step-00000020.tmp", "step-00000010"]
    save(tmp_path, 30)
    assert names(tmp_path) == ["step-00000010", "step-00000030"], "the rest is cleared away"


@pytest.mark.parametrize("moment", ["_seal", "put_in_place", "_remove_old"])
def test_a_kill_later_in_a_save_leaves_a_whole_one(tmp_path, monkeypatch, moment) -> None:
    save(tmp_path, 10)
    monkeypatch.setattr(f"pretrain.checkpoint.files.{moment}", die)
    killed(tmp_path, 20, 1)
    assert newest_whole(tmp_path).name == (
        "step-00000020" if moment == "_remove_old" else "step-00000010"
    )


def test_a_full_disk_is_one_error_and_leaves_the_older_one_and_nothing_half_made(tmp_path) -> None:
    older = save(tmp_path, 10)
    with pytest.raises(NotSavedError, match=r"step-00000020 could not be written.*No space left"):
        save(tmp_path, 20, between=full_disk)
    assert newest_whole(tmp_path) == older
    assert names(tmp_path) == ["step-00000010"]


def test_too_small_a_disk_is_seen_before_anything_is_written(tmp_path, monkeypatch) -> None:
    older = save(tmp_path, 10)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(FileEngine, "state_bytes", usage.free + 10**9)
    monkeypatch.setattr(FileEngine, "take", lambda *_: pytest.fail("it was taken"))
    said = r"it takes [\d,.]+ MB, [\d,.]+ MB are free\); make room"
    with pytest.raises(NotSavedError, match=said):
        save(tmp_path, 20)
    assert newest_whole(tmp_path) == older


def size_and_files(ranks: Ranks, folder: Path) -> tuple[int, int]:
    engine = build_engine(ranks, 3)
    save_state(engine, folder)
    return engine.state_bytes, sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.distributed
def test_the_size_known_beforehand_is_that_of_what_is_written(tmp_path: Path) -> None:
    expected, written = run_ranks(size_and_files, 1, folder=tmp_path)[0]
    assert expected <= written < expected + 20_000, "the files' headers come to it"


def continue_training(engine: Engine, first: int, last: int) -> list[list[float]]:
    """Sums over the ranks of each step; equal only if every bit of every rank's is."""
    ranks, losses = engine.ranks, []
    for position in range(first, last):
        batch = global_batch(position, ranks.rank, ranks.world_size, MANY_MICRO_STEPS)
        losses.append(ranks.sum(engine.train_step(batch, 1e-3 * (position + 1)).sums.tolist()))
    return losses


def start(
    ranks: Ranks, run_folder: Path, stage: int, precision: Precision, dropout: float, **optim: Any
) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    engine = build_engine(ranks, stage, precision, build_model(dropout=dropout), **optim)
    continue_training(engine, 0, 3)
    saver = saver_of(run_folder, engine, ranks)
    saver.save(msgspec.structs.replace(Progress.begin(step=3), position=3))
    losses = continue_training(engine, 3, 6)  # while it is written
    saver.settle()
    return losses, gathered(engine)


def resume(
    ranks: Ranks, run_folder: Path, stage: int, precision: Precision, dropout: float, **optim: Any
) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    engine = build_engine(ranks, stage, precision, build_model(seed=1, dropout=dropout), **optim)
    path = ranks.broadcast(newest_whole(run_folder) if ranks.rank == 0 else None)
    state = load_checkpoint(path, engine, ranks)
    again = run_folder / "again"
    if ranks.rank == 0:
        again.mkdir()
    save_state(engine, again)
    return continue_training(engine, state.position, 6), gathered(engine)


def assert_loaded_as_saved(run_folder: Path) -> None:
    """Masters, moments, optimizer step and loss scaler."""
    for file in ("model.safetensors", "optimizer.safetensors", "engine.json"):
        saved = (run_folder / "checkpoints" / "step-00000003" / file).read_bytes()
        assert (run_folder / "again" / file).read_bytes() == saved


ADAM = [(0, FP32), (0, AUTOCAST), *itertools.product((1, 2, 3), (FP32, AUTOCAST, BF16, FP16))]
CASES = [(*case, "adamw") for case in ADAM] + [
    (stage, FP32, optim) for optim in ("lamb_nvidia", "muon") for stage in (0, 1, 2, 3)
]
FAST = [(0, FP32, "muon"), (1, BF16, "adamw"), (3, FP16, "adamw")]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "precision", "optim"),
    slow_but(FAST, CASES),
)
def test_a_resumed_run_is_bit_equal_to_one_that_went_on(stage, precision, optim, tmp_path) -> None:
    arguments = {"run_folder": tmp_path, "stage": stage, "precision": precision, "dropout": 0.2}
    if optim != "adamw":
        arguments |= vars(compose("config", Settings, ["+model=tiny", f"optim={optim}"])[0].optim)
    losses, weights = run_ranks(start, 2, **arguments)[0]
    resumed_losses, resumed_weights = run_ranks(resume, 2, **arguments)[0]
    assert_loaded_as_saved(tmp_path)
    assert resumed_losses == losses
    assert all(torch.equal(resumed_weights[name], weights[name]) for name in weights)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "world_size", "other_stage", "other_world_size"),
    slow_but(
        [(1, 2, 3, 3), (3, 2, 0, 1)], [(1, 2, 3, 3), (3, 2, 0, 1), (0, 1, 2, 4), (2, 3, 1, 1)]
    ),
)
def test_a_checkpoint_fits_other_stages_and_numbers_of_ranks(
    stage: int, world_size: int, other_stage: int, other_world_size: int, tmp_path: Path
) -> None:
    arguments = {"run_folder": tmp_path, "precision": FP32, "dropout": 0.0}
    losses, _ = run_ranks(start, world_size, stage=stage, **arguments)[0]
    resumed, _ = run_ranks(resume, other_world_size, stage=other_stage, **arguments)[0]
    assert_loaded_as_saved(tmp_path)
    for (mlm, nsp, *_), (resumed_mlm, resumed_nsp, *_) in zip(losses, resumed, strict=True):
        assert (resumed_mlm, resumed_nsp) == pytest.approx((mlm, nsp), rel=1e-5)


def live_and_saved(ranks: Ranks, folder: Path, stage: int) -> Any:
    """The weights that the forward pass reads, on a rank that does not save them."""
    engine = build_engine(ranks, stage)
    continue_training(engine, 0, 2)
    save_state(engine, folder)
    parameters = list(engine._state.parameters.values())
    with GatheredParameters(parameters, enabled=stage == 3):
        live = {name: p.detach().clone() for name, p in engine._state.parameters.items()}
    return live, gathered(engine)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_consolidated_weights_are_the_live_ones(stage: int, tmp_path: Path) -> None:
    (_, full), (live, nothing) = run_ranks(live_and_saved, 2, folder=tmp_path, stage=stage)
    saved = load_file(tmp_path / "model.safetensors")
    assert nothing == {}
    assert saved.keys() == full.keys() == live.keys()
    for name in live:
        assert torch.equal(live[name], saved[name]), name
        assert torch.equal(live[name], full[name]), name
        assert saved[name].dtype == torch.float32


class Regrouped(Engine):
    """An engine whose code has moved one parameter to the other group."""

    def load(self, folder: Path) -> None:
        self._layout.groups["pooler.weight"] = "not decayed"
        super().load(folder)


def load_otherwise(ranks: Ranks, folder: Path) -> list[str]:
    save_state(build_engine(ranks, 1), folder)
    ranks.barrier()
    regrouped = build_engine(ranks, 1)
    regrouped.__class__ = Regrouped
    smaller = build_model()
    smaller.pooler = torch.nn.Linear(20, 10)
    others = [
        regrouped,
        build_engine(ranks, 1, name=OptimizerName.bert_adam),
        build_engine(ranks, 1, model=smaller),
    ]
    texts = []
    for engine in others:
        with pytest.raises(SettingsError) as refusal:
            engine.load(folder)
        texts.append(str(refusal.value))
    return texts


@pytest.mark.distributed
def test_a_state_of_another_make_is_refused_and_both_sides_named(tmp_path: Path) -> None:
    groups, optimizer, shapes = run_ranks(load_otherwise, 1, folder=tmp_path)[0]
    assert re.search(r"pooler\.weight .* group 'decayed' in .* and 'not decayed' in this", groups)
    assert re.search(r"with optim=adamw and this run has optim=bert_adam", optimizer)
    assert re.search(r"pooler\.bias .* shape \[20\] in .* and \[10\] in this run", shapes)

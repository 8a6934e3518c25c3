"""The memory that checkpoints are written from: as much as is asked for, and given back."""

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.engine import snapshot as snapshot_module
from pretrain.engine.snapshot import MOMENTS, WEIGHT, Layout, Snapshot

SHAPES = {"matrix": [30, 7], "bias": [7], "scalar": []}
LAYOUT = Layout("adamw", SHAPES, dict.fromkeys(SHAPES, "decayed"))
SIZE = 30 * 7 + 7 + 1


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The page-locked memory of a pretended GPU: address to bytes."""
    pages: dict[int, int] = {}
    monkeypatch.setattr(snapshot_module, "pin_memory", pages.__setitem__)
    monkeypatch.setattr(snapshot_module, "unpin_memory", pages.pop)
    return pages


def test_for_a_gpu_twelve_bytes_per_parameter_are_page_locked_and_no_more(
    locked: dict[int, int],
) -> None:
    snapshot = Snapshot.allocate(LAYOUT, torch.device("cuda"))
    assert list(locked.values()) == [4 * SIZE] * 3, "weights and two moments"
    for tensors in snapshot.tensors.values():
        for tensor in tensors.values():
            (start,) = (start for start in locked if 0 <= tensor.data_ptr() - start < locked[start])
            assert tensor.data_ptr() + tensor.nbytes <= start + locked[start]


def test_the_pages_are_unlocked_when_the_snapshot_goes(locked: dict[int, int]) -> None:
    snapshot = Snapshot.allocate(LAYOUT, torch.device("cuda"))
    assert len(locked) == 3
    del snapshot
    gc.collect()
    assert not locked


def test_on_a_cpu_nothing_is_page_locked(locked: dict[int, int]) -> None:
    Snapshot.allocate(LAYOUT, torch.device("cpu"))
    assert not locked


def test_too_little_memory_is_one_error_with_the_size_and_the_cure(monkeypatch) -> None:
    def refused(*_: int) -> None:
        raise RuntimeError("cudaError: 2")

    monkeypatch.setattr(snapshot_module, "pin_memory", refused)
    with pytest.raises(RuntimeError, match=r"rank 0 lacks 0.0 GB .*cudaError: 2.*sbatch --mem="):
        Snapshot.allocate(LAYOUT, torch.device("cuda"))


def test_tensors_of_one_row_are_written_as_tensors_of_their_own(tmp_path: Path) -> None:
    snapshot = Snapshot.allocate(LAYOUT, torch.device("cpu"))
    number = 0.0
    for key in (WEIGHT, *MOMENTS):
        for tensor in snapshot.tensors[key].values():
            tensor.fill_(number := number + 1)
    snapshot.write(tmp_path)
    weights, moments = (
        load_file(tmp_path / f"{name}.safetensors") for name in ("model", "optimizer")
    )
    assert {name: (list(t.shape), t.unique().item()) for name, t in weights.items()} == {
        "matrix": ([30, 7], 1), "bias": ([7], 2), "scalar": ([], 3),
    }  # fmt: skip
    assert moments["exp_avg.matrix"].unique().item() == 4
    assert moments["exp_avg_sq.scalar"].item() == 9
    assert len(moments) == 6


def test_a_matrix_that_muon_updates_has_one_moment(tmp_path: Path) -> None:
    groups = {"matrix": "matrices", "bias": "not decayed", "scalar": "not decayed"}
    layout = Layout("muon", SHAPES, groups)
    Snapshot.allocate(layout, torch.device("cpu")).write(tmp_path)
    moments = load_file(tmp_path / "optimizer.safetensors")
    assert set(moments) == {f"exp_avg.{name}" for name in SHAPES} | {
        "exp_avg_sq.bias", "exp_avg_sq.scalar",
    }  # fmt: skip
    assert layout.state_bytes == 4 * (3 * SIZE - 30 * 7)

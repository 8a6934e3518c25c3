"""The memory that checkpoints are written from, and the bytes of them that a rank reads."""

import gc
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain.engine import snapshot as snapshot_module
from pretrain.engine.snapshot import MOMENTS, WEIGHT, Layout, Snapshot, read_tensors

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


def resident_bytes(path: Path) -> int:
    """How much of a file this process has mapped and touched."""
    entries = re.split(
        r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M
    )
    own = [entry for entry in entries if str(path) in entry.partition("\n")[0]]
    return 1024 * sum(int(re.search(r"^Rss: +(\d+)", entry, re.M)[1]) for entry in own)


def test_a_rank_reads_its_part_of_a_tensor_and_not_the_rest_of_the_file(tmp_path: Path) -> None:
    size = 8_000_000  # the kernel maps up to 2 MB around what is touched
    path = tmp_path / snapshot_module.MODEL_FILE
    save_file({"matrix": torch.zeros(size // 2, 2)}, path)
    save_file({}, tmp_path / snapshot_module.OPTIMIZER_FILE)
    stored = read_tensors(tmp_path)
    key, name, value = next(stored)
    before = resident_bytes(path)
    part = value.reshape(-1)[size // 2 : size // 2 + size // 16].clone()
    read = resident_bytes(path)
    assert (key, name, value.shape) == (WEIGHT, "matrix", (size // 2, 2))
    assert before + part.nbytes <= read < path.stat().st_size / 4

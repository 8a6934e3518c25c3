"""The mean of a run's last checkpoints: its numbers, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from damage import flip_a_bit
from made_run import made_checkpoint

from data_prep.core.config import SettingsError
from pretrain.average import main
from pretrain.checkpoint.average import last_checkpoints, mean_weights


def weights(seed: int, rows: int = 7) -> dict[str, torch.Tensor]:
    """Two parameters whose mean in fp32 would lose digits."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "matrix": 1e4 * torch.randn(rows, 5, generator=generator),
        "bias": torch.randn(rows, generator=generator),
    }


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Six checkpoints, of steps 10 to 60."""
    for step in range(10, 70, 10):
        made_checkpoint(tmp_path, step, weights(step))
    return tmp_path


def test_it_is_the_naive_mean_to_the_last_bit(run_folder: Path) -> None:
    found = mean_weights(last_checkpoints(run_folder, 5))
    for name, mean in found.items():
        each = [weights(step)[name].numpy().astype(np.float64) for step in range(20, 70, 10)]
        expected = (sum(each) / 5).astype(np.float32)
        np.testing.assert_array_equal(mean.numpy(), expected)
    assert {mean.dtype for mean in found.values()} == {torch.float32}


def test_the_newest_are_taken_and_all_if_there_are_fewer(run_folder: Path) -> None:
    names = [path.name for path in last_checkpoints(run_folder, 2)]
    assert names == ["step-00000050", "step-00000060"]
    assert len(last_checkpoints(run_folder, 99)) == 6


def test_fewer_than_two_are_refused(tmp_path: Path) -> None:
    made_checkpoint(tmp_path, 10, weights(10))
    with pytest.raises(SettingsError, match=r"has 1 checkpoint\(s\).*checkpoint\.keep_every=N"):
        last_checkpoints(tmp_path, 5)


def test_last_1_is_refused_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run=nowhere", "last=1"]) == 2
    assert "last=1; it takes 2 or more" in capsys.readouterr().err


def test_a_damaged_one_is_refused_by_its_fault(run_folder: Path) -> None:
    flip_a_bit(run_folder / "checkpoints" / "step-00000040" / "model.safetensors")
    with pytest.raises(SettingsError, match=r"step-00000040 is damaged \(.*differs\); move it out"):
        last_checkpoints(run_folder, 5)
    assert len(last_checkpoints(run_folder, 2)) == 2  # it is not one of these


def test_those_of_an_earlier_phase_are_refused_with_what_to_type(run_folder: Path) -> None:
    made_checkpoint(run_folder, 70, weights(70), phase=2)
    with pytest.raises(SettingsError, match=r"phase 1 and step-00000070 of phase 2.*has two"):
        last_checkpoints(run_folder, 5)
    made_checkpoint(run_folder, 80, weights(80), phase=2)
    with pytest.raises(SettingsError, match=r"of phase 2; .*: give last=2$"):
        last_checkpoints(run_folder, 5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (weights(0, rows=8), r"step-00000005: bias has the shape \(8,\), and \(7,\) in step"),
        ({"matrix": weights(0)["matrix"]}, r"bias has the shape None, and \(7,\)"),
        ({**weights(0), "more": torch.ones(1)}, r"more has the shape \(1,\), and None"),
    ],
)
def test_other_parameters_or_shapes_are_refused(run_folder, other, message) -> None:
    made_checkpoint(run_folder, 5, other)
    with pytest.raises(SettingsError, match=message):
        mean_weights(last_checkpoints(run_folder, 9))

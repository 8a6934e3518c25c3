"""FLOP as published, peaks by the device's name, goodput over starts."""

from pathlib import Path

import orjson
import pytest
import torch

from data_prep.core.config import compose
from pretrain.config.settings import Precision, Settings
from pretrain.metrics.throughput import Goodput, Work, known_peak, model_flop, peak_tflops


def test_model_flop_are_the_known_counts() -> None:
    """Of real lengths at 512 tokens; test_step_time.py has those of full sequences."""
    settings, _ = compose("config", Settings, ["+model=large"])
    work = Work(1000, 255_830, 98_826_000, 38_400)
    assert model_flop(settings.model, 30_528, work) == pytest.approx(1e12 * 500.15, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 80GB HBM3", 989.0), ("Tesla V100-SXM2-16GB", 125.0), ("NVIDIA A10", 125.0),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)  # fmt: skip
def test_a_peak_is_known_by_the_devices_name_or_left_out(name: str, peak: float | None) -> None:
    assert known_peak(name) == peak


def test_a_stated_peak_counts_on_any_device() -> None:
    cpu = torch.device("cpu")
    assert peak_tflops(0.07, cpu, Precision.fp32) == 0.07
    assert peak_tflops(None, cpu, Precision.fp32) is None


def test_goodput_counts_the_steps_that_are_left_over_the_whole_time(tmp_path: Path) -> None:
    def write(name: str, *lines: dict[str, object]) -> None:
        (tmp_path / name).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))

    write("events.jsonl", {"time": "2030-01-01T00:00:00+00:00", "event": "started"})
    write(
        "metrics.jsonl",
        {"step": 10, "time": "2030-01-01T00:01:00+00:00", "perf/training_seconds": 40.0},
        {"step": 10, "time": "2030-01-01T00:01:10+00:00", "eval/loss": 5.0},
        {"step": 20, "time": "2030-01-01T00:02:00+00:00", "perf/training_seconds": 50.0},
    )
    began = 1893456000.0  # 2030-01-01
    goodput = Goodput.read(tmp_path)
    assert goodput.after(30.0, now=began + 200) == pytest.approx((40 + 50 + 30) / 200)
    assert goodput.after(30.0, now=began + 400) == pytest.approx((40 + 50 + 30 + 30) / 400)

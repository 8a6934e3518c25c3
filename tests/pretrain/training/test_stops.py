"""A run that is told to stop: it saves, names the step, and continues as if nothing had been."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import at_step
from run_in_fork import TINY, Hook, finished_run, pretrain_run

from data_prep.core.files import checksum
from pretrain.distributed.clock import StopCheck
from pretrain.run_folder.jsonl import readable_lines
from pretrain.training.phase import PhaseTraining

pytestmark = pytest.mark.distributed

SHORT = (
    *TINY, "schedule.total_steps=8", "eval.every_steps=8", "eval.max_examples=16",
    "monitor.every_steps=100", "checkpoint.every_steps=100", "engine.timeout_minutes=2",
)  # fmt: skip


def weights(folder: Path) -> str:
    return checksum(folder / "runs/x/checkpoints/step-00000008/model.safetensors")


def recorded(folder: Path) -> list[int]:
    records = readable_lines(folder / "runs/x/metrics.jsonl")
    return [record["step"] for record in records if "train/loss" in record]


@pytest.fixture(scope="module")
def typed(sample_dir: Path) -> list[str]:
    return [*SHORT, f"data.dir={sample_dir}"]


@pytest.fixture(scope="module")
def straight(typed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    finished_run(typed, folder)
    return folder


def slowly(then: Hook) -> Hook:
    """A hook: every step is one that takes long; then another hook."""

    def hook(rank: int) -> None:
        StopCheck.CHECK_S = 1e-9
        then(rank)

    return hook


def test_ctrl_c_saves_and_the_last_line_names_the_step_of_the_next_start(
    typed: list[str], straight: Path, tmp_path: Path
) -> None:
    statuses, output = pretrain_run(typed, tmp_path, hook=slowly(at_step(3, signal.SIGINT)))
    assert statuses == [130]
    assert "Traceback" not in output
    lines = output.splitlines()
    assert "pretrain.run: saving after this step; Ctrl-C again ends at once" in output
    assert lines[-1] == "pretrain.run: stopped; the same command continues from step 3"
    assert "resumed: step=3" in finished_run(typed, tmp_path)
    assert weights(tmp_path) == weights(straight)
    assert recorded(tmp_path) == [3, 8]


def test_ctrl_c_to_all_ranks_saves_once_and_no_rank_prints_a_stack(typed, tmp_path) -> None:
    hook = slowly(at_step(3, signal.SIGINT, of_rank=None))
    statuses, output = pretrain_run(typed, tmp_path, ranks=2, hook=hook)
    assert statuses == [130, 130]
    assert "Traceback" not in output
    assert output.count("pretrain.run: saving after this step") == 1
    assert output.splitlines()[-1].endswith("the same command continues from step 3")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_in_a_long_step_does_not_wait_for_the_next_record(
    typed: list[str], straight: Path, tmp_path: Path, number: int
) -> None:
    hook = slowly(at_step(2, number, of_rank=1))
    output = finished_run(typed, tmp_path, ranks=2, hook=hook)
    assert (
        output.splitlines()[-1] == "pretrain.run: stopped; the same command continues from step 2"
    )
    assert recorded(tmp_path) == [2]


def test_a_signal_in_short_steps_waits_for_the_next_look(typed: list[str], tmp_path: Path) -> None:
    def hook(rank: int) -> None:
        StopCheck.CHECK_S = 1e9
        at_step(3, signal.SIGTERM)(rank)

    finished_run(typed, tmp_path, hook=hook)
    assert recorded(tmp_path) == [8]


@pytest.mark.parametrize("place", ["a-folder", "a-file/state", "/dev/null/state"])
def test_a_stop_that_the_batch_script_cannot_read_is_no_success(typed, tmp_path, place) -> None:
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "a-file").touch()

    def hook(rank: int) -> None:
        os.environ["BERT_JOB_FILE"] = str(tmp_path / place)
        slowly(at_step(3, signal.SIGUSR1))(rank)

    statuses, output = pretrain_run(typed, tmp_path, hook=hook)
    assert statuses == [1]
    assert "cannot be written" in output
    assert "Traceback" not in output
    assert (tmp_path / "runs/x/checkpoints/step-00000003/manifest.json").exists()


def at_building(does: Callable[[], None]) -> Hook:
    """A hook: `does` is called where the model is built, before there is anything to save."""

    def hook(rank: int) -> None:
        build = PhaseTraining._build_engine

        def building(self: PhaseTraining) -> object:
            does()
            return build(self)

        PhaseTraining._build_engine = building  # type: ignore[method-assign]

    return hook


def test_ctrl_c_during_the_start_ends_at_once_in_one_line(typed: list[str], tmp_path: Path) -> None:
    hook = at_building(lambda: os.kill(os.getpid(), signal.SIGINT))
    statuses, output = pretrain_run(typed, tmp_path, hook=hook)
    assert statuses == [130]
    assert "Traceback" not in output
    assert output.endswith("pretrain.run: interrupted; the same command continues from step 0\n")


def test_what_breaks_after_ctrl_c_is_named_in_one_line(typed: list[str], tmp_path: Path) -> None:
    def hook(rank: int) -> None:
        StopCheck.CHECK_S = 1e-9
        at_step(3, signal.SIGINT)(rank)
        step = StopCheck.begin

        def broken(self: StopCheck, number: int, step_s: float) -> None:
            step(self, number, step_s)
            if number == 3:
                raise RuntimeError("Connection closed\nby peer")

        StopCheck.begin = broken  # type: ignore[method-assign]

    statuses, output = pretrain_run(typed, tmp_path, hook=hook)
    assert statuses == [130]
    assert "Traceback" not in output
    line = "interrupted (RuntimeError: Connection closed by peer); the same command continues from"
    assert re.search(rf"pretrain.run: {re.escape(line)} step 0\n$", output), output

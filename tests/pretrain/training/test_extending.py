"""A run continues with other settings (run.extend), or a start ends early (run.stop_after)."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from killing import at_step
from run_in_fork import TINY, finished_run, pretrain_run

from data_prep.core.files import checksum, remove_folder
from pretrain.checkpoint.files import find_fault
from pretrain.run_folder.history import History, State
from pretrain.run_folder.jsonl import readable_lines

pytestmark = pytest.mark.distributed

CONSTANT = (
    *TINY, "schedule=constant", "schedule.warmup_steps=2", "eval.every_steps=100",
    "eval.max_examples=8", "checkpoint.every_steps=100",
)  # fmt: skip
FOUR, EIGHT = "schedule.total_steps=4", "schedule.total_steps=8"


def losses(folder: Path) -> list[tuple[int, float, float]]:
    lines = readable_lines(folder / "runs/x/metrics.jsonl")
    return [(m["step"], m["train/loss"], m["optim/grad_norm"]) for m in lines if "train/loss" in m]


def weights(folder: Path, step: int = 8) -> str:
    return checksum(folder / f"runs/x/checkpoints/step-{step:08d}/model.safetensors")


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = readable_lines(folder / "runs/x/events.jsonl")
    return [line for line in lines if line["event"] == kind]


@pytest.fixture(scope="module")
def straight(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    finished_run([*CONSTANT, f"data.dir={sample_dir}", EIGHT], folder)
    return folder


@pytest.fixture(scope="module")
def extended(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of 4 steps: refused 8, extended to 8 and killed before it saved, started again."""
    folder = tmp_path_factory.mktemp("extended")
    typed = [*CONSTANT, f"data.dir={sample_dir}"]
    outputs = [finished_run([*typed, FOUR], folder)]
    statuses, output = pretrain_run([*typed, EIGHT], folder)
    assert statuses == [2]
    outputs.append(output)
    statuses, output = pretrain_run([*typed, EIGHT, "run.extend=true"], folder, hook=at_step(3))
    assert statuses == [-signal.SIGKILL], output
    outputs += [output, finished_run([*typed, EIGHT], folder)]
    return folder, outputs


def test_a_run_extended_under_a_constant_rate_is_the_longer_run(extended, straight) -> None:
    assert losses(extended[0]) == losses(straight)
    assert weights(extended[0]) == weights(straight)


def test_other_settings_are_refused_with_both_ways_to_go_on(extended) -> None:
    text = extended[1][1]
    assert "schedule.total_steps: 4 then, 8 now" in text
    assert "run.extend=true to continue it with the new ones" in text
    assert "run.init_from=runs/x/checkpoints/step-00000004 and another run.name" in text


def test_an_extension_shows_its_changes_and_the_curves_before_training(extended) -> None:
    shown = extended[1][2]
    before = shown[: shown.index("resumed: step=4")]
    for line in (
        "extended after step 4:",
        "schedule.total_steps: 4 then, 8 now",
        "learning rate, before: over",
        "learning rate, now:    step 5 0.0015, step 6 0.0015",
    ):
        assert line in before


def test_a_start_after_the_extension_needs_no_run_extend_again_nor_records_it(extended) -> None:
    assert "extended after" not in extended[1][3]
    [event] = events(extended[0], "extended")
    change = {"phase": 1, "name": "schedule.total_steps", "before": 4, "now": 8}
    assert (event["step"], event["changes"]) == (4, [change])
    assert History.read(extended[0] / "runs/x").state is State.finished


def test_the_model_card_tells_of_the_extension(extended) -> None:
    card = (extended[0] / "runs/x/export/README.md").read_text()
    assert "8 of 8 steps of 8 sequences: 64 sequences" in card
    assert "Continued after step 4 with other settings:\n\n- schedule.total_steps: 4 then" in card


def test_the_settings_before_an_extension_are_refused_after_it(extended, sample_dir) -> None:
    statuses, output = pretrain_run([*CONSTANT, f"data.dir={sample_dir}", FOUR], extended[0])
    assert statuses == [2]
    assert "schedule.total_steps: 8 then, 4 now" in output
    assert "run.extend=true" not in output, "the run is past 4 steps"


def test_a_batch_changed_on_the_way_takes_the_examples_that_follow(
    sample_dir: Path, tmp_path: Path
) -> None:
    typed = [*CONSTANT, f"data.dir={sample_dir}"]
    finished_run([*typed, FOUR], tmp_path)
    other = ["optim.global_batch=4", "optim.learning_rate=1e-4", "run.extend=true"]
    finished_run([*typed, "schedule.total_steps=6", *other], tmp_path)
    lines = [m for m in readable_lines(tmp_path / "runs/x/metrics.jsonl") if "train/loss" in m]
    assert [m["data/sequences"] for m in lines] == [8, 16, 24, 32, 36, 40]
    assert lines[-1]["optim/learning_rate"] == 1e-4
    card = (tmp_path / "runs/x/export/README.md").read_text()
    assert "8 sequences (4 steps), then 4 sequences (2 steps): 40 sequences" in card


DECAYING = (
    *TINY, "schedule=wsd", "schedule.warmup_steps=1", "schedule.decay_fraction=0.5",
    "checkpoint.keep=1", "monitor.sentences=[]",
)  # fmt: skip


@pytest.fixture(scope="module")
def decayed(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of 4 steps, 2 of them in its decay, extended to 8; and what the extension printed."""
    folder = tmp_path_factory.mktemp("decayed")
    typed = [*DECAYING, f"data.dir={sample_dir}"]
    finished_run([*typed, FOUR], folder)
    return folder, finished_run([*typed, EIGHT, "run.extend=true"], folder)


@pytest.mark.slow
def test_a_run_extended_after_its_decay_is_the_longer_run(decayed, sample_dir, tmp_path) -> None:
    finished_run([*DECAYING, f"data.dir={sample_dir}", EIGHT], tmp_path)
    assert [step for step, *_ in losses(tmp_path)] == list(range(1, 9))
    assert losses(decayed[0]) == losses(tmp_path)
    assert weights(decayed[0]) == weights(tmp_path)


def test_an_extension_goes_on_before_the_decay_and_keeps_what_the_decay_gave(decayed) -> None:
    folder, shown = decayed
    assert "extended after step 2:" in shown
    assert (
        "the learning rate fell after step 2; the later checkpoints are now in runs/x/decayed"
        in (shown)
    )
    aside = folder / "runs/x/decayed"
    assert sorted(path.name for path in aside.iterdir()) == ["metrics.jsonl", "step-00000004"]
    assert find_fault(aside / "step-00000004") is None
    assert [m["step"] for m in readable_lines(aside / "metrics.jsonl")][-1] == 4
    here = sorted(path.name for path in (folder / "runs/x/checkpoints").iterdir())
    assert here == ["step-00000004", "step-00000008"]  # the last before the new decay, and the end


def test_an_extension_without_the_checkpoint_before_the_decay_is_refused(
    decayed, sample_dir, tmp_path
) -> None:
    shutil.copytree(decayed[0] / "runs", tmp_path / "runs")
    remove_folder(tmp_path / "runs/x/checkpoints/step-00000004")
    typed = [*DECAYING, f"data.dir={sample_dir}", "schedule.total_steps=16", "run.extend=true"]
    statuses, output = pretrain_run(typed, tmp_path)
    assert statuses == [2]
    assert "the learning rate decays since step 4" in output
    assert "run.init_from=runs/x/checkpoints/step-00000008 and a new run.name" in output


def test_a_run_without_a_checkpoint_cannot_be_extended(sample_dir: Path, tmp_path: Path) -> None:
    typed = [*CONSTANT, f"data.dir={sample_dir}", FOUR, "run.extend=true"]
    statuses, output = pretrain_run(typed, tmp_path)
    assert statuses == [2]
    assert "run.extend=true, but there is no checkpoint in runs/x/checkpoints" in output


def test_a_start_of_so_many_steps_saves_and_the_next_goes_on_as_if_it_had_not(
    sample_dir: Path, tmp_path: Path, straight: Path
) -> None:
    typed = [*CONSTANT, f"data.dir={sample_dir}", EIGHT]
    finished_run([*typed, "run.stop_after=3"], tmp_path)
    assert losses(tmp_path)[-1][0] == 3
    assert History.read(tmp_path / "runs/x").state is State.stopped
    assert events(tmp_path, "stopped")[0]["stop_after"] == 3
    finished_run([*typed, "run.stop_after=2", "run.extend=true"], tmp_path)  # extends nothing
    assert losses(tmp_path)[-1][0] == 5
    finished_run([*typed, "run.stop_after=100"], tmp_path)
    assert losses(tmp_path) == losses(straight)
    assert weights(tmp_path) == weights(straight)
    assert events(tmp_path, "extended") == []


@pytest.mark.parametrize("value", ["0", "-3"])
def test_a_start_of_no_steps_is_refused(value: str, tmp_path: Path) -> None:
    statuses, output = pretrain_run([*CONSTANT, f"run.stop_after={value}"], tmp_path)
    assert statuses == [2]
    assert f"run.stop_after={value}; it takes 1 or more, or null for no limit" in output


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (0, 2), (2, 1), (2, 2)])
def test_every_stage_and_number_of_ranks_extends_exactly(
    sample_dir: Path, tmp_path: Path, stage: int, ranks: int
) -> None:
    typed = [*CONSTANT, f"data.dir={sample_dir}", f"engine=zero{stage}"]
    folders = [tmp_path / name for name in ("straight", "extended")]
    for folder in folders:
        folder.mkdir()
    finished_run([*typed, "schedule.total_steps=20"], folders[0], ranks=ranks)
    finished_run([*typed, "schedule.total_steps=10"], folders[1], ranks=ranks)
    longer = [*typed, "schedule.total_steps=20", "run.extend=true"]
    finished_run(longer, folders[1], ranks=ranks)
    assert losses(folders[0]) == losses(folders[1])
    assert weights(folders[0], 20) == weights(folders[1], 20)


@pytest.mark.slow
def test_a_finished_run_gets_a_second_phase_and_a_start_may_end_between_the_two(
    sample_dir: Path, tmp_path: Path
) -> None:
    """One run of two phases, and one of the first alone that then gets the second."""
    carried = "moments: kept, optimizer_step: kept, loss_scaler: kept"
    changes = "optim: {global_batch: 4}, schedule: {total_steps: 3}"
    phases = f"phases=[{{changes: {{{changes}}}, {carried}}}]"
    typed = [*CONSTANT, f"data.dir={sample_dir}", FOUR]
    folders = [tmp_path / name for name in ("both", "added")]
    for folder in folders:
        folder.mkdir()
    finished_run([*typed, phases, "run.stop_after=4"], folders[0])
    assert [e["event"] for e in readable_lines(folders[0] / "runs/x/events.jsonl")][-2:] == [
        "finished", "stopped",
    ]  # fmt: skip
    finished_run([*typed, phases], folders[0])
    finished_run(typed, folders[1])
    finished_run([*typed, phases, "run.extend=true"], folders[1])
    assert losses(folders[0]) == losses(folders[1])
    assert [step for step, *_ in losses(folders[0])] == list(range(1, 8))
    assert weights(folders[0], 7) == weights(folders[1], 7)

"""The main job, from the command line to the exported folder, on real processes."""

import datetime
import itertools
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import flip_a_bit
from killing import at_step
from run_in_fork import TINY, Hook, finished_run, pretrain_run
from tracked import tensorboard_scalars, trackio_rows
from wandb_files import history, records

from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, read_json
from data_prep.core.objectives import Pairing
from pretrain.checkpoint.identity import identity
from pretrain.config.load import load
from pretrain.config.settings import Precision
from pretrain.data.corpus import manifest_of
from pretrain.engine.engine import Engine
from pretrain.engine.snapshot import Snapshot
from pretrain.huggingface.load import fill_masks
from pretrain.metrics import reference_curves
from pretrain.reporting.page import page
from pretrain.run_folder.folder import open_run_folder
from pretrain.run_folder.history import History
from pretrain.run_folder.jsonl import readable_lines

pytestmark = pytest.mark.distributed

SMALL = (
    *TINY, "schedule.total_steps=12", "eval.every_steps=6", "eval.max_examples=40",
    "checkpoint.every_steps=4",
    "engine.timeout_minutes=2",  # the survivors of a killed rank look for it a shorter time
)  # fmt: skip


def arguments(sample_dir: Path, *more: str) -> list[str]:
    return [*SMALL, f"data.dir={sample_dir}", *more]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return readable_lines(folder / "runs/x/metrics.jsonl")


def weights(folder: Path, step: int = 12) -> str:
    return checksum(folder / f"runs/x/checkpoints/step-{step:08d}/model.safetensors")


def killed_run(typed: list[str], folder: Path, hook: Hook) -> str:
    """What a run prints that ends by SIGKILL."""
    statuses, output = pretrain_run(typed, folder, hook=hook)
    assert statuses == [-signal.SIGKILL], output
    return output


@pytest.fixture(scope="module")
def uninterrupted(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    output = finished_run(arguments(sample_dir), folder)
    return folder, output


def test_a_run_writes_every_metric_under_its_name(uninterrupted: tuple[Path, str]) -> None:
    lines = metrics(uninterrupted[0])
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == list(range(1, 13))
    for name in (
        "train/loss", "train/mlm_loss", "train/nsp_loss", "train/mlm_accuracy",
        "train/nsp_accuracy", "optim/learning_rate", "optim/grad_norm", "perf/goodput",
        "perf/model_tflops_per_device", "perf/data_wait_share", "perf/host_memory_gb",
        "perf/budget_fill", "data/masked_share",
    ):  # fmt: skip
        assert all(isinstance(line[name], float) for line in training), name
    assert all(line["perf/tokens_per_second"] > 0 for line in training)
    assert all(line["perf/sequences_per_second"] > 0 for line in training)
    evaluations = [line for line in lines if "eval/mlm_loss" in line]
    assert [line["step"] for line in evaluations] == [6, 12]
    for name in ("mlm_accuracy", "nsp_loss", "nsp_accuracy", "mlm_perplexity"):
        assert all(f"eval/{name}" in line for line in evaluations), name


@pytest.fixture(scope="module", params=[3, 6, 9])
def killed(
    sample_dir: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """A run that was killed at its n-th training step, and then finished."""
    folder = tmp_path_factory.mktemp("killed")
    killed_run(arguments(sample_dir), folder, at_step(request.param))
    finished_run(arguments(sample_dir), folder)
    return folder


def test_sequences_and_tokens_are_counted_through_a_kill(killed, uninterrupted) -> None:
    straight = metrics(uninterrupted[0])
    seen = [(m["step"], m["data/sequences"], m["data/tokens"]) for m in straight]
    assert seen == [(m["step"], m["data/sequences"], m["data/tokens"]) for m in metrics(killed)]
    assert seen[-1][1] == 12 * 8
    assert 12 * 8 * 30 < seen[-1][2] < 12 * 8 * 128


def assert_guesses_are_those_of_the_exported_model(folder: Path) -> None:
    guesses = readable_lines(folder / "runs/x/guesses.jsonl")[-1]["guesses"]
    exported = fill_masks(folder / "runs/x/export", list(guesses), top_k=3)
    for (sentence, live), after in zip(guesses.items(), exported, strict=True):
        assert "[MASK]" in sentence
        assert [p for _, p in live] == pytest.approx([p for _, p in after], rel=1e-4)
        assert [word for word, _ in live] == [word for word, _ in after]


def test_guesses_of_the_live_model_are_those_of_the_exported_one(uninterrupted) -> None:
    assert_guesses_are_those_of_the_exported_model(uninterrupted[0])
    lines = readable_lines(uninterrupted[0] / "runs/x/guesses.jsonl")
    assert [line["step"] for line in lines] == [6, 12]


@pytest.mark.slow
def test_ranks_that_share_the_weights_guess_alike(sample_dir: Path, tmp_path: Path) -> None:
    typed = arguments(sample_dir, "engine=zero3", "schedule.total_steps=4")
    finished_run(typed, tmp_path, ranks=2)
    assert_guesses_are_those_of_the_exported_model(tmp_path)


def test_the_learning_rate_at_every_update_is_googles(uninterrupted: tuple[Path, str]) -> None:
    rates = [m["optim/learning_rate"] for m in metrics(uninterrupted[0]) if "train/loss" in m]
    warmup, total, peak = 1.2, 12, 1.5e-3  # a tenth of the steps
    expected = [
        peak * step / warmup if step < warmup else peak * (1 - step / total)
        for step in range(total)
    ]
    assert rates == pytest.approx(expected)


def test_the_first_loss_is_that_of_guessing_evenly(uninterrupted: tuple[Path, str]) -> None:
    first = metrics(uninterrupted[0])[0]
    assert first["train/mlm_loss"] == pytest.approx(8.32, abs=0.15)  # ln 4096
    assert first["train/nsp_loss"] == pytest.approx(0.693, abs=0.05)


def test_a_run_ends_by_printing_its_metrics_guesses_and_paths(
    uninterrupted: tuple[Path, str],
) -> None:
    output = uninterrupted[1]
    assert "by token frequency alone" in output
    assert "[MASK]" in output
    for path in ("metrics.jsonl", "step-00000012", "runs/x/export", "runs/x/loss.svg"):
        assert path in output
    assert "python -m scripts.predict model=runs/x/export" in output.split("training MLM loss")[1]
    assert (uninterrupted[0] / "runs/x/loss.svg").is_file()


def test_a_run_folder_holds_its_settings_and_its_environment(uninterrupted) -> None:
    folder = uninterrupted[0] / "runs/x"
    assert "hidden_size: 32" in (folder / "config.yaml").read_text()
    assert read_json(folder / "environment.json")["packages"]["torch"]
    assert (folder / "logs/rank-00000.log").exists()
    assert sorted(p.name for p in (uninterrupted[0]).iterdir()) == ["output.txt", "runs"]


def test_weights_can_be_read_by_whoever_can_read_the_rest(uninterrupted: tuple[Path, str]) -> None:
    folder = uninterrupted[0] / "runs/x"
    expected = (folder / "metrics.jsonl").stat().st_mode & 0o777
    written = list(folder.rglob("*.safetensors"))
    assert len(written) == 7  # three checkpoints of two files, and the export
    assert {path.stat().st_mode & 0o777 for path in written} == {expected}


def test_only_the_newest_checkpoints_stay(uninterrupted: tuple[Path, str]) -> None:
    names = sorted(p.name for p in (uninterrupted[0] / "runs/x/checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000008", "step-00000012"]


def test_a_killed_run_continues_to_the_same_weights_bit_for_bit(killed, uninterrupted) -> None:
    assert weights(killed) == weights(uninterrupted[0])
    steps = [m["step"] for m in metrics(killed) if "train/loss" in m]
    assert steps == list(range(1, 13))


@pytest.mark.slow
def test_two_ranks_killed_one_after_the_other_continue_to_the_same_weights(
    sample_dir: Path, tmp_path: Path
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir(), killed.mkdir()
    finished_run(arguments(sample_dir), straight, ranks=2)
    for call, rank in ((6, 1), (3, 0)):
        statuses, _ = pretrain_run(
            arguments(sample_dir), killed, ranks=2, hook=at_step(call, of_rank=rank)
        )
        assert statuses[rank] == -signal.SIGKILL
    finished_run(arguments(sample_dir), killed, ranks=2)
    assert weights(killed) == weights(straight)


def test_three_ranks_log_what_one_rank_logs(sample_dir: Path, tmp_path: Path) -> None:
    """8 sequences on 3 ranks: unequal shares, one result, and none waits for another for ever."""
    exact = (
        "model.hidden_dropout_prob=0",
        "model.attention_probs_dropout_prob=0",
        "engine=fp32",
        "schedule.total_steps=8",
    )
    logged = []
    for ranks in (1, 3):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        finished_run(arguments(sample_dir, *exact), folder, ranks=ranks)
        logged.append(metrics(folder))
    alone, together = logged
    assert [line["step"] for line in alone] == [line["step"] for line in together]
    for one, three in zip(alone, together, strict=True):
        for name in one:
            if name != "time" and not name.startswith("perf/"):
                assert three[name] == pytest.approx(one[name], rel=1e-4), (one["step"], name)


def test_where_every_checkpoint_is_broken_the_run_does_not_start_over(sample_dir, tmp_path) -> None:
    short = arguments(sample_dir, "schedule.total_steps=4", "checkpoint.every_steps=4")
    assert pretrain_run(short, tmp_path)[0] == [0]
    (tmp_path / "runs/x/checkpoints/step-00000004/model.safetensors").write_bytes(b"")
    statuses, output = pretrain_run(short, tmp_path)
    assert statuses == [2]
    assert "none of the 1 checkpoints in runs/x/checkpoints is whole" in output
    assert "model.safetensors has 0 bytes instead of" in output


def test_a_broken_checkpoint_is_named_with_its_fault_and_stays_as_it_is(
    sample_dir: Path, tmp_path: Path, uninterrupted: tuple[Path, str]
) -> None:
    shutil.copytree(uninterrupted[0] / "runs", tmp_path / "runs")
    broken = tmp_path / "runs/x/checkpoints/step-00000012"
    flip_a_bit(broken / "optimizer.safetensors")
    before = {path.name: path.read_bytes() for path in broken.iterdir()}
    output = killed_run(arguments(sample_dir), tmp_path, at_step(1))
    named = (
        "checkpoint runs/x/checkpoints/step-00000012 is broken and passed over: "
        "optimizer.safetensors is not what was written: its checksum differs"
    )
    assert output.count(named) == 1
    assert named in (tmp_path / "runs/x/logs/rank-00000.log").read_text()
    assert "resumed: step=8" in output
    assert {path.name: path.read_bytes() for path in broken.iterdir()} == before
    finished_run(arguments(sample_dir), tmp_path)
    assert weights(tmp_path) == weights(uninterrupted[0]), "in its place there is a whole one"


def test_a_signal_saves_ends_with_0_and_the_next_start_continues(
    sample_dir: Path, tmp_path: Path, uninterrupted: tuple[Path, str]
) -> None:
    def signal_at_step_5(rank: int) -> None:
        os.environ["BERT_JOB_FILE"] = str(tmp_path / "job")
        at_step(5, signal.SIGUSR1)(rank)

    finished_run(arguments(sample_dir), tmp_path, hook=signal_at_step_5)
    assert (tmp_path / "job").read_text() == "stopped"
    assert (tmp_path / "runs/x/checkpoints/step-00000005/manifest.json").exists()
    finished_run(arguments(sample_dir), tmp_path)
    assert weights(tmp_path) == weights(uninterrupted[0])


def at_write(does: Callable[[int], None]) -> None:
    """In this process call `does(number)` before each writing of a checkpoint, in its thread."""
    write, numbers = Snapshot.write, itertools.count(1)

    def after_it(self: Snapshot, folder: Path) -> dict[str, str]:
        try:
            does(next(numbers))
            return write(self, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    Snapshot.write = after_it


def full_at(number: int) -> Any:
    """A hook: in this writing no file can be longer than some bytes, as on a full disk."""

    def fill(now: int) -> None:
        if now == number:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    return lambda rank: at_write(fill)


def counted_steps() -> list[None]:
    """In this process: a list that grows with every training step."""
    train_step, steps = Engine.train_step, list[None]()

    def counted(self: Engine, *args: Any) -> Any:
        steps.append(None)
        return train_step(self, *args)

    Engine.train_step = counted
    return steps


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "training stands still"
        time.sleep(0.005)


def test_training_while_a_checkpoint_is_written_changes_neither(
    sample_dir: Path, tmp_path: Path, uninterrupted: tuple[Path, str]
) -> None:
    def hold_up(rank: int) -> None:
        steps = counted_steps()

        def two_steps_later(number: int) -> None:
            if number < 3:  # the last one is waited for
                wait_for(lambda: len(steps) >= 4 * number + 2)

        at_write(two_steps_later)

    finished_run(arguments(sample_dir), tmp_path, hook=hold_up)
    for step in (4, 8, 12):
        for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
            file = f"runs/x/checkpoints/step-{step:08d}/{name}"
            assert checksum(tmp_path / file) == checksum(uninterrupted[0] / file), file


def test_a_kill_while_a_checkpoint_is_written_continues_from_the_one_before(
    sample_dir: Path, tmp_path: Path, uninterrupted: tuple[Path, str]
) -> None:
    def kill(rank: int) -> None:
        steps = counted_steps()

        def two_steps_later(number: int) -> None:
            if number == 2:
                wait_for(lambda: len(steps) >= 10)
                os.kill(os.getpid(), signal.SIGKILL)

        at_write(two_steps_later)

    killed_run(arguments(sample_dir), tmp_path, kill)
    names = sorted(path.name for path in (tmp_path / "runs/x/checkpoints").iterdir())
    assert names == [".step-00000008.tmp", "step-00000004"]
    output = finished_run(arguments(sample_dir), tmp_path)
    assert "resumed: step=4" in output
    assert weights(tmp_path) == weights(uninterrupted[0])


def test_the_cost_of_a_save_is_in_events_and_metrics(uninterrupted: tuple[Path, str]) -> None:
    events = readable_lines(uninterrupted[0] / "runs/x/events.jsonl")
    saves = [event for event in events if event["event"] == "checkpoint"]
    assert [event["step"] for event in saves] == [4, 8, 12]
    for event in saves:
        assert event["seconds_blocked"] > 0
        assert event["seconds_written"] > 0
        folder = uninterrupted[0] / f"runs/x/checkpoints/step-{event['step']:08d}"
        manifest = (folder / "manifest.json").stat().st_size
        assert event["bytes"] == sum(p.stat().st_size for p in folder.iterdir()) - manifest
    records = [m["step"] for m in metrics(uninterrupted[0]) if "perf/checkpoint_seconds" in m]
    assert records == [5, 9], "the records after a save"


def test_a_run_that_cannot_save_stops_and_continues_from_the_checkpoint_before(
    sample_dir: Path, tmp_path: Path, uninterrupted: tuple[Path, str]
) -> None:
    statuses, output = pretrain_run(arguments(sample_dir), tmp_path, hook=full_at(2))
    assert statuses == [1]
    assert "step-00000008 could not be written" in output
    names = [path.name for path in (tmp_path / "runs/x/checkpoints").iterdir()]
    assert names == ["step-00000004"]
    finished_run(arguments(sample_dir), tmp_path)
    assert weights(tmp_path) == weights(uninterrupted[0])


def test_a_run_with_go_on_saves_later(sample_dir, tmp_path, uninterrupted) -> None:
    go_on = arguments(sample_dir, "checkpoint.on_failure=go_on")
    output = finished_run(go_on, tmp_path, hook=full_at(2))
    assert "checkpoint failed: step=8" in output
    names = sorted(path.name for path in (tmp_path / "runs/x/checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000012"]
    assert weights(tmp_path) == weights(uninterrupted[0])


def test_a_run_with_go_on_does_not_end_without_its_last_checkpoint(sample_dir, tmp_path) -> None:
    go_on = arguments(sample_dir, "checkpoint.on_failure=go_on")
    statuses, output = pretrain_run(go_on, tmp_path, hook=full_at(3))
    assert statuses == [1]
    assert "step-00000012 could not be written" in output


def test_a_finished_run_started_again_trains_nothing_and_shows_its_end(
    sample_dir: Path, uninterrupted: tuple[Path, str]
) -> None:
    before = metrics(uninterrupted[0])
    output = finished_run(arguments(sample_dir), uninterrupted[0])
    assert metrics(uninterrupted[0]) == before
    assert "by token frequency alone" in output


def test_never_resume_does_not_overwrite_a_checkpoint(sample_dir, uninterrupted) -> None:
    before = weights(uninterrupted[0])
    statuses, output = pretrain_run(arguments(sample_dir, "run.resume=never"), uninterrupted[0])
    assert statuses == [2]
    assert "type another run.name, or delete that folder" in output
    assert weights(uninterrupted[0]) == before


def refusal(folder: Path, typed: list[str]) -> str:
    """What `open_run_folder` raises if the run in `folder` is started with other arguments."""
    settings, _ = load([*typed, f"run.dir={folder / 'runs'}"], 1)
    settings.engine.precision = Precision.fp32  # as on a CPU
    now = identity(settings, [manifest_of(settings.data)])
    with pytest.raises(SettingsError) as refused:
        open_run_folder(folder / "runs/x", settings, now)
    return str(refused.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=2e-3", "optim.learning_rate: 0.0015 then, 0.002 now"),
        ("model.num_hidden_layers=3", "model.num_hidden_layers: 2 then, 3 now"),
        ("run.seed=7", "run.seed: 12345 then, 7 now"),
    ],
)
def test_a_run_with_other_settings_is_not_continued(
    sample_dir: Path, uninterrupted: tuple[Path, str], override: str, message: str
) -> None:
    text = refusal(uninterrupted[0], arguments(sample_dir, override))
    assert [line.strip() for line in text.splitlines() if " then, " in line] == [message]


@pytest.mark.parametrize(
    "pairing", [Pairing.sop, pytest.param(Pairing.none, marks=pytest.mark.slow)]
)
def test_a_run_is_not_continued_with_another_objective(sample_dirs, uninterrupted, pairing) -> None:
    other = [f"data.dir={sample_dirs(pairing)}", f"data.pairs={pairing.name}"]
    expected = f"data.pairs: nsp then, {pairing.name} now"
    assert expected in refusal(uninterrupted[0], [*SMALL, *other])


def test_the_command_refuses_other_settings_and_another_objective_before_training(
    sample_dirs: Callable[[Pairing], Path], uninterrupted: tuple[Path, str]
) -> None:
    before = metrics(uninterrupted[0])
    other = [f"data.dir={sample_dirs(Pairing.sop)}", "data.pairs=sop", "optim.learning_rate=2e-3"]
    statuses, output = pretrain_run([*SMALL, *other], uninterrupted[0])
    assert statuses == [2]
    assert "cannot be continued, its run had other settings" in output
    for line in ("data.pairs: nsp then, sop now", "optim.learning_rate: 0.0015 then, 0.002 now"):
        assert output.count(line) == 1
    assert metrics(uninterrupted[0]) == before


@pytest.mark.parametrize(
    ("typed", "message", "not_made"),
    [
        (
            "monitor.sentences=[Nothing is masked here.]",
            "'Nothing is masked here.' holds 0 [MASK]; it must hold exactly one",
            "runs/x/metrics.jsonl",
        ),
        (
            "run.resume=must",
            "run.resume=must, but there is no checkpoint in runs/x/checkpoints",
            "runs",
        ),
        ("data.dir=data/mein", "no data/mein/len128/manifest.json", "data"),  # nor the sample
        ("data.pairs=none", "data.pairs=none, but the shards in", "runs"),
        ("model.num_attention_heads=5", "num_attention_heads=5", "runs"),
    ],
)
def test_a_mistake_is_named_once_and_not_per_rank_before_training(
    sample_dir: Path, tmp_path: Path, typed: str, message: str, not_made: str
) -> None:
    ranks = 2 if not_made == "runs" else 1
    statuses, output = pretrain_run(arguments(sample_dir, typed), tmp_path, ranks=ranks)
    assert statuses == [2] * ranks
    assert output.count(message) == 1
    assert not (tmp_path / not_made).exists()


def test_shards_that_are_wrong_or_missing_are_named_before_training(sample_dir, tmp_path) -> None:
    shutil.copytree(sample_dir, tmp_path / "data")
    shards = sorted((tmp_path / "data/len128").glob("*/*.arrow"))
    for shard in shards[:2]:  # one of them in each rank's share
        flip_a_bit(shard)
    shards[2].unlink()
    statuses, output = pretrain_run([*SMALL, "data.dir=data"], tmp_path, ranks=2)
    assert statuses == [2, 2]
    assert "3 of the shards in data/len128 are not those that were built" in output
    assert output.count(f"{shards[2].relative_to(tmp_path)} is missing") == 1
    for shard in shards[:2]:
        named = f"{shard.relative_to(tmp_path)} has checksum {checksum(shard)}, the manifest says"
        assert output.count(named) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")], ids=["gone", "empty"]
)
def test_a_finished_run_without_its_metrics_is_named_in_a_sentence(
    tmp_path: Path, uninterrupted: tuple[Path, str], sample_dir: Path, harm: Any
) -> None:
    shutil.copytree(uninterrupted[0] / "runs", tmp_path / "runs")
    run = tmp_path / "runs/x"
    harm(run / "metrics.jsonl")
    shutil.rmtree(run / "export")
    output = finished_run(arguments(sample_dir), tmp_path)
    assert output.count("metrics.jsonl has no held-out evaluation") == 1
    assert (run / "export/model.safetensors").exists()
    history = History.read(run)
    assert (history.state.value, history.step) == ("finished", 12)
    assert "12" in page(history)


def test_without_a_model_the_models_are_listed() -> None:
    with pytest.raises(SettingsError, match="base, large, small, tiny"):
        load([], 1)


def no_key(rank: int) -> None:
    """A hook: wandb finds no key and writes offline."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        os.environ.pop(name, None)
    os.environ["HOME"] = os.environ["TRACKIO_DIR"] = os.getcwd()


@pytest.mark.slow
def test_every_tracker_has_each_step_once_though_a_killed_start_made_some_twice(
    sample_dir: Path, tmp_path: Path
) -> None:
    with_wandb = arguments(sample_dir, "log=wandb", "log.trackers=[tensorboard,trackio]")

    def killed(rank: int) -> None:
        no_key(rank)
        at_step(7)(rank)

    statuses, _ = pretrain_run(with_wandb, tmp_path, ranks=2, hook=killed)
    assert -signal.SIGKILL in statuses
    output = finished_run(with_wandb, tmp_path, ranks=2, hook=no_key)
    rows = history(tmp_path / "runs/x")
    assert [row["_step"] for row in rows] == list(range(1, 13))
    for line in metrics(tmp_path):
        row = rows[line.pop("step") - 1]
        moment = datetime.datetime.fromisoformat(line.pop("time")).timestamp()
        assert row["_timestamp"] == pytest.approx(moment, abs=30)
        assert {name: row[name] for name in line} == line
    steps = [step for step, _ in tensorboard_scalars(tmp_path / "runs/x", "train/mlm_loss")]
    assert steps == [*range(1, 13)]
    of_trackio = trackio_rows(tmp_path, tmp_path / "runs/x", "bert-pretraining")
    assert [row["step"] for row in of_trackio] == steps
    assert [row["train/mlm_loss"] for row in of_trackio] == [row["train/mlm_loss"] for row in rows]
    run_id = (tmp_path / "runs/x/wandb/run-id").read_text()
    for run in records(tmp_path / "runs/x", "run"):
        assert run["run_id"] == run_id
        assert run["config"]["update"]["engine"]["tokens_per_micro_batch"] == 512
    assert f"run {run_id}" in output


@pytest.mark.slow
def test_wandb_has_every_chart_and_each_step_once_over_kills_in_both_phases(
    sample_dir: Path, tmp_path: Path
) -> None:
    two_phases = arguments(
        sample_dir, "log=wandb", "log.artifact=true", "schedule.total_steps=8",
        "checkpoint.every_steps=3", "phases=[{changes: {optim: {learning_rate: 1e-4}, "
        "schedule: {total_steps: 8}}, moments: kept, optimizer_step: kept, loss_scaler: kept}]",
    )  # fmt: skip

    def watched(rank: int) -> None:
        no_key(rank)
        reference_curves.PLATEAU_STEPS, reference_curves.RECENT = 2, 2

    for call in (3, 5, 8):

        def killed(rank: int, call: int = call) -> None:
            watched(rank)
            at_step(call)(rank)

        killed_run(two_phases, tmp_path, killed)
    finished_run(two_phases, tmp_path, hook=watched)
    run = tmp_path / "runs/x"
    rows = history(run)
    assert [row["_step"] for row in rows] == list(range(1, 17))
    assert len({record["run_id"] for record in records(run, "run")}) == 1
    for name in ("train/mlm_loss", "train/nsp_accuracy", "optim/grad_norm", "perf/goodput",
                 "perf/training_seconds", "perf/budget_fill"):  # fmt: skip
        assert all(name in row for row in rows), name
    for name in ("data/sequences", "data/tokens"):
        assert [row[name] for row in rows] == sorted({row[name] for row in rows})
    evaluated = [row["_step"] for row in rows if "eval/mlm_loss" in row]
    assert evaluated == [6, 8, 12, 16]
    assert evaluated == [row["_step"] for row in rows if "eval/guesses.path" in row]
    config = records(run, "run")[-1]["config"]["update"]
    assert [phase["total_steps"] for phase in config["plan"]["phases"]] == [8, 8]
    assert list(config["manifests"].values()) == [checksum(sample_dir / "len128/manifest.json")]
    assert config["environment"]["packages"]["torch"]
    events = readable_lines(run / "events.jsonl")
    assert [e["what"] for e in events if e["event"] == "expectation"] == ["plateau"]
    assert len(records(run, "alert")) == 1
    models = [a for a in records(run, "artifact") if a["type"] == "model"]
    assert [artifact["name"] for artifact in models] == ["x"]

"""Losses that are not finite, and losses that jump, in real runs."""

import math
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from killing import at_step
from run_in_fork import TINY, pretrain_run

from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, read_json
from data_prep.stores.shard_reader import Shards
from pretrain.config.load import load
from pretrain.data.shuffle import ExampleOrder
from pretrain.data.train_loader import TrainLoader
from pretrain.engine.deepspeed_setup import get_accelerator
from pretrain.engine.engine import Engine
from pretrain.model.bert import BertForPreTraining
from pretrain.reporting.page import page
from pretrain.run_folder.history import History, State
from pretrain.run_folder.jsonl import readable_lines
from pretrain.training.anomalies import spike_limit

SMALL = (
    *TINY, "schedule.total_steps=12", "eval.max_examples=8", "checkpoint.every_steps=4",
    "survival.spike_window=4",
)  # fmt: skip


def poison(
    factor: float, positions: Collection[int], kill_at_call: int | None = None
) -> Callable[..., None]:
    """A hook: the MLM loss of these batches times `factor`; SIGKILL at the n-th training step."""

    def hook(rank: int) -> None:
        train_step, forward = Engine.train_step, BertForPreTraining.forward
        now = 1.0

        def step(self: Engine, batch: Any, rate: float) -> Any:
            nonlocal now
            now = factor if batch.position // 8 in positions else 1.0
            return train_step(self, batch, rate)

        def poisoned(self: BertForPreTraining, batch: Any) -> Any:
            mlm_loss, *rest = forward(self, batch)
            return (mlm_loss * now if self.training else mlm_loss, *rest)

        Engine.train_step = step
        at_step(kill_at_call)(rank)
        BertForPreTraining.forward = poisoned

    return hook


def run(
    sample_dir: Path, folder: Path, hook: Callable[..., None], *more: str
) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit status, output and events of a run."""
    folder.mkdir(exist_ok=True)
    arguments = [*SMALL, f"data.dir={sample_dir}", *more]
    (status,), output = pretrain_run(arguments, folder, hook=hook)
    return status, output, readable_lines(folder / "runs/x/events.jsonl")


def examples_of(sample_dir: Path, position: int) -> list[int]:
    shards = Shards.open(sample_dir / "len128", "train")
    return ExampleOrder(shards.num_examples, 12345).examples(8 * position, 8)[1].tolist()


def of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


def steps(folder: Path) -> list[int]:
    lines = readable_lines(folder / "runs/x/metrics.jsonl")
    return [line["step"] for line in lines if "train/loss" in line]


def last_state(folder: Path) -> dict[str, Any]:
    return read_json(folder / "runs/x/checkpoints/step-00000012/state.json")


def last_weights(folder: Path) -> str:
    return checksum(folder / "runs/x/checkpoints/step-00000012/model.safetensors")


@pytest.mark.distributed
def test_a_loss_that_is_not_finite_skips_its_update_and_names_its_examples(
    sample_dir: Path, tmp_path: Path
) -> None:
    status, output, events = run(sample_dir, tmp_path, poison(math.nan, [5]))
    assert status == 0, output
    (event,) = of_kind(events, "skipped_step")
    assert (event["after"], event["position"]) == (5, 40)
    assert event["examples"] == examples_of(sample_dir, 5)
    assert "skipped step: after=5 position=40 examples=8 of them" in output
    assert steps(tmp_path) == list(range(1, 13))
    assert (last_state(tmp_path)["position"], last_state(tmp_path)["skipped_steps"]) == (104, 1)


@pytest.mark.distributed
def test_a_run_that_skips_and_skips_stops_with_a_report(sample_dir: Path, tmp_path: Path) -> None:
    hook = poison(math.inf, range(5, 99))
    status, output, events = run(sample_dir, tmp_path, hook, "survival.max_skipped_steps=3")
    assert status == 1
    assert "3 updates in a row after step 5 were skipped (survival.max_skipped_steps)" in output
    assert "examples 40 to 63 of the stream, whose numbers are in runs/x/events.jsonl" in output
    assert "The last good checkpoint is step-00000004." in output
    assert "Traceback" not in output
    assert of_kind(events, "diverged")[0]["step"] == 5
    assert [event["position"] for event in of_kind(events, "skipped_step")] == [40, 48, 56]


@pytest.mark.distributed
def test_overflows_in_fp16_are_no_skipped_steps_and_stop_at_the_floor_of_the_loss_scale(
    sample_dir: Path, tmp_path: Path
) -> None:
    poisoned = poison(math.inf, range(5, 99))

    def hook(rank: int) -> None:
        get_accelerator().is_fp16_supported = lambda: True
        poisoned(rank)

    more = ("engine=fp16", "survival.min_loss_scale=1024", "survival.max_skipped_steps=1")
    status, output, events = run(sample_dir, tmp_path, hook, *more)
    assert status == 1, output
    assert "the loss scale of fp16 has fallen to 1024" in output
    assert "The last good checkpoint is step-0000000" in output
    assert "Traceback" not in output
    assert [e["loss_scale"] for e in of_kind(events, "overflow")][-2:] == [2048, 1024]
    assert not of_kind(events, "skipped_step")


@pytest.mark.distributed
def test_a_held_out_loss_that_is_no_number_ends_the_run_as_diverged(
    sample_dir: Path, tmp_path: Path
) -> None:
    more = ("optim.learning_rate=1e14", "schedule.warmup_steps=0", "schedule.total_steps=1")
    status, output, events = run(sample_dir, tmp_path, lambda rank: None, *more)
    assert status == 1
    assert "Traceback" not in output
    [line] = [line for line in output.splitlines() if line.startswith("pretrain.run: ")]
    assert "the held-out loss after step 1 is nan" in line
    assert "with a lower optim.learning_rate; the same command starts again" in line
    (event,) = of_kind(events, "diverged")
    assert (event["step"], f"pretrain.run: {event['text']}") == (1, line)
    assert not list((tmp_path / "runs/x").glob("checkpoints/step-*"))
    history = History.read(tmp_path / "runs/x")
    assert history.state is State.diverged
    assert event["text"] in page(history, None).replace("&#39;", "'")


CALM = [2.0, 2.1, 1.9, 2.0, 2.05]


@pytest.mark.parametrize(
    ("losses", "least", "most"),
    [
        (CALM, 2.4, 3),
        ([*CALM[1:], 900.0], 2.4, 4),  # one spike among them hardly moves it
        ([2.0, 3.0, 1.0, 2.5, 1.5], 9, 99),  # wild ones
        ([2.0] * 4, math.inf, math.inf),  # before the usual loss is known
        ([2.0] * 5, 2.2 - 1e-9, 2.2 + 1e-9),  # a loss that stands still is given a spread
    ],
)
def test_a_spike_is_far_above_the_median_by_the_spread_around_it(losses, least, most) -> None:
    assert least <= spike_limit(losses, window=5, spreads=10) <= most


@pytest.mark.distributed
def test_a_spike_is_logged_with_its_examples_and_the_run_goes_on(sample_dir, tmp_path) -> None:
    status, output, events = run(sample_dir, tmp_path, poison(20, [6]))
    assert status == 0, output
    (event,) = of_kind(events, "spike")
    assert event["step"] == 7
    assert event["positions"] == [48, 56]
    assert event["examples"] == examples_of(sample_dir, 6)
    assert event["loss"] > 10 * event["limit"]
    assert last_state(tmp_path)["skipped"] == []


BACK = "survival.on_spike=rewind"


@pytest.fixture(scope="module")
def rewound(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went back from step 7 to 4, without the batch at 6."""
    folder = tmp_path_factory.mktemp("rewound")
    status, output, events = run(sample_dir, folder, poison(20, [6]), BACK)
    assert status == 0, output
    assert of_kind(events, "rewound")[0]["step"] == 4
    return folder


@pytest.mark.distributed
def test_a_rewound_run_has_the_weights_of_one_that_never_saw_the_batch(
    sample_dir: Path, tmp_path: Path, rewound: Path
) -> None:
    def without_6(rank: int) -> None:
        batches = TrainLoader.batches
        TrainLoader.batches = lambda self, first, _: batches(self, first, [(48, 56)])

    status, output, _ = run(sample_dir, tmp_path, without_6)
    assert status == 0, output
    assert last_state(rewound)["skipped"] == [[48, 56]]
    assert steps(rewound) == list(range(1, 13))
    assert last_weights(rewound) == last_weights(tmp_path)


@pytest.mark.distributed
@pytest.mark.parametrize("call", [9, 13])
def test_a_run_killed_after_it_went_back_passes_over_the_same_batches(
    sample_dir: Path, tmp_path: Path, rewound: Path, call: int
) -> None:
    """Call 8 is the first after going back; call 12 is the first after saving step 8."""
    assert run(sample_dir, tmp_path, poison(20, [6], call), BACK)[0] == -signal.SIGKILL
    status, output, _ = run(sample_dir, tmp_path, poison(20, [6]), BACK)
    assert status == 0, output
    assert last_state(tmp_path)["skipped"] == [[48, 56]]
    assert last_weights(tmp_path) == last_weights(rewound)


@pytest.mark.distributed
def test_a_run_that_spikes_whatever_it_passes_over_stops(sample_dir: Path, tmp_path: Path) -> None:
    more = (BACK, "survival.max_rewinds=2")
    status, output, events = run(sample_dir, tmp_path, poison(20, range(6, 99)), *more)
    assert status == 1
    assert "the loss jumped 3 times since step 4" in output
    assert "Traceback" not in output
    positions = [event["positions"] for event in of_kind(events, "spike")]
    assert positions == [[48, 56], [48, 64], [48, 72]]


def test_checkpoints_between_two_records_are_refused_where_spikes_are_undone() -> None:
    typed = [*SMALL, "survival.on_spike=rewind", "monitor.every_steps=3"]
    with pytest.raises(SettingsError, match=r"set checkpoint\.every_steps=3"):
        load(typed, 1)

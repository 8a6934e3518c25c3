"""profile.steps: the trace and summary of those steps, the same losses, and nothing else done."""

import gzip
import json
import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_samples import build_engine, global_batch
from model_samples import random_batch, random_model, small_settings
from ranks_harness import run_ranks
from step_outcomes import outcome

from pretrain.config.settings import Precision, ProfileSettings
from pretrain.distributed.ranks import Ranks
from pretrain.engine.zero1 import Bucket
from pretrain.metrics import profiler
from pretrain.metrics.monitor import Monitor, Sink
from pretrain.metrics.profiler import StepProfiler
from pretrain.metrics.trace import ProfileSummary, read_summary
from pretrain.model import compile
from pretrain.model.compile import compile_parts


class Events(Sink):
    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        self.seen.append((kind, facts))


class NoWatchdog:
    def begin(self, activity: str, step: int | None = None) -> None:
        pass


def profiling(
    ranks: Ranks, folder: Path, steps: Any, of: Any, sink: Sink | None = None,
    wait_for_collectives: Callable[[], None] = lambda: None,
) -> Any:  # fmt: skip
    return StepProfiler(
        ProfileSettings(steps, of), folder, ranks, Monitor([sink or Sink()]), NoWatchdog(),
        wait_for_collectives,
    )  # fmt: skip


def losses(ranks: Ranks, folder: Path, steps: Any) -> Any:
    """This rank's losses of five steps, by their bits, and the events of a profile of some."""
    engine, found, events = build_engine(ranks, 1), [], Events()
    with profiling(ranks, folder, steps, "all", events, engine.wait_for_weights) as profile:
        for number in range(1, 6):
            profile.begin_step(number)
            batch = global_batch(number, ranks.rank, ranks.world_size)
            found.append([value.hex() for value in engine.train_step(batch, 1e-3).sums.tolist()])
            profile.end_step(number)
    return found, events.seen


def alone(of: str = "cpu") -> Ranks:
    return Ranks(0, 1, torch.device(of))


def summary_of(folder: Path) -> ProfileSummary:
    found = read_summary(folder)
    assert found is not None
    return found


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "profile").iterdir())


@pytest.mark.distributed
def test_every_rank_writes_its_trace_and_the_losses_stay_bit_equal(tmp_path: Path) -> None:
    plain = run_ranks(losses, 2, folder=tmp_path, steps=None)
    assert not (tmp_path / "profile").exists()
    profiled = run_ranks(losses, 2, folder=tmp_path, steps=[2, 3])
    assert [found for found, _ in profiled] == [found for found, _ in plain]
    assert files(tmp_path) == [
        "rank-00000.trace.json.gz", "rank-00001.trace.json.gz", "summary.json",
    ]  # fmt: skip
    summary = summary_of(tmp_path)
    assert (summary.first_step, summary.last_step) == (2, 3)
    assert [(rank.rank, rank.steps) for rank in summary.ranks] == [(0, 2), (1, 2)]
    assert all(rank.communication > 0 and rank.top for rank in summary.ranks)
    [(kind, facts)] = profiled[0][1]
    assert (kind, facts["step"], facts["first_step"]) == ("profile", 3, 2)
    assert facts["text"].count("ms per step") == 2


def pending_at_the_end(ranks: Ranks, folder: Path) -> list[int]:
    """How many gathers are under way when the profile is read, if rank 1 is late with its own."""
    engine, pending = build_engine(ranks, 1), []
    usual, taken = Bucket.gather, StepProfiler._write

    def late(*given: Any) -> None:
        threading.Event().wait(0.2 * ranks.rank)
        usual(*given)

    def read(self: StepProfiler, recorded: Any) -> Any:
        buckets = engine._engine.optimizer._buckets
        pending.append(sum(len(bucket._gatherings) for bucket in buckets))
        return taken(self, recorded)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bucket, "gather", late)
        patch.setattr(StepProfiler, "_write", read)
        with profiling(ranks, folder, [1, 1], "all", None, engine.wait_for_weights) as profile:
            profile.begin_step(1)
            engine.train_step(global_batch(1, ranks.rank, ranks.world_size), 1e-3)
            profile.end_step(1)
    return pending


@pytest.mark.distributed
def test_a_profile_ends_after_the_collectives_that_its_last_step_left_under_way(tmp_path) -> None:
    """Otherwise gloo's threads note their end in what is freed, and the process may crash."""
    assert run_ranks(pending_at_the_end, 2, folder=tmp_path) == [[0], [0]]


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [value])


def test_a_trace_holds_its_steps_by_number_and_opens_as_plain_json(one_rank, tmp_path) -> None:
    with profiling(alone(), tmp_path, [7, 8], [0]) as profile:
        for number in (6, 7, 7, 8, 9):  # the update of 7 was skipped once
            profile.begin_step(number)
            torch.ones(3).sum()
            if number != 7:
                profile.end_step(number)
    text = gzip.decompress((tmp_path / "profile" / "rank-00000.trace.json.gz").read_bytes())
    names = [event["name"] for event in json.loads(text)["traceEvents"]]
    assert [name for name in names if name.startswith("ProfilerStep#")] == [
        "ProfilerStep#7", "ProfilerStep#7", "ProfilerStep#8",
    ]  # fmt: skip
    assert names.count("aten::ones") == 3


@pytest.mark.parametrize(
    ("rank", "expected"), [(0, ["summary.json"]), (1, ["rank-00001.trace.json.gz"])]
)
def test_only_the_ranks_named_write_a_trace(one_rank, rank, expected, tmp_path: Path) -> None:
    with profiling(Ranks(rank, 2, torch.device("cpu")), tmp_path, [1, 1], [1]) as profile:
        profile.begin_step(1)
        profile.end_step(1)
    assert files(tmp_path) == expected


def test_a_run_that_stops_early_writes_the_steps_that_it_made(one_rank, tmp_path) -> None:
    with profiling(alone(), tmp_path, [3, 9], [0]) as profile:
        profile.begin_step(3)
        torch.ones(3)
        profile.end_step(3)
    assert summary_of(tmp_path).last_step == 3


def test_a_profile_replaces_the_one_before(one_rank, tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "rank-00005.trace.json.gz").write_bytes(b"old")
    with profiling(alone(), tmp_path, [1, 1], [0]) as profile:
        profile.begin_step(1)
        profile.end_step(1)
    assert files(tmp_path) == ["rank-00000.trace.json.gz", "summary.json"]


def test_an_error_in_a_profiled_step_is_raised_and_the_next_profile_starts(
    one_rank, tmp_path: Path
) -> None:
    for fails in (True, False):
        with (
            pytest.raises(ZeroDivisionError) if fails else nullcontext(),
            profiling(alone(), tmp_path, [1, 1], [0]) as profile,
        ):
            profile.begin_step(1)
            print(1 / (not fails))
            profile.end_step(1)
    assert summary_of(tmp_path).ranks[0].steps == 1


def test_traces_that_cannot_be_written_are_a_warning(one_rank, tmp_path, caplog) -> None:
    (tmp_path / "x").write_text("a file where the run folder would be")
    events = Events()
    with (
        caplog.at_level(logging.WARNING),
        profiling(alone(), tmp_path / "x", [1, 1], [0], events) as profile,
    ):
        profile.begin_step(1)
        profile.end_step(1)
    assert "no profile of rank 0" in caplog.text
    assert "nothing was recorded" in events.seen[0][1]["text"]


def test_on_a_gpu_the_host_waits_only_at_the_borders_of_the_profile(
    one_rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Recorder:
        def __init__(self, **options: Any) -> None:
            assert torch.profiler.ProfilerActivity.CUDA in options["activities"]

        def start(self) -> None:
            done.append("start")

        def stop(self) -> None:
            done.append("stop")

        def export_chrome_trace(self, path: str) -> None:
            raise OSError("of no concern here")

    monkeypatch.setattr(profiler, "profile", Recorder)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    memory = torch.cuda.memory
    record = lambda enabled="all", **_: done.append(f"memory {enabled}")  # noqa: E731
    monkeypatch.setattr(memory, "_record_memory_history", record)
    monkeypatch.setattr(memory, "_dump_snapshot", lambda path: Path(path).write_bytes(b"snapshot"))
    with profiling(alone("cuda"), tmp_path, [3, 4], [0]) as profile:
        for number in range(1, 7):
            profile.begin_step(number)
            done.append(f"step {number}")
            profile.end_step(number)
    assert done == [
        "step 1", "step 2", "wait", "memory all", "start", "step 3", "step 4", "stop",
        "memory None", "step 5", "step 6",
    ]  # fmt: skip
    assert "rank-00000.memory.pickle" in files(tmp_path)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's compiler asks
def test_nothing_is_compiled_again_under_the_profiler(
    one_rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile, "BACKEND", "aot_eager")
    model, batch = random_model(small_settings(), 90, seed=0), random_batch([5, 9], 90, 0)
    torch._dynamo.reset()
    compile_parts(model, Precision.fp32, torch.device("cpu"))
    plain = outcome(model, batch)
    counters = torch._dynamo.utils.counters
    counters.clear()
    with profiling(alone(), tmp_path, [1, 1], [0]) as profile:
        profile.begin_step(1)
        again = outcome(model, batch)
        profile.end_step(1)
    assert not counters["stats"]
    torch.testing.assert_close(again, plain, rtol=0, atol=0)

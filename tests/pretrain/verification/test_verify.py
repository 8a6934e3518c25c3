"""`pretrain.verify` on real runs: what holds, what it finds if not, what it refuses."""

import multiprocessing
import os
import re
import shutil
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import run_in_fork
from omegaconf import OmegaConf
from run_in_fork import TINY, Hook, finished_run

import pretrain.verification.replica
from data_prep.core.config import SettingsError, as_dict, as_overrides
from data_prep.core.files import checksum
from pretrain import verify
from pretrain.checkpoint.progress import Progress
from pretrain.config.load import load, settings_of
from pretrain.config.phases import phases_of
from pretrain.data.train_loader import TrainLoader
from pretrain.engine import snapshot
from pretrain.engine.engine import Engine
from pretrain.run_folder.jsonl import readable_lines
from pretrain.verification import trial
from pretrain.verification.launcher import Launched
from pretrain.verification.replica import NEVER, Copy, ReplayStart, find_origin, steps_left

pytestmark = pytest.mark.distributed

SMALL = (
    *TINY, "model.hidden_dropout_prob=0", "model.attention_probs_dropout_prob=0",
    "engine.tokens_per_micro_batch=2048", "schedule.total_steps=10", "schedule.warmup_steps=1",
    "eval.max_examples=8", "checkpoint.every_steps=2", "checkpoint.keep=2", "run.dir=.",
)  # fmt: skip


class Forked:
    """A process of `multiprocessing` in a Popen's place."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return None if self._process.is_alive() else self._process.exitcode

    def wait(self) -> None:
        self._process.join()


def forking(hook: Hook = lambda rank: None) -> Callable[..., Launched]:
    """`launch`, but forked from this process, which has imported everything. Ranks run `hook`."""

    def lead_a_group(rank: int) -> None:
        os.setsid()
        hook(rank)

    def launch(arguments: Sequence[str], num_ranks: int, output: Path) -> Launched:
        context = multiprocessing.get_context("fork")
        output.touch()
        port = run_in_fork._free_port()
        made = []
        for rank in range(num_ranks):
            values = (arguments, Path.cwd(), output, rank, num_ranks, port, lead_a_group)
            process = context.Process(target=run_in_fork._child, args=values)
            process.start()
            made.append(Forked(process))
        return Launched(made, output)

    return launch


@pytest.fixture(scope="module")
def finished(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that two ranks finished: 10 steps, with the checkpoints of 8 and 10."""
    folder = tmp_path_factory.mktemp("runs")
    finished_run([*SMALL, f"data.dir={sample_dir}", "data.seq_len=128"], folder, ranks=2)
    return folder / "x"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "x"))


def verified(run: Path, hook: Hook = lambda rank: None, **arguments: Any) -> tuple[bool, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.verification.replica, "launch", forking(hook))
        return trial.verify_run(run, **arguments)


def everything(folder: Path) -> dict[str, str | None]:
    """Everything in a folder, with the checksums of files."""
    return {
        str(path.relative_to(folder)): checksum(path) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_a_sound_run_holds_and_is_left_as_it_was(run: Path) -> None:
    before = everything(run)
    holds, sentence = verified(run)
    assert holds
    assert re.fullmatch(
        "Holds: 8 steps from step 0 on, on 2 ranks, killed twice and started again, gave the same "
        "batches, losses, weights and moments, bit for bit; on 1 rank instead of 2 the same "
        r"batches, and losses within \de-0[5-9]\.",
        sentence,
    ), sentence
    assert everything(run) == before


def test_without_the_setting_no_record_has_a_checksum(finished: Path) -> None:
    assert readable_lines(finished / "metrics.jsonl")
    assert not any("data/batch" in record for record in readable_lines(finished / "metrics.jsonl"))


def lose_the_position(rank: int) -> None:
    """A start that continues reads the first batches again."""
    batches = TrainLoader.batches
    TrainLoader.batches = lambda self, first, skipped=(): batches(self, 0, skipped)


def lose_a_moment(rank: int) -> None:
    """A start that continues has the second moments a little wrong."""
    read = snapshot.read_tensors

    def wrong(folder: Path) -> Any:
        for key, name, tensor in read(folder):
            yield key, name, tensor * (1 + 1e-5) if key == "exp_avg_sq" else tensor

    snapshot.read_tensors = wrong


def change_what_is_saved(rank: int) -> None:
    """One weight of the killed copy's last checkpoint is another."""
    write = snapshot.Snapshot.write

    def wrong(self: snapshot.Snapshot, folder: Path) -> dict[str, str]:
        if "killed" in str(folder) and "step-00000008" in str(folder):
            next(iter(self.tensors[snapshot.WEIGHT].values())).view(-1)[0] += 1e-3
        return write(self, folder)

    snapshot.Snapshot.write = wrong


def seed_by_ranks(rank: int) -> None:
    """The order of examples depends on the number of ranks."""
    make = TrainLoader.__init__

    def wrong(self: TrainLoader, *shards: Any, seed: int, world_size: int, **rest: Any) -> None:
        make(self, *shards, seed=seed + world_size, world_size=world_size, **rest)

    TrainLoader.__init__ = wrong


def rate_by_ranks(rank: int) -> None:
    """The learning rate depends on the number of ranks."""
    step = Engine.train_step
    Engine.train_step = lambda self, batch, rate: step(self, batch, rate * self.ranks.world_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "found"),
    [
        (lose_the_position,
         r"killed twice .*: after step 3, in start 2, data/batch is \w{32}, str"),
        (lose_a_moment, "killed twice .*: after step 4, in start 2, optim/grad_norm is "),
        (change_what_is_saved,
         "with equal losses, in the checkpoint of step 8 the checksum of model.safetensors is "),
        (seed_by_ranks,
         r"on 1 rank instead of 2 after step 1 data/batch is \w{32}, straight it is"),
        (rate_by_ranks, r"on 1 rank instead of 2 after step [2-5] train/loss is .* 0.0001 apart"),
    ],
)  # fmt: skip
def test_the_first_difference_is_named_and_the_copies_stay(run, hook, found) -> None:
    holds, sentence = verified(run, hook)
    assert not holds
    assert re.search(f"^Does not hold: .*{found}", sentence), sentence
    folder = Path(sentence.rpartition("The copies are in ")[2].rstrip("."))
    assert folder.parent == run / "verify"
    assert (folder / "straight" / "metrics-0.jsonl").exists()


@pytest.mark.slow
def test_from_the_command_line_with_processes_of_its_own(finished, capsys) -> None:
    assert verify.main([f"run={finished}", "steps=3", "ranks=1", "other_ranks=0"]) == 0
    output = capsys.readouterr().out
    assert "from      step 0 (step-00000010 has 0 steps left in its phase; step-0" in output
    assert "Holds: 3 steps from step 0 on, on 1 rank, killed twice and started again" in output
    assert output.endswith("Another number of ranks was not tried.\n")


def test_a_copy_begins_at_the_newest_checkpoint_that_leaves_enough_steps(run, tmp_path) -> None:
    phases = phases_of(settings_of(run))
    origin, why = find_origin(run, phases, 2, tmp_path / "a")
    assert (origin.step, origin.checkpoint) == (8, tmp_path / "a" / "step-00000008")
    assert why.endswith("step-00000008 (step-00000010 has 0 steps left in its phase)")
    weights = run / "checkpoints" / "step-00000008" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    origin, why = find_origin(run, phases, 2, tmp_path / "b")
    assert (origin.step, origin.checkpoint) == (0, None)
    assert "step-00000008 is broken: model.safetensors is not what was written" in why


def test_a_run_without_a_checkpoint_is_made_again_from_step_0(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    origin, why = find_origin(run, phases_of(settings_of(run)), 10, tmp_path)
    assert (origin.step, origin.checkpoint) == (0, None)
    assert why == "step 0 (there is no checkpoint yet)"


def test_a_run_that_is_too_short_is_refused_with_what_it_has(run: Path, tmp_path: Path) -> None:
    refusal = r"no 11 steps to repeat.* makes 10 from step 0 on.*steps=10"
    with pytest.raises(SettingsError, match=refusal):
        find_origin(run, phases_of(settings_of(run)), 11, tmp_path)


def test_the_ranks_are_those_of_the_last_start_where_they_fit(run, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(2)))
    settings = settings_of(run)
    expected = (2, 1, "2, as in its last start; then 1")
    assert trial._rank_counts(run, settings, None, None) == expected
    with (run / "events.jsonl").open("a") as events:
        events.write('{"time": "", "event": "resumed", "step": 8, "ranks": 16}\n{"time')
    ranks, others, why = trial._rank_counts(run, settings, None, None)
    assert (ranks, others) == (2, 1)
    assert why.startswith("2: its last start had 16, this machine has 2 cores")
    assert trial._rank_counts(run, settings, 1, None)[:2] == (1, 2)
    with pytest.raises(SettingsError, match="cannot be dealt to 9 ranks"):
        trial._rank_counts(run, settings, 9, None)


def test_a_copy_that_the_run_refuses_is_its_message_and_leaves_nothing(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("seq_len: 128", "seq_len: 40"))
    before = everything(run)
    with pytest.raises(SettingsError, match="there are no shards of 40 tokens"):
        verified(run, ranks=1)
    assert everything(run) == before


@pytest.mark.parametrize(
    "typed",
    [
        ("+model=large", "recipe=nvidia_lamb", "engine=bf16"),
        ("+model=base", "recipe=paper", "data.masking=dynamic"),
        ("+model=tiny", "recipe=budget_24h", "optim.max_grad_norm=1"),
        ("+model=small", "recipe=roberta_like", "run.name=it's, ={a} name", "run.seed=0"),
    ],
)
def test_a_run_s_settings_as_they_are_typed_are_its_settings(typed, tmp_path) -> None:
    """Also those of phases, and those that its version did not have yet."""
    settings, _ = load(typed, world_size=1)
    again, _ = load(["+model=base", *as_overrides(as_dict(settings))], world_size=1)
    assert again == settings
    plain = as_dict(settings)
    del plain["monitor"]["batch_checksums"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain)))
    assert settings_of(tmp_path) == settings


def test_a_copy_sends_nothing_to_a_tracker_the_hub_or_a_mirror(tmp_path) -> None:
    typed = ["+model=tiny", "log=wandb", "export.push_to=me/x", "checkpoint.mirror=s3://a/b"]
    settings, _ = load(typed, world_size=1)
    copy = Copy.make(tmp_path / "c", settings, 1, ReplayStart(0, phases_of(settings)[0], None))
    again, _ = load(copy._typed(5), world_size=1)
    assert (again.log.wandb, again.log.trackers, again.export.push_to) == (False, [], None)
    assert again.checkpoint.mirror is None


def state_at(step: int, phase: int = 1, first_step: int = 0, elapsed_s: float = 0.0) -> Progress:
    begun = Progress.begin(phase, step)
    return msgspec.structs.replace(begun, first_step=first_step, elapsed_s=elapsed_s)


@pytest.mark.parametrize(
    ("recipe", "state", "left"),
    [
        ("paper", state_at(899_995), 5),
        ("paper", state_at(900_000), 100_000),  # the second phase begins there
        ("paper", state_at(999_990, 2, 900_000), 10),
        ("paper", state_at(1_000_000, 2, 900_000), 0),
        ("budget_24h", None, NEVER),
        ("budget_24h", state_at(1000, elapsed_s=24 * 3600 - 40.0), 0),  # 86 s a step
        ("budget_24h", state_at(1_000_000, elapsed_s=24 * 3600 - 40.0), 115),  # 0.09 s a step
    ],
)
def test_steps_left_are_those_of_the_phase_or_as_many_as_the_clock_allows_a_slow_copy(
    recipe: str, state: Progress | None, left: int
) -> None:
    settings, _ = load(["+model=tiny", f"recipe={recipe}"], world_size=1)
    assert steps_left(phases_of(settings), state) == left

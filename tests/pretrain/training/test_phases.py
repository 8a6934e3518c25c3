"""Two phases are one run: in one folder, through kills in either, to the same weights."""

import gc
import shutil
import signal
import weakref
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from damage import flip_a_bit
from engine_samples import build_engine, gathered, global_batch, save_state
from google_schedule import google
from killing import at_step
from made_manifests import shard_entry, shards_manifest, split_entry
from ranks_harness import run_ranks
from run_in_fork import TINY, finished_run, pretrain_run

from data_prep.core.config import SettingsError, compose
from data_prep.core.files import checksum, read_json
from data_prep.core.objectives import Pairing
from pretrain.checkpoint.identity import identity
from pretrain.checkpoint.progress import Progress, resume_point
from pretrain.config.load import load
from pretrain.config.phases import phases_of
from pretrain.config.settings import DataSettings, MaskMode, Precision, Settings
from pretrain.data.corpus import prepare_sample
from pretrain.data.train_loader import TrainLoader
from pretrain.distributed.ranks import Ranks
from pretrain.engine.engine import Engine
from pretrain.model.bert import BertForPreTraining
from pretrain.optim.schedules import learning_rate
from pretrain.run_folder.jsonl import readable_lines

STEPS = (6, 5)  # of the first and the second phase
SECOND = (
    "{changes: {data: {seq_len: 64}, optim: {global_batch: 4, learning_rate: 2e-3}, "
    "schedule: {total_steps: 5, warmup_steps: 2}}, moments: %s, optimizer_step: reset, "
    "loss_scaler: reset}"
)
TWO_PHASES = (
    *TINY, "optim=lamb_nvidia", "schedule.total_steps=6", "schedule.warmup_steps=1",
    "eval.every_steps=100", "eval.max_examples=40", "checkpoint.every_steps=4",
)  # fmt: skip
KEPT = "moments: kept, optimizer_step: kept, loss_scaler: kept"


def settings_of(*typed: str) -> Settings:
    return compose("config", Settings, ["+model=base", *typed])[0]


def test_the_second_phase_of_nvidia_s_recipe_has_its_published_numbers() -> None:
    first, second = phases_of(settings_of("recipe=nvidia_lamb"))
    now = second.settings
    assert (now.data.seq_len, now.optim.global_batch) == (512, 32_768)
    assert now.optim.learning_rate == 4e-3
    assert (now.schedule.total_steps, now.schedule.warmup_fraction) == (1_563, 0.128)
    assert (now.schedule.power, now.schedule.decay_from_step_0) == (0.5, True)
    assert second.forgets == ("optimizer_step", "loss_scaler"), "the moments are kept"
    assert now.optim.betas == first.settings.optim.betas
    assert first.settings.data.seq_len == 128


def test_the_paper_s_two_phases_are_one_curve() -> None:
    phases = phases_of(settings_of("recipe=paper"))
    lengths = [phase.settings.schedule.last_step for phase in phases]
    assert lengths == [900_000, 100_000]
    assert [phase.settings.data.seq_len for phase in phases] == [128, 512]
    assert phases[1].forgets == ()
    for step in (0, 1, 9_999, 10_000, 899_999, 900_000, 900_001, 999_999):
        phase, done = (phases[0], step) if step < 900_000 else (phases[1], step - 900_000)
        rate = learning_rate(done, phase.settings.schedule, 1e-4)
        assert rate == pytest.approx(google(step, 10_000, 1_000_000, 1e-4), rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("{model: {hidden_size: 64}}", r"phase 2 changes model\.hidden_size; a phase may change"),
        ("{optim: {name: adamw}}", r"phase 2 changes optim\.name"),
        ("{optim: {learnin_rate: 1}}", "phase 2: .*learnin_rate"),
        ("{data: {seq_len: 1024}}", "phase 2: data.seq_len=1024 is longer than"),
        ("{data: {pairs: none}}", r"phase 2 changes data\.pairs"),
        ("{schedule: 5}", "phase 2 changes schedule"),
    ],
)
def test_a_change_that_no_phase_can_make_is_refused(changes: str, message: str) -> None:
    typed = f"phases=[{{changes: {changes}, {KEPT}}}]"
    with pytest.raises(SettingsError, match=message):
        load(["+model=base", typed], world_size=1)


def test_a_recipe_that_is_shorter_than_its_first_phase_runs_as_one_phase() -> None:
    length = ["schedule.total_steps=900", "schedule.stop_step=null"]
    shorter = ["+model=tiny", "recipe=laptop", *length]
    with pytest.raises(SettingsError, match=r"phase 2: .* phases=\[\] runs only the first"):
        load(shorter, world_size=1)
    settings, _ = load([*shorter, "phases=[]"], world_size=1)
    assert settings.schedule.last_step == 900


def longer(positions: str, seq_len: int = 256) -> str:
    return f"phases=[{{changes: {{data: {{seq_len: {seq_len}}}}}, {KEPT}, positions: {positions}}}]"


def test_tiled_positions_after_a_phase_that_was_no_shorter_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"phase 2: positions=tiled .*seq_len=128 after 128"):
        load(["+model=base", "data.seq_len=128", longer("tiled", 128)], world_size=1)


def progress(step: int, first_step: int, phase: int) -> Progress:
    return msgspec.structs.replace(Progress.begin(phase, step), first_step=first_step)


def test_positions_are_tiled_where_the_longer_phase_begins_and_never_again() -> None:
    tiled = phases_of(settings_of("data.seq_len=128", "schedule.total_steps=9", longer("tiled")))
    end, later = progress(9, 0, 1), progress(10, 9, 2)
    places = [resume_point(tiled, state) for state in (None, end, later)]
    assert [place.tiles for place in places] == [None, 128, None]
    kept = phases_of(settings_of("data.seq_len=128", "schedule.total_steps=9", longer("kept")))
    assert resume_point(kept, end).tiles is None


@pytest.mark.parametrize(
    ("state", "number", "is_beginning"),
    [
        (None, 1, True), (progress(899_999, 0, 1), 1, False), (progress(900_000, 0, 1), 2, True),
        (progress(900_001, 900_000, 2), 2, False), (progress(1_000_000, 900_000, 2), 2, False),
    ],
)  # fmt: skip
def test_a_checkpoint_records_the_phase_in_which_the_run_continues(
    state, number, is_beginning
) -> None:
    place = resume_point(phases_of(settings_of("recipe=paper")), state)
    assert (place.phase.number, place.is_beginning) == (number, is_beginning)


def test_the_token_budget_belongs_to_the_identity_of_a_run_by_tokens_alone() -> None:
    def of_run(*typed: str) -> dict[str, Any]:
        return identity(settings_of(*typed), [shards_manifest()])

    smaller = "engine.tokens_per_micro_batch=4096"
    assert of_run() == of_run(smaller)
    by_tokens = "optim.tokens_per_step=65536"
    assert of_run(by_tokens) != of_run(by_tokens, smaller)
    assert of_run(by_tokens) != of_run("optim.tokens_per_step=32768")


def test_what_a_phase_changes_and_its_shards_belong_to_the_run_s_identity() -> None:
    def identity_of(checksum: str, *typed: str) -> dict[str, Any]:
        splits = [{"train": split_entry([shard_entry(checksum=c)])} for c in ("a", checksum)]
        manifests = [shards_manifest(split) for split in splits]
        return identity(settings_of("recipe=nvidia_lamb", *typed), manifests)

    assert identity_of("b") == identity_of("b", "eval.every_steps=7")
    assert identity_of("b") != identity_of("c")
    assert identity_of("b") != identity_of("b", "phases=[]")
    phase = "phases=[{changes: {data: {seq_len: %d}, checkpoint: {every_steps: %d}}, " + KEPT + "}]"
    assert identity_of("b", phase % (256, 5)) == identity_of("b", phase % (256, 6))
    assert identity_of("b", phase % (256, 5)) != identity_of("b", phase % (512, 5))
    assert identity_of("b", phase % (256, 5)) == identity_of("b", longer("kept"))
    assert identity_of("b", phase % (256, 5)) != identity_of("b", longer("tiled"))


@pytest.fixture(scope="module")
def arguments(sample_dir: Path) -> list[str]:
    prepare_sample(DataSettings(str(sample_dir), 64, Pairing.nsp, MaskMode.static))
    return [*TWO_PHASES, f"data.dir={sample_dir}"]


def run_through(arguments: list[str], folder: Path, kills: list[int]) -> None:
    folder.mkdir()
    for call in [*kills, None]:
        statuses, output = pretrain_run(arguments, folder, ranks=2, hook=at_step(call, of_rank=1))
        assert statuses == [0, 0] if call is None else -signal.SIGKILL in statuses, output


def lines_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return readable_lines(folder / "runs/x" / name)


@pytest.mark.slow
@pytest.mark.distributed
def test_both_phases_are_one_run_whatever_kills_it(arguments: list[str], tmp_path: Path) -> None:
    arguments = [*arguments, f"phases=[{SECOND % 'kept'}]"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run_through(arguments, straight, [])
    # in the first phase; at the first step of the second; in the second, behind its checkpoint at 8
    run_through(arguments, killed, [6, 3, 4])

    for folder in (straight, killed):
        training = [m for m in lines_of(folder, "metrics.jsonl") if "train/loss" in m]
        assert [m["step"] for m in training] == list(range(1, sum(STEPS) + 1))
        expected = [1.5e-3 * (1 - s / 6 if s else 0) for s in range(6)]
        expected += [2e-3 * (s / 2 if s < 2 else 1 - s / 5) for s in range(5)]
        assert [m["optim/learning_rate"] for m in training] == pytest.approx(expected)
        evaluations = [m for m in lines_of(folder, "metrics.jsonl") if "eval/loss" in m]
        assert [m["step"] for m in evaluations] == [6, 11], "at the end of each phase"
        for event in (e for e in lines_of(folder, "events.jsonl") if e["event"] == "phase"):
            assert (event["number"], event["step"]) == (2, 6)
            assert (event["moments"], event["optimizer_step"]) == ("kept", "reset")
            assert event["data.seq_len"] == 64
    last = "runs/x/checkpoints/step-00000011"
    state = read_json(killed / last / "state.json")
    assert (state["phase"], state["first_step"], state["position"]) == (2, 6, 20)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert checksum(killed / last / name) == checksum(straight / last / name)
    card = (straight / "runs/x/export/README.md").read_text()
    assert "6 of 6 steps of 8 sequences" in card
    assert "5 of 5 steps of 4 sequences: 20 sequences of up to\n64 tokens" in card


@pytest.mark.distributed
def test_a_wrong_byte_in_the_shards_of_a_later_phase_is_seen_before_the_first(
    arguments: list[str], sample_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(sample_dir, tmp_path / "data")
    shard = min((tmp_path / "data/len64/train").iterdir())
    flip_a_bit(shard)
    typed = [*arguments, f"phases=[{SECOND % 'kept'}]", "data.dir=data"]
    statuses, output = pretrain_run(typed, tmp_path)
    assert statuses == [2]
    assert "1 of the shards in data/len64 are not those that were built" in output
    assert not (tmp_path / "runs/x/metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_spike_in_the_second_phase_goes_back_to_its_beginning_and_no_further(
    arguments: list[str], tmp_path: Path
) -> None:
    """The spike is at step 9, before the first checkpoint of the phase; its moments begin at 0."""
    typed = [
        *arguments, f"phases=[{SECOND % 'reset'}]", "survival.spike_window=2",
        "survival.on_spike=rewind", "checkpoint.every_steps=100", "run.seed=1",
    ]  # fmt: skip

    def without_batch_2(rank: int) -> None:
        batches = TrainLoader.batches

        def passed_over(self: TrainLoader, first: int, _: object) -> Any:
            return batches(self, first, [(8, 12)] if self._global_batch == 4 else [])

        TrainLoader.batches = passed_over

    def poisoned_batch_2(rank: int) -> None:
        train_step, forward = Engine.train_step, BertForPreTraining.forward
        factor = 1.0

        def step(self: Engine, batch: Any, rate: float) -> Any:
            nonlocal factor
            factor = 20.0 if (batch.num_sequences, batch.position) == (4, 8) else 1.0
            return train_step(self, batch, rate)

        def poisoned(self: BertForPreTraining, batch: Any) -> Any:
            mlm_loss, *rest = forward(self, batch)
            return (mlm_loss * factor if self.training else mlm_loss, *rest)

        Engine.train_step = step
        BertForPreTraining.forward = poisoned

    rewound, without = tmp_path / "rewound", tmp_path / "without"
    for folder, hook in ((rewound, poisoned_batch_2), (without, without_batch_2)):
        folder.mkdir()
        finished_run(typed, folder, hook=hook)
    events = lines_of(rewound, "events.jsonl")
    assert [e["step"] for e in events if e["event"] == "rewound"] == [6]
    last = "runs/x/checkpoints/step-00000011"
    state = read_json(rewound / last / "state.json")
    assert (state["phase"], state["first_step"], state["skipped"]) == (2, 6, [[8, 12]])
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert checksum(rewound / last / name) == checksum(without / last / name)


def carried(ranks: Ranks, folder: Path, stage: int, forget: tuple[str, ...], is_fresh: bool) -> Any:
    engine = build_engine(ranks, stage)
    for position in range(3):
        batch = global_batch(position, ranks.rank, ranks.world_size)
        engine.train_step(batch, 1e-3)
    save_state(engine, folder)
    ranks.barrier()
    weights = gathered(engine)
    other = build_engine(ranks, stage)
    if not is_fresh:  # as where a run goes back to the beginning of its phase
        other.train_step(global_batch(3, ranks.rank, ranks.world_size), 1e-3)
    other.load(folder, forget)
    steps = {float(other._optimizer.state[flat]["step"]) for flat in other._state.flat_tensors()}
    moments = gathered(other, "exp_avg")
    is_same = all(torch.equal(value, weights[n]) for n, value in gathered(other).items())
    return is_same, any(m.any() for m in moments.values()), steps


@pytest.mark.distributed
@pytest.mark.parametrize("is_fresh", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_phase_takes_over_weights_always_and_the_rest_as_set(stage, is_fresh, tmp_path) -> None:
    arguments = {"folder": tmp_path, "stage": stage, "is_fresh": is_fresh}
    for forget, expected in (
        ((), (True, True, {3.0})),
        (("moments", "optimizer_step"), (True, False, {0.0})),
        (("optimizer_step",), (True, True, {0.0})),  # as NVIDIA does
    ):
        assert run_ranks(carried, 2, forget=forget, **arguments)[0] == expected


def tiled_tables(ranks: Ranks, folder: Path, stage: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Position table and its first moment as saved, and as loaded with `tiles`=3, on rank 0."""
    engine = build_engine(ranks, stage)
    engine.train_step(global_batch(0, ranks.rank, ranks.world_size), 1e-3)
    save_state(engine, folder)
    ranks.barrier()
    name = "embeddings.position.weight"
    both = []
    other = build_engine(ranks, stage)
    for key in ("weight", "exp_avg"):
        other.load(folder)
        saved = gathered(other, key)
        other.load(folder, tiles=3)
        both.append((saved.get(name), gathered(other, key).get(name)))
    return both


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [1, 3])
def test_tiled_positions_are_the_trained_rows_end_to_end_with_their_moments(
    stage: int, tmp_path: Path
) -> None:
    for saved, tiled in run_ranks(tiled_tables, 2, folder=tmp_path, stage=stage)[0]:
        assert saved.any()
        assert len(saved) > 6
        for row in range(len(saved)):
            assert torch.equal(tiled[row], saved[row % 3])


def scales(ranks: Ranks, folder: Path) -> list[float]:
    """The loss scale after loading 256, then after loading with the loss scaler forgotten."""
    engine = build_engine(ranks, 1, Precision.fp16)
    engine._engine.optimizer.loss_scaler.cur_scale = 256.0
    save_state(engine, folder)
    scales = []
    for forget in ((), ("loss_scaler",)):
        engine.load(folder, forget)
        scales.append(engine.loss_scale)
    return scales


@pytest.mark.distributed
def test_a_loss_scale_is_taken_over_or_is_that_of_a_new_engine(tmp_path: Path) -> None:
    assert run_ranks(scales, 1, folder=tmp_path) == [[256, 2**16]]


def left_over(ranks: Ranks, stage: int) -> int:
    """How many of an engine's tensors are still there after it was closed."""
    engine = build_engine(ranks, stage)
    engine.train_step(global_batch(0, ranks.rank, ranks.world_size), 1e-3)
    tensors = [*engine._state.flat_tensors(), *engine._state.parameters.values()]
    watched = [weakref.ref(tensor) for tensor in tensors]
    engine.close()
    del engine, tensors
    gc.collect()
    return sum(watch() is not None and watch().numel() > 0 for watch in watched)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "stage", [*(pytest.param(s, marks=pytest.mark.slow) for s in (0, 1, 2)), 3]
)
def test_a_closed_engine_leaves_its_memory_to_the_next(stage: int) -> None:
    assert run_ranks(left_over, 2, stage=stage) == [0, 0]

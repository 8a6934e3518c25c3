"""run.extend=true: which changes a run that continues may make, and what it prints of them."""

from typing import Any

import msgspec
import pytest
from made_manifests import shard_entry, shards_manifest, split_entry

from data_prep.core.config import SettingsError, compose
from pretrain.checkpoint.extension import (
    Change,
    Extension,
    before_decay,
    changes,
    extended,
)
from pretrain.checkpoint.identity import identity
from pretrain.checkpoint.progress import Progress
from pretrain.config.settings import Settings

RUN = ("+model=base", "schedule.total_steps=100", "data.seq_len=128")
WSD = ("schedule=wsd", "schedule.warmup_steps=10")
CARRIED = "moments: kept, optimizer_step: kept, loss_scaler: kept"


def second(changed: str = "schedule: {total_steps: 50}") -> str:
    return f"phases=[{{changes: {{data: {{seq_len: 512}}, {changed}}}, {CARRIED}}}]"


def identity_of(*typed: str, shards: tuple[str, ...] = ("a", "b")) -> dict[str, Any]:
    settings = compose("config", Settings, [*RUN, *typed])[0]
    used = shards[: 1 + len(settings.phases)]
    splits = [{"train": split_entry([shard_entry(checksum=c)])} for c in used]
    return identity(settings, [shards_manifest(split) for split in splits])


def progress(step: int, phase: int = 1, first_step: int = 0, **more: Any) -> Progress:
    begun = Progress.begin(phase, step)
    return msgspec.structs.replace(begun, first_step=first_step, **more)


def extension(
    *typed: str, at: Progress | None = None, of: tuple[str, ...] = (), **more: Any
) -> Extension:
    return extended(identity_of(*of), identity_of(*typed, **more), at or progress(100))


@pytest.mark.parametrize(
    ("of", "typed", "at", "step"),
    [
        (WSD, ("schedule.total_steps=200",), progress(100), 80),
        (WSD, ("schedule.decay_fraction=0.1",), progress(81), 80),
        (WSD, ("schedule.total_steps=200",), progress(80), None),
        (WSD, ("optim.weight_decay=0.1",), progress(100), None),
        ((), ("schedule.total_steps=200",), progress(100), None),
        (WSD, (second(),), progress(100), None),
        (
            (*WSD, second("schedule: {total_steps: 50}")),
            (second("schedule: {total_steps: 70}"),), progress(150, 2, 100), 140,
        ),
    ],
)  # fmt: skip
def test_another_schedule_goes_on_from_before_the_decay(of, typed, at, step) -> None:
    assert before_decay(identity_of(*of), identity_of(*of, *typed), at) == step


def test_settings_that_earlier_versions_lacked_are_recorded_only_where_they_differ() -> None:
    added = {"model.position_init", "schedule.decay_fraction", "data.mask_rate"}
    assert not added & identity_of().keys()
    assert identity_of("model.position_init=sinusoidal")["model.position_init"] == "sinusoidal"


LONGER = "schedule.total_steps=200"


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("optim.learning_rate=1e-5", "optim.learning_rate"),
        ("optim.global_batch=64", "optim.global_batch"),
        ("optim.weight_decay=0.1", "optim.weight_decay"),
        ("optim.betas=[0.9,0.95]", "optim.betas"),
        ("optim.eps=1e-8", "optim.eps"),
        ("optim.max_grad_norm=null", "optim.max_grad_norm"),
        ("optim.tokens_per_step=65536", "optim.tokens_per_step"),
        ("data.mixture={a:1,b:2}", "data.mixture"),
        ("data.mixture_temperature=0.7", "data.mixture_temperature"),
        ("data.mask_rate=0.3", "data.mask_rate"),
        ("schedule=constant", "schedule.power"),
        ("schedule=poly_nvidia", "schedule.count_from_1"),
        ("schedule.warmup_steps=7", "schedule.warmup_steps"),
        ("schedule.stop_step=150", "schedule.stop_step"),
        ("schedule.start_step=20", "schedule.start_step"),
    ],
)
def test_schedule_rate_batch_and_decay_may_change(typed: str, name: str) -> None:
    found = {change.name for change in extension(LONGER, typed).changes}
    assert {"schedule.total_steps", name} <= found


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("model.hidden_size=384", "model.hidden_size: 768 then, 384 now"),
        ("model.num_hidden_layers=13", "model.num_hidden_layers: 12 then, 13 now"),
        ("model.hidden_dropout_prob=0", "model.hidden_dropout_prob: 0.1 then, 0.0 now"),
        ("data.pairs=none", "data.pairs: nsp then, none now"),
        ("data.masking=static", "data.masking: dynamic then, static now"),
        ("data.seq_len=512", "data.seq_len: 128 then, 512 now"),
        ("optim=lamb", "optim.name: adamw then, lamb now"),
        ("run.seed=7", "run.seed: 12345 then, 7 now"),
        ("engine.precision=bf16", "engine.precision: auto then, bf16 now"),
    ],
)
def test_model_data_objective_and_optimizer_may_not_and_init_from_is_the_cure(
    typed: str, name: str
) -> None:
    with pytest.raises(SettingsError, match=r"run\.extend=true cannot change it") as refused:
        extension(LONGER, typed)
    assert name in str(refused.value)
    assert "run.init_from=" in str(refused.value)


def test_other_training_shards_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"data \(training shards\): \w+ then, \w+ now; run"):
        extension(LONGER, shards=("c",))


def test_another_vocabulary_is_refused() -> None:
    before, now = identity_of(), identity_of(LONGER)
    now["data (checksum of the vocabulary)"] = "other"
    with pytest.raises(SettingsError, match=r"checksum of the vocabulary\): \S+ then, other now"):
        extended(before, now, progress(100))


@pytest.mark.parametrize(
    ("typed", "at", "message"),
    [
        (["schedule.total_steps=60"], progress(80), "ends after 60 steps, and 80 are made"),
        (["optim.learning_rate=1e-5"], progress(100), "ends after 100 steps, and 100 are made"),
        ([LONGER, "schedule.stop_step=100"], progress(100), "and 100 are made"),
        (["schedule.budget_hours=1", "schedule.warmup_steps=null"],
         progress(100, elapsed_s=3600.0), "ends before the 1 hours that are trained"),
    ],
)  # fmt: skip
def test_a_schedule_that_ends_before_what_is_trained_is_refused(typed, at, message) -> None:
    with pytest.raises(SettingsError, match=message):
        extension(*typed, at=at)


def test_the_same_settings_are_no_change_even_of_a_finished_run() -> None:
    assert extension().changes == []


def test_a_phase_may_be_added_changed_before_it_begins_and_left_out() -> None:
    added = extension(second())
    assert [(c.phase, c.name, c.before) for c in added.changes] == [(2, "phase", None)]
    changed = extension(second("schedule: {total_steps: 70}"), of=(second(),), at=progress(50))
    assert [str(c) for c in changed.changes] == ["schedule.total_steps of phase 2: 50 then, 70 now"]
    other_data = extension(second(), of=(second(),), at=progress(50), shards=("a", "c"))
    assert [(c.phase, c.name) for c in other_data.changes] == [(2, "data (training shards)")]
    left_out = extension(LONGER, of=(second(),), at=progress(50))
    assert [(c.phase, c.name, c.now) for c in left_out.changes][1:] == [(2, "phase", None)]


def test_a_mixture_may_change_in_the_phase_that_trains_and_in_later_ones() -> None:
    mixed = "data: {seq_len: 512, mixture: {a: 1, b: 3}}"
    phases = f"phases=[{{changes: {{{mixed}}}, {CARRIED}}}]"
    of = ("data.mixture={a:2,b:1}", second("eval: {every_steps: 9}"))
    found = extension("data.mixture={a:1,b:1}", phases, of=of, at=progress(50))
    assert [str(c) for c in found.changes] == [
        "data.mixture: {'a': 2.0, 'b': 1.0} then, {'a': 1.0, 'b': 1.0} now",
        "data.mixture of phase 2: {'a': 2.0, 'b': 1.0} then, {'a': 1, 'b': 3} now",
    ]


def test_a_rate_that_a_later_phase_inherits_changes_there_too() -> None:
    found = extension("optim.learning_rate=1e-5", second(), of=(second(),), at=progress(50))
    assert [c.phase for c in found.changes] == [1, 2]


IN_SECOND = progress(120, phase=2, first_step=100)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ((LONGER, second()), "schedule.total_steps: 100 then, 200 now; phase 1 is over"),
        (("optim.learning_rate=1e-5", second()), "phase 1 is over.*type what changes in phases="),
        ((), "phase 2 has begun, and must stay in phases="),
        ((second("schedule: {total_steps: 19}"),), "of phase 2 ends after 19 steps, and 20 are"),
    ],
)
def test_a_phase_that_is_over_does_not_change_and_one_that_has_begun_stays(typed, message) -> None:
    with pytest.raises(SettingsError, match=message):
        extension(*typed, of=(second(),), at=IN_SECOND)


def test_the_phase_in_training_may_be_made_longer() -> None:
    found = extension(second("schedule: {total_steps: 70}"), of=(second(),), at=IN_SECOND)
    assert [str(c) for c in found.changes] == ["schedule.total_steps of phase 2: 50 then, 70 now"]


def test_another_batch_is_refused_while_batches_of_a_spike_are_still_ahead() -> None:
    ahead = progress(50, skipped=[[640, 704]], position=512)
    with pytest.raises(SettingsError, match=r"examples up to 703 .* passed over in whole batches"):
        extension("optim.global_batch=64", at=ahead)
    with pytest.raises(SettingsError, match="passed over in whole batches"):
        extension("data.mixture={a:1,b:2}", at=ahead)
    assert extension("optim.learning_rate=1e-5", at=ahead).changes
    assert extension("optim.global_batch=64", at=msgspec.structs.replace(ahead, position=704))


def test_changes_are_read_back_as_they_were_recorded() -> None:
    found = changes(identity_of(), identity_of("optim.betas=[0.8,0.9]", second()))
    stored = msgspec.json.encode(msgspec.to_builtins(found))
    assert msgspec.json.decode(stored, type=list[Change]) == found


def test_the_curves_before_and_now_are_shown_from_the_next_step_to_the_end() -> None:
    found = extension(
        "schedule=constant", "schedule.total_steps=104", "schedule.warmup_steps=0",
        "optim.learning_rate=3e-4", at=progress(98),
    )  # fmt: skip
    before, now = found.curves
    assert before.split() == "learning rate, before: step 99 2e-06, step 100 1e-06".split()
    assert now.split()[3:5] == ["step", "99"]
    assert now.endswith("step 104 0.0003")
    assert found.lines(98)[0] == "extended after step 98:"


def test_the_curve_of_a_finished_run_was_over_and_later_phases_have_their_own() -> None:
    curves = extension(second()).curves
    assert [line.split(":")[0].strip() for line in curves] == [
        "learning rate of phase 1, before", "learning rate of phase 1, now",
        "learning rate of phase 2, now",
    ]  # fmt: skip
    assert curves[0].endswith("over")


def test_a_curve_by_the_clock_counts_hours() -> None:
    clock = ("schedule.budget_hours=10", "schedule.warmup_steps=null")
    found = extension("schedule.budget_hours=20", "schedule.warmup_steps=null", of=clock,
                      at=progress(50, elapsed_s=5 * 3600.0))  # fmt: skip
    assert "5 h 5e-05" in found.curves[0]
    assert "20 h 0" in found.curves[1]

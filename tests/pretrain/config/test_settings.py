"""Settings that cannot work are refused, each with its cure."""

from __future__ import annotations

import itertools
import re

import pytest
from cures import cures
from slow_cases import slow_but

from data_prep.core.config import SettingsError, as_dict, compose
from pretrain.config.checks import check
from pretrain.config.load import load
from pretrain.config.phases import phases_of
from pretrain.config.settings import Settings

PHASE = "moments: kept, optimizer_step: kept, loss_scaler: kept"


def settings_of(*overrides: str) -> Settings:
    return compose("config", Settings, ["+model=tiny", *overrides])[0]


def test_the_defaults_of_every_model_pass() -> None:
    for model in ("tiny", "small", "base", "large"):
        check(settings_of(f"+model={model}"), world_size=8)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_attention_heads=3", "set model.num_attention_heads=(2|4)"),
        ("data.seq_len=1024", "longer than model.max_position_embeddings=512"),
        ("model.hidden_act=relu", "it takes gelu or gelu_new"),
        ("model.hidden_dropout_prob=1.0", r"it takes \[0, 1\)"),
        ("model.type_vocab_size=1", "set model.type_vocab_size=2"),
        ("data.pairs=rtd", "data.pairs"),
        ("engine.tokens_per_micro_batch=100", "set engine.tokens_per_micro_batch=128 or more"),
        ("optim.global_batch=1", "set optim.global_batch=2 or more"),
        ("optim.tokens_per_step=40000", "set optim.tokens_per_step=32768, or optim.tokens_"),
        ("optim.learning_rate=0", "it takes more than 0"),
        ("optim.betas=[0.9]", "it takes two numbers"),
        ("data.mixture={a:1,b:0}", "it takes a weight above 0 for each source"),
        ("data.mixture={}", "it takes a weight above 0 for each source"),
        ("data.mixture_temperature=2", r"it takes from 0 \(equal shares\) to 1"),
        ("schedule.total_steps=0", "schedule.total_steps=0; it takes 1 or more"),
        ("schedule.warmup_steps=5000", "set schedule.warmup_steps=90"),
        ("eval.max_examples=0", "or null for all"),
        ("run.name=a/b", "must be the name of one folder"),
        ("run.seed=-1", "it takes from 0 to 4294967295"),
        ("engine.zero_stage=4", "it takes 0, 1, 2 or 3"),
        ("profile.steps=[13,10]", r"the first and the last of at most 100 steps, as in \[10,13\]"),
        ("profile.steps=[1,101]", "the first and the last of at most 100 steps"),
        ("profile.steps=[0,3]", "the first and the last of at most 100 steps"),
        ("profile.ranks=some", r"it takes numbers of ranks, as in \[0,8\], or all"),
        ("profile.ranks=[-1]", "it takes numbers of ranks"),
    ],
)
def test_an_impossible_value_is_refused_with_its_cure(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check(settings_of(override), world_size=2)


def test_a_rank_to_profile_must_be_one_of_the_run() -> None:
    typed = ("profile.steps=[1,2]", "profile.ranks=[0,2]")
    check(settings_of(*typed), world_size=3)
    with pytest.raises(SettingsError, match=r"from 0 to 1; set profile\.ranks=\[0\] or"):
        check(settings_of(*typed), world_size=2)


SECOND = "{changes: {schedule: {total_steps: 20}}, moments: kept, optimizer_step: kept, "


@pytest.mark.parametrize("steps", ["[90,91]", "[111,112]", "[100,111]"])
def test_profiled_steps_outside_the_run_or_over_a_phase_are_refused(steps: str) -> None:
    typed = [
        f"phases=[{SECOND}loss_scaler: kept}}]", "schedule.total_steps=90", "data=sample",
    ]  # fmt: skip
    with pytest.raises(SettingsError) as caught:
        load(["+model=tiny", *typed, f"profile.steps={steps}"], world_size=1)
    assert "has steps 1 to 90, then 91 to 110; set profile.steps=[1,4] or" in str(caught.value)
    for allowed in ("[1,4]", "[91,110]"):
        load(["+model=tiny", *typed, f"profile.steps={allowed}"], world_size=1)


def test_a_run_by_the_clock_has_any_step_to_profile() -> None:
    by_clock = ["schedule.budget_hours=1", "schedule.warmup_steps=null"]
    load(["+model=tiny", *by_clock, "profile.steps=[5000,5003]"], world_size=1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_weights_without_zero_are_refused(precision: str) -> None:
    with pytest.raises(SettingsError, match=r"set engine\.zero_stage=1"):
        check(settings_of("engine=zero0", f"engine.precision={precision}"), world_size=1)


def test_weights_and_a_temperature_of_a_mixture_exclude_each_other() -> None:
    typed = ("data.mixture={a:1}", "data.mixture_temperature=0.7")
    with pytest.raises(SettingsError, match="both set the shares of the sources; set one of"):
        check(settings_of(*typed), world_size=1)


def test_the_mixture_of_a_phase_replaces_that_of_the_run() -> None:
    changes = "[{changes: {data: {mixture: {b: 3}}}, moments: kept, optimizer_step: kept, "
    typed = ("data.mixture={a:1}", f"phases={changes}loss_scaler: kept}}]")
    assert [phase.settings.data.mixture for phase in phases_of(settings_of(*typed))] == [
        {"a": 1.0}, {"b": 3.0},
    ]  # fmt: skip


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        check(settings_of("run.seed=-1", "optim.eps=0", "monitor.every_steps=0"), world_size=1)
    assert len(str(caught.value).splitlines()) == 3


def test_the_warm_up_is_a_share_of_the_steps_unless_it_is_given() -> None:
    assert settings_of("schedule.total_steps=50").schedule.warmup == 5
    assert settings_of("schedule.warmup_steps=7").schedule.warmup == 7


@pytest.mark.parametrize(
    ("override", "cure"),
    [
        ("schedule.budget_hours=0", "null for schedule.total_steps"),
        ("schedule.budget_hours=1 schedule.warmup_steps=3", "set schedule.warmup_steps=null"),
        ("schedule.budget_hours=1 schedule.warmup_fraction=1.0", r"it takes \[0, 1\)"),
        ("schedule.power=-1", "0 (constant) or more"),
        ("schedule.decay_fraction=0", "null for a decay from the end of the warm-up"),
    ],
)
def test_a_schedule_that_contradicts_itself_is_refused(override: str, cure: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check(settings_of(*override.split()), world_size=1)
    assert re.search(cure if "\\" in cure else re.escape(cure), str(caught.value))


FLOATS = [
    key
    for group, values in as_dict(settings_of("cluster=dgx_a100", "schedule.budget_hours=1")).items()
    if isinstance(values, dict)
    for key in (f"{group}.{name}" for name, value in values.items() if isinstance(value, float))
]
RATES = [("optim.learning_rate", value) for value in ("inf", "-inf", "1e300")]
NANS = [(key, "nan") for key in (*FLOATS, "monitor.peak_tflops")]
OF_EACH_GROUP = {key.partition(".")[0]: (key, value) for key, value in NANS}.values()


@pytest.mark.parametrize(
    ("key", "value"),
    slow_but([*RATES, *OF_EACH_GROUP], [*RATES, *NANS]),
)
def test_a_number_that_is_not_finite_is_refused_by_name(key: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{key}=[^\n]*; it takes a finite number"):
        settings_of(f"{key}={value}")


@pytest.mark.parametrize(
    "override",
    ["optim.betas=[nan,0.9]", "cluster.peak_tflops={fp32: inf}", "plan.lengths={128: [1.0, nan]}",
     f"schedule.total_steps={10**21}", f"schedule.total_steps={2**63}",
     f"schedule.total_steps=-{10**30}", f"optim.global_batch={10**16}",
     f"phases=[{{changes: {{optim: {{learning_rate: nan}}}}, {PHASE}}}]",
     f"phases=[{{changes: {{schedule: {{total_steps: {10**21}}}}}, {PHASE}}}]"],
)  # fmt: skip
def test_a_number_at_any_depth_and_beyond_all_bounds_is_refused(override: str) -> None:
    with pytest.raises(SettingsError, match="it takes a finite number"):
        load(["+model=tiny", override], world_size=1)


@pytest.mark.parametrize("value", ["1e30", "1e3", "1.5", "1e400", "many"])
def test_a_number_of_steps_that_is_no_whole_number_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=r"^schedule\.total_steps=\S+: it takes a whole number"):
        settings_of(f"schedule.total_steps={value}")


def test_a_number_of_thousands_of_digits_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^[^\n]*value has 5000 digits[^\n]*$"):
        settings_of(f"schedule.total_steps={'9' * 5000}")


def test_a_value_that_cannot_be_is_not_followed_by_what_it_would_break() -> None:
    with pytest.raises(SettingsError) as caught:
        check(settings_of("schedule.total_steps=-5"), world_size=1)
    assert str(caught.value) == (
        f"schedule.total_steps=-5; it takes 1 or more, and at most {2**53}"
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        *((f"{key}={value}", "from 1 to 1048576") for key in ("cluster.nodes", "model.hidden_size",
          "cluster.gpus_per_node", "model.num_attention_heads") for value in (0, -2, 10**9)),
        ("cluster.network_share=0", "more than 0, and at most 1"),
        ("cluster.bandwidth_share=1.5", "more than 0, and at most 1"),
        ("cluster.link_gb_s=0", "more than 0"),
        ("cluster.step_ms=-1", "0 or more"),
        ("cluster.bandwidth_gb_s=0", "must be more than 0"),
        ("cluster.peak_tflops={fp32: 0, half: 1}", "must be more than 0"),
        ("cluster.gemm_share={fp32: 1}", "has no value for half and tf32"),
        ("cluster.peak_tflops={fp32: 1, half: -1}", "0 or more"),
        ("plan.vocab_size=0", "from 1 to 2147483647"),
        ("plan.lengths={128: []}", "two numbers for a length"),
        ("engine.timeout_minutes=1e9", "at most 525600"),
        ("engine.tokens_per_micro_batch=3_000_000_000", "from 1 to 2147483647"),
        ("optim.weight_decay=-0.1", "0 or more"),
        ("model.initializer_range=-1", "0 or more, or auto"),
        ("data.mask_rate=1", "more than 0 and less than 1"),
        ("model.initializer_range=wide", "0 or more, or auto"),
    ],
)  # fmt: skip
def test_a_number_that_nothing_can_be_planned_with_is_refused(override: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check(settings_of("cluster=dgx_a100", override), world_size=1)
    assert override.partition("=")[0] in str(caught.value)
    assert words in str(caught.value)


MISTAKES = [  # of every group of settings
    ("model.num_attention_heads=3", 1, 1),
    ("data.seq_len=1024", 1, 1),
    ("optim.global_batch=7 engine.tokens_per_micro_batch=128", 2, 2),
    ("optim.tokens_per_step=1", 3, 2),
    ("data.mask_rate=0.3 data.masking=static", 1, 2),
    ("data.mask_rate=0.3 data.mask_rate_end=0.2 schedule.budget_hours=1", 1, 1),
    ("schedule.stop_step=901", 1, 1),
    ("schedule.warmup_steps=1 schedule.total_steps=1", 1, 1),
    ("schedule.budget_hours=1 schedule.warmup_steps=3", 1, 1),
    ("optim=lamb optim.trust_ratio=decayed optim.weight_decay=0", 1, 1),
    ("optim.bias_correction=false", 1, 2),
    ("engine=zero0 engine.precision=bf16", 1, 2),
    ("checkpoint.keep_every=0 checkpoint.every_steps=50", 1, 2),
    ("survival.on_spike=rewind monitor.every_steps=7 checkpoint.every_steps=50", 1, 1),
]


@pytest.mark.parametrize(
    ("overrides", "ranks", "number"),
    slow_but(
        MISTAKES,
        [
            *MISTAKES,
            ("model.hidden_size=131 model.num_attention_heads=12", 1, 1),
            ("model.type_vocab_size=1", 1, 1),
            ("engine.tokens_per_micro_batch=100", 1, 1),
            ("optim.global_batch=1", 2, 1),
            ("optim.tokens_per_step=40000", 2, 2),
            ("optim.tokens_per_step=-1", 1, 2),
            ("data.mask_rate_end=0.15", 1, 2),
            ("schedule.start_step=900", 1, 1),
            ("schedule.start_step=5 schedule.stop_step=5", 1, 1),
            ("schedule.warmup_steps=900", 1, 1),
            ("schedule=wsd schedule.warmup_steps=100 schedule.decay_fraction=0.9", 1, 1),
            ("schedule.budget_hours=1 schedule.start_step=1", 1, 1),
            ("schedule.budget_hours=1 schedule.stop_step=1", 1, 1),
            ("optim.trust_ratio=all", 1, 2),
            ("optim.grad_averaging=false", 1, 2),
            ("optim=lamb optim.trust_ratio=none", 1, 1),
            ("optim=bert_adam optim.bias_correction=true", 1, 2),
            ("engine=zero0 engine.precision=fp16", 1, 2),
            ("engine=zero3 engine.compile=true", 1, 2),
            ("checkpoint.keep_every=7", 1, 2),
            ("survival.on_spike=rewind monitor.every_steps=100 checkpoint.every_steps=50", 1, 1),
        ],
    ),
)
def test_each_cure_that_is_named_is_one(overrides: str, ranks: int, number: int) -> None:
    typed = ["+model=tiny", *overrides.split()]
    with pytest.raises(SettingsError) as refused:
        load(typed, ranks)
    named = cures(str(refused.value))
    assert len(named) == number, str(refused.value)
    for cure in named:
        load([*typed, *cure], ranks)


S3, HTTPS = "s3://AKIA4711:s3cr3t@bucket/x", "https://host/x?X-Amz-Signature=s3cr3t4711"


@pytest.mark.parametrize(
    ("url", "name"),
    slow_but(
        [(S3, "data.dir"), (HTTPS, "checkpoint.mirror"), (S3, "data.stage"), (HTTPS, "run.dir")],
        itertools.product((S3, HTTPS), ("data.dir", "checkpoint.mirror", "data.stage", "run.dir")),
    ),
)
def test_a_url_with_a_key_is_refused_and_the_key_not_shown(name: str, url: str) -> None:
    with pytest.raises(SettingsError, match=r"holds a key.*AWS_ACCESS_KEY_ID") as refused:
        load(["+model=tiny", f"{name}='{url}'"], 1)
    assert "4711" not in str(refused.value)
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("checkpoint.mirror=runs/mirror", "it takes a URL that can be written"),
        ("checkpoint.mirror=https://host/x", "it takes a URL that can be written"),
        ("run.dir=s3://bucket/runs", "run.dir=s3://bucket/runs: it takes a local folder"),
        ("data.stage=s3://bucket/stage", "it takes a local folder; a URL is for data.dir="),
        ("data.stage_quota_gb=0", "more than 0, or null for the free space"),
        ("phases=[{changes:{checkpoint:{mirror:null}},moments:kept,optimizer_step:kept,"
         "loss_scaler:kept}]", "phase 2 changes checkpoint.mirror"),
    ],
)  # fmt: skip
def test_urls_and_folders_in_each_others_place_are_refused(override: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(["+model=tiny", override], 1)
    assert said in str(refused.value)


def test_the_copies_of_two_urls_have_folders_of_their_own() -> None:
    of_url = [load(["+model=tiny", f"data.dir={url}", "data.stage=/x"], 1)[0].data
              for url in ("s3://a/books", "s3://b/books", "s3://b/books/")]  # fmt: skip
    folders = [data.folder for data in of_url]
    assert folders[0] != folders[1] == folders[2]
    assert all(folder.name.startswith("books-") for folder in folders)

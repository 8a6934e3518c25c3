"""The arithmetic of a plan, its refusals and its table."""

import dataclasses
import re
import resource
from fractions import Fraction
from pathlib import Path

import numpy as np
import orjson
import pytest
from cures import cures
from hypothesis import given
from hypothesis import strategies as st
from made_manifests import shards_manifest, split_entry
from run_in_fork import TINY, finished_run
from small_corpus import cut

from data_prep.core.config import SettingsError, as_dict, as_overrides, choices, compose
from data_prep.core.files import read_json
from pretrain.config.settings import Settings
from pretrain.data.balancing import micro_steps
from pretrain.data.mixture import MixedOrder, Source
from pretrain.data.shuffle import ExampleOrder
from pretrain.model.flops import Lengths
from pretrain.plan import clusters, load, main
from pretrain.planning import table
from pretrain.planning.arithmetic import LengthStats, plan, tokens_between
from pretrain.planning.estimate import forecast

BASE = compose("config", Settings, ["+model=base"])[0]
LARGE = ("+model=large", "recipe=nvidia_lamb", "cluster=dgx_a100", "data.dir=nowhere")


def corpus(rows: int = 64_000, mean: float = 100) -> LengthStats:
    return LengthStats(rows, 30_522, Lengths(mean, mean**2, 15), None, "made up")


def test_a_plan_counts_steps_sequences_tokens_and_epochs() -> None:
    overrides = ["+model=base", "schedule.total_steps=1000", "engine.tokens_per_micro_batch=2000"]
    settings = compose("config", Settings, overrides)[0]
    found = plan(settings, corpus(), parameters=110_000_000, world_size=4, number=1)
    assert found.sequences == 256_000
    assert found.tokens == 25_600_000
    assert found.epochs == pytest.approx(4.0)
    assert found.micro_steps == 4  # 256 x 100 tokens on 4 ranks are 6,400 each
    assert found.fill == pytest.approx(0.8)


@given(
    batch=st.integers(1, 3000), mean=st.integers(1, 512), ranks=st.integers(1, 64),
    budget=st.integers(512, 20_000),
)  # fmt: skip
def test_micro_steps_are_those_that_it_takes_to_hold_the_tokens(batch, mean, ranks, budget) -> None:
    settings = dataclasses.replace(BASE, optim=dataclasses.replace(BASE.optim, global_batch=batch))
    settings.engine = dataclasses.replace(BASE.engine, tokens_per_micro_batch=budget)
    manifest = shards_manifest({"train": split_entry(rows=10, tokens=10 * mean)})
    needed = 1
    while needed * budget * ranks < batch * mean:
        needed += 1
    assert micro_steps(settings, manifest, ranks) == needed


def test_steps_of_tokens_are_planned_with_the_sequences_that_they_hold_on_the_average() -> None:
    optim = dataclasses.replace(BASE.optim, tokens_per_step=8 * 4096)
    settings = dataclasses.replace(BASE, optim=optim)
    settings.engine = dataclasses.replace(BASE.engine, tokens_per_micro_batch=4096)
    known = corpus()
    found = plan(settings, known, 1, world_size=2, number=1)
    steps, mean = settings.schedule.last_step or 0, known.lengths.mean
    assert found.micro_steps == 4
    assert found.sequences == pytest.approx(steps * 8 * 4096 / mean, rel=0.01)
    assert 0.98 < found.fill < 1
    assert f"{steps:,} steps of 32,768 tokens" in found.line()


@given(
    each=st.lists(st.integers(8, 512), min_size=1, max_size=40),
    first=st.integers(0, 100), count=st.integers(0, 100), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_tokens_are_those_of_the_stream_one_by_one(each, first, count, seed) -> None:
    found = dataclasses.replace(corpus(), each=np.array(each, np.uint16))
    order, tokens = ExampleOrder(len(each), seed), 0
    for place in range(first, first + count):
        tokens += each[int(order.examples(place, 1)[1][0])]
    assert tokens_between(found, first, first + count, seed) == tokens


MIXTURE = MixedOrder(
    [Source("a", [(0, 40), (60, 100)], 8_000), Source("b", [(40, 60)], 6_000)],
    [Fraction(1, 5), Fraction(4, 5)], seed=0,
)  # fmt: skip


@given(first=st.integers(0, 500), count=st.integers(0, 100), seed=st.integers(0, 2**32 - 1))
def test_tokens_of_a_mixture_are_those_of_its_stream_one_by_one(first, count, seed) -> None:
    each = np.arange(8, 108, dtype=np.uint16)
    found = dataclasses.replace(corpus(), each=each, mixture=MIXTURE)
    ids = MixedOrder(MIXTURE.sources, MIXTURE.shares, seed).examples(first, count)[1]
    assert tokens_between(found, first, first + count, seed) == each[ids].sum()


def test_passes_over_a_source_are_its_examples_in_the_run_by_those_it_has() -> None:
    settings = dataclasses.replace(BASE, optim=dataclasses.replace(BASE.optim, global_batch=10))
    settings.schedule = dataclasses.replace(BASE.schedule, total_steps=125)
    found = plan(settings, dataclasses.replace(corpus(), mixture=MIXTURE), 1, 1, 1)
    assert found.passes == {"a": 1250 / 5 / 80, "b": 4 * 1250 / 5 / 20}
    assert "of each source: a 3.12, b 50.00" in found.line()


def test_a_plan_shows_the_passes_of_a_mixture_and_warns_of_too_many(sample_dir, tmp_path) -> None:
    folder = cut(sample_dir, tmp_path / "data", [10, 90], [4, 4], ["a", "b"])
    typed = ["+model=tiny", f"data.dir={folder}", "optim.global_batch=8", "cluster=dgx_a100"]
    run = forecast(load([*typed, "schedule.total_steps=125", "data.mixture={a:1,b:1}"]), 1)
    printed = "\n".join(table.lines(run))
    assert re.search(r"^  epochs over the data +10.00\n    a +50.00\n    b +5.56$", printed, re.M)
    assert "Warning: phase 1 goes through a 50 times; past about 40 passes" in printed
    assert any("Warning" in line for line in table.short_lines(run))
    longer = forecast(load([*typed, "schedule.total_steps=125", "data.mixture_temperature=1"]), 1)
    assert "Warning" not in "\n".join(table.lines(longer))
    assert table.as_dict(longer)["phases"][0]["passes"] == {"a": 10.0, "b": 10.0}


def test_a_phase_of_hours_is_planned_by_the_step_and_lasts_its_hours() -> None:
    found = forecast(load(["+model=large", "recipe=budget_24h", "cluster=dgx_a100"]))
    (phase,) = found.phases
    assert phase.plan.total_steps is None
    assert phase.steps == int(24 * 3600 / phase.step.total)
    assert found.hours == 24
    assert "24" in "\n".join(table.lines(found))


def test_money_and_energy_are_gpu_hours_times_the_cluster_s_rates() -> None:
    typed = [*LARGE, "cluster.nodes=128", "cluster.usd_per_gpu_hour=3", "cluster.watts_per_gpu=500"]
    found = table.as_dict(forecast(load(typed)))
    total = found["total"]
    assert found["ranks"] == 1024
    assert total["gpu_hours"] == pytest.approx(1024 * sum(p["hours"] for p in found["phases"]))
    assert total["usd"] == pytest.approx(3 * total["gpu_hours"])
    assert total["kwh"] == pytest.approx(0.5 * total["gpu_hours"])
    step = found["phases"][0]["step_s"]
    parts = ("products", "memory", "waiting", "update", "communication", "fixed")
    assert step["total"] == pytest.approx(sum(step[part] for part in parts))


def test_padding_to_the_full_length_costs_what_it_adds() -> None:
    packed, padded = (
        forecast(load([*LARGE, f"plan.padding={how}"])).phases[1] for how in ("none", "full")
    )
    assert padded.plan.tokens == 512 * padded.plan.sequences
    assert padded.flops > 1.8 * packed.flops


@pytest.mark.parametrize(
    ("typed", "cure"),
    [
        (["cluster.nodes=128", "optim.global_batch=1000", "phases=[]"],
         r"cannot be dealt to 1024 ranks.*set optim.global_batch=1024 or more, "
         r"or cluster.nodes=125"),
        (["engine.tokens_per_micro_batch=256"],
         r"phase 2: .*256 cannot hold one sequence of data.seq_len=512.*=512 or more"),
        (["optim.global_batch=1001", "phases=[]", "engine.tokens_per_micro_batch=128"],
         r"set engine.tokens_per_micro_batch=256 or optim.global_batch=1000"),
        (["cluster=dgx_a1000"], r"cluster=dgx_a1000 is not known; there are .*dgx_h100.*local"),
        (["cluster=none"], r"there are .*dgx_a100"),
        (["cluster=dgx1_v100", "engine=bf16"], r"no bfloat16; set engine.precision=fp16"),
        (["optim.lr=1"], r"did you mean optim.learning_rate"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_the_nearest_value_that_does(typed, cure, capsys) -> None:
    assert main([*LARGE, *typed]) == 2
    assert re.search(cure, " ".join(capsys.readouterr().err.split()))


@pytest.mark.parametrize(
    ("typed", "number"),
    [(["cluster=dgx1_v100", "engine=bf16"], 2), (["cluster=dgx1_v100", "engine=bf16_autocast"], 2),
     (["engine.tokens_per_micro_batch=256"], 1)],
)  # fmt: skip
def test_each_cure_that_a_plan_names_is_one(typed, number, capsys) -> None:
    assert main([*LARGE, *typed]) == 2
    named = cures(capsys.readouterr().err)
    assert len(named) == number
    for cure in named:
        assert main([*LARGE, *typed, *cure]) != 2, capsys.readouterr().err


def test_the_cure_in_a_refusal_is_accepted() -> None:
    few = [*LARGE, "optim.global_batch=1000", "phases=[]"]
    load([*few, "cluster.nodes=125"])
    with pytest.raises(SettingsError):
        load([*few, "cluster.nodes=126"])


@pytest.mark.parametrize(
    ("typed", "proposal"),
    [
        (["engine.tokens_per_micro_batch=131072"], "engine.tokens_per_micro_batch"),
        (["model.num_hidden_layers=200", "engine=fp32"], "engine.zero_stage"),
    ],
)
def test_what_does_not_fit_the_memory_is_refused_with_what_does(typed, proposal, capsys) -> None:
    command = ["+model=large", "cluster=rtx4090", "cluster.gpus_per_node=8", *typed]
    assert main([*command, "json=true"]) == 1
    said = orjson.loads(capsys.readouterr().out)["proposal"]
    assert said.startswith("Does not fit. Set ")
    assert proposal in said
    changes = re.findall(r"engine\.\w+=\w+", said.split(", ")[0])
    assert changes
    assert main([*command, *changes]) == 0


def test_a_bigger_budget_that_fits_is_proposed_up_to_what_a_step_needs() -> None:
    said = table.proposal(forecast(load([*LARGE, "cluster.nodes=32", "engine=bf16"])))
    assert "engine.tokens_per_micro_batch=" in said
    assert "1 micro-batch per step instead of 4" in said


@pytest.mark.parametrize("name", [name for name in clusters() if name != "local"])
def test_every_cluster_gives_a_table_of_at_most_100_columns(name, capsys) -> None:
    typed = [*LARGE[:2], f"cluster={name}", "cluster.nodes=8", "engine=fp16"]
    main(typed)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100, max(lines, key=len)
    text = "\n".join(lines)
    for part in ("hours", "USD", "kWh", "communication", "activations", "ZeRO 3", "assumed"):
        assert part in text


@pytest.fixture
def prepared(sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with the demo's data."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(sample_dir)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("typed", "is_assumed"),
    [
        ([], True), (["cluster.nodes=2"], True), (["data.seq_len=128"], True),
        (["data=sample"], False), (["data.dir=data/sample"], False),
    ],
)  # fmt: skip
def test_only_data_that_is_typed_is_planned_with(typed, is_assumed, prepared, capsys) -> None:
    assert main(["+model=large", "cluster=dgx_a100", *typed]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert ("no data= or data.dir=: mean length 110 and 30,522 vocabulary" in text) is is_assumed
    assert text.startswith("336.2 M" if is_assumed else "309.1 M")


@pytest.mark.parametrize("typed", [[], ["cluster.gpus_per_node=2"], ["eval.every_steps=7"]])
def test_a_plan_for_a_cpu_is_about_memory_and_hours(typed, monkeypatch, capsys) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    main(["+model=tiny", "model.num_hidden_layers=1", *typed])
    text = capsys.readouterr().out
    assert re.search(r"GPU|USD", text) is None
    for part in ("memory per rank, GiB of", "hours", "days", "kWh"):
        assert part in text


@pytest.mark.parametrize(
    "typed",
    [
        pytest.param(["model.hidden_size=1024000"], marks=pytest.mark.slow),
        ["model.intermediate_size=1000000", "model.num_hidden_layers=1000"],
        pytest.param(["plan.vocab_size=2000000000"], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_model_that_cannot_fit_is_planned_without_being_allocated(typed, capsys) -> None:
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["+model=tiny", "model.num_hidden_layers=1", *typed]) == 1
    assert "Does not fit" in capsys.readouterr().out
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - largest < 3e6  # KiB


def test_a_cpu_with_a_price_has_its_cost() -> None:
    typed = ["+model=tiny", "model.num_hidden_layers=1", "cluster.usd_per_gpu_hour=2"]
    found = forecast(load(typed))
    assert "USD" in "\n".join(table.lines(found))


def test_cfg_prints_the_settings(capsys) -> None:
    assert main([*LARGE, "--cfg"]) == 0
    assert "gpus_per_node: 8" in capsys.readouterr().out


def test_this_machine_is_measured_and_nothing_is_left_open(tmp_path: Path) -> None:
    found = forecast(load(["+model=tiny", "model.num_hidden_layers=1", f"data.dir={tmp_path}"]))
    cluster = found.cluster
    assert cluster.peak_tflops["fp32"] > 0
    assert cluster.bandwidth_gb_s > 0
    assert cluster.memory_gib > 0
    assert found.hours


@pytest.mark.parametrize("name", choices("cluster"))
def test_a_cluster_comes_back_from_the_settings_that_a_run_has_written(name: str) -> None:
    settings = compose("config", Settings, ["+model=base", f"cluster={name}"])[0]
    typed = ["+model=base", *as_overrides(as_dict(settings))]
    assert compose("config", Settings, typed)[0].cluster == settings.cluster


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_keeps_its_plan_and_ends_with_the_actual_values(sample_dir, tmp_path) -> None:
    typed = [
        *TINY, "schedule.total_steps=5", "eval.max_examples=8", "monitor.every_steps=2",
        "engine.timeout_minutes=2", "cluster=dgx_a100", f"data.dir={sample_dir}",
        "phases=[{changes: {optim: {global_batch: 4}, schedule: {total_steps: 3}}, "
        "moments: kept, optimizer_step: kept, loss_scaler: kept}]",
    ]  # fmt: skip
    output = finished_run(typed, tmp_path)
    planned = read_json(tmp_path / "runs/x/plan.json")["phases"]
    assert [p["steps"] for p in planned] == [5, 3]
    assert "epochs over the data" in (tmp_path / "runs/x/plan.txt").read_text()
    assert "phase 1: 5 steps, 40 sequences" in output
    shown = re.findall(r"^  (phase \d: \w.*?)  +(\S+) +(\S+)", output, re.M)
    rows = {name: (before, after) for name, before, after in shown}
    for number in (1, 2):
        for figure in ("steps", "tokens, M", "epochs"):
            before, after = rows[f"phase {number}: {figure}"]
            assert before == after, figure
        assert float(rows[f"phase {number}: step, ms"][1].replace(",", "")) > 0

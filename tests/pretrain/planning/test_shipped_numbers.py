"""The share of the peak that each batch script and each recipe is planned at, and its floor.

All planned, none measured. A recipe keeps its published batch, so docs/planning.md has the number
of nodes on which it still reaches 40 %.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from script_settings import script_settings

from data_prep.core.config import SettingsError, choices, compose
from pretrain.config.settings import ClusterSettings, Settings
from pretrain.plan import load
from pretrain.planning import table
from pretrain.planning.estimate import Forecast, forecast
from pretrain.planning.peak_share import GOAL

ROOT = Path(__file__).resolve().parents[3]
# Script, cluster, nodes: the least share of each phase. Below GOAL because matrix products of
# BERT-base are too small for an H100: no batch of it plans more than 36 %.
FLOORS = {
    ("large", "dgx_a100", 1): 0.49, ("large", "dgx_h100", 1): 0.42,
    ("large", "dgx_a100", 4): 0.49, ("large", "dgx_h100", 4): 0.42,
    ("large", "dgx_a100", 16): 0.48, ("large", "dgx_h100", 16): 0.40,
    ("base", "dgx_a100", 1): 0.43, ("base", "dgx_h100", 1): 0.33,
    ("base", "dgx_a100", 2): 0.42,
}  # fmt: skip
# of these the model is tiny and the machine a CPU, whose peak is what was measured
ON_A_CPU = {"demo", "laptop"}
MODELS = {"base_2k": ["base"], "paper": ["base", "large"]}  # of the publication; else large
AS_SHIPPED = ("engine=bf16", "engine.tokens_per_micro_batch=36864")


@functools.cache
def settings_of(*typed: str) -> Settings:
    return load([*typed, "cluster=dgx_a100"])


@functools.cache
def hardware(name: str) -> ClusterSettings:
    return compose("config", Settings, ["+model=base", f"cluster={name}"])[0].cluster


def planned(typed: Sequence[str], cluster: str, nodes: int, **optim: int) -> Forecast:
    there, settings = dataclasses.replace(hardware(cluster), nodes=nodes), settings_of(*typed)
    of = dataclasses.replace(settings.optim, **optim)
    return forecast(dataclasses.replace(settings, cluster=there, optim=of), has_data=False)


def least_share(found: Forecast) -> float:
    return min(phase.peak_share.now for phase in found.phases)


@pytest.mark.parametrize("place", FLOORS)
def test_a_script_is_planned_at_its_floor_or_more_and_fits(place: tuple[str, str, int]) -> None:
    script, cluster, nodes = place
    found = planned(script_settings(script), cluster, nodes)
    assert found.fits
    assert least_share(found) >= FLOORS[place]
    assert table.faster_shards(found) == [], "the sharding is the one that is planned to be faster"


def test_every_training_script_has_floors() -> None:
    scripts = {path.stem.removeprefix("pretrain_") for path in ROOT.glob("slurm/pretrain_*.sh")}
    assert {script for script, _, _ in FLOORS} == scripts


def test_the_scripts_fit_an_a100_of_40_gb() -> None:
    small = dataclasses.replace(hardware("dgx_a100"), memory_gib=40)
    for script in ("base", "large"):
        settings = dataclasses.replace(settings_of(*script_settings(script)), cluster=small)
        assert forecast(settings, has_data=False).fits


def reach(recipe: str, model: str, cluster: str) -> str:
    """The most nodes, a power of two, on which all phases reach GOAL; or the share on one."""
    typed = [f"+model={model}", f"recipe={recipe}", *AS_SHIPPED]
    share, most = least_share(planned(typed, cluster, 1)), 1
    while least_share(planned(typed, cluster, 2 * most)) >= GOAL:
        most *= 2
    return f"{most}" if share >= GOAL else f"none: {share:.0%} on 1"


@pytest.mark.parametrize("recipe", [r for r in choices("recipe") if r not in ON_A_CPU])
def test_the_docs_have_the_nodes_on_which_a_recipe_reaches_40_percent(recipe: str) -> None:
    lines = (ROOT / "docs/planning.md").read_text().splitlines()
    for model in MODELS.get(recipe, ["large"]):
        cells = [f"`{recipe}`", model]
        cells += [reach(recipe, model, cluster) for cluster in ("dgx_a100", "dgx_h100")]
        row = f"| {' | '.join(cells)} |"
        assert row in lines, f"docs/planning.md lacks {row}"


LARGE = ("+model=large", "data.seq_len=512", *AS_SHIPPED)
BASE = ("+model=base", "data.seq_len=512")


def test_a_small_batch_is_named_with_the_batch_and_the_nodes_that_cure_it() -> None:
    (line,) = table.low_shares(planned(LARGE, "dgx_a100", 4, global_batch=256))
    assert line.startswith("Phase 1: 256 sequences on 32 rank(s) are 2,192 tokens per rank and ")
    assert "40% takes optim.global_batch=512, with a learning rate for that batch" in line
    assert line.endswith(", or 2 node(s).")
    for batch, nodes in ((512, 4), (256, 2)):
        cured = planned(LARGE, "dgx_a100", nodes, global_batch=batch)
        assert least_share(cured) >= GOAL
        assert table.low_shares(cured) == []


def test_tokens_per_step_are_cured_by_more_tokens_per_step() -> None:
    small = (*LARGE, "engine.tokens_per_micro_batch=10240")
    (line,) = table.low_shares(planned(small, "dgx_h100", 1, tokens_per_step=81_920))
    (cure,) = re.findall(r"optim.tokens_per_step=(\d+)", line)
    assert least_share(planned(small, "dgx_h100", 1, tokens_per_step=int(cure))) >= GOAL
    assert least_share(planned(small, "dgx_h100", 1, tokens_per_step=int(cure) // 2)) < GOAL


def test_where_no_batch_reaches_40_percent_the_plan_names_what_one_does() -> None:
    (line,) = table.low_shares(planned(BASE, "dgx_h100", 1))
    assert "No batch reaches more than 3" in line
    assert line.endswith("engine=bf16 moves less memory.")
    (cure,) = re.findall(r"optim.global_batch=(\d+)", line)
    assert table.low_shares(planned(BASE, "dgx_h100", 1, global_batch=int(cure))) == []
    assert table.low_shares(planned(BASE, "dgx_h100", 1, global_batch=int(cure) // 2))


def test_shards_within_nodes_are_named_where_they_are_faster_and_fit() -> None:
    typed = ("+model=large", "data.seq_len=512", "engine=bf16", "optim.global_batch=16384")
    (line,) = table.faster_shards(planned(typed, "dgx_h100", 32))
    assert line.startswith("Phase 1: engine.shard=node is planned at ")
    assert line in " ".join(" ".join(table.lines(planned(typed, "dgx_h100", 32))).split())
    sharded = planned((*typed, "engine.shard=node"), "dgx_h100", 32)
    assert table.faster_shards(sharded) == []
    assert "ZeRO 1 within each node" in table.head(sharded)
    assert f"{1e3 * sharded.phases[0].step.total:,.4g} ms per step instead of" in line
    (back,) = table.faster_shards(planned((*typed[:3], "engine.shard=node"), "dgx_h100", 2))
    assert back.startswith("Phase 1: engine.shard=world is planned at ")
    assert table.faster_shards(planned(typed, "dgx_h100", 1)) == []
    tight = dataclasses.replace(hardware("dgx_h100"), nodes=32, memory_gib=5)
    settings = dataclasses.replace(settings_of(*typed), cluster=tight)
    assert table.faster_shards(forecast(settings, has_data=False)) == []


def test_the_plan_says_what_fp8_would_bring_where_the_gpu_has_it() -> None:
    typed = ("+model=large", "data.seq_len=512", "engine=bf16", "optim.global_batch=1024")
    found = planned(typed, "dgx_h100", 1)
    (line,) = table.faster_in_fp8(found)
    assert line in " ".join(" ".join(table.lines(found)).split())
    assert table.as_dict(found)["faster_in_fp8"] == [line]
    in_fp8 = planned((*typed, "engine.fp8=true"), "dgx_h100", 1)
    times = [f"{1e3 * of.phases[0].step.total:,.4g}" for of in (in_fp8, found)]
    assert line.startswith(
        "Phase 1: engine.fp8=true is planned at {} ms per step instead of {}; ".format(*times)
    )
    assert table.faster_in_fp8(in_fp8) == []
    assert "bf16 with FP8" in table.head(in_fp8)
    for cluster, precision in (("dgx_a100", "bf16"), ("dgx_h100", "fp16")):
        other = planned((*typed, f"engine={precision}"), cluster, 1)
        assert table.faster_in_fp8(other) == []


def test_fp8_is_not_planned_for_a_gpu_without_it() -> None:
    with pytest.raises(SettingsError, match=r"^A100 .* has no FP8 .* set engine\.fp8=false$"):
        planned((*LARGE, "engine.fp8=true"), "dgx_a100", 1)


def test_the_docs_have_what_a_step_waits_for_communication() -> None:
    """docs/performance.md, BERT-large on 32 H100."""
    docs = (ROOT / "docs/performance.md").read_text()
    of_512 = ("+model=large", "data.seq_len=512", "engine=bf16_autocast")
    same, more, many, in_bf16, shipped = (
        planned(typed, "dgx_h100", 4, **optim).phases[0].step
        for typed, optim in (
            (of_512, {"global_batch": 256}), (of_512, {"global_batch": 960}),
            (of_512, {"global_batch": 3840}),
            ((*of_512[:2], "engine=bf16"), {"global_batch": 3840}),
            (script_settings("large"), {}),
        )
    )  # fmt: skip
    ms = {
        name: f"{1e3 * step.communication:.1f} of {1e3 * step.total:,.1f} ms"
        for name, step in {"the same batch": same, "960 sequences": more}.items()
    }
    assert all(f"{name}: {text}" in docs for name, text in ms.items()), ms
    text = f"{1e3 * shipped.communication:.1f} of {1e3 * shipped.total:,.0f} ms"
    assert f"the shipped batch: {text}" in docs, text
    text = f"{1e3 * many.total:.1f} ms for {1e3 * in_bf16.total:.1f}"
    assert text in docs, text


def test_a_low_share_is_in_the_table_in_json_and_in_what_a_run_prints_at_its_start() -> None:
    found = planned(BASE, "dgx_a100", 4)
    (line,) = table.low_shares(found)
    assert line in " ".join(" ".join(table.lines(found)).split())
    assert line in table.short_lines(found)
    assert table.as_dict(found)["low_shares"] == [line]
    share = found.phases[0].peak_share.now
    assert table.short_lines(found)[1].endswith(f" hours, {share:.0%} of the peak")


def test_a_compiled_layer_moves_fewer_bytes_in_the_plan() -> None:
    plain, compiled = (
        planned([*BASE, f"engine.compile={how}"], "dgx_a100", 1).phases[0].step
        for how in ("false", "auto")
    )
    assert compiled.memory < 0.8 * plain.memory
    assert compiled.products == plain.products

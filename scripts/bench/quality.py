"""What a held-out loss costs: tokens, seconds and joules, of stock `transformers` and of ours.

    python -m scripts.bench.quality out=FOLDER [data=data/sample] [model=tiny]
        [tokens=1e6,2e6,4e6] [rates=5e-4,1e-3,2e-3,4e-3] [seeds=3] [losses=6.0,5.5]
        [variants=transformers,adamw,fast,demo] [ablation=false] [most=N] [threads=1]
        [batch=32] [cluster=local] [settings="optim.weight_decay=0 ..."]

variants  transformers: the stock model on padded batches, AdamW, dropout 0.1; adamw: ours with
          optim=adamw; fast: ours with recipe=fast; demo: with short sequences first, too, which
          needs shards of 32 and 128 tokens. All are evaluated on the same held-out examples of 128
          tokens with the same masks
tokens    lengths. A rate that falls to 0 reaches its loss at the end, so no curve of one training
          shows what a shorter one would reach: each length is a training of its own, and the curve
          of a variant goes through their last losses
rates     each length has the rate that is best for it with the first seed
losses    those whose cost is computed; default: the mean last losses of the reference
ablation  also recipe=fast with one technique off at a time
batch     sequences of a step; demo has its own. A large batch leaves a short training few steps:
          at 256, one of 1 M tokens has 30
most      trainings of this start; the same command continues with the next ones

seconds are of the processor on a CPU, otherwise of the clock, and of training alone. joules are
seconds times the watts of the cluster file, as in a plan. out/ gets trials/ (a JSON file of each
training), quality.json, quality.md and quality.svg. The last line is the JSON:
tokens_over_transformers and seconds_over_transformers are ours divided by theirs, at the last loss
that all reach: 0.33 is a third.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.core.config import SettingsError
from data_prep.core.files import write_json
from pretrain.config.load import load
from pretrain.config.phases import phases_of
from pretrain.data.corpus import folder_of, prepare_sample
from scripts.bench.parts.crossing import (
    Curves,
    costs,
    is_at_the_edge,
    last_loss_all_reach,
    ratios,
    spread,
)
from scripts.bench.parts.figure import draw
from scripts.bench.parts.harness import Record, benchmark, run
from scripts.bench.parts.trials import ABLATION, REFERENCE, VARIANTS, Laboratory, Trial, Variant

SAMPLE = "data/sample"
Result = dict[str, Any]


@dataclass
class Findings:
    """The results so far."""

    rates: dict[str, dict[float, float]]  # variant: tokens: the best rate
    results: dict[str, dict[int, list[Result]]]  # variant: seed: one of each length
    is_whole: bool = True

    def curves(self, cost: str) -> Curves:
        """Losses over tokens or seconds."""
        return {
            name: {
                seed: sorted((found[cost], found["loss"]) for found in each)
                for seed, each in by_seed.items()
            }
            for name, by_seed in self.results.items()
        }


@benchmark("quality")
def main(
    out: str,
    data: str = SAMPLE,
    model: str = "tiny",
    tokens: str = "1e6,2e6,4e6",
    rates: str = "5e-4,1e-3,2e-3,4e-3",
    seeds: int = 3,
    losses: str | None = None,
    variants: str = "transformers,adamw,fast,demo",
    ablation: bool = False,
    most: int | None = None,
    threads: int = 1,
    batch: int = 32,
    cluster: str = "local",
    settings: str = "",
) -> Record:
    """The benchmark."""
    chosen = _variants(variants, ablation, batch)
    given = (f"+model={model}", f"data.dir={data}", f"cluster={cluster}", *settings.split())
    lengths, grid = sorted(_numbers("tokens", tokens)), sorted(_numbers("rates", rates))
    wanted = None if losses is None else _numbers("losses", losses)
    folder = Path(out)
    laboratory = Laboratory(folder, given, threads)
    for variant in chosen if data == SAMPLE else ():
        for phase in phases_of(load([*given, *variant.overrides], 1)[0]):
            if not (folder_of(phase.settings.data) / "manifest.json").exists():
                prepare_sample(phase.settings.data)
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    findings = search(laboratory, chosen, lengths, grid, seeds, most)
    watts = load(given, 1)[0].cluster.watts_per_gpu
    record = summary(findings, wanted, watts)
    text = "\n".join(_table(findings, record, grid))
    (folder / "quality.md").write_text(f"{text}\n", encoding="utf-8")
    write_json(folder / "quality.json", record)
    draw({cost: findings.curves(cost) for cost in ("tokens", "seconds")}, folder / "quality.svg")
    print(text)
    return record


def search(
    laboratory: Laboratory,
    variants: list[Variant],
    lengths: list[float],
    grid: list[float],
    seeds: int,
    most: int | None,
) -> Findings:
    """Run what is missing: for each length the grid with seed 1, then the best rate's others."""
    found = Findings({v.name: {} for v in variants}, {v.name: {} for v in variants})
    left = [most]

    def result(trial: Trial) -> Result | None:
        known = laboratory.result(trial)
        if known is None and left[0] != 0:
            left[0] = None if left[0] is None else left[0] - 1
            known = laboratory.perform(trial)
            print(f"{trial.name}: {known['loss']:.4f} in {known['seconds']:.1f} s", flush=True)
        found.is_whole &= known is not None
        return known

    for tokens in lengths:
        for variant in variants:
            tried = {rate: result(Trial(variant, tokens, rate, 1)) for rate in grid}
            whole = {rate: one for rate, one in tried.items() if one is not None}
            if len(whole) < len(grid):
                continue  # the best rate is not known yet
            best = min(whole, key=lambda rate: whole[rate]["loss"])
            found.rates[variant.name][tokens] = best
            for seed in range(1, seeds + 1):
                if (one := result(Trial(variant, tokens, best, seed))) is not None:
                    found.results[variant.name].setdefault(seed, []).append(one)
    return found


def summary(findings: Findings, losses: list[float] | None, watts: float) -> Record:
    """The costs of each loss, and ours over theirs at the last one that all reach."""
    curves = {cost: findings.curves(cost) for cost in ("tokens", "seconds")}
    there = {name: by_seed for name, by_seed in curves["tokens"].items() if by_seed}
    reference = REFERENCE if REFERENCE in there else next(iter(there), None)
    if losses is None:
        losses = [] if reference is None else _last_losses(findings, reference)
    last = last_loss_all_reach(there, losses) if there else None
    record: Record = {"is_whole": findings.is_whole, "losses": losses, "last_loss_all_reach": last}
    for cost, form in curves.items():
        by_variant: dict[str, dict[str, Any]] = {}
        for name, by_seed in form.items():
            each = {f"{loss:g}": costs(by_seed, loss) for loss in losses}
            by_variant[name] = {loss: cost and vars(cost) for loss, cost in each.items()}
        record[cost] = by_variant
        if last is not None and reference == REFERENCE:
            reached = {name: form[name] for name in there}
            record[f"{cost}_over_{REFERENCE}"] = ratios(reached, REFERENCE, last)
    record["joules"] = {
        name: {loss: cost and watts * cost["mean"] for loss, cost in each.items()}
        for name, each in record["seconds"].items()
    }
    record["rates"] = {
        name: {f"{tokens:g}": rate for tokens, rate in each.items()}
        for name, each in findings.rates.items()
    }
    record["last_losses"] = {
        name: [vars(spread(own)) for own in _by_length(by_seed)]
        for name, by_seed in findings.results.items()
    }
    return record


def _last_losses(findings: Findings, name: str) -> list[float]:
    """The means over seeds at each length, rounded up, so that most seeds reach them."""
    means = [spread(own).mean for own in _by_length(findings.results[name])]
    return [round(mean + 0.005, 2) for mean in means]


def _by_length(by_seed: dict[int, list[Result]]) -> Iterator[list[float]]:
    """Losses of all seeds at each length that seed 1 has."""
    for position in range(len(by_seed.get(1, []))):
        yield [each[position]["loss"] for each in by_seed.values() if position < len(each)]


def _table(findings: Findings, record: Record, grid: list[float]) -> Iterator[str]:
    """Markdown: the last losses of each length, and the costs of each loss."""
    lengths = max(({*each} for each in findings.rates.values()), key=len, default=set())
    yield f"| held-out MLM loss after | {' | '.join(f'{n:.3g} tokens' for n in sorted(lengths))} |"
    yield f"| --- |{' ---: |' * len(lengths)}"
    for name, by_seed in findings.results.items():
        own = [spread(losses).text(".3f") for losses in _by_length(by_seed)]
        marks = [
            f"{text} at {rate:g}{' (edge of the grid)' if is_at_the_edge(grid, rate) else ''}"
            for text, rate in zip(own, findings.rates[name].values(), strict=False)
        ]
        yield f"| {name} | {' | '.join(marks + ['–'] * (len(lengths) - len(marks)))} |"
    for cost in ("tokens", "seconds", "joules"):
        yield ""
        yield f"| {cost} to reach | {' | '.join(f'{loss:g}' for loss in record['losses'])} |"
        yield f"| --- |{' ---: |' * len(record['losses'])}"
        for name, each in record[cost].items():
            values = [v["mean"] if isinstance(v, dict) else v for v in each.values()]
            cells = ["–" if value is None else f"{value:,.4g}" for value in values]
            yield f"| {name} | {' | '.join(cells)} |"
    if not findings.is_whole:
        yield "\nNot all trainings are there yet; the same command continues."


def _variants(names: str, ablation: bool, batch: int) -> list[Variant]:
    if unknown := [name for name in names.split(",") if name not in VARIANTS]:
        raise SettingsError(f"variants={unknown[0]} is none of {', '.join(VARIANTS)}")
    chosen = [VARIANTS[name] for name in names.split(",")] + [*ABLATION.values()] * ablation
    own = f"optim.global_batch={batch}"
    return [v if v.has_batch else replace(v, overrides=(*v.overrides, own)) for v in chosen]


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise SettingsError(f"{name}={text}: numbers are expected, such as 1e6,2e6") from error


if __name__ == "__main__":
    run(main)

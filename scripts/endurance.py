"""A long run twice: straight, and through kills and a change of the number of ranks; one picture.

    python -m scripts.endurance data.dir=FOLDER data.seq_len=128 out=FOLDER [steps=2000] [kills=10]
        [ranks=2] [other_ranks=1] [seed=1] [SETTING=VALUE ...]

Both are the same small model on the same examples: +model=tiny, and whatever is typed of
pretrain.run's settings. The second is ended by SIGKILL at moments drawn by `seed`, one rank and all
of them in turn, and goes on each time; from two fifths of the steps to three fifths it runs on
`other_ranks` ranks (as many as `ranks`: no change). out/ gets curves.svg, curves.png,
endurance.json and endurance.md. Whatever ends this job, the same command goes on.

Up to the change of ranks every loss and gradient norm has to be the same, bit for bit. Beyond it
sums are rounded otherwise, and dropout, which is seeded by micro-batch, has other masks: the largest
differences are printed. Without dropout they are those of rounding alone:
model.hidden_dropout_prob=0 model.attention_probs_dropout_prob=0
Status: 0 where that holds, 1 where it does not, 2 for wrong settings.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_prep.core.config import SettingsError
from data_prep.core.files import write_json
from data_prep.core.objectives import Pairing
from pretrain.config.load import load
from pretrain.config.settings import Settings
from pretrain.data.corpus import manifest_of
from pretrain.verification.launcher import Launched, launch
from scripts.bench.harness import Arguments, arguments
from scripts.drills.run_watcher import NotSeenError, Observed, until

DEFAULTS: Arguments = {
    "steps": 2000, "kills": 10, "ranks": 2, "other_ranks": 1, "seed": 1, "out": "",
}  # fmt: skip
OVERRIDES = (
    "+model=tiny", "eval.every_steps=100", "eval.max_examples=2000",
    "checkpoint.every_steps=50", "monitor.every_steps=1",
)  # fmt: skip
LIMIT_S = 7 * 24 * 3600.0  # it may well be a large model on a slow machine
GRACE_S = 120.0
POINTS = 100  # of the curve of the training loss, each a mean
STRAIGHT = {"color": "0.75", "linewidth": 6, "solid_capstyle": "round", "label": "straight"}
THROUGH = {"color": "black", "linewidth": 1.1, "label": "through kills"}


@dataclass(frozen=True)
class End:
    """How one start of the run ends before its last step."""

    step: int  # once it has come so far
    kind: str  # kill one, kill all, or change: told to save and to go on with other ranks


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    ends: list[End]
    ranks: int
    other_ranks: int

    @property
    def changes(self) -> int:
        return sum(end.kind == "change" for end in self.ends)

    def ranks_after(self, count: int) -> int:
        """With how many ranks it starts, so many ends behind it."""
        changes = sum(end.kind == "change" for end in self.ends[:count])
        return self.other_ranks if changes % 2 else self.ranks


def plan(given: Arguments) -> Plan:
    """Kills all over the run, and two changes of ranks unless both numbers are the same."""
    steps, count = int(given["steps"]), int(given["kills"])
    rng = np.random.default_rng(int(given["seed"]))
    drawn = sorted(int(step) for step in rng.choice(np.arange(1, steps * 19 // 20), count, False))
    ends = [End(step, "kill all" if n % 2 else "kill one") for n, step in enumerate(drawn)]
    ranks, other = int(given["ranks"]), int(given["other_ranks"])
    if ranks != other:
        ends += [End(steps * 2 // 5, "change"), End(steps * 3 // 5, "change")]
    return Plan(sorted(ends, key=lambda end: end.step), ranks, other)


class Part(Observed):
    """One of the two runs."""

    def __init__(self, folder: Path, overrides: Sequence[str], steps: int) -> None:
        super().__init__(folder)
        self.overrides = [*overrides, f"run.dir={folder.parent}", f"run.name={folder.name}"]
        self.output = folder.with_suffix(".output")
        self.steps = steps

    @property
    def is_finished(self) -> bool:
        return bool(self.checksums(self.steps)) and (self.folder / "export").exists()

    def starts(self) -> int:
        return len(self.events("started")) + len(self.events("resumed"))

    def start(self, ranks: int) -> Launched:
        return launch(self.overrides, ranks, self.output)

    def to_the_end(self, ranks: int) -> None:
        """Start, and wait. Raises NotSeenError where it does not come to its end."""
        if self.is_finished:
            return
        with self.start(ranks) as launched:
            until(lambda: not launched.is_running, launched, LIMIT_S, "the end", poll_s=0.1)
        if launched.statuses != [0] * ranks:
            raise NotSeenError(
                f"{self.folder} ended with {launched.statuses}: see {self.output}; the same command "
                "goes on"
            )


def straight(part: Part, ranks: int) -> None:
    """The run that nobody disturbs."""
    print(f"straight: {part.steps:,} steps on {ranks} rank(s)", flush=True)
    part.to_the_end(ranks)


def through(part: Part, what: Plan, record: Path) -> list[dict[str, Any]]:
    """The run that is ended again and again: where each end met it. `record` remembers them."""
    met = (
        [orjson.loads(line) for line in record.read_bytes().splitlines()] if record.exists() else []
    )
    for number, end in enumerate(what.ends[len(met) :], start=len(met)):
        ranks, count = what.ranks_after(number), part.starts()
        with part.start(ranks) as launched:
            until(lambda: part.starts() > count, launched, LIMIT_S, "a start", poll_s=0.05)  # noqa: B023
            until(lambda: part.step >= end.step, launched, LIMIT_S, f"step {end.step}", poll_s=0.05)  # noqa: B023
            if end.kind == "change":
                launched.send(signal.SIGTERM)
            else:
                one = [number // 2 % ranks] if end.kind == "kill one" else None
                launched.send(signal.SIGKILL, one)
            statuses = launched.wait(GRACE_S, grace_s=GRACE_S / 2)
        if end.kind == "change" and statuses != [0] * ranks:
            raise NotSeenError(f"told to end, {part.folder} ended with {statuses}: {part.output}")
        met.append({"kind": end.kind, "step": part.step, "ranks": ranks})
        with record.open("ab") as file:
            file.write(orjson.dumps(met[-1], option=orjson.OPT_APPEND_NEWLINE))
        print(f"{end.kind} at step {part.step:,}, on {ranks} rank(s)", flush=True)
    part.to_the_end(what.ranks_after(len(what.ends)))
    return met


def compare(first: Part, second: Part, met: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is the same in both, up to which step, and by how much the rest differs."""
    mine, its = first.figures(), second.figures()
    changed_at = next((end["step"] for end in met if end["kind"] == "change"), first.steps)
    unequal = [s for s in mine.keys() | its.keys() if mine.get(s) != its.get(s)]
    differences: dict[str, float] = {}
    for step in sorted(mine.keys() & its.keys()):
        for name in mine[step].keys() & its[step].keys():
            difference = abs(mine[step][name] - its[step][name])
            differences[name] = max(difference, differences.get(name, 0.0))
    return {
        "changed_at": changed_at,
        "holds": mine.keys() == its.keys() and min(unequal, default=first.steps + 1) > changed_at,
        "first_difference": min(unequal, default=None),
        "equal_steps": len(mine) - len(unequal),
        "largest_differences": dict(sorted(differences.items())),
        "last_checkpoints_equal": first.checksums(first.steps) == second.checksums(second.steps),
    }


@dataclass(frozen=True)
class Panel:
    """One curve of the picture, and what it is to be held against."""

    figure: str  # its name in metrics.jsonl
    title: str
    line: float | None
    line_label: str = ""


def panels(settings: Settings, manifest: dict[str, Any]) -> list[Panel]:
    """MLM, held out and in training; the loss and accuracy of the pairs where there are any."""
    from pretrain.training.evaluation import frequency_baseline

    frequency = frequency_baseline(settings, manifest)
    shown = [
        Panel("eval/mlm_loss", "held-out MLM loss, nats", frequency, "by token frequency alone"),
        Panel("train/mlm_loss", "training MLM loss, nats", frequency, "by token frequency alone"),
    ]
    pairing = Pairing[manifest["pairs"]]
    if pairing.label_1:
        task, held_out = pairing.name, manifest["splits"]["heldout"]
        share = held_out[pairing.label_1] / held_out["rows"]
        entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
        constant = "a constant answer"
        shown += [
            Panel(f"eval/{task}_loss", f"held-out {task.upper()} loss, nats", entropy, constant),
            Panel(f"eval/{task}_accuracy", f"held-out {task.upper()} accuracy",
                  max(share, 1 - share), constant),
        ]  # fmt: skip
    return shown


def draw(
    first: Part, second: Part, met: Sequence[dict[str, Any]], shown: Sequence[Panel], title: str
) -> Figure:
    """The straight run as a wide light line, the other as a narrow dark one on top of it."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(len(shown) // 2, 2, squeeze=False)
    for axes, panel in zip(grid.flat, shown, strict=True):
        for part, style in ((first, STRAIGHT), (second, THROUGH)):
            axes.plot(*_curve(part, panel.figure), **style)
        if panel.line is not None:
            axes.axhline(panel.line, color="black", linewidth=0.8, linestyle=(0, (6, 4)))
            axes.annotate(
                panel.line_label, (0.99, panel.line), xycoords=("axes fraction", "data"),
                # on the side from which a curve that learns does not come
                xytext=(0, -10 if panel.figure.endswith("accuracy") else 3),
                textcoords="offset points", ha="right", fontsize=8,
            )  # fmt: skip
        _mark(axes, met)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_xlim(0, first.steps)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _curve(part: Part, name: str) -> tuple[list[float], list[float]]:
    """Steps and values; of many values, means over stretches of equal length."""
    points = [
        (step, given[name]) for step, given in sorted(part.figures().items()) if name in given
    ]
    size = max(1, len(points) // POINTS)
    steps, values = (np.array(column) for column in zip(*points, strict=True))
    cuts = range(size, len(points), size)
    means = ([float(part.mean()) for part in np.split(each, cuts)] for each in (steps, values))
    return next(means), next(means)


def _mark(axes: Axes, met: Sequence[dict[str, Any]]) -> None:
    """Kills as triangles at the foot, the stretch with another number of ranks as a hatched field."""
    foot = axes.get_xaxis_transform()
    for kind, marker in (("kill one", "^"), ("kill all", "s")):
        at = [end["step"] for end in met if end["kind"] == kind]
        axes.plot(at, [0.025] * len(at), marker, color="black", markersize=6, transform=foot,
                  label=f"{kind.replace('kill', 'SIGKILL to')} rank{'s' * (kind == 'kill all')}")  # fmt: skip
    changes = [end for end in met if end["kind"] == "change"]
    if changes:
        other = changes[-1]["ranks"]
        axes.axvspan(changes[0]["step"], changes[1]["step"], facecolor="none",
                     edgecolor="0.8", hatch="//", linewidth=0, zorder=0,
                     label=f"on {other} rank{'s' * (other > 1)}")  # fmt: skip


def report(result: dict[str, Any], met: Sequence[dict[str, Any]], what: Plan) -> str:
    """In sentences, as markdown."""
    first = result["first_difference"]
    lines = [
        f"{len(what.ends)} times ended: "
        + ", ".join(f"{end['kind']} at {end['step']} ({end['ranks']} rank(s))" for end in met)
        + ".",
        f"All losses and gradient norms of {result['equal_steps']:,} steps are the same bit for bit; "
        + ("none differs." if first is None else f"the first that differs is step {first}.")
        + (" The ranks changed at step {changed_at}.".format(**result) if what.changes else ""),
        "Last checkpoints: " + ("equal." if result["last_checkpoints_equal"] else "not equal."),
        "",
        "| figure | straight, last | through kills, last | largest difference |",
        "| --- | --- | --- | --- |",
    ]
    for name, difference in result["largest_differences"].items():
        one, other = (result[which][name] for which in ("last_straight", "last_through"))
        lines.append(f"| {name} | {one:.6g} | {other:.6g} | {difference:.3g} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Both runs, the comparison, the picture; the exit status."""
    typed = list(sys.argv[1:] if argv is None else argv)
    if "--help" in typed or "-h" in typed:
        print(__doc__)
        return 0
    own = [word for word in typed if word.partition("=")[0] in DEFAULTS]
    given = arguments(own, DEFAULTS)
    steps, out = int(given["steps"]), Path(str(given["out"]))
    overrides = [*OVERRIDES, *(word for word in typed if word not in own)]
    overrides.append(f"schedule.total_steps={steps}")
    try:
        if not given["out"]:
            raise SettingsError("no folder is named for the runs and the picture; add out=FOLDER")
        what = plan(given)
        for ranks in (what.ranks, what.other_ranks):
            settings, _ = load(overrides, ranks)
        manifest = manifest_of(settings.data)
    except SettingsError as error:
        print(f"scripts.endurance: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no rank is left behind
    parts = [Part(out / "runs" / name, overrides, steps) for name in ("straight", "through")]
    began = time.time()
    try:
        straight(parts[0], what.ranks)
        met = through(parts[1], what, out / "ends.jsonl")
    except NotSeenError as error:
        print(f"scripts.endurance: {error}", file=sys.stderr)
        return 1
    last = {
        f"last_{part.folder.name}": {
            name: value for figures in part.figures().values() for name, value in figures.items()
        }
        for part in parts
    }
    result = {**compare(parts[0], parts[1], met), **last}
    sizes, corpus = settings.model, Path(settings.data.dir).name
    rows = manifest["splits"]["train"]["rows"]
    title = (
        f"{corpus}, {rows:,} examples of {settings.data.seq_len} tokens, vocabulary "
        f"{manifest['vocab_size']:,}; {sizes.num_hidden_layers} layers of {sizes.hidden_size}, "
        f"{steps:,} steps of {settings.optim.step_size}"
    )
    picture = draw(parts[0], parts[1], met, panels(settings, manifest), title)
    picture.savefig(out / "curves.png", dpi=130, metadata={"Software": None})
    picture.savefig(out / "curves.svg", metadata={"Date": None})
    facts = {"command": shlex.join(["python", "-m", "scripts.endurance", *typed]), "ends": met}
    write_json(out / "endurance.json", {**facts, "title": title, **result, "plan": asdict(what)})
    text = report(result, met, what)
    (out / "endurance.md").write_text(f"{title}\n\n{text}\n", encoding="utf-8")
    print(f"\n{title}\n{text}\n\n{out / 'curves.png'}  ({time.time() - began:.0f} s)")
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())

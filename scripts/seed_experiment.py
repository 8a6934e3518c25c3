"""Measure what pretraining, and next sentence prediction, contribute to six fine-tuned tasks.

    python -m scripts.seed_experiment nsp=FOLDER none=FOLDER glue=FOLDER squad=FOLDER wnut=FOLDER
        out=FOLDER [seeds=3] [examples=4000] [questions=1000] [SETTING=VALUE ...]

nsp= none=     data_dirs of one corpus (same documents, vocab, tokens), built with pairs=nsp and
               pairs=none, each at 32 and at 128 tokens
glue=          holds SST-2/, RTE/, MRPC/ and STS-B/
squad=         holds SQuAD 1.1, named by train= and dev=
wnut=          holds the three files of WNUT-17
runs=          the folder of the two pretrainings, named nsp and none; default: out/runs. Runs that
               pretrain.run made there are taken as they are
rates=         learning rates of fine-tuning; the default, 1e-4,5e-4, suits a tiny model. The first
               seed tries all, and the best on the development set is kept for each start and task.
               With +model=base use the paper's: 2e-5,3e-5,5e-5
starts= tasks= run a part, such as starts=random,nsp or tasks=rte,mrpc; `words` is no start but the
               bag of words of scripts.bag_of_words, for tasks of classification
SETTING=VALUE  settings of pretrain.run for both pretrainings, such as +model=base or recipe=paper;
               default: +model=tiny recipe=laptop

Three starts (nsp, none, and random: the sizes of nsp with fresh weights) are fine-tuned on six
tasks with `seeds` seeds each, next to what the words alone predict. If this ends early, the same
command continues: pretraining from its checkpoint, fine-tuning with the missing seed. More seeds or
rates add to what is there. For longer pretrainings add their settings and run.extend=true; what was
fine-tuned from the shorter ones, or with other settings, is kept, and the rest asks for another
out=. out/ gets experiment.md (the table, and every command), experiment.json, experiment.png and
.svg.
Status: 0, 1 if a command failed (it is named), 2 for wrong arguments.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_prep.core.bert_folder import identity
from data_prep.core.command import status_of
from data_prep.core.config import SettingsError, compose
from data_prep.core.files import read_json, write_json
from pretrain.config.arguments import parse_arguments
from pretrain.config.settings import Settings
from pretrain.run_folder.jsonl import readable_lines
from scripts.finetuning.settings import load as load_finetuning

PRETRAINING = ("+model=tiny", "recipe=laptop")  # of both; settings on the command line override it
# script, argument, and the folder below it
TASKS = {
    "sst2": ("classification", "glue", "SST-2"),
    "rte": ("classification", "glue", "RTE"),
    "mrpc": ("classification", "glue", "MRPC"),
    "stsb": ("classification", "glue", "STS-B"),
    "squad": ("qa", "squad", ""),
    "wnut17": ("tagging", "wnut", ""),
}
STARTS = {
    "words": ("words alone", "0.45"),
    "random": ("random start", "0.75"),
    "none": ("pretrained, MLM alone", "#4477aa"),
    "nsp": ("pretrained, MLM and NSP", "#cc6644"),
}


Results = dict[str, dict[str, dict[str, Any]]]  # task and metric: {start: mean, std, ...}


class FailedError(RuntimeError):
    """A command that failed."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of the command. A folder that no start or task needs may be missing."""

    nsp: Path | None = None
    none: Path | None = None
    glue: Path | None = None
    squad: Path | None = None
    wnut: Path | None = None
    out: Path | None = None
    runs: Path | None = None
    train: str = "train-v1.1.json"  # SQuAD's files
    dev: str = "dev-v1.1.json"
    starts: str = "words,random,none,nsp"
    tasks: str = "sst2,rte,mrpc,stsb,squad,wnut17"
    seeds: int = 3
    examples: int = 4000
    dev_examples: int = 1000
    questions: int = 1000  # each is read in about four windows
    dev_questions: int = 1000
    epochs: int = 4
    rates: str = "1e-4,5e-4"
    batch: int = 16
    length: int = 128


@dataclass(frozen=True)
class Experiment:
    """The arguments, and the path and command of each part."""

    given: Arguments
    overrides: list[str]  # of pretrain.run

    @property
    def out(self) -> Path:
        assert self.given.out is not None, "check() refuses it"
        return self.given.out

    @property
    def runs(self) -> Path:
        return self.given.runs or self.out / "runs"

    @property
    def starts(self) -> list[str]:
        return self.given.starts.split(",")

    @property
    def tasks(self) -> list[str]:
        return self.given.tasks.split(",")

    def check(self) -> None:
        """Raise SettingsError if something is not named or does not exist."""
        wrong = [f"starts={start} is none of {', '.join(STARTS)}"
                 for start in self.starts if start not in STARTS]  # fmt: skip
        wrong += [f"tasks={task} is none of {', '.join(TASKS)}"
                  for task in self.tasks if task not in TASKS]  # fmt: skip
        if not wrong and not self.parts:
            able = [task for task, (kind, _, _) in TASKS.items() if kind == "classification"]
            wrong.append(
                f"starts=words has nothing for tasks={self.given.tasks}; it is for tasks="
                f"{','.join(able)}"
            )
        needed = {"out", *self.needed_runs(), *(TASKS[t][1] for t in self.tasks if t in TASKS)}
        for name in sorted(needed):
            folder: Path | None = getattr(self.given, name)
            if folder is None:
                wrong.append(f"{name}= is not given")
            elif name != "out" and not folder.is_dir():
                wrong.append(f"{name}={folder} is no folder")
        if wrong:
            raise SettingsError("; ".join(wrong) + " (--help explains each)")
        for name in self.needed_runs():
            try:  # even if it has finished: a misspelt word would then go unnoticed
                compose("config", Settings, self.pretraining(name)[2:])
            except SettingsError as error:
                raise SettingsError(f"{error} (--help shows the other arguments)") from error
        for task, start in self.parts:  # now, not after the pretraining
            load_finetuning(self.finetuning(start, task)[2:])

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Task and start of each result. The words alone answer tasks of classification only."""
        return [
            (task, start)
            for task in self.tasks
            for start in self.starts
            if start != "words" or TASKS[task][0] == "classification"
        ]

    def needed_runs(self) -> list[str]:
        """Pretrainings that the starts need: those that are none take sizes and vocabulary of nsp's
        export."""
        needed = {"none" if start == "none" else "nsp" for start in self.starts}
        return [name for name in ("nsp", "none") if name in needed]

    def pretraining(self, name: str) -> list[str]:
        """The command that pretrains `name`, nsp or none."""
        return [
            "-m", "pretrain.run", *PRETRAINING, f"data.dir={getattr(self.given, name)}",
            f"data.pairs={name}", *self.overrides, f"run.dir={self.runs}", f"run.name={name}",
        ]  # fmt: skip

    def export(self, start: str) -> Path:
        return self.runs / ("none" if start == "none" else "nsp") / "export"

    def results(self, start: str, task: str) -> Path:
        return self.out / "finetune" / f"{start}-{task}" / "results.json"

    def finetuning(self, start: str, task: str) -> list[str]:
        """The command that fine-tunes from `start` on `task`, all seeds, or counts its words."""
        kind, folder, below = TASKS[task]
        given = self.given
        what = "questions" if kind == "qa" else "examples"
        command = "bag_of_words" if start == "words" else f"finetune_{kind}"
        training = [
            f"start={'random' if start == 'random' else 'pretrained'}", f"seeds={given.seeds}",
            f"epochs={given.epochs}", f"grid.learning_rate=[{given.rates}]",
            f"batch_size={given.batch}",
        ]  # fmt: skip
        words = [
            "-m", f"scripts.{command}", f"+task={task}", f"model={self.export(start)}",
            *(training if start != "words" else []),
            f"task.folder={getattr(given, folder) / below}",
            # no longer than the pretraining's sequences: later positions were never trained
            f"max_length={given.length}", f"max_train_examples={getattr(given, what)}",
            f"max_dev_examples={getattr(given, f'dev_{what}')}",
            f"out={self.results(start, task).parent}",
        ]  # fmt: skip
        if kind == "qa":
            part = given.length // 4
            words += [f"task.train={given.train}", f"task.dev={given.dev}"]
            words += [f"task.stride={part}", f"task.max_question_length={part}"]
        return words


def perform(experiment: Experiment) -> None:
    """Run the commands that have not finished.

    Raises FailedError with the one that failed; SettingsError with one that was refused, and for
    results of other settings, which are kept.
    """
    for name in experiment.needed_runs():
        run = experiment.runs / name
        made = run / "export/config.json"  # written last
        if made.exists() and not _record(run).exists():
            print(f"taken as it is, from another command: {made.parent}", flush=True)
        else:
            _run_once(experiment.pretraining(name), run, made)
    for task, start in experiment.parts:
        made = experiment.results(start, task)
        model = identity(experiment.export(start), has_weights=start in ("none", "nsp"))
        words, folder = experiment.finetuning(start, task), made.parent
        if folder.exists() and (changed := _changes(folder, words, model)):
            raise SettingsError(
                f"{folder} was fine-tuned otherwise: {changed}; out=ANOTHER "
                f"runs={experiment.runs} keeps both, or delete {folder}"
            )
        _run_once(words, folder, made, model)


def _run_once(words: list[str], folder: Path, made: Path, model: str | None = None) -> None:
    """Run python with `words`, which makes `made`, unless they made it before from this model."""
    asked, record = {"words": words, "model": model}, _record(folder)
    if made.exists() and record.exists() and read_json(record) == asked:
        print(f"done before: {made}", flush=True)
        return
    command = shlex.join(["python", *words])
    print(command, flush=True)
    if status := subprocess.run([sys.executable, *words], check=False).returncode:
        if status == 2:
            raise SettingsError(f"this was refused, and says above why:\n  {command}")
        raise FailedError(
            f"this ended with status {status}; the same command continues:\n  {command}"
        )
    write_json(record, asked)


def _changes(folder: Path, words: list[str], model: str) -> str:
    """What differs from the fine-tuning recorded, besides paths, and seeds and rates, which can be
    added."""
    if not _record(folder).exists():
        return ""
    before = read_json(_record(folder))
    free = ("seeds=", "grid.learning_rate=", "out=", "model=")
    then, now = (
        sorted(word for word in each if not word.startswith(free))
        for each in (before["words"], words)
    )
    pairs = [f"{old} then, {new} now" for old, new in zip(then, now, strict=False) if old != new]
    if before["model"] != model:
        pairs.append("its model has been trained further")
    return "; ".join(pairs)


def _record(folder: Path) -> Path:
    """Beside a folder: the command that made it, and its model."""
    return folder.with_name(f"{folder.name}.made_by.json")


def results_of(experiment: Experiment) -> Results:
    """Read the mean, the deviation, the seeds and the chosen rate of every results.json."""
    found: Results = {}
    for task, start in experiment.parts:
        result = read_json(experiment.results(start, task))
        for name in result["metrics"]:
            each = [seed[name] for seed in result["seeds"]]
            row = found.setdefault(f"{task} {name}", {})
            rate = result["chosen"].get("learning_rate")  # the words alone have none
            row[start] = {**result["figures"][name], "each": each, "rate": rate}
    return found


def table(experiment: Experiment, found: Results) -> str:
    """Markdown: mean ± standard deviation over the seeds, in percent, per metric; the rates."""
    starts = experiment.starts
    lines = [
        f"| | {' | '.join(STARTS[start][0] for start in starts)} |",
        f"| --- | {' | '.join('---:' for _ in starts)} |",
    ]
    for name, row in found.items():
        cells = [_cell(row[start]) if start in row else "" for start in starts]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    rates = {
        name.split()[0]: ", ".join(f"{one['rate']:g}" for one in row.values() if one["rate"])
        for name, row in found.items()
    }
    lines += ["", f"Rates: {'; '.join(f'{task} {each}' for task, each in rates.items())}."]
    return "\n".join(lines)


def _cell(one: dict[str, Any]) -> str:
    return f"{one['mean']:.1f}" + ("" if one["std"] is None else f" ± {one['std']:.1f}")


def draw(experiment: Experiment, found: Results) -> Figure:
    """Plot held-out losses of the pretrainings, and each task's first metric, with every seed."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    curves: Axes
    bars: Axes
    curves, bars = figure.subplots(1, 2, width_ratios=(2, 3))
    for name in experiment.needed_runs():
        lines = readable_lines(experiment.runs / name / "metrics.jsonl")
        points = [
            (line["step"], line["eval/mlm_loss"]) for line in lines if "eval/mlm_loss" in line
        ]
        curves.plot(
            *zip(*points, strict=True), marker=".", color=STARTS[name][1], label=STARTS[name][0]
        )
        for event in readable_lines(experiment.runs / name / "events.jsonl"):
            if event["event"] == "phase":  # longer sequences from here on
                curves.axvline(event["step"], color="0.8", linestyle=":")
    curves.set(xlabel="steps", ylabel="held-out MLM loss, nats", title="Pretraining")
    first = {name.split()[0]: row for name, row in reversed(found.items())}
    names = [task for task in experiment.tasks if task in first]
    width = 0.8 / len(experiment.starts)
    for number, start in enumerate(experiment.starts):
        offset = (number - (len(experiment.starts) - 1) / 2) * width
        shown = [task for task in names if start in first[task]]
        positions = [names.index(task) + offset for task in shown]
        label, colour = STARTS[start]
        means = [first[task][start]["mean"] for task in shown]
        spreads = [first[task][start]["std"] or 0.0 for task in shown]
        bars.bar(positions, means, width * 0.95, yerr=spreads, color=colour, label=label, capsize=2)
        for position, task in zip(positions, shown, strict=True):
            each = first[task][start]["each"]
            bars.plot([position] * len(each), each, ".", color="black", markersize=3)
    labels = [
        next(n for n in found if n.split()[0] == task).replace(" ", "\n", 1) for task in names
    ]
    bars.set_xticks(range(len(names)), labels, fontsize="small")
    bars.set(ylim=(0, 110), ylabel="%", title=f"Fine-tuned, {experiment.given.seeds} seeds each")
    for axes in (curves, bars):
        axes.legend(fontsize="small", loc="upper right", ncols=1 if axes is curves else len(STARTS))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def write(experiment: Experiment, typed: Sequence[str]) -> str:
    """Write table, commands and picture to `experiment.out`; return the table."""
    found, out = results_of(experiment), experiment.out
    picture = draw(experiment, found)
    picture.savefig(out / "experiment.png", dpi=130, metadata={"Software": None})
    picture.savefig(out / "experiment.svg", metadata={"Date": None})
    command = shlex.join(["python", "-m", "scripts.seed_experiment", *typed])
    commands = [experiment.pretraining(name) for name in experiment.needed_runs()]
    commands += [experiment.finetuning(start, task) for task, start in experiment.parts]
    steps = [shlex.join(["python", *words]) for words in commands]
    facts = {"command": command, "commands": steps, "figures": found}
    write_json(out / "experiment.json", facts)
    text = table(experiment, found)
    listing = "\n".join(["```", command, "", *steps, "```"])
    parts = [text, "![Curves and bars](experiment.png)", listing]
    (out / "experiment.md").write_text("\n\n".join(parts) + "\n")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    typed = list(sys.argv[1:] if argv is None else argv)
    names = [field.name for field in fields(Arguments)]
    own = [word for word in typed if word.partition("=")[0] in names]
    try:
        given = Arguments(**parse_arguments(Arguments, own))
        experiment = Experiment(given, [word for word in typed if word not in own])
        experiment.check()
        experiment.out.mkdir(parents=True, exist_ok=True)
        perform(experiment)
    except (SettingsError, FailedError) as error:
        print(f"scripts.seed_experiment: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    print(f"\n{write(experiment, typed)}\n\n{experiment.out / 'experiment.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))

"""Typed settings of fine-tuning, and all checks of them, each with its cure.

The values are in conf/finetune.yaml, conf/task/ and conf/grid/, with a comment on each line.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from data_prep.core.config import SettingsError, as_text, choices, compose, conf_file

METRICS = {
    "classification": ("accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman"),
    "qa": ("f1", "exact"),
    "tagging": ("f1", "precision", "recall"),
}

NUMBER_METRICS = ("pearson", "spearman")

# Names of numbers (of a list: its lowest), whether a value is allowed, and how that is worded
BOUNDS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "seeds batch_size max_length eval_batch_size max_train_examples max_dev_examples "
        "task.stride task.max_question_length task.max_answer_length task.n_best grid.batch_size",
        lambda value: value >= 1,
        "at least 1",
    ),
    ("learning_rate epochs", lambda value: value > 0, "above 0"),
    ("warmup_fraction dropout", lambda value: 0 <= value < 1, "from 0 to below 1"),
)


class InputError(SettingsError):
    """A file or folder that cannot be used: the message names the place and the cure."""


class Kind(enum.Enum):
    classification = "classification"
    qa = "qa"
    tagging = "tagging"


class Start(enum.Enum):
    pretrained = "pretrained"
    random = "random"


class Precision(enum.Enum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


@dataclass
class HubSettings:
    """A data set of the Hugging Face hub, used if a task has no folder."""

    dataset: str
    subset: str | None
    revision: str | None
    train: str  # names of splits
    dev: str
    other_dev: str | None = None
    text: str | None = None  # names of columns
    text_pair: str | None = None
    label: str | None = None


@dataclass
class TaskSettings:
    """A task. Settings that its kind does not use are None, and not in its file in conf/task/."""

    name: str
    kind: Kind
    metrics: list[str]  # all are reported; the first one chooses the best model
    folder: str | None  # of the files; None: from the hub
    train: str | None
    dev: str | None
    other_dev: str | None = None  # a second development set
    hub: HubSettings | None = None
    # classification and tags: in the data: name; None: those of train
    labels: dict[str, str] | None = None
    # classification
    is_regression: bool = False
    header: bool = True
    quotes: bool | None = None  # None: as True, where it is not ambiguous
    skip_broken: bool = False  # rows with too few or too many columns
    text: str | None = None  # names of columns, or numbers without a header
    text_pair: str | None = None
    label: str | None = None
    # questions and tags: tokens from one window over a long text to the next
    stride: int | None = None
    has_no_answer: bool = False
    max_question_length: int | None = None
    max_answer_length: int | None = None
    n_best: int | None = None
    # tags
    token_column: int | None = None
    tag_column: int | None = None


@dataclass
class GridSettings:
    """Values to try in all combinations; an empty list means the value of the settings."""

    batch_size: list[int]
    learning_rate: list[float]
    epochs: list[float]


@dataclass
class Settings:
    """conf/finetune.yaml, with a task."""

    model: str | None
    out: str | None
    start: Start
    seeds: int
    first_seed: int
    batch_size: int
    learning_rate: float
    epochs: float
    warmup_fraction: float
    weight_decay: float
    max_grad_norm: float
    dropout: float | None
    max_length: int
    precision: Precision
    eval_batch_size: int
    max_train_examples: int | None
    max_dev_examples: int | None
    resume: bool
    wandb: bool
    project: str
    grid: GridSettings
    task: TaskSettings

    @property
    def model_folder(self) -> Path:
        assert self.model is not None  # load() refuses it
        return Path(self.model)

    @property
    def out_folder(self) -> Path:
        """The folder of the results. runs/x/export is named by its run, x."""
        if self.out is not None:
            return Path(self.out)
        folder = self.model_folder.resolve()
        name = folder.parent.name if folder.name == "export" else folder.name
        start = "" if self.start is Start.pretrained else "-random"
        return Path("runs/finetune") / f"{name}{start}-{self.task.name}"


def tasks(kind: Kind | None = None) -> list[str]:
    """The names of the tasks in conf/task, of one kind or all, sorted."""
    return [
        name
        for name in choices("task")
        if kind is None
        or re.search(rf"^ *kind: {kind.name}$", conf_file(f"task/{name}.yaml").read_text(), re.M)
    ]


def load(overrides: Sequence[str], kind: Kind | None = None) -> Settings:
    """Compose conf/finetune.yaml with `overrides`, and check it.

    Raises SettingsError on an unknown or wrong setting, or a task of another kind than `kind`.
    """
    # `model` is a folder here, but a group of conf/ to Hydra
    models = [
        as_text(word.removeprefix("model=")) for word in overrides if word.startswith("model=")
    ]
    typed = [word for word in overrides if not word.startswith("model=")]
    named = [word.split("=", 1)[1] for word in typed if word.startswith(("task=", "+task="))]
    if not named:
        raise SettingsError(f"no task is named; add +task=, one of {', '.join(tasks(kind))}")
    if named[-1] not in tasks():
        raise SettingsError(
            f"task={named[-1]} is not known; {_meant(named[-1], tasks(kind))}there are "
            f"{', '.join(tasks(kind))}"
        )
    settings, _ = compose("finetune", Settings, typed)
    settings.model = models[-1] if models else None
    if faults := list(_faults(settings, kind)):
        raise SettingsError("\n  ".join(["these settings cannot be used:", *faults]))
    return settings


def _meant(typed: str, known: Sequence[str]) -> str:
    """What may have been meant, as a question; "" if nothing is near."""
    near = difflib.get_close_matches(typed, known, n=2)
    return f"did you mean {' or '.join(near)}? " if near else ""


def _faults(settings: Settings, kind: Kind | None) -> Iterator[str]:
    task = settings.task
    if settings.model is None:
        yield "model: is not given; add model=FOLDER, as in model=runs/x/export"
    if kind is not None and task.kind is not kind:
        yield (
            f"task={task.name} is a task of the kind {task.kind.name}; use "
            f"python -m scripts.finetune_{task.kind.name}"
        )
    for names, holds, bound in BOUNDS:
        for name in names.split():
            value = attrgetter(name)(settings)
            if isinstance(value, list):
                value = min(value, default=None)
            if value is not None and not holds(value):
                yield f"{name}={value}: must be {bound}"
    known = METRICS[task.kind.name]
    if not task.metrics or not set(task.metrics) <= set(known):
        near = "".join(_meant(name, known) for name in task.metrics if name not in known)
        yield f"task.metrics={task.metrics}: {near}one or more of {', '.join(known)}"
    if task.folder is None and task.hub is None:
        yield f"task.folder: is not given, and {task.name} has no hub; add task.folder=FOLDER"
    needed = {"train": "FILE", "dev": "FILE"}
    if task.kind is Kind.classification:
        for_numbers = [name for name in task.metrics if name in NUMBER_METRICS]
        if len(for_numbers) != task.is_regression * len(task.metrics):
            yield (
                f"task.metrics={task.metrics} with task.is_regression={task.is_regression}: "
                "pearson and spearman are for numbers, the others for labels; for numbers add "
                "task.is_regression=true task.metrics=[spearman,pearson], for labels "
                "task.is_regression=false task.metrics=[accuracy]"
            )
        needed |= {"text": "COLUMN", "label": "COLUMN"}
    for name, what in needed.items():
        if task.folder is not None and getattr(task, name) is None:
            yield f"task.{name}: is not given; add task.{name}={what}"

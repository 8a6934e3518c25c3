"""What a fine-tuning is: typed settings, and every check of them, each with its cure.

The values live in conf/finetune.yaml, conf/task/ and conf/grid/, with a comment on each line.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).resolve().parents[2] / "conf"
METRICS = {
    "classification": ("accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman"),
    "qa": ("f1", "exact"),
    "tagging": ("f1", "precision", "recall"),
}


class InputError(ValueError):
    """What was asked for, or a file, cannot be used: the message names the place and the cure."""


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
    """A data set of the Hugging Face hub, used where a task has no folder."""

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
    """A task. What a kind does not use is None, and not in its files in conf/task/."""

    name: str
    kind: Kind
    metrics: list[str]  # all are reported; the first one chooses the best model
    folder: str | None  # in which the files lie; None: from the hub
    train: str | None
    dev: str | None
    other_dev: str | None = None  # a second development set
    hub: HubSettings | None = None
    # classification
    labels: dict[str, str] | None = None  # what stands in the data: its name; None: those of train
    is_regression: bool = False
    header: bool = True
    quotes: bool = True
    skip_broken: bool = False  # rows with too few or too many columns
    text: str | None = None  # names of columns, or numbers where there is no header
    text_pair: str | None = None
    label: str | None = None
    # questions and tags: tokens by which a window over a long text moves on
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
    """Values that are tried, all with all; an empty list is the single value outside."""

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
        assert self.model is not None  # load() has seen to it
        return Path(self.model)

    @property
    def out_folder(self) -> Path:
        """Where the results go. runs/x/export is known by the run's name, x."""
        if self.out is not None:
            return Path(self.out)
        folder = self.model_folder.resolve()
        name = folder.parent.name if folder.name == "export" else folder.name
        start = "" if self.start is Start.pretrained else "-random"
        return Path("runs/finetune") / f"{name}{start}-{self.task.name}"


def tasks(kind: Kind | None = None) -> list[str]:
    """Names of the tasks in conf/task (of a kind), sorted."""
    return [
        path.stem
        for path in sorted((CONF / "task").glob("*.yaml"))
        if kind is None or re.search(rf"^ *kind: {kind.name}$", path.read_text(), re.M)
    ]


def load(overrides: Sequence[str], kind: Kind | None = None) -> Settings:
    """The settings that were typed, checked.

    Raises InputError on an unknown or wrong setting, or a task of another kind than `kind`.
    """
    settings = _composed(overrides, kind)
    if faults := list(_faults(settings, kind)):
        raise InputError("\n  ".join(["these settings cannot be used:", *faults]))
    return settings


def as_dict(settings: Settings) -> dict[str, Any]:
    """Plain nested dictionaries of strings, numbers, booleans and None."""
    plain = OmegaConf.to_container(OmegaConf.structured(settings), enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _composed(overrides: Sequence[str], kind: Kind | None) -> Settings:
    typed = [f"+{word}" if word.startswith("task=") else word for word in overrides]
    if strange := [word for word in typed if "=" not in word]:
        raise InputError(f"{strange[0]!r} is no setting; settings are typed as name=value")
    if not any(word.startswith("+task=") for word in typed):
        raise InputError(f"no task is named; add +task=, one of {', '.join(tasks(kind))}")
    # conf/model/ makes `model` a group to Hydra; here it is a folder
    models = [word.removeprefix("model=") for word in typed if word.startswith("model=")]
    typed = [word for word in typed if not word.startswith("model=")]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("finetune", typed)
        composed.model = models[-1] if models else None
        if composed.task.get("labels"):  # 0 is a number to YAML and to Hydra
            names = {str(key): str(name) for key, name in composed.task.labels.items()}
            OmegaConf.update(composed, "task.labels", names, merge=False)
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), composed))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_explained(error, kind)) from error
    assert isinstance(settings, Settings)
    return settings


def _explained(error: Exception, kind: Kind | None) -> str:
    """One sentence in place of Hydra's and OmegaConf's paragraphs."""
    text = " ".join(str(error).split())
    if missing := re.search(r"Could not (?:find|load) '(\w+)/([^']*)'", text):
        group, name = missing.groups()
        known = tasks(kind) if group == "task" else [f.stem for f in (CONF / group).glob("*.yaml")]
        return f"{group}={name} is not known; there are {', '.join(sorted(known))}"
    unknown = re.match(r"Could not override '([\w.]+)'|Key '(\w+)' ", text)
    if unknown:
        typed = unknown[1] or str(getattr(error, "full_key", unknown[2]))
        near = difflib.get_close_matches(typed, list(_keys(Settings)), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "conf/finetune.yaml has all"
        return f"there is no setting {typed!r}; {hint}"
    key = getattr(error, "full_key", None)
    text = re.sub(r"(full_key|object_type|reference_type|See https).*", "", text).strip()
    return f"{key}: {text}" if key else text


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    """All dotted names below a dataclass of dataclasses."""
    for name, hint in get_type_hints(schema).items():
        parts = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        inner = next((part for part in parts if dataclasses.is_dataclass(part)), None)
        if isinstance(inner, type):
            yield from _keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def _faults(settings: Settings, kind: Kind | None) -> Iterator[str]:
    task = settings.task
    if settings.model is None:
        yield "model: is not given; add model=FOLDER, as in model=runs/x/export"
    if kind is not None and task.kind is not kind:
        yield (
            f"task={task.name} is a task of the kind {task.kind.name}; use "
            f"python -m scripts.finetune_{task.kind.name}"
        )
    whole = {
        "seeds": settings.seeds, "batch_size": settings.batch_size,
        "max_length": settings.max_length, "eval_batch_size": settings.eval_batch_size,
        "max_train_examples": settings.max_train_examples,
        "max_dev_examples": settings.max_dev_examples, "task.stride": task.stride,
        "task.max_question_length": task.max_question_length,
        "task.max_answer_length": task.max_answer_length, "task.n_best": task.n_best,
        "grid.batch_size": min(settings.grid.batch_size, default=None),
    }  # fmt: skip
    for name, value in whole.items():
        if value is not None and value < 1:
            yield f"{name}={value}: must be at least 1"
    positive = {"learning_rate": settings.learning_rate, "epochs": settings.epochs}
    for name, number in positive.items():
        if not number > 0:
            yield f"{name}={number}: must be above 0"
    shares = {"warmup_fraction": settings.warmup_fraction, "dropout": settings.dropout}
    for name, share in shares.items():
        if share is not None and not 0 <= share < 1:
            yield f"{name}={share}: must be from 0 to below 1"
    known = METRICS[task.kind.name]
    if not task.metrics or not set(task.metrics) <= set(known):
        yield f"task.metrics={task.metrics}: one or more of {', '.join(known)}"
    if task.folder is None and task.hub is None:
        yield f"task.folder: is not given, and {task.name} is not on the hub; add task.folder=FOLDER"
    if task.folder is not None:
        for name in ("train", "dev"):
            if getattr(task, name) is None:
                yield f"task.{name}: is not given; add task.{name}=FILE"
    if task.kind is Kind.classification:
        is_number = set(task.metrics) <= {"pearson", "spearman"}
        if is_number != task.is_regression:
            yield (
                f"task.metrics={task.metrics} with task.is_regression={task.is_regression}: "
                "pearson and spearman are for numbers, the others for labels"
            )
        for name in ("text", "label"):
            if task.folder is not None and getattr(task, name) is None:
                yield f"task.{name}: is not given; add task.{name}=COLUMN"

"""What a run says: metrics.jsonl and events.jsonl always, the terminal, and wandb where asked.

A figure is one line of JSON first; the screen and wandb show the same dictionary. Only rank 0 has
sinks; the other ranks hold a Monitor without any, and the training loop need not know.
"""

from __future__ import annotations

import datetime
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from data_prep.core.files import whole_or_absent

if TYPE_CHECKING:
    from pretrain.model.fill_mask import Guesses

logger = logging.getLogger(__name__)

BAR = "{n_fmt}/{total_fmt}{postfix} |{bar}| ETA {remaining}"  # too wide: cut off on the right
BAR_WITHOUT_END = "{n_fmt}{postfix} |{bar}| {elapsed}"
LINE_EVERY_S = 10.0  # in a batch job's log a line of progress at most so often


class Sink(Protocol):
    """One place that figures go to."""

    def record(self, step: int, figures: Mapping[str, float | str]) -> None: ...

    def event(self, kind: str, facts: dict[str, Any]) -> None: ...

    def guesses(self, step: int, filled: dict[str, Guesses]) -> None: ...

    def close(self) -> None: ...


class Monitor:
    """Hands figures and events to every sink."""

    def __init__(self, sinks: Sequence[Sink], lasting: Sequence[Sink] = ()) -> None:
        """`lasting` are sinks that outlive this monitor: whoever made them closes them."""
        self._own = sinks
        self._sinks = [*sinks, *lasting]

    def record(self, step: int, figures: Mapping[str, float | str]) -> None:
        """Figures after `step` optimizer updates, by name: train/..., eval/..., perf/..."""
        for sink in self._sinks:
            sink.record(step, figures)

    def guesses(self, step: int, filled: dict[str, Guesses]) -> None:
        """What the model puts in masked sentences: by sentence, tokens with their probabilities."""
        for sink in self._sinks:
            sink.guesses(step, filled)

    def event(self, kind: str, **facts: Any) -> None:
        """Something that happened: a start, a signal, a skipped step, a checkpoint."""
        for sink in self._sinks:
            sink.event(kind, facts)

    def close(self) -> None:
        """Flush and close all sinks but the lasting ones."""
        for sink in self._own:
            sink.close()


class JsonLines:
    """metrics.jsonl, guesses.jsonl and events.jsonl of a run, one JSON object a line, flushed at once.

    A run that continues from step k drops the lines of steps after k, which the killed process
    wrote beyond its last checkpoint: every step stands in the file once. The event "lost" says how
    far they went, and until when.
    """

    def __init__(self, run_folder: Path, first_step: int) -> None:
        metrics = run_folder / "metrics.jsonl"
        lost = _keep_steps_up_to(metrics, first_step) if metrics.exists() else None
        self._metrics = _Lines(metrics)
        self._events = _Lines(run_folder / "events.jsonl")
        guesses = run_folder / "guesses.jsonl"
        if guesses.exists():
            _keep_steps_up_to(guesses, first_step)
        self._guesses = _Lines(guesses)
        if lost is not None:
            self.event("lost", {"after": first_step, "up_to": lost["step"], "until": lost["time"]})

    def record(self, step: int, figures: Mapping[str, float | str]) -> None:
        self._metrics.write(_line({"step": step, "time": _now(), **figures}))

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        self._events.write(_event_line(kind, facts))

    def guesses(self, step: int, filled: dict[str, Guesses]) -> None:
        self._guesses.write(_line({"step": step, "time": _now(), "guesses": filled}))

    def close(self) -> None:
        self._metrics.close()
        self._events.close()
        self._guesses.close()


def append_event(run_folder: Path, kind: str, facts: dict[str, Any]) -> None:
    """One line in events.jsonl of what happens before there is a monitor."""
    events = _Lines(run_folder / "events.jsonl")
    events.write(_event_line(kind, facts))
    events.close()


class _Lines:
    """Appends to a file. What a full disk does not take is kept, and written once it does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        # a killed process may have left half a line, which then ends here
        self._pending = b"" if _ends_in_a_line(path) else b"\n"

    def write(self, line: bytes) -> None:
        self._pending += line
        try:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) or 0 :]
        except OSError as error:
            logger.warning("%s: %d bytes wait (%s)", self._path, len(self._pending), error)

    def close(self) -> None:
        self.write(b"")
        if self._pending:
            logger.error("%s lacks %d bytes: %r", self._path, len(self._pending), self._pending)
        self._file.close()


def _ends_in_a_line(path: Path) -> bool:
    """Whether the next line can be appended to a file; True for an empty one."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() in (b"", b"\n")


def readable_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines, but one that a killed process did not finish; [] without it."""
    lines = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            lines.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return lines


def _line(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def _event_line(kind: str, facts: dict[str, Any]) -> bytes:
    return _line({"time": _now(), "event": kind, **facts})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _keep_steps_up_to(metrics: Path, step: int) -> dict[str, Any] | None:
    """Drop the records of later steps; the last of them, or None where there is none."""
    kept, last = [], None
    for line in metrics.read_bytes().splitlines(keepends=True):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:  # the line that a killed process did not finish
            continue
        if record["step"] <= step:
            kept.append(line)
        else:
            last = record
    with whole_or_absent(metrics) as temporary:
        temporary.write_bytes(b"".join(kept))
    return last


class Screen:
    """A progress bar on a terminal; in a batch job plain lines, one in ten seconds at most."""

    def __init__(self, first_step: int, total_steps: int | None) -> None:
        """`total_steps` is None where the clock ends the run, and not a number of steps."""
        from tqdm import tqdm

        self._total_steps, self._first_step, self._started = total_steps, first_step, time.time()
        self._is_terminal = sys.stderr.isatty()
        self._last_line = 0.0
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            bar_format=BAR if total_steps is not None else BAR_WITHOUT_END,
            disable=not self._is_terminal,
        )

    def record(self, step: int, figures: Mapping[str, float | str]) -> None:
        text = _readable(figures)
        if self._is_terminal:
            if any(name.startswith("eval/") for name in figures):
                self._bar.write(f"step {step:,}  {text}", file=sys.stderr)
            else:
                self._bar.set_postfix_str(text, refresh=False)
                self._bar.update(step - self._bar.n)
            return
        is_due = time.time() - self._last_line >= LINE_EVERY_S or step == self._total_steps
        if is_due or any(name.startswith("eval/") for name in figures):
            self._last_line = time.time()
            if self._total_steps is None:
                print(f"step {step:,}  {text}", file=sys.stderr)
                return
            done = max(1, step - self._first_step)
            left_s = (self._last_line - self._started) / done * (self._total_steps - step)
            eta = datetime.timedelta(seconds=round(left_s))
            print(f"step {step:,}/{self._total_steps:,}  {text}  ETA {eta}", file=sys.stderr)

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        if kind in SHOWN_EVENTS:
            short = {k: f"{len(v)} of them" if k == "examples" else v for k, v in facts.items()}
            text = " ".join(f"{name}={value}" for name, value in short.items())
            self._bar.write(f"{kind.replace('_', ' ')}: {text}", file=sys.stderr)

    def guesses(self, step: int, filled: dict[str, Guesses]) -> None:
        pass  # shown at the run's end, by the exported model

    def close(self) -> None:
        self._bar.close()


SHOWN_EVENTS = (
    "resumed",
    "rewound",
    "phase",
    "stopped",
    "skipped_step",
    "overflow",
    "spike",
    "checkpoint_failed",
)
SHOWN = {
    "train/mlm_loss": "MLM {:.3f}",
    "train/mlm_accuracy": "({:.1%})",
    "train/nsp_loss": "NSP {:.3f}",
    "train/nsp_accuracy": "({:.1%})",
    "train/sop_loss": "SOP {:.3f}",
    "train/sop_accuracy": "({:.1%})",
    "perf/tokens_per_second": "{:,.0f} tokens/s",
    "perf/training_hours": "{:.2f} h",
    "eval/mlm_loss": "held-out MLM {:.3f}",
    "eval/mlm_accuracy": "({:.1%})",
    "eval/nsp_loss": "NSP {:.3f}",
    "eval/nsp_accuracy": "({:.1%})",
    "eval/sop_loss": "SOP {:.3f}",
    "eval/sop_accuracy": "({:.1%})",
}


def _readable(figures: Mapping[str, float | str]) -> str:
    return " ".join(form.format(figures[name]) for name, form in SHOWN.items() if name in figures)

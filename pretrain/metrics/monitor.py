"""What a run says: metrics.jsonl and events.jsonl always, the terminal, and wandb where asked.

A figure is one line of JSON first; the screen and wandb show the same dictionary. Only rank 0 has
sinks; the other ranks hold a Monitor without any, and the training loop need not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pretrain.model.fill_mask import Guesses
from pretrain.run_folder.jsonl import Lines, event_line, json_line, keep_steps_up_to, now


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
        lost = keep_steps_up_to(metrics, first_step) if metrics.exists() else None
        self._metrics = Lines(metrics)
        self._events = Lines(run_folder / "events.jsonl")
        guesses = run_folder / "guesses.jsonl"
        if guesses.exists():
            keep_steps_up_to(guesses, first_step)
        self._guesses = Lines(guesses)
        if lost is not None:
            self.event("lost", {"after": first_step, "up_to": lost["step"], "until": lost["time"]})

    def record(self, step: int, figures: Mapping[str, float | str]) -> None:
        self._metrics.write(json_line({"step": step, "time": now(), **figures}))

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        self._events.write(event_line(kind, facts))

    def guesses(self, step: int, filled: dict[str, Guesses]) -> None:
        self._guesses.write(json_line({"step": step, "time": now(), "guesses": filled}))

    def close(self) -> None:
        self._metrics.close()
        self._events.close()
        self._guesses.close()

"""What a run records: metrics.jsonl and events.jsonl always, the terminal, and trackers.

Each sink gets the same dictionaries. Only rank 0 has sinks; the other ranks hold a Monitor without
any, so the training loop need not know its rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.model.fill_mask import Guesses
from pretrain.run_folder.jsonl import Lines, event_line, json_line, keep_steps_up_to, now


class Sink:
    """One destination of metrics, events and guesses; it ignores what it does not override."""

    def record(self, step: int, metrics: Mapping[str, float | str]) -> None:
        """Metrics after `step` optimizer updates, by name: train/..., eval/..., perf/..."""

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        """Something that happened: a start, a signal, a skipped step, a checkpoint."""

    def guesses(self, step: int, filled: dict[str, Guesses]) -> None:
        """The model's guesses for masked sentences: by sentence, tokens and probabilities."""

    def close(self) -> None:
        """Flush and close."""


class Monitor:
    """Passes metrics, events and guesses to every sink."""

    def __init__(self, sinks: Sequence[Sink], lasting: Sequence[Sink] = ()) -> None:
        """`lasting` sinks outlive this monitor: their owner closes them."""
        self._own = sinks
        self._sinks = [*sinks, *lasting]

    def record(self, step: int, metrics: Mapping[str, float | str]) -> None:
        """See Sink.record."""
        for sink in self._sinks:
            sink.record(step, metrics)

    def guesses(self, step: int, filled: dict[str, Guesses]) -> None:
        """See Sink.guesses."""
        for sink in self._sinks:
            sink.guesses(step, filled)

    def event(self, kind: str, **facts: Any) -> None:
        """See Sink.event."""
        for sink in self._sinks:
            sink.event(kind, facts)

    def close(self) -> None:
        """Close all sinks except the lasting ones."""
        for sink in self._own:
            sink.close()


class JsonLines(Sink):
    """metrics.jsonl, guesses.jsonl and events.jsonl: a JSON object per line, flushed at once.

    A run that continues from step k drops the lines of steps after k, which a killed process wrote
    after its last checkpoint: every step is in the file once. The event "lost" keeps how far they
    went and until when.
    """

    def __init__(self, run_folder: Path, first_step: int) -> None:
        paths = [run_folder / f"{name}.jsonl" for name in ("metrics", "guesses", "events")]
        dropped = [
            keep_steps_up_to(path, first_step) if path.exists() else None for path in paths[:2]
        ]
        self._metrics, self._guesses, self._events = map(Lines, paths)
        if (lost := dropped[0]) is not None:
            self.event("lost", {"after": first_step, "up_to": lost["step"], "until": lost["time"]})

    def record(self, step: int, metrics: Mapping[str, float | str]) -> None:
        self._metrics.write(json_line({"step": step, "time": now(), **metrics}))

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        self._events.write(event_line(kind, facts))

    def guesses(self, step: int, filled: dict[str, Guesses]) -> None:
        self._guesses.write(json_line({"step": step, "time": now(), "guesses": filled}))

    def close(self) -> None:
        for lines in (self._metrics, self._guesses, self._events):
            lines.close()

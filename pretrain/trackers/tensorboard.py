"""TensorBoard: event files in the run's folder, one event per step.

torch.utils.tensorboard needs the same package, and writes an event per metric: a killed process
could leave half a step. Here a step is in the file whole or not at all, so the files tell what a
start has to send.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from pretrain.trackers.tracker import GUESSES, Row, Tracker, guesses_table

_FLUSH_S = 5  # most that a SIGKILL costs the file; the next start sends it again


class TensorBoard(Tracker):
    """The event files of one run: a new one for each start."""

    _writer: Any = None

    def start(self) -> int:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = self.run.folder / "tensorboard"
        last_step = max((event.step for event in events(folder)), default=0)
        self._writer = EventFileWriter(str(folder), flush_secs=_FLUSH_S)
        config = orjson.dumps(self.run.config, option=orjson.OPT_INDENT_2).decode()
        self._text(last_step, None, "config", f"```json\n{config}\n```")
        return last_step

    def send(self, rows: Sequence[Row]) -> None:
        """Write each row as one event. The guesses of a step become a table."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for row in rows:
            values = [
                _text_value(name, value)
                if isinstance(value, str)
                else Summary.Value(tag=name, simple_value=value)
                for name, value in row.metrics.items()
            ]
            if row.guesses:
                values.append(_text_value(GUESSES, _markdown(*guesses_table(row.guesses))))
            self._add(row.step, row.time, values)

    def alert(self, step: int, title: str, text: str) -> None:
        self._text(step, None, "alert", f"{title}\n\n{text}")

    def finish(self) -> None:
        self._writer.close()

    def _text(self, step: int, time: float | None, tag: str, text: str) -> None:
        self._add(step, time, [_text_value(tag, text)])

    def _add(self, step: int, time: float | None, values: list[Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._writer.add_event(Event(step=step, wall_time=time, summary=Summary(value=values)))


def events(folder: Path) -> Iterator[Any]:
    """All events of a run's files, in order; a file that was cut off ends before the cut."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for path in sorted(folder.glob("events.out.tfevents.*")):
        yield from LegacyEventFileLoader(str(path)).Load()


def _text_value(tag: str, text: str) -> Any:
    """A text, which TensorBoard shows as Markdown without HTML."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    plugin = SummaryMetadata.PluginData(plugin_name="text")
    tensor = TensorProto(
        dtype=DT_STRING, tensor_shape={"dim": [{"size": 1}]}, string_val=[text.encode()]
    )
    return Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor)


def _markdown(headings: list[str], lines: list[list[str]]) -> str:
    """A table; the sign between its columns is escaped in the cells."""
    table = [headings, ["---"] * len(headings), *lines]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "&#124;") for cell in line) + " |" for line in table
    )

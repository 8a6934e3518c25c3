"""Savers for tests, and an engine whose state is one number."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pretrain.checkpoint.mirror import Mirror
from pretrain.checkpoint.saver import Saver
from pretrain.config.settings import CheckpointSettings, OnFailure


class Alone:
    """Ranks of one process, without a process group."""

    rank, world_size = 0, 1

    def sum(self, values: Sequence[float]) -> list[float]:
        return [*map(float, values)]

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def on_this_node(self) -> tuple[int, int]:
        return 0, 1

    def any(self, flag: bool) -> bool:
        return flag

    def broadcast(self, value: Any) -> Any:
        return value

    def barrier(self) -> None:
        pass


ALONE: Any = Alone()


class FileSnapshot:
    """A number that is written into two files; something may happen between the two."""

    def __init__(self, between: Callable[[], None]) -> None:
        self.number, self.between = -1, between

    def write(self, folder: Path) -> dict[str, str]:
        number = self.number
        (folder / "model.safetensors").write_text(f"weights {number}")
        self.between()
        (folder / "optimizer.safetensors").write_text(f"moments {number}")
        return {}


class FileEngine:
    """Its state is a number; `between` is called in the middle of each writing."""

    state_bytes = 20

    def __init__(self, number: int = 0, between: Callable[[], None] = lambda: None) -> None:
        self.number, self.between = number, between

    def new_snapshot(self) -> FileSnapshot:
        return FileSnapshot(self.between)

    def take(self, snapshot: FileSnapshot | None) -> None:
        if snapshot is not None:
            snapshot.number = self.number

    def load(self, folder: Path, forget: Any = (), tiles: int | None = None) -> None:
        self.number = int((folder / "model.safetensors").read_text().split()[1])


def full_disk() -> None:
    """Between the two files: what a full disk answers."""
    raise OSError(28, "No space left on device")


def saver_of(
    run_folder: Path, engine: Any, ranks: Any = ALONE, on_failure: OnFailure = OnFailure.stop,
    keep: int = 9, keep_every: int | None = None, events: list[dict[str, Any]] | None = None,
    kept_step: int | None = None, mirror: Mirror | None = None,
) -> Saver:  # fmt: skip
    """A saver whose events go into the list."""

    def tell(kind: str, **facts: Any) -> None:
        if events is not None:
            events.append({"event": kind, **facts})

    settings = CheckpointSettings(
        every_steps=1, keep=keep, keep_every=keep_every, on_failure=on_failure
    )
    return Saver(run_folder, engine, ranks, settings, {"run.seed": 1}, tell, kept_step, mirror)

"""A refused start leaves the disk as it was."""

from pathlib import Path

import pytest

from data_prep.core.config import SettingsError
from pretrain.run_folder.folder import removed_if_refused


def refused(folder: Path, *made: str, is_main: bool = True, error: type = SettingsError) -> int:
    """How often the ranks came together, where a start that made these files is refused."""
    barriers: list[None] = []

    def start() -> None:
        with removed_if_refused(folder, is_main, lambda: barriers.append(None)):
            for name in made:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
            raise error("why")

    with pytest.raises(error):
        start()
    return len(barriers)


def test_a_folder_and_the_parents_made_with_it_are_removed(tmp_path: Path) -> None:
    assert refused(tmp_path / "runs/deep/x", "run.lock", "logs/rank-00000.log") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_an_earlier_start_stays(tmp_path: Path) -> None:
    (tmp_path / "runs/x").mkdir(parents=True)
    refused(tmp_path / "runs/x", "run.lock")
    assert (tmp_path / "runs/x/run.lock").exists()


def test_the_parent_stays_where_another_run_has_begun_in_it(tmp_path: Path) -> None:
    refused(tmp_path / "runs/x", "run.lock", "../y/run.lock")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["y"]


@pytest.mark.parametrize("begun", ["metrics.jsonl", "checkpoints/step-00000001/manifest.json"])
def test_a_run_that_has_trained_keeps_its_folder(tmp_path: Path, begun: str) -> None:
    refused(tmp_path / "x", begun)
    assert (tmp_path / "x" / begun).exists()


def test_ranks_other_than_0_only_wait(tmp_path: Path) -> None:
    assert refused(tmp_path / "x", "log", is_main=False) == 1
    assert (tmp_path / "x/log").exists()


def test_an_error_that_is_no_refusal_keeps_the_folder_and_waits_for_no_rank(tmp_path) -> None:
    assert refused(tmp_path / "x", "log", error=RuntimeError) == 0
    assert (tmp_path / "x/log").exists()

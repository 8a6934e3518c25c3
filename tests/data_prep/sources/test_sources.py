"""What all sources share: how an input is cut into tasks, and when it counts as changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_reading import read_all, source_of

from data_prep.core.config import SettingsError
from data_prep.core.settings import SourceKind
from data_prep.executors.tasks import fingerprint
from data_prep.sources import books, cut_by_size, module_of


@given(sizes=st.lists(st.integers(0, 50)), most=st.integers(1, 100))
def test_cuts_hold_every_item_once_and_no_more_than_fits(sizes: list[int], most: int) -> None:
    runs = cut_by_size(sizes, most)
    assert [index for run in runs for index in run] == list(range(len(sizes)))
    assert all(len(run) == 1 or sum(sizes[i] for i in run) <= most for run in runs)


def test_files_are_listed_alike_whatever_order_the_disk_has(tmp_path, monkeypatch) -> None:
    for name in ("b/z.txt", "a.txt", "B.TXT", "b/ä.txt", "c.md", ".hidden/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    listed = books.plan(source_of("books", tmp_path), 10, tmp_path)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = reversed(list(entries))

        def __next__(self) -> os.DirEntry[str]:
            return next(self.entries)

        def __enter__(self):
            return self

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    assert books.plan(source_of("books", tmp_path), 10, tmp_path) == listed
    assert listed.tasks == [["B.TXT", "a.txt"], ["b/z.txt"], ["b/ä.txt"]]


def test_a_changed_file_changes_the_state_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    before = books.plan(source_of("books", tmp_path), 10, tmp_path)
    (tmp_path / "a.txt").write_text("two")
    after = books.plan(source_of("books", tmp_path), 10, tmp_path)
    assert before.states != after.states
    assert before.tasks == after.tasks


def test_a_folder_without_books_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"source\.path=.* holds no \.txt file, nor"):
        books.plan(source_of("books", tmp_path), 10, tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "text", "id"),
    [
        ("books", b"caf\xe9.txt", "A book.", r"caf\xe9.txt"),
        ("books", b"\xff\xfe/a.txt", "A book.", r"\xff\xfe/a.txt"),
        ("wikiextractor", b"wiki_\xe9", "Text.", r"wiki_\xe9"),
        ("wikipedia_dump", b"\xe9.xml", "<page><title>A</title></page>", r"\xe9.xml/1"),
    ],
)
def test_a_file_whose_name_is_not_utf_8_is_read_and_its_name_escaped(
    tmp_path: Path, kind: str, name: bytes, text: str, id: str
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    plan = module_of(SourceKind(kind)).plan(source_of(kind, tmp_path), 10, tmp_path)
    fingerprint(plan.states)  # as `collect` does
    assert [item.id for item in read_all(source_of(kind, tmp_path))] == [id]


@pytest.mark.parametrize("length", [80, 146, 200])
def test_a_long_tmpdir_does_not_keep_a_job_from_running(tmp_path: Path, length: int) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("It was a café.")
    long = tmp_path / ("x" * length)
    long.mkdir()
    arguments = ["+source=books", f"source.path={tmp_path / 'in'}", f"data_dir={tmp_path / 'out'}"]
    arguments += ["source.min_characters=null", "source.language=null", "num_workers=1"]
    ran = subprocess.run(
        [sys.executable, "-m", "data_prep.collect", *arguments],
        env={**os.environ, "TMPDIR": str(long)},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert (ran.returncode, ran.stderr) == (0, "")

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
from data_prep.core.job import load
from data_prep.core.settings import SourceSettings, paths_in
from data_prep.executors.tasks import fingerprint
from data_prep.sources import books, module_of
from data_prep.sources.inputs.plan import cut_by_size


@given(sizes=st.lists(st.integers(0, 50)), most=st.integers(1, 100))
def test_cuts_hold_every_item_once_and_no_more_than_fits(sizes: list[int], most: int) -> None:
    runs = cut_by_size(sizes, most)
    assert [index for run in runs for index in run] == list(range(len(sizes)))
    assert all(len(run) == 1 or sum(sizes[i] for i in run) <= most for run in runs)


def test_files_are_listed_alike_whatever_order_the_disk_has(tmp_path, monkeypatch) -> None:
    for name in ("b/z.txt", "a.txt", "B.TXT", "b/ä.txt", "c.md", ".hidden/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    listed = books.plan(source_of("books", tmp_path), 10)
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
    assert books.plan(source_of("books", tmp_path), 10) == listed
    assert listed.tasks == [["B.TXT", "a.txt"], ["b/z.txt"], ["b/ä.txt"]]


def test_a_changed_file_changes_the_state_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    before = books.plan(source_of("books", tmp_path), 10)
    (tmp_path / "a.txt").write_text("two")
    after = books.plan(source_of("books", tmp_path), 10)
    assert before.states != after.states
    assert before.tasks == after.tasks


def test_a_folder_without_books_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"source\.path=.* holds no \.txt file, nor"):
        books.plan(source_of("books", tmp_path), 10)


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
    source = source_of(kind, tmp_path)
    plan = module_of(source).plan(source, 10)
    fingerprint(plan.states)  # as `collect` does
    assert [item.id for item in read_all(source_of(kind, tmp_path))] == [id]


# --- nothing passed over in silence --------------------------------------------------------------


def _folder_of(path: Path, *names: str) -> Path:
    """A folder with one short book per name."""
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"The book {name}.")
    return path


def _names(source: SourceSettings, characters: int = 10**9) -> list[str]:
    return [item.id for item in read_all(source, characters)]


@pytest.mark.parametrize("kept", [["b.txt"], []])
def test_a_linked_folder_is_read_as_one_that_is_there(tmp_path: Path, kept: list[str]) -> None:
    _folder_of(tmp_path / "far", "a.txt", "deep/c.txt")
    _folder_of(tmp_path / "in", *kept, ".hidden/x.txt")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "far")
    assert _names(source_of("books", tmp_path / "in")) == [*kept, "more/a.txt", "more/deep/c.txt"]


def test_a_linked_folder_of_rows_and_of_dumps_is_read(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.jsonl").write_text('{"text": "One."}\n')
    (tmp_path / "far" / "a.xml").write_text("<page><title>A</title></page>")
    for kind, count in (("bookcorpus", 1), ("wikipedia_dump", 1)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "link").symlink_to(tmp_path / "far")
        assert len(read_all(source_of(kind, tmp_path / kind))) == count


def test_links_in_a_circle_end_and_no_file_is_read_twice(tmp_path: Path) -> None:
    _folder_of(tmp_path / "in", "a.txt", "sub/b.txt")
    (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "again").symlink_to("sub")
    (tmp_path / "in" / "self").symlink_to("self")
    _folder_of(tmp_path / "far", "c.txt")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "in")
    for link in ("x", "y"):  # two links to one folder
        (tmp_path / "in" / link).symlink_to(tmp_path / "far")
    assert _names(source_of("books", tmp_path / "in")) == ["a.txt", "sub/b.txt", "x/c.txt"]


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    _folder_of(tmp_path / "far", "a.txt")
    (tmp_path / "in").symlink_to("far")
    assert _names(source_of("books", tmp_path / "in")) == ["a.txt"]


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch) -> None:
    _folder_of(tmp_path, "a.txt", "locked/b.txt")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SettingsError, match=r"locked cannot be listed \(Permission denied\); make"):
        books.plan(source_of("books", tmp_path), 10)


@pytest.mark.parametrize(
    ("kind", "read", "others", "told"),
    [
        ("books", ["a.txt", "b.TXT"], ["c.txt.7z", "d.7z", "e.pdf", "LICENSE", ".hidden"],
         ["2 .7z, such as c.txt.7z", "1 .pdf: e.pdf", "1 without an ending: LICENSE"]),
        ("books", ["a.txt"], ["a.text", "b.TEXT", "c\x1b[31m.md"],
         ["2 .text, such as a.text", "1 .md: c\x1b[31m.md"]),
        ("books", ["a.txt"], [f"a.{n}" for n in range(9)],
         [*(f"1 .{n}: a.{n}" for n in range(5)), "4 others"]),
        ("wikipedia_dump", ["a.xml", "b.xml.bz2"],
         ["c.xml.gz", "d.xml.7z", "b.xml.bz2.md5", "e-sha1sums.txt", "x.sha1"],
         ["1 .7z: d.xml.7z", "1 .gz: c.xml.gz"]),
        ("wikipedia_dump", ["a.xml"], ["a.xml.sha256"], None),
        ("bookcorpus", ["a.jsonl", "b.JSONL"], ["c.jsonl.gz", "README.md"],
         ["1 .gz: c.jsonl.gz", "1 .md: README.md"]),
        ("wikiextractor", ["wiki_00", "a.txt", "b.gz"], [".hidden"], None),
        ("books", ["a.txt"], [], None),
    ],
)  # fmt: skip
def test_files_that_are_not_read_are_counted_and_named(
    tmp_path: Path, kind: str, read: list[str], others: list[str], told: list[str] | None
) -> None:
    for name in (*read, *others):
        (tmp_path / name).write_text('{"text": "One."}\n')
    source = source_of(kind, tmp_path)
    plan = module_of(source).plan(source, 10)
    assert plan.inputs.get("not_read") == told
    assert plan.inputs.get("files", len(read)) == len(read)


def test_a_folder_of_other_files_alone_is_refused_with_what_there_is(tmp_path: Path) -> None:
    _folder_of(tmp_path, "a.txt.7z", "sub/b.txt.7z", "c.pdf")
    expected = r"holds no \.txt file, .*; there are 2 \.7z, such as a\.txt\.7z; there are 1 \.pdf"
    with pytest.raises(SettingsError, match=expected):
        books.plan(source_of("books", tmp_path), 10)


@pytest.mark.parametrize("kind", ["books", "wikiextractor", "wikipedia_dump", "bookcorpus"])
def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    name = {"bookcorpus": "a.jsonl", "wikipedia_dump": "a.xml"}.get(kind, "a.txt")
    os.mkfifo(tmp_path / name)
    try:
        told = str(read_all(source_of(kind, tmp_path)))
    except SettingsError as error:
        told = str(error)
    assert name in told
    assert "is not there to be read; is it a broken link or a pipe?" in told


# --- several paths -------------------------------------------------------------------------------


def test_several_folders_and_files_are_one_source(tmp_path: Path) -> None:
    _folder_of(tmp_path / "one", "a.txt", "b/c.txt")
    _folder_of(tmp_path / "two", "a.txt", "e.text")
    given = f"[{tmp_path / 'two'}, {tmp_path / 'one' / 'b'},{tmp_path / 'two' / 'e.text'}]"
    source = source_of("books", Path(given))
    for characters in (1, 10**9):
        assert _names(source, characters) == ["one/b/c.txt", "two/a.txt", "two/e.text"]
    plan = books.plan(source, 10)
    assert "not_read" not in plan.inputs


def test_folders_in_each_other_are_read_once(tmp_path: Path) -> None:
    _folder_of(tmp_path / "in", "a.txt", "b/c.txt")
    (tmp_path / "link").symlink_to("in")
    given = f"[{tmp_path / 'in' / 'b'},{tmp_path / 'in'},{tmp_path / 'link'}]"
    assert _names(source_of("books", Path(given))) == ["a.txt", "b/c.txt"]


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("wikiextractor", "wiki_00", '<doc id="{}" url="" title="A">\nA\n\nText.\n\n</doc>\n'),
        ("wikipedia_dump", "a.xml", "<page><title>{}</title></page>"),
        ("bookcorpus", "a.jsonl", '{{"text": "{}"}}\n'),
    ],
)
def test_every_kind_of_files_takes_several_paths(tmp_path, kind, name, text) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text.format(folder))
    given = f"[{tmp_path / 'one'},{tmp_path / 'two' / name}]"
    assert len({item.id for item in read_all(source_of(kind, Path(given)))}) == 2


@pytest.mark.parametrize(
    ("typed", "paths"),
    [
        ("[a,b]", ["a", "b"]),
        ("[a, 'b c' ,\"d, e\"]", ["a", "b c", "d, e"]),
        ("[a]", ["a"]),
        ("[wiki [en],v[12]]", ["wiki [en]", "v[12]"]),
        ("[~/a,b]", [os.path.expanduser("~/a"), "b"]),
        ("a,b", ["a,b"]),
        ("x[1]", ["x[1]"]),
        ("[1]x", ["[1]x"]),
        ("[there,is]", ["[there,is]"]),
        ("[]", ["[]"]),
    ],
)
def test_a_list_of_paths_is_typed_in_brackets(tmp_path, monkeypatch, typed, paths) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[there,is]").mkdir()
    assert paths_in(typed) == paths


def test_each_path_of_a_list_must_exist(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    given = ["+source=books", f"source.path=[{tmp_path}/a,{tmp_path}/b,]", f"data_dir={tmp_path}"]
    with pytest.raises(SettingsError) as refused:
        load(given)
    assert f"source.path={tmp_path}/b does not exist\nsource.path= does not" in str(refused.value)


@pytest.mark.parametrize(
    "length", [146, *(pytest.param(n, marks=pytest.mark.slow) for n in (80, 200))]
)
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

"""The collect job: the same bytes every time, nothing lost uncounted, no half-finished source."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

from data_prep import collect
from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, read_json
from data_prep.core.job import load
from data_prep.stores.documents import list_parts, read_part

ROOT = Path(__file__).parents[2]
ANY_TEXT = ["source.min_characters=null", "source.language=null"]


def _books(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for n in range(count):
        (folder / f"book{n}.txt").write_text(f"It was book {n}.\n\nIt had an end.\n")
    (folder / "page.txt").write_text("<html>404</html>")
    (folder / "none.txt").write_text(" \n")
    return folder


@pytest.fixture
def books(tmp_path: Path) -> Path:
    return _books(tmp_path / "books")


def _run(data_dir: Path, books: Path, *overrides: str) -> dict[str, object]:
    given = ["+source=books", f"source.path={books}", f"data_dir={data_dir}", *ANY_TEXT]
    return collect.run(load([*given, "characters_per_part=100", *overrides]))


def _bytes(folder: Path) -> dict[str, str]:
    """Checksums of all that was made, but for the notes of the run itself."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path: path.relative_to(folder).as_posix() for path in files}
    return {name: checksum(path) for path, name in names.items() if "/logs/" not in name}


def test_the_bytes_do_not_depend_on_the_number_of_workers_or_the_run(
    tmp_path: Path, books: Path
) -> None:
    _run(tmp_path / "a", books, "num_workers=1")
    _run(tmp_path / "b", books, "num_workers=2")
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")
    assert len(_bytes(tmp_path / "a")) > 5


def test_documents_in_are_those_of_the_parts_and_the_dropped(tmp_path: Path) -> None:
    manifest = _run(tmp_path / "d", _books(tmp_path / "books"))
    folder = tmp_path / "d" / "documents" / "books"
    assert manifest.documents == 6
    assert manifest.dropped == {"HTML page": 1, "empty": 1}
    assert read_json(folder / "dropped.json") == manifest.dropped
    assert read_json(folder / "manifest.json") == msgspec.to_builtins(manifest)
    tables = [pq.read_table(path) for path in folder.glob("rejects/*.parquet")]
    rejects = [name for table in tables for name in table["id"].to_pylist()]
    parts = list_parts(tmp_path / "d")
    assert len(parts) > 1
    kept = []
    for part in parts:
        documents = list(read_part(part.path))
        kept += [document.id for document in documents]
        characters = sum(len(document.text) for document in documents)
        assert (part.rows, part.characters) == (len(documents), characters)
        assert part.checksum == checksum(part.path)
    assert kept == [f"book{n}.txt" for n in range(6)]
    assert sorted(rejects) == ["none.txt", "page.txt"]


def test_another_source_adds_to_the_corpus(tmp_path: Path, books: Path) -> None:
    _run(tmp_path / "d", books)
    before = _bytes(tmp_path / "d" / "documents" / "books")
    _run(tmp_path / "d", books, "source.name=novels")
    assert _bytes(tmp_path / "d" / "documents" / "books") == before
    assert {part.source for part in list_parts(tmp_path / "d")} == {"books", "novels"}


@pytest.mark.parametrize("linked", [False, True])
def test_another_folder_does_not_replace_a_source_unasked(tmp_path, books, linked) -> None:
    _run(tmp_path / "d", books)
    before = _bytes(tmp_path / "d")
    other = _books(tmp_path / "more", count=3)
    if linked:  # a link to another folder is another folder
        other, target = tmp_path / "link", other
        other.symlink_to(target)
    with pytest.raises(SettingsError) as refused:
        _run(tmp_path / "d", other)
    assert f"source.path={books}, and those of source.path={other} would" in str(refused.value)
    assert "to keep both add source.name=NAME, to replace them replace=true" in str(refused.value)
    assert _bytes(tmp_path / "d") == before


def test_a_source_is_replaced_if_that_is_asked_for(tmp_path: Path, books: Path) -> None:
    _run(tmp_path / "d", books)
    _run(tmp_path / "d", _books(tmp_path / "more", count=3), "replace=true")
    _run(tmp_path / "fresh", tmp_path / "more")
    assert _bytes(tmp_path / "d") == _bytes(tmp_path / "fresh")


def test_another_kind_or_data_set_under_one_name_is_refused(tmp_path: Path, books: Path) -> None:
    _run(tmp_path / "d", books)
    with pytest.raises(
        SettingsError, match=r"source\.kind=books, and those of source\.kind=book_rows"
    ):
        _run(tmp_path / "d", books, "+source=gutenberg", "source.name=books")


def test_the_same_folder_under_another_path_is_the_same(tmp_path, books, monkeypatch) -> None:
    _run(tmp_path / "d", books)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(books)
    _run(tmp_path / "d", Path("books"))
    _run(tmp_path / "d", Path("link"))


def test_collecting_the_same_again_writes_no_part_again(tmp_path: Path, books: Path) -> None:
    first = _run(tmp_path / "d", books)
    times = [part.path.stat().st_mtime_ns for part in list_parts(tmp_path / "d")]
    assert _run(tmp_path / "d", books) == first
    assert [part.path.stat().st_mtime_ns for part in list_parts(tmp_path / "d")] == times


@pytest.mark.parametrize("name", ["v[12]", "d*", "a ?{b}"])
def test_a_corpus_may_lie_in_a_folder_whose_name_is_a_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"text": "It was night."}\n')
    source = ["+source=bookcorpus", f"source.path={tmp_path / 'rows.jsonl'}", "num_workers=1"]
    for _ in range(2):  # the second reads what the first has written
        manifest = collect.run(load([*source, f"data_dir={tmp_path / name}"]))
    assert (manifest.documents, len(list_parts(tmp_path / name))) == (1, 1)
    assert not list((tmp_path / "v1").iterdir())


def test_other_settings_leave_nothing_of_the_former(tmp_path: Path, books: Path) -> None:
    _run(tmp_path / "d", books)
    _run(tmp_path / "d", books, "characters_per_part=1000")
    _run(tmp_path / "fresh", books, "characters_per_part=1000")
    assert _bytes(tmp_path / "d") == _bytes(tmp_path / "fresh")


def test_one_more_or_a_changed_book_collects_the_parts_that_it_changes_alone(
    tmp_path: Path, books: Path
) -> None:
    _run(tmp_path / "d", books)
    folder = tmp_path / "d" / "documents" / "books"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert len(before) == 3
    (books / "zebra.txt").write_text("The last book.\n" * 9)
    _run(tmp_path / "d", books)
    after = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    changed = {path.name for path, time in after.items() if before.get(path) != time}
    assert changed == {"part-00003.parquet"}
    (books / "book3.txt").write_text("Another text.\n")
    _run(tmp_path / "d", books)
    _run(tmp_path / "fresh", books)
    assert _bytes(tmp_path / "d") == _bytes(tmp_path / "fresh")


def test_a_failed_task_leaves_no_manifest_and_the_next_start_completes(
    tmp_path: Path, books: Path
) -> None:
    folder = tmp_path / "d" / "documents" / "books"
    (folder / "part-00001.parquet").mkdir(parents=True)
    with pytest.raises(
        RuntimeError, match=r"1 of 3 tasks failed: part-00001\. Task part-00001: IsADirectoryError"
    ):
        _run(tmp_path / "d", books)
    assert not (folder / "manifest.json").exists()
    assert (folder / "logs" / "finished" / "part-00000.json").exists()
    (folder / "part-00001.parquet").rmdir()
    _run(tmp_path / "d", books)
    _run(tmp_path / "fresh", books)
    assert _bytes(tmp_path / "d") == _bytes(tmp_path / "fresh")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    books = _books(tmp_path / "books", count=2)
    (books / "book9.txt").symlink_to("/proc/self/mem")  # reading it is an input or output error
    expected = r"1 of 1 tasks failed.*OSError: \[Errno 5\] Input/output error, while .*'book9\.txt'"
    with pytest.raises(RuntimeError, match=expected):
        _run(tmp_path / "d", books)


@pytest.mark.slow
def test_a_killed_collect_is_completed_by_the_same_command_with_the_same_bytes(tmp_path) -> None:
    books = _books(tmp_path / "books", count=8)
    command = [
        sys.executable, "-m", "data_prep.collect", "+source=books", f"source.path={books}",
        f"data_dir={tmp_path / 'd'}", "characters_per_part=30", "num_workers=1", *ANY_TEXT,
    ]  # fmt: skip
    folder = tmp_path / "d" / "documents" / "books"
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        while not (folder / "part-00001.parquet").exists():
            assert process.poll() is None
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (folder / "manifest.json").exists()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    _run(tmp_path / "fresh", books, "characters_per_part=30")
    assert _bytes(tmp_path / "d") == _bytes(tmp_path / "fresh")
    assert not list(folder.rglob("*.tmp"))


def test_documents_of_one_id_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "wiki").mkdir()
    for name in ("wiki_00", "wiki_01"):
        page = '<doc id="7" url="" title="A">\nA\n\nText.\n\n</doc>\n'
        (tmp_path / "wiki" / name).write_text(page)
    settings = load([
        "+source=wikiextractor", f"source.path={tmp_path / 'wiki'}", f"data_dir={tmp_path}",
        "source.min_characters=null",
    ])  # fmt: skip
    with pytest.raises(RuntimeError, match="several documents have one id, such as 7; collect"):
        collect.run(settings)
    assert not (tmp_path / "documents" / "wikiextractor" / "manifest.json").exists()


def test_a_source_without_any_document_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no document is left; dropped: 1 \(HTML page\)"):
        _run(tmp_path / "d", _books(tmp_path / "books", count=0))


def test_where_all_texts_are_too_short_the_bound_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A sentence.")
    given = ["+source=books", f"source.path={tmp_path / 'a.txt'}", f"data_dir={tmp_path / 'd'}"]
    expected = r"dropped: 1 \(too short\); source\.min_characters=1000 is the bound, and null keeps"
    with pytest.raises(RuntimeError, match=expected):
        collect.run(load([*given, "source.language=null", "num_workers=1"]))


def test_text_of_another_language_is_refused_with_the_language_to_type(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "Das ist ein Satz, wie ihn Leute schreiben."}\n' * 2
    )
    given = ["+source=rows", f"source.path={tmp_path / 'a.jsonl'}", f"data_dir={tmp_path}"]
    with pytest.raises(RuntimeError, match=r"2 \(language de, not en\); .* give language=de to"):
        collect.run(load([*given, "source.language=en", "num_workers=1"]))


def test_what_is_removed_from_texts_is_counted_in_the_manifest(tmp_path: Path, capsys) -> None:
    books = _books(tmp_path / "books", count=2)
    for n in range(2):
        with (books / f"book{n}.txt").open("a") as file:
            file.write("\nA DARK NIGHT\n\nIt went on.\n\n* * *\n")
    manifest = _run(tmp_path / "d", books)
    assert manifest.removed == {"headings and page numbers": 4}
    given = ["+source=books", f"source.path={books}", f"data_dir={tmp_path / 'e'}", *ANY_TEXT]
    assert collect.main(given) == 0
    assert "removed: headings and page numbers  4\n" in capsys.readouterr().out


def test_the_program_prints_a_table_and_an_error_without_a_traceback(
    tmp_path, capsys, books
) -> None:
    given = ["+source=books", f"source.path={books}", f"data_dir={tmp_path / 'd'}", *ANY_TEXT]
    assert collect.main(given) == 0
    printed = capsys.readouterr().out
    assert "dropped: HTML page  1\n" in printed
    assert "documents           6\n" in printed
    (books / "more.txt.7z").write_bytes(b"")
    assert collect.main(given) == 0
    assert "not read            1 .7z: more.txt.7z\n" in capsys.readouterr().out
    for book in books.iterdir():
        book.write_bytes(b"")
    assert collect.main(given) == 1
    assert capsys.readouterr().err.startswith("source books: no document is left")

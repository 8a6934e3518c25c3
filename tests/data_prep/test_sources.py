"""Every kind of source: what becomes a document, what is rejected and why, and how tasks are cut."""

from __future__ import annotations

import bz2
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.configuration import SettingsError
from data_prep.documents import Document, Reject
from data_prep.settings import SourceKind, SourceSettings
from data_prep.sources import books, cut_by_size, module_of, sample, wikiextractor

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def _source(kind: str, path: Path | None = None, **more: Any) -> SourceSettings:
    text = None if path is None else str(path)
    return SourceSettings(name=kind, kind=SourceKind(kind), path=text, **more)


def _read(source: SourceSettings, characters: int = 10**9) -> list[Document | Reject]:
    """Everything of a source, over all of its tasks."""
    module = module_of(source.kind)
    folder = Path(source.path or ".").parent
    tasks = json.loads(json.dumps(module.plan(source, characters, folder / "cache").tasks))
    return [item for task in tasks for item in module.read(source, task)]


def _reasons(items: list[Document | Reject]) -> dict[str, str]:
    return {item.id: item.reason for item in items if isinstance(item, Reject)}


def _texts(items: list[Document | Reject]) -> dict[str, str]:
    return {item.id: item.text for item in items if isinstance(item, Document)}


# --- cutting -------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(0, 50)), most=st.integers(1, 100))
def test_cuts_hold_every_item_once_and_no_more_than_fits(sizes: list[int], most: int) -> None:
    runs = cut_by_size(sizes, most)
    assert [index for run in runs for index in run] == list(range(len(sizes)))
    assert all(len(run) == 1 or sum(sizes[i] for i in run) <= most for run in runs)


def test_files_are_listed_alike_whatever_order_the_disk_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b/z.txt", "a.txt", "B.TXT", "b/ä.txt", "c.md", ".hidden/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    listed = books.plan(_source("books", tmp_path), 10, tmp_path)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = reversed(list(entries))

        def __next__(self) -> os.DirEntry[str]:
            return next(self.entries)

        def __enter__(self) -> Backwards:
            return self

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    assert books.plan(_source("books", tmp_path), 10, tmp_path) == listed
    assert listed.tasks == [["B.TXT", "a.txt"], ["b/z.txt"], ["b/ä.txt"]]


def test_a_changed_file_changes_the_state_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    before = books.plan(_source("books", tmp_path), 10, tmp_path)
    (tmp_path / "a.txt").write_text("two")
    after = books.plan(_source("books", tmp_path), 10, tmp_path)
    assert before.state != after.state
    assert before.tasks == after.tasks


def test_a_folder_without_books_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"source\.path=.* holds no \.txt file, nor"):
        books.plan(_source("books", tmp_path), 10, tmp_path)


# --- books ---------------------------------------------------------------------------------------

STORY = "She said “no”. It was the café’s end.\n\nThey all went home — at last."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_book_reads_the_same_in_every_encoding(encoding: str) -> None:
    assert books.decode(STORY.encode(encoding)) == (STORY, None)


def test_a_book_cut_inside_a_character_loses_that_character_alone() -> None:
    assert books.decode("It was a café".encode()[:-1]) == ("It was a caf", None)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x1f\x8b\x08\x00abc", "compressed file"),
        (b"some\0text", "NUL bytes"),
        (b"\n <!DOCTYPE html><html>404", "HTML page"),
        (b"\xff\xfea", "broken UTF-16"),
        (b"caf\xe9 \x81", "neither UTF-8 nor Windows-1252"),
        ("no text \ufffd\ufffd here".encode(), "replacement characters"),
        ("It’s a café. ".encode() + "Café".encode("cp1252") + b" more", "mixed or doubled encoding"),
        (STORY.encode().decode("cp1252", "replace").encode(), "replacement characters"),
        ("“Oh,” said Zoë.".encode().decode("latin-1").encode(), "mixed or doubled encoding"),
        (b"", "empty"),
        (b" \r\n\t\r\n", "empty"),
        (b"*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n*** END OF THE PROJECT GUTENBERG "
         b"EBOOK X ***\nlicence", "no text besides the licence"),
    ],
)  # fmt: skip
def test_a_book_that_is_none_is_rejected_with_the_reason(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    assert _reasons(_read(_source("books", tmp_path))) == {"x.txt": reason}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("stars", ["*** START OF THE", "***START OF THIS"])
def test_the_licence_is_cut_off_a_book(tmp_path: Path, end: str, stars: str) -> None:
    lines = [
        "The Project Gutenberg EBook of X", "", f"{stars} PROJECT GUTENBERG EBOOK X ***", "",
        "It was night.", "", "It was day.", "",
        "End of the Project Gutenberg EBook of X", "*** END OF THIS PROJECT GUTENBERG EBOOK X ***",
    ]  # fmt: skip
    (tmp_path / "x.txt").write_bytes(end.join(lines).encode())
    texts = _texts(_read(_source("books", tmp_path)))
    assert texts == {"x.txt": "It was night.\nIt was day."}


def test_blank_lines_part_paragraphs_and_wrapped_lines_are_joined() -> None:
    lines = ["It was a dark", "night.", "", "  It rained", "all day.", ""] * 3
    expected = ["It was a dark night.", "It rained all day."] * 3
    assert books.paragraphs(lines) == expected


def test_long_lines_are_paragraphs_each() -> None:
    lines = ["CHAPTER I", "It was so. " * 30, "It was not so. " * 30]
    assert [text.strip() for text in books.paragraphs(lines)] == [text.strip() for text in lines]


def test_short_last_lines_part_paragraphs_where_no_blank_line_does() -> None:
    full = "word " * 13 + "words"  # 70 characters: the wrap's width
    lines = [full, full, "and its end.", full, '"Who is it?"', full, full, "He stopped,", full] * 5
    paragraphs = books.paragraphs(lines)
    assert paragraphs[:3] == [
        f"{full} {full} and its end.",
        f'{full} "Who is it?"',
        f"{full} {full} He stopped, {full} {full} {full} and its end.",
    ]
    assert " ".join(paragraphs) == " ".join(lines)


def test_indented_first_lines_part_paragraphs_where_no_blank_line_does() -> None:
    lines = ["  It began.", *["and went on."] * 19] * 3
    assert books.paragraphs(lines) == [("It began. " + "and went on. " * 19).strip()] * 3


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the collection of real books is not there")
def test_novels_have_paragraphs_whether_or_not_blank_lines_show_them(tmp_path: Path) -> None:
    for archive in sorted((SHARED / "books" / "novels").glob("*.tar.xz")):
        with tarfile.open(archive) as packed:
            packed.extractall(tmp_path, filter="data")
    items = _read(_source("books", tmp_path))
    assert len(_texts(items)) == len(items) == 77
    for name, text in _texts(items).items():
        assert 100 < len(text) / (text.count("\n") + 1) < 1500, name  # characters


# --- WikiExtractor -------------------------------------------------------------------------------


def _doc(id: str, title: str, *lines: str) -> str:
    body = "\n".join([title, "", *lines])
    return f'<doc id="{id}" url="u?curid={id}" title="{title}">\n{body}\n\n</doc>\n'


def test_pages_are_split_and_the_repeated_title_dropped(tmp_path: Path) -> None:
    (tmp_path / "AA").mkdir()
    text = _doc("1", 'A "quoted" &amp; B', "First.", "Second.") + _doc("2", "C", "C")
    (tmp_path / "AA" / "wiki_00").write_text(text)
    assert _read(_source("wikiextractor", tmp_path)) == [
        Document("1", 'A "quoted" & B', "First.\nSecond."),
        Document("2", "C", "C"),
    ]


def test_compressed_output_is_read(tmp_path: Path) -> None:
    (tmp_path / "wiki_00.bz2").write_bytes(bz2.compress(_doc("1", "A", "First.").encode()))
    assert _texts(_read(_source("wikiextractor", tmp_path))) == {"1": "First."}


def test_every_page_is_a_document_or_counted_with_its_reason(tmp_path: Path) -> None:
    stub = _doc("1", "Redirect") + _doc("2", "Only left-overs", "<br>", "formula_1 ()")
    unclosed = '<doc id="3" url="" title="Cut">\nCut\n\nHalf a'
    (tmp_path / "wiki_00").write_text("stray\n" + stub + unclosed + "\n" + _doc("4", "D", "Text."))
    (tmp_path / "wiki_01").write_bytes(b"caf\xe9")
    (tmp_path / "wiki_02.bz2").write_bytes(b"no bzip2")
    (tmp_path / "wiki_03").write_text("<html>404</html>")
    (tmp_path / "wiki_04").write_text(_doc("5", "E", "Text.") + unclosed)
    items = _read(_source("wikiextractor", tmp_path))
    assert Counter(_reasons(items).values()) == {
        "title only": 2,
        "page without an end": 1,  # of one id: the second replaces it in the dictionary
        "text outside of a page": 2,
        "unreadable file: UnicodeDecodeError": 1,
        "unreadable file: OSError": 1,
    }
    assert sorted(_texts(items)) == ["4", "5"]
    assert len(items) == 9 + 1


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("where formula_12 is the mass .", "where is the mass."),
        ("He (, ) was born ( ) in 1900 ([]).", "He was born in 1900."),
        ("Gide (]; 22 November 1869) wrote.", "Gide (22 November 1869) wrote."),
        ("Mill (; born 1806) wrote , too.", "Mill (born 1806) wrote, too."),
        ("a&lt;ref name=x&gt;Smith, 3&lt;/ref&gt; b<ref name=y/> c", "a b c"),
        ("one<br>two</dl> <poem>three</poem>", "one two three"),
        ("if a &lt; b and c &gt; d &amp; e", "if a < b and c > d & e"),
        ("call codice_3 {{cite|x}} now}} __NOTOC__", "call now"),
        ("BULLET::::- an item", "an item"),
        ("It went on . . . and on", "It went on. . . and on"),
    ],
)
def test_what_the_extractor_leaves_behind_is_removed(text: str, cleaned: str) -> None:
    assert wikiextractor.clean(text) == cleaned


# --- rows ----------------------------------------------------------------------------------------


def _wikipedia(rows: int) -> list[dict[str, str]]:
    return [
        {"id": str(n), "url": "u", "title": f"T{n}", "text": f"A  line {n}.\n\nAnother."}
        for n in range(rows)
    ]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_wikipedia_rows_become_documents_once_each_whatever_the_cut(
    tmp_path: Path, kind: str
) -> None:
    rows = _wikipedia(25)
    rows[3]["text"] = " \n"
    (tmp_path / "rows").mkdir()
    for name, share in (("b", rows[15:]), ("a", rows[:15])):
        path = tmp_path / "rows" / f"{name}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(share), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in share))
    source = _source("wikipedia", tmp_path / "rows")
    items = _read(source, characters=200)
    assert _reasons(items) == {"3": "empty"}
    assert [item.id for item in items] == [str(n) for n in range(25)]
    assert items[0] == Document("0", "T0", "A line 0.\nAnother.")
    tasks = module_of(source.kind).plan(source, 200, tmp_path / "cache").tasks
    assert len(tasks) > 3


@pytest.mark.parametrize("characters", [1, 300, 10**9])
def test_bookcorpus_rows_are_grouped_alike_whatever_the_cut(
    tmp_path: Path, characters: int
) -> None:
    rows = [{"text": f"sentence {n} ."} for n in range(23)]
    for n in range(10, 15):
        rows[n]["text"] = ""
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = _source("bookcorpus", tmp_path / "a.parquet", rows_per_document=5)
    items = _read(source, characters)
    assert _reasons(items) == {"row-000000010": "empty"}
    texts = _texts(items)
    assert list(texts) == [f"row-{n:09d}" for n in (0, 5, 15, 20)]
    assert texts["row-000000020"] == "sentence 20 .\nsentence 21 .\nsentence 22 ."


def test_a_bookcorpus_row_can_be_a_whole_book(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "One.\\nTwo."}\n{"text": null}\n')
    items = _read(_source("bookcorpus", tmp_path))
    assert items == [
        Document("row-000000000", "", "One.\nTwo."),
        Reject("row-000000001", "", "", "empty"),
    ]


def test_rows_without_the_columns_are_refused_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "One.", "title": "T"}\n')
    with pytest.raises(SettingsError, match="has the columns body, title, and lacks id, text"):
        _read(_source("wikipedia", tmp_path))


def test_files_that_are_no_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(SettingsError, match=r"source\.path=.* cannot be read as parquet"):
        _read(_source("wikipedia", tmp_path))


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    with pytest.raises(SettingsError, match=r"holds neither \.parquet nor \.jsonl; point"):
        _read(_source("wikipedia", tmp_path))


def test_an_unreachable_hub_names_what_to_fetch_and_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    def unreachable(*names: object, **settings: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    source = _source("wikipedia", dataset="wiki/pedia", subset="2023.en", revision="abc")
    expected = (
        r'hf download wiki/pedia .*--revision abc --include "2023\.en/\*" .*source\.path=FOLDER'
    )
    with pytest.raises(SettingsError, match=expected):
        _read(source)


# --- sample --------------------------------------------------------------------------------------


def test_the_sample_has_every_topic_and_hundreds_of_modules() -> None:
    from pydoc_data.topics import topics

    items = _read(_source("sample"))
    documents = _texts(items)
    assert len({item.id for item in items}) == len(items)
    assert sum(id.startswith("topics/") for id in documents) > 0.9 * len(topics)
    assert sum(id.startswith("modules/") for id in documents) > 200
    assert sum(map(len, documents.values())) > 1_000_000
    assert set(_reasons(items).values()) <= {"no docstring", "no prose"}


def test_prose_is_kept_and_grammar_tables_doctests_and_directives_go() -> None:
    text = """Sequence Types
**************

A sequence is an *ordered* collection, see
:class:`list` and ``tuple`` for two of them.

   seq ::= item ("," item)*

+-----+---------------------+
| x   | the table has words |
+-----+---------------------+

>>> [1, 2] + [3]
the output of this is here.

.. note:: this is a directive of some words.

* The first item goes
  over two lines.
* The second item is here.

str.join(iterable)

   Return a string which is the joined one.
"""
    assert sample.prose(text) == [
        "Sequence Types",
        "A sequence is an ordered collection, see list and tuple for two of them.",
        "The first item goes over two lines.",
        "The second item is here.",
        "Return a string which is the joined one.",
    ]


def test_docstrings_follow_the_source_and_nothing_is_run() -> None:
    code = b'''"""Module."""
raise SystemExit("imported")
def first():
    """First."""
    def inner():
        """Inner."""
class Second:
    """Second."""
    async def method(self): "Method."
def last(): return "no docstring"
'''
    assert sample.docstrings(code) == ["Module.", "First.", "Inner.", "Second.", "Method."]

"""Folders of books: encodings, what is no book, licences, paragraphs."""

from pathlib import Path

import pytest
from shared_data import unpacked_all
from source_reading import read_all, reasons, source_of, texts

from data_prep.sources import books
from data_prep.stores.documents import Damage

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
        ("It’s a café. ".encode() + "Café".encode("cp1252") + b" on", "mixed or doubled encoding"),
        (STORY.encode().decode("cp1252", "replace").encode(), "replacement characters"),
        ("“Oh,” said Zoë.".encode().decode("latin-1").encode(), "mixed or doubled encoding"),
        (b"", "empty"),
        (b" \r\n\t\r\n", "empty"),
        (b"*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n*** END OF THE PROJECT GUTENBERG "
         b"EBOOK X ***\nlicence", "no text besides the licence"),
    ],
)  # fmt: skip
def test_a_book_that_is_none_is_rejected_with_the_reason(tmp_path, data, reason) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    assert reasons(read_all(source_of("books", tmp_path))) == {"x.txt": reason}


def test_a_broken_link_is_damage_that_stops_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "c.txt").write_text("It was night.")
    items = read_all(source_of("books", tmp_path))
    assert [item.input for item in items if isinstance(item, Damage)] == ["a.txt"]
    assert texts(items) == {"c.txt": "It was night."}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("stars", ["*** START OF THE", "***START OF THIS"])
def test_the_licence_is_cut_off_a_book(tmp_path: Path, end: str, stars: str) -> None:
    lines = [
        "The Project Gutenberg EBook of X", "", f"{stars} PROJECT GUTENBERG EBOOK X ***", "",
        "It was night.", "", "It was day.", "",
        "End of the Project Gutenberg EBook of X", "*** END OF THIS PROJECT GUTENBERG EBOOK X ***",
    ]  # fmt: skip
    (tmp_path / "x.txt").write_bytes(end.join(lines).encode())
    kept = texts(read_all(source_of("books", tmp_path)))
    assert kept == {"x.txt": "It was night.\nIt was day."}


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
def test_novels_have_paragraphs_whether_or_not_blank_lines_show_them(tmp_path: Path) -> None:
    items = read_all(source_of("books", unpacked_all("books/novels", tmp_path)))
    assert len(texts(items)) == len(items) == 77
    for name, text in texts(items).items():
        assert 100 < len(text) / (text.count("\n") + 1) < 1500, name  # characters

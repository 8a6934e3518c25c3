"""Folders of books: encodings, what is no book, licences, paragraphs."""

import bz2
import gzip
import lzma
from pathlib import Path

import pytest
import zstandard
from shared_data import unpacked_all
from source_reading import read_all, reasons, source_of, texts

from data_prep.sources import books
from data_prep.stores.documents import Damage, Document

STORY = "She said “no”. It was the café’s end.\n\nThey all went home — at last."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_book_reads_the_same_in_every_encoding(encoding: str) -> None:
    assert books.decode(STORY.encode(encoding)) == (STORY, None)


PACK = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress,
}  # fmt: skip


@pytest.mark.parametrize("packing", PACK)
def test_a_packed_book_reads_as_the_plain_one(tmp_path: Path, packing: str) -> None:
    (tmp_path / f"A_tale.TXT{packing}").write_bytes(PACK[packing](STORY.encode()))
    (book,) = read_all(source_of("books", tmp_path))
    assert book == Document(f"A_tale.TXT{packing}", "A tale", STORY.replace("\n\n", "\n"))


@pytest.mark.parametrize("packing", PACK)
def test_a_packed_book_that_breaks_off_is_damage(tmp_path: Path, packing: str) -> None:
    packed = PACK[packing](STORY.encode())
    (tmp_path / f"a.txt{packing}").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.txt").write_text("It was night.")
    damage, book = read_all(source_of("books", tmp_path))
    assert (damage.input, book.id) == (f"a.txt{packing}", "b.txt")
    assert "breaks off or is corrupt" in damage.what


def test_a_single_book_is_read_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(STORY.encode()))
    assert list(texts(read_all(source_of("books", tmp_path / "a.txt.gz")))) == ["a.txt.gz"]


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


# --- the input of create_pretraining_data.py -----------------------------------------------------

SENTENCES = [
    'The day when I was ten years old began my serious life.', 'Who would believe it?',
    '"One look told it all!"', 'Like a thief, I came from the corner, and trembled.',
    "Mr. Smith, of St. Louis, had found hot tears upon them.", "I (he said) coaxed him then.",
]  # fmt: skip
PARAGRAPHS = [" ".join(SENTENCES), *SENTENCES[:2], " ".join(SENTENCES[2:])]


def _documents(*documents: list[str]) -> str:
    return "\n\n".join("\n".join(lines) for lines in documents)


@pytest.mark.parametrize(
    "text",
    [
        _documents(SENTENCES, SENTENCES),
        _documents(*[SENTENCES] * 50),
        _documents(*[SENTENCES[:3]] * 3),
        _documents(SENTENCES, ["Only one."], SENTENCES[::-1]),
        _documents(*[["A Title", *SENTENCES]] * 9),
        _documents(*[SENTENCES] * 9).lower(),
        _documents(*[["he was ten .", "`` who would believe it ? ''", "she knew ."]] * 9),
        _documents(*[["我十岁那天。", "谁会相信呢？", "他说：“好。”"]] * 9),
        _documents(*[SENTENCES] * 9).replace("\n", "\r\n"),
        _documents(*[SENTENCES] * 3) + "\n\n\n\n" + _documents(*[SENTENCES] * 3) + "\n",
    ],
    ids=["two", "many", "short", "uneven", "titles", "lower case", "tokenised", "Chinese",
         "Windows", "wide gaps"],
)  # fmt: skip
def test_documents_of_a_sentence_per_line_are_rejected_with_the_cure(tmp_path, text) -> None:
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    cure = "many documents, a sentence per line: collect the file with +source=lines"
    assert reasons(read_all(source_of("books", tmp_path))) == {"x.txt": cure}


@pytest.mark.parametrize(
    "text",
    [
        _documents(PARAGRAPHS, PARAGRAPHS, PARAGRAPHS),
        _documents(PARAGRAPHS, PARAGRAPHS, PARAGRAPHS).lower(),
        _documents(*[[paragraph] for paragraph in PARAGRAPHS * 3]),
        _documents(*[[sentence] for sentence in SENTENCES * 3]),
        _documents(SENTENCES),
        _documents(*[["It was a dark", "and stormy", "night."]] * 9),
        _documents(*[["Tyger Tyger, burning bright,", "In the forests of the night;"]] * 9),
        _documents(SENTENCES[:3], SENTENCES[3:]),
        _documents(*[SENTENCES[:2]] * 9),
    ],
    ids=["scenes", "lower case", "paragraphs", "short paragraphs", "one document", "wrapped",
         "verse", "few lines", "two lines"],
)  # fmt: skip
def test_a_book_is_no_list_of_sentences(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.txt").write_text(text)
    assert not reasons(read_all(source_of("books", tmp_path)))


@pytest.mark.slow
def test_novels_have_paragraphs_whether_or_not_blank_lines_show_them(tmp_path: Path) -> None:
    items = read_all(source_of("books", unpacked_all("books/novels", tmp_path)))
    assert len(texts(items)) == len(items) == 77
    for name, text in texts(items).items():
        assert 100 < len(text) / (text.count("\n") + 1) < 1700, name  # characters

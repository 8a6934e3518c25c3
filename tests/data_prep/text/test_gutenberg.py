"""Raw Project Gutenberg files: what is cut off a book, and which books are dropped and why."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import unpacked_all
from source_reading import read_all, source_of

from data_prep import collect
from data_prep.core.config import SettingsError
from data_prep.core.job import load
from data_prep.stores.documents import Document, list_parts, read_part
from data_prep.text import gutenberg
from data_prep.text.gutenberg_licence import split_books
from data_prep.text.language import language_of

PROSE = [
    "It was a dark and stormy night; the rain fell in torrents, except at",
    "occasional intervals, when it was checked by a violent gust of wind,",
    "which swept up the streets, rattling along the housetops.",
    "",
]
VERSE = [
    "Tyger Tyger, burning bright,",
    "In the forests of the night;",
    "What immortal hand or eye,",
    "Could frame thy fearful symmetry?",
    "",
    "In what distant deeps or skies.",
    "Burnt the fire of thine eyes?",
    "On what wings dare he aspire?",
    "What the hand, dare seize the fire?",
    "",
]
FRENCH = [
    "Il y avait en Westphalie, dans le château de monsieur le baron, un jeune garçon",
    "à qui la nature avait donné les mœurs les plus douces.",
    "",
]
INDEX = [line for n in range(9) for line in (f"Abbreviations, {n}, 1{n}.", f"Zinc, {n}-2{n}.")]


def _collect(tmp_path: Path, books: dict[str, list[str] | bytes], *overrides: str) -> Any:
    """Texts by name, and reasons by name, of these files under the default settings."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, book in books.items():
        data = book if isinstance(book, bytes) else "\n".join(book).encode()
        (folder / f"{name}.txt").write_bytes(data)
    return _run(folder, tmp_path / "d", *overrides)


def _run(folder: Path, data_dir: Path, *overrides: str) -> Any:
    given = ["+source=books", f"source.path={folder}", f"data_dir={data_dir}", "num_workers=1"]
    manifest = collect.run(load([*given, *overrides]))
    texts = {row.id: row.text for part in list_parts(data_dir) for row in read_part(part.path)}
    reasons = {
        row["id"]: row["reason"]
        for path in sorted(data_dir.glob("documents/books/rejects/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    }
    assert sum(manifest.dropped.values()) == len(reasons)
    return (
        {id.removesuffix(".txt"): text for id, text in texts.items()},
        {id.removesuffix(".txt"): reason for id, reason in reasons.items()},
    )


# --- the licence ---------------------------------------------------------------------------------

HEADER = "The Project Gutenberg EBook of X\n\nTitle: X\n\n"
TEXT = "It was night.\n\nIt was day, and so on."
EBOOK = "PROJECT GUTENBERG EBOOK X ***"
SMALL_PRINT = "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nYou know: lawyers.\n"
OLD_HEADER = f"{HEADER}{SMALL_PRINT}*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver"


def _bodies(text: str) -> list[str]:
    books, others = split_books(text)
    assert not others
    return [book.text.strip() for book in books]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        (f"{HEADER}*** START OF THIS {EBOOK}", f"\n*** END OF THIS {EBOOK}\n{'licence ' * 9}"),
        (f"{HEADER}***START OF THE {EBOOK}", f"***END OF THE {EBOOK}\n{'licence ' * 99}"),
        (
            f"{HEADER}*** START OF THE PROJECT GUTENBERG\nEBOOK X ***",
            "End of Project Gutenberg's X, by Y",
        ),
        (f"{OLD_HEADER}.04.29.93*END*", "End of the Project Gutenberg Etext of X"),
        (
            f"{HEADER}{SMALL_PRINT}*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.10*END*",
            "End of The Project Gutenberg Etext of X",
        ),
        (
            f"*** START OF THE {EBOOK}",
            f"End of Project Gutenberg's X\n{SMALL_PRINT}*END*THE SMALL PRINT!*END*\n\nBye.",
        ),
        (
            "",
            f"End of this Project Gutenberg Etext of X\n{SMALL_PRINT}*END*THE SMALL PRINT!*END*\n",
        ),
    ],
)
def test_the_licence_is_cut_off_in_every_form(before: str, after: str) -> None:
    assert _bodies(f"{before}\n\n{TEXT}\n\n{after}") == [TEXT]


def test_a_licence_without_a_text_leaves_nothing() -> None:
    marks = "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n*** END OF THE PROJECT GUTENBERG"
    assert _bodies(f"{HEADER}{marks} EBOOK X ***\nlicence") == [""]


@pytest.mark.parametrize(
    "line",
    [
        "End of Project Gutenberg's X", "End of Project Gutenberg’s\nX, by Y",
        "End of the Project Gutenberg EBook of X", "End of The Project Gutenberg Etext of X",
        "End of this Project Gutenberg E-text of X", "  End of Project Gutenberg-tm Etext X",
        "*** End of Project Gutenberg ***", "**End of the Project Gutenberg Edition of X**",
        "This is the End of the Project Gutenberg Etext of X",
        "End of this COPYRIGHTED Project Gutenberg Etext of X", "END OF PROJECT GUTENBERG",
        "**This is a COPYRIGHTED Project Gutenberg Etext, Details Above**",
        "End of this Etext of X", "[End of the Etext]", "Ende dieses Projekt Gutenberg Etextes X",
        "Ende dieses Project Gutenberg EBook", "Fin de Project Gutenberg's X",
        "*** END OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK X ***",
        "***END OF THE PROJECT GUTENBERG EBOOK M*A*S*H***",
    ],
)  # fmt: skip
@pytest.mark.parametrize("header", ["", "***START OF THE PROJECT GUTENBERG EBOOK, M*A*S*H***\n"])
def test_every_form_of_the_last_line_ends_the_text(line: str, header: str) -> None:
    assert _bodies(f"{header}{TEXT}\n\n{line}\nand more of the licence.") == [TEXT]


@pytest.mark.parametrize(
    "line",
    [
        "At the end of the Project Gutenberg EBook stood a line.",
        "End of the Project Gutenberg era: a memoir",
        "The end of this text is near.", "Toward the end of the etext it rained.",
        "*** START OF the tale of Gutenberg ***", "*END* THE BIG PRINT",
        "End of the project. Gutenberg's press was sold.", "Fin de siècle",
        "He joined Project Gutenberg in 1991, and typed this etext.",
        "The \"Small Print!\" of a contract is what lawyers read.",
    ],
)  # fmt: skip
def test_text_that_resembles_a_marker_is_kept(line: str) -> None:
    text = f"{TEXT}\n\n{line}\n\nIt went on."
    assert _bodies(text) == [text]
    start = f"*** START OF THIS {EBOOK}"
    assert _bodies(f"{start}\n{text}\n*** END OF THIS {EBOOK}") == [text]


OLD = [
    "The Project Gutenberg Etext of X, by Y", "#3 in our series by Y", "",
    "Copyright laws are changing all over the world, be sure to check", "the laws.", "",
    "**Welcome To The World of Free Plain Vanilla Electronic Texts**", "",
    "**Etexts Readable By Both Humans and By Computers, Since 1971**", "",
    "*These Etexts Prepared By Hundreds of Volunteers and Donations*", "",
    "Information on contacting Project Gutenberg to get Etexts, and", "more is included.", "",
    "*****This file should be named x10.txt or x10.zip*****", "",
    "Corrected EDITIONS of our etexts get a new NUMBER, x11.txt.", "",
    "This etext was prepared by Jane Doe, London", "",
]  # fmt: skip
NEW = [
    "Project Gutenberg's X, by Y", "", "This eBook is for the use of anyone anywhere at no cost",
    "whatsoever.  You may copy it.", "", "Title: X", "", "Author: Y", "",
    "Release Date: May 1, 2001 [EBook #1]", "", "Language: English", "",
    "Character set encoding: ASCII", "", "Produced by Jane Doe", "",
]  # fmt: skip


@pytest.mark.parametrize("header", [OLD, NEW, ["The Project Gutenberg eBook, X, by Y", ""]])
def test_a_header_that_no_marker_ends_is_cut_off(tmp_path: Path, header: list[str]) -> None:
    texts, dropped = _collect(tmp_path, {"x": [*header, *PROSE * 20]})
    assert not dropped
    assert texts["x"] == "\n".join([" ".join(PROSE[:3])] * 20)


@pytest.mark.parametrize(
    "opening",
    [
        "Project Gutenberg's founder typed the first text himself, in 1971, and gave it away.",
        "Title: he had none. Author: none either.",
        "The Project Gutenberg has many volunteers, and all of them read what they like.",
        "Language: what is it? Credits: who has them?",
    ],
)
def test_a_text_that_begins_like_a_header_is_kept(tmp_path: Path, opening: str) -> None:
    texts, _ = _collect(tmp_path, {"x": [opening, "", *PROSE * 20]})
    assert texts["x"].startswith(f"{opening}\nIt was a dark")


def test_the_notice_of_world_library_is_cut_out() -> None:
    notice = "<<THIS ELECTRONIC VERSION OF THE WORKS IS\nCOPYRIGHT. SERVICE THAT CHARGES.>>"
    assert gutenberg.strip_marks(f"Exeunt.\n\n{notice}\n\nACT II") == "Exeunt.\n\n\n\nACT II"
    assert gutenberg.strip_marks("a << b >> c") == "a << b >> c"


# --- several books in one file -------------------------------------------------------------------

SMALL_PRINT_ALL = (
    f"{SMALL_PRINT}*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n"
)
MODERN = (
    "The Project Gutenberg EBook of {0}\n\nTitle: {0}\n\n"
    "*** START OF THIS PROJECT GUTENBERG EBOOK {0} ***\n\n{1}\n\n"
    "End of Project Gutenberg's {0}\n\n*** END OF THIS PROJECT GUTENBERG EBOOK {0} ***\n\n"
    "The licence. Subscribe to our email newsletter to hear about new eBooks.\n"
)
OLDER = (
    f"The Project Gutenberg Etext of {{0}}\n\nTitle: {{0}}\n\n{SMALL_PRINT_ALL}{{1}}\n\n"
    "End of the Project Gutenberg Etext of {0}\n"
)
BARE = "{1}\n\nEnd of the Project Gutenberg EBook of {0}\n\n"
LICENCE_LAST = f"{{1}}\n\nEnd of the Project Gutenberg Etext of {{0}}\n\n{SMALL_PRINT_ALL}"


def _long(word: str) -> str:
    return "\n\n".join(f"It was {word} number {n} of the night, and it rained." for n in range(40))


@pytest.mark.parametrize(
    "forms",
    [[MODERN] * 3, [OLDER] * 3, [MODERN, OLDER, BARE], [BARE] * 3, [BARE, MODERN, OLDER],
     [LICENCE_LAST] * 3, [OLDER, LICENCE_LAST, MODERN]],
    ids=["modern", "old", "mixed", "without headers", "bare first", "licence last", "all mixed"],
)  # fmt: skip
def test_every_book_of_a_file_is_kept(forms: list[str]) -> None:
    bodies = [_long(word) for word in ("hour", "day", "week")]
    pairs = zip(forms, bodies, strict=True)
    text = "".join(form.format(f"BOOK {n}", body) for n, (form, body) in enumerate(pairs))
    assert _bodies(text) == bodies


def test_books_of_a_file_are_documents_of_their_own_titles(tmp_path: Path) -> None:
    text = "".join(MODERN.format(f"Book {word}", _long(word)) for word in ("one", "two"))
    (tmp_path / "all.txt").write_text(text)
    items = read_all(source_of("books", tmp_path))
    assert [(item.id, item.title) for item in items] == [
        ("all.txt/1", "Book one"), ("all.txt/2", "Book two"),
    ]  # fmt: skip
    pq.write_table(pa.table({"text": [text]}), tmp_path / "a.parquet")
    rows = read_all(source_of("book_rows", tmp_path / "a.parquet", text_column="text"))
    assert [(item.id, item.title, item.text) for item in rows] == [
        (f"row-000000000/{n}", item.title, item.text) for n, item in enumerate(items, 1)
    ]


def test_short_texts_between_whole_marks_are_books(tmp_path: Path) -> None:
    text = "".join(MODERN.format(f"Book {n}", f"It was poem {n}.") for n in range(3))
    assert _bodies(text) == [f"It was poem {n}." for n in range(3)]


def test_what_is_too_long_for_a_licence_is_a_reject(tmp_path: Path) -> None:
    other = "Project Gutenberg and what came of it. " + _long("week") * 30
    (tmp_path / "x.txt").write_text(MODERN.format("X", _long("day")) + other)
    kept, reject = read_all(source_of("books", tmp_path))
    assert kept == Document("x.txt", "x", _long("day").replace("\n\n", "\n"))
    assert reject.reason == "text outside of a book's marks"
    assert reject.text.strip() == other


# --- what is not the author's --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("One [Illustration] two", "One  two"),
        ("A\n\n[Illustration:\n\n_Chap 34._ [Copyright 1894.]\n]\n\nB", "A\n\n\n\nB"),
        ("one\n{20}\nmore {21}word [Pg xii]and", "one\nmore word and"),
        ("She was _very_ tired, _so\nvery_.", "She was very tired, so\nvery."),
        ("snake_case_name, __init__ and [1] [sic] {a}", None),
        ("[Illustration: never closed, " + "word " * 500 + "]", None),
    ],
)
def test_pictures_page_numbers_and_emphasis_leave_no_marks(text: str, stripped: str | None) -> None:
    assert gutenberg.strip_marks(text) == (text if stripped is None else stripped)


@pytest.mark.parametrize(
    "note",
    [
        ["Produced by David Widger and the Online Distributed", "Proofreading Team"],
        ["This etext was prepared by Jane Doe, London"],
        ["Transcribed from the 1915 Methuen & Co. edition by David Price"],
        ["E-text prepared by Jane Doe"],
        ["[Transcriber's Note: Page numbers are included.]"],
        ["[Project Gutenberg Editor's Note: There is also another version]"],
        ["Transcriber’s Notes", "", "Text is ~like this~.", "", "More at the end.", "", "", ""],
    ],
)
def test_notes_of_producers_and_transcribers_are_cut_off(note: list[str]) -> None:
    lines = [*note, "", "THE TITLE", "", *PROSE * 9]
    assert _filled(gutenberg.strip_matter(lines)) == ["THE TITLE", *_filled(PROSE * 9)]


def test_a_transcribers_note_after_the_text_is_removed_to_the_end() -> None:
    lines = [*PROSE * 9, "Transcriber's Note:", "", "- Page 3: changed one.", "", "- Page 4.", ""]
    assert gutenberg.strip_matter(lines) == gutenberg.strip_matter(PROSE * 9)


def test_a_note_in_the_middle_goes_alone_whatever_its_first_line() -> None:
    note = ["* * *", "[Transcriber's Note: a leaf is", "missing here.]", ""]
    lines = [*PROSE * 20, *note, *PROSE * 9]
    assert gutenberg.strip_matter(lines) == gutenberg.strip_matter(PROSE * 29)


def test_lines_that_end_in_page_numbers_are_entries_and_words_are_none() -> None:
    lines = ["Preface xiv", "Of the storm, 12.", "The rain . . . . of it", "It was still", "to mix"]
    assert gutenberg.share_of_entries(lines) == 3 / 5


def test_the_authors_own_words_are_no_producers_note() -> None:
    lines = [*PROSE * 15, "Produced by the pressure of the air, the wind rose.", ""]
    assert _filled(gutenberg.strip_matter(lines)) == _filled(lines)


@pytest.mark.parametrize(
    "contents",
    [
        ["CONTENTS", "", " I Introduction", " II The Machine"],
        ["Contents.", "I.--The Country       5", "", "II.--The Sights of the Capital    15"],
        ["TABLE OF CONTENTS", "", "CHAPTER I. It Begins", "", "CHAPTER II. It Ends"],
        [
            *["PAGE", "", "Frontispiece    iv", "", "THE CASES    49", ""],
            *["General remarks--Of the cases--Position of a compositor--Laying", "type--Rules"],
        ],
        ["List of Illustrations", "", "A storm . . . . . . . 12"],
    ],
)
def test_contents_are_cut_off_up_to_the_first_prose(contents: list[str]) -> None:
    lines = ["THE TITLE", "", *contents, "", *PROSE * 20]
    assert _filled(gutenberg.strip_matter(lines)) == ["THE TITLE", *_filled(PROSE * 20)]


def test_a_text_of_short_lines_is_not_taken_for_contents() -> None:
    lines = ["CONTENTS", "", *["A short one.", ""] * 50, *PROSE * 20]
    assert _filled(gutenberg.strip_matter(lines)) == _filled(lines)


def test_tables_and_the_index_of_a_book_are_cut_off() -> None:
    table = ["Oz.     Kilo.     Lbs.", "1       2         3", "4       5         6", ""]
    lines = [*PROSE * 9, *table, *PROSE, "INDEX.", "", *INDEX]
    assert _filled(gutenberg.strip_matter(lines)) == _filled(PROSE * 10)


@given(
    st.lists(
        st.sampled_from(["", *PROSE, *VERSE, *INDEX, "CONTENTS", "INDEX", "Transcriber's Note"])
    )
)
def test_what_is_kept_stands_in_the_order_of_the_book(lines: list[str]) -> None:
    rest = iter(lines)
    assert all(line in rest for line in gutenberg.strip_matter(["", *lines]) if line)


def _filled(lines: list[str]) -> list[str]:
    return [line for line in lines if line]


# --- books that are dropped ----------------------------------------------------------------------


def test_verse_other_languages_indexes_and_short_texts_are_dropped_by_default(tmp_path) -> None:
    texts, reasons = _collect(
        tmp_path,
        {
            "prose": PROSE * 20,
            "prose with a poem": [*PROSE * 20, *VERSE],
            "verse": VERSE * 20,
            "french": FRENCH * 20,
            "index": [*PROSE, *INDEX * 20],
            "short": PROSE,
            "made up": ["xq zzk wvvq pfft"] * 100,
        },
    )
    assert sorted(texts) == ["prose", "prose with a poem"]
    assert reasons == {
        "verse": "verse",
        "french": "language fr, not en",
        "index": "index or table",
        "short": "too short",
        "made up": "language unknown, not en",
    }


def test_settings_switch_the_dropping_off(tmp_path: Path) -> None:
    overrides = ("source.language=null", "source.min_characters=null", "source.keep_verse=true")
    books: dict[str, list[str] | bytes] = {"verse": VERSE * 9, "french": FRENCH * 9, "short": PROSE}
    texts, reasons = _collect(tmp_path, books, *overrides)
    assert sorted(texts) == ["french", "short", "verse"]
    assert reasons == {}
    assert texts["verse"].split("\n")[0] == " ".join(VERSE[:4])


def test_broken_downloads_are_dropped_with_the_reason(tmp_path: Path) -> None:
    prose = "\n".join(PROSE * 20)
    page = b"\xef\xbb\xbf<html><body>" + prose.encode()
    books: dict[str, list[str] | bytes] = {
        "good": PROSE * 20,
        "page": page,
        "fragment": b"<center><h1>502 Bad Gateway</h1></center>",
        "gzip": b"\x1f\x8b\x08\x00" + b"abc" * 999,
        "nul": prose.encode() + b"\0" * 9,
        "twice": (prose + "café " * 99).encode().decode("cp1252").encode(),
    }
    texts, reasons = _collect(tmp_path, books)
    assert sorted(texts) == ["good"]
    assert reasons == {
        "page": "HTML page",
        "fragment": "HTML page",
        "gzip": "compressed file",
        "nul": "NUL bytes",
        "twice": "mixed or doubled encoding",
    }


# --- languages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strange", ["\x07", "\ufdd0", "\U0001ffff", "\x00", "\ud800"])
def test_characters_that_the_detector_refuses_do_not_stop_it(strange: str) -> None:
    assert language_of(f"{' '.join(PROSE)}{strange} {' '.join(PROSE)}") == "en"


@given(st.text())
def test_any_text_has_a_language_or_none(text: str) -> None:
    assert language_of(text)


def test_a_book_is_judged_by_all_of_its_parts() -> None:
    assert language_of(" ".join(PROSE) * 200 + " ".join(FRENCH) * 2_000) == "fr"


def test_other_sources_take_the_language_too(tmp_path: Path) -> None:
    (tmp_path / "wiki").mkdir()
    pages = "".join(
        f'<doc id="{id}" url="" title="{id}">\n{id}\n\n{" ".join(text * 5)}\n\n</doc>\n'
        for id, text in (("English", PROSE), ("French", FRENCH))
    )
    (tmp_path / "wiki" / "wiki_00").write_text(pages)
    given = ["+source=wikiextractor", f"source.path={tmp_path / 'wiki'}", f"data_dir={tmp_path}"]
    manifest = collect.run(load([*given, "source.language=en", "num_workers=1"]))
    assert manifest.dropped == {"language fr, not en": 1}


def test_settings_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    given = ["+source=books", f"source.path={tmp_path}", f"data_dir={tmp_path}"]
    with pytest.raises(SettingsError, match=r"source\.language=english is not known; it takes a"):
        load([*given, "source.language=english"])
    with pytest.raises(SettingsError, match=r"source\.min_characters=0; it takes 1 or more"):
        load([*given, "source.min_characters=0"])


# --- the real files ------------------------------------------------------------------------------

DROPPED = {
    "24675-8": "language nl, not en",
    "Candide": "language fr, not en",
    "Madame_Bovary_GustaveFlaubert": "language fr, not en",
    "pg24823": "language es, not en",
    "Leaves_of_Grass_WaltWhitman": "verse",
    "pg1254": "verse",
    "pg28860": "index or table",  # the contents of four volumes
    "404_html_page": "HTML page",
    "gateway_timeout_page": "HTML page",
    "robot_check_page": "HTML page",
    "candide_cp1252": "language fr, not en",
    "candide_half_utf8_half_latin1": "mixed or doubled encoding",
    "yellow_wallpaper_double_encoded": "mixed or doubled encoding",
    "empty": "empty",
    "whitespace_only": "empty",
    "gzip_saved_as_txt": "compressed file",
    "modest_proposal_nul_bytes": "NUL bytes",
    "sleepy_hollow_licence_only": "no text besides the licence",
}
STARTS_AND_ENDS = {  # the first and the last words that are the author's, without headings
    "41-0": ("by Washington Irving", "believe one-half of it myself.” D. K."),
    "sleepy_hollow_utf16le": ("by Washington Irving", "believe one-half of it myself.” D. K."),
    "1952-0": ("By Charlotte Perkins Gilman", "creep over him every time!"),
    "58585-0": ("By Kahlil Gibran", "another woman shall bear me.”"),
    "56817-0": ("A Manual of Typography,", "To loose the virgin zone."),
    "pg844": ("The Importance of Being Earnest", "the vital Importance of Being Earnest."),
    "pg7256": ("by O. Henry", "They are the magi."),
    "gift_of_the_magi_cr_only": ("by O. Henry", "They are the magi."),
    "dvldc10": ("The Internet Wiretap 1st Online Edition", "every two years."),
}


def test_real_files_are_kept_clean_or_dropped_with_the_right_reason(tmp_path: Path) -> None:
    folder = unpacked_all("books/gutenberg_raw", tmp_path / "in")
    (files,) = {path.parent.parent for path in folder.rglob("pg844.txt")}
    found, dropped = _run(files, tmp_path / "d")
    texts = {Path(id).name: text for id, text in found.items()}
    assert {Path(id).name: reason for id, reason in dropped.items()} == DROPPED
    assert len(texts) == 27 + 15 - len(DROPPED)
    for name, (start, end) in STARTS_AND_ENDS.items():
        assert texts[name].startswith(start), name
        assert texts[name].endswith(end), name
    for name, text in texts.items():
        assert "Project Gutenberg" not in text, name
        assert "Proofreading Team" not in text, name

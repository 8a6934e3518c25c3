"""Raw Project Gutenberg files: what is cut off a book, and which books are dropped and why."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import unpacked_all

from data_prep import collect
from data_prep.core.config import SettingsError
from data_prep.core.job import load
from data_prep.stores.documents import list_parts, read_part
from data_prep.text import gutenberg
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
    text = gutenberg.strip_licence(f"{before}\n\n{TEXT}\n\n{after}")
    assert text.strip() == TEXT


def test_a_licence_without_a_text_leaves_nothing() -> None:
    marks = "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n*** END OF THE PROJECT GUTENBERG"
    assert not gutenberg.strip_licence(f"{HEADER}{marks} EBOOK X ***\nlicence").strip()


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
STARTS_AND_ENDS = {  # the first and the last words that are the author's
    "41-0": ("THE LEGEND OF SLEEPY HOLLOW", "THE END."),
    "sleepy_hollow_utf16le": ("THE LEGEND OF SLEEPY HOLLOW", "THE END."),
    "1952-0": ("THE YELLOW WALLPAPER", "creep over him every time!"),
    "58585-0": ("THE PROPHET", "another woman shall bear me.”"),
    "56817-0": ("THE AMERICAN PRINTER:", "To loose the virgin zone."),
    "pg844": ("The Importance of Being Earnest", "TABLEAU"),
    "pg7256": ("THE GIFT OF THE MAGI", "They are the magi."),
    "gift_of_the_magi_cr_only": ("THE GIFT OF THE MAGI", "They are the magi."),
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

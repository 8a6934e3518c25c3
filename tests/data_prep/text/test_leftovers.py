"""What lists, templates, sections and printing leave in paragraphs is removed and counted."""

import time
from collections import Counter

import pytest

from data_prep.sources.wikiextractor import tidy
from data_prep.text import book_leftovers
from data_prep.text.book_leftovers import join_broken_words
from data_prep.text.wiki_leftovers import readable, without_leads

SENTENCE = "It lies in the north of the county."


def tidied(*lines: str) -> tuple[list[str], dict[str, int]]:
    removed: Counter[str] = Counter()
    return tidy("\n".join(lines), removed).split("\n"), dict(+removed)


@pytest.mark.parametrize(
    "line",
    ["History.", "Early life and education.", "Practical uses.", '"Hamlet" (1948).', "1994.",
     "Hughes D-2 and XF-11.", "Return to England.", "歴史.", "60年代至70年代."],
)  # fmt: skip
def test_a_heading_between_paragraphs_is_removed_and_counted(line: str) -> None:
    assert tidied(SENTENCE, line, SENTENCE) == ([SENTENCE, SENTENCE], {"headings": 1})


@pytest.mark.parametrize(
    "line",
    ["He died.", "Whittle was an atheist.", "In 1948, she left to join a newspaper in the capital.",
     "The squad was announced on 22 March.", "Lawn married Maggie Shannon in 1906.", "Is it so?",
     "and so on.", "彼は歴史家である。"],
)  # fmt: skip
def test_a_short_sentence_is_no_heading(line: str) -> None:
    assert tidied(SENTENCE, line) == ([SENTENCE, line], {})


def test_of_another_language_only_a_few_words_are_a_heading() -> None:
    lines = ["Es liegt im Norden.", "Geschichte.", "Karl starb 1865 in Wien.", "그는 죽었다."]
    assert tidied(*lines) == ([lines[0], *lines[2:]], {"headings": 1})


def test_the_first_line_of_a_page_is_text() -> None:
    assert tidied("A letter.", SENTENCE) == (["A letter.", SENTENCE], {})


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("It is old. Its parts are:", "It is old."),
        ("He met St. Louis and others:", ""),
        ("それは古い。次のものがある：", "それは古い。"),
    ],
)
def test_the_lead_of_a_list_is_cut_off_and_counted(line: str, kept: str) -> None:
    removed: Counter[str] = Counter()
    assert without_leads([line], [True], removed) == ([kept] if kept else [])
    assert removed == {"leads of lists": 1}
    assert without_leads([line], [False], removed) == [line]


def test_a_lead_of_a_quotation_stays() -> None:
    assert tidied(SENTENCE, "He wrote:", '"I will go."')[0] == [
        SENTENCE,
        "He wrote:",
        '"I will go."',
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("52419 sqmi and 400 oilbbl/d of 2 Moilbbl", "52419 sq mi and 400 bbl/d of 2 million bbl"),
        ("at -5 C or 41 F in May", "at -5 °C or 41 °F in May"),
        ("65 F-35, 452 F.2d and 11 F Mk.8", "65 F-35, 452 F.2d and 11 F Mk.8"),
        ("paid $5 (equal to $ today) and $7 ($ in 2015 dollars).", "paid $5 and $7."),
        ("costs $ 5 (US$ 7)", "costs $ 5 (US$ 7)"),
    ],
)
def test_units_and_amounts_of_templates_are_made_readable(text: str, shown: str) -> None:
    assert readable(text, Counter()) == shown


@pytest.mark.parametrize(
    "line",
    ["CHAPTER XII", "Chapter 3", "Chapter IX. Of a Brawl", "PART TWO The Cook", "XIV.", "[ 27 ]",
     "* * *", "A RIDE IN THE DARK.", "Kapitel 4", "Глава II", "第十二回 夜"],
)  # fmt: skip
def test_headings_and_page_numbers_of_a_book_are_removed_and_counted(line: str) -> None:
    removed: Counter[str] = Counter()
    assert book_leftovers.without_headings([line, SENTENCE], removed) == [SENTENCE]
    assert removed == {"headings and page numbers": 1}


@pytest.mark.parametrize(
    "line",
    ["I went.", "Part two of it was lost.", '"Chapter two," said Cecil.', "HELP!", "MY DEAR SIR,",
     "'THE END?'", "Chapters were read.", "In 1897."],
)  # fmt: skip
def test_prose_of_a_book_is_no_heading(line: str) -> None:
    assert book_leftovers.without_headings([line], Counter()) == [line]


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("undoubt- edly, and undoubtedly", "undoubtedly, and undoubtedly"),
        ("Un- known; unknown", "Unknown; unknown"),
        ("a well- known man, well-known", "a well-known man, well-known"),
        ("to- day, today and to-day", "to-day, today and to-day"),
        ("pre- and post-war, preand", "pre- and post-war, preand"),
        ("look- When", "look- When"),
    ],
)
def test_a_word_broken_at_a_line_end_is_joined_if_the_book_has_it_whole(
    text: str, whole: str
) -> None:
    assert join_broken_words(text) == whole


@pytest.mark.parametrize("unit", ["a- b ", "It is. ", "A: ", "(equal to $ ", "chapter i ", '"(['])
def test_hostile_paragraphs_take_linear_time(unit: str) -> None:
    text = unit * (400_000 // len(unit))
    start = time.process_time()
    removed: Counter[str] = Counter()
    tidied(SENTENCE, text, f"{text}:")
    book_leftovers.without_headings([text], removed)
    join_broken_words(text)
    assert time.process_time() - start < 3

"""No text holds a worker: every expression takes linear time on the shapes that are worst for it.

A quadratic expression takes 100 times as long for ten times the text, and minutes to hours where
the bound here is seconds.
"""

import time
from collections.abc import Callable

import pytest
from slow_cases import slow_but

from data_prep.core.settings import SourceKind, SourceSettings
from data_prep.sources import wikiextractor
from data_prep.sources.books import books
from data_prep.sources.wikipedia_articles import lists_meanings
from data_prep.stores.documents import Document
from data_prep.text.cleaning import remove_hollows, unescape
from data_prep.text.sentences import split_paragraph
from data_prep.text.wiki_nesting import MOST_CHARACTERS, fault_of, unclosed_marks
from data_prep.text.wikitext import is_disambiguation, is_redirect, to_text

SETTINGS = SourceSettings(name="a", kind=SourceKind.books)
MOST_S = 5.0


def _book(text: str) -> object:
    (only,) = books(SETTINGS, "a", "A", text)
    return only


def _title(text: str) -> object:
    return lists_meanings(f"A ({text})", f"{text}\n{text}\na")


def _page(text: str) -> object:
    is_redirect(text)
    is_disambiguation("A", text)
    return None if fault_of(text) else to_text(text)


# What is repeated, by function. Each shape is worst for one expression, or for the parser.
HOSTILE: dict[Callable[[str], object], list[str]] = {
    remove_hollows: [
        " ", ", ", "( ", "(", "[ ", "([", "]", ",\xa0", " .", "\t", ";,", "(]", ") ",
    ],
    split_paragraph: [
        '"', " ", ".", "!", '!"', "![", '" ', ". ", "…'", "a. B", "a'", "a-", ".'", "Mr. A", 'a". ',
    ],
    wikiextractor.clean: [
        "<ref>", "<ref/", "<!--", "<b", "{{", "[[", "(a,", "a://", "://", " ", "__A", "\n!",
        "\n[[a:", "&#9", "<ref></ref ", "<!--<ref></ref>", "<b>&amp;",
    ],
    _book: [
        "\n\nContents\n\n", "\n\nINDEX\n\na\n\n", "\n\nTranscriber's Note\n\n", "_", "*", " ", "\t",
        "[Illustration", "{1", "*** START OF ",
    ],
    _title: ["a ", "disambig", "refers ", "may mean ", "a-", " ", ":"],
    _page: [
        "-{", "-{a", "a", " ", "{{ ", "#a ", "\n=", "\n= ", "__A", "{{a|", "{{{a|", "{{{a|}}",
        "{{lang|a|", "{{a|[[b}}]]", "[[a|", "[[a:b]] ", "[//a ", "[mailto:a ", "]]{{", "<a",
        "<ref>", "<ref name=", "<b c='", "<b c='/>", "<b></i>", "<!--", "<pre>", "\n{|", "{|",
        "\n{|\n|-\n|", "\n{|{{a|", "|}\n{|", "\n{|\n|\n|}", ":", "*#", "\n*", "''", "&#", "|",
    ],
}  # fmt: skip


CASES = [(function, unit) for function in HOSTILE for unit in HOSTILE[function]]
FAST: dict[Callable[[str], object], list[str]] = {
    remove_hollows: [" ", "(", "[ ", ";,"],
    split_paragraph: ['"', "!", ". ", "Mr. A"],
    wikiextractor.clean: ["<ref>", "<!--", "<b", "{{", "\n[[a:"],
    _book: ["\n\nContents\n\n", "_", "*** START OF "],
    _title: ["a ", "refers "],
    _page: ["-{", "\n=", "{{a|", "[[a|", "<ref>", "<b c='", "\n{|", "''", "&#"],
}


@pytest.mark.parametrize(
    ("function", "unit"), slow_but([(f, unit) for f in FAST for unit in FAST[f]], CASES)
)
def test_hostile_text_takes_linear_time(function: Callable[[str], object], unit: str) -> None:
    for characters in (10_000, 100_000):
        began = time.process_time()
        function("a" + unit * (characters // len(unit)) + " x")
        function("a" + unit * (characters // len(unit)) + "x")
        assert time.process_time() - began < MOST_S


def test_arguments_of_a_template_are_read_in_linear_time() -> None:
    began = time.process_time()
    assert to_text("{{linktext" + "|a" * 50_000 + "}}") == "a" * 50_000
    assert time.process_time() - began < MOST_S


@pytest.mark.parametrize(
    ("markup", "marks"),
    [
        ("{{a|{{{b|c}}}}} [[d|e]] <ref name=f>g</ref> <br> {|\n|}", 0),
        ("<ref name='a'/> <math>{{</math> <!-- [[ --> <nowiki/> <p>a</p>", 0),
        ("{{a [[b <ref> {|", 3),
        ("{{a|[[b}}]]", 1),
        ("<!-- a", 1),
        ("<nowiki> {{", 2),
        ("<b>a</i>", 1),
        ("<b c='>", 2),
        ("{{{a}}", 1),
        ("[//a\n[//b\n", 0),
        ("[//a [//b\n", 1),
        ("{{a|\n{|\n| b\n|}\n}}", 0),
        (":" * 60, 60),
    ],
)
def test_marks_without_an_end_are_counted(markup: str, marks: int) -> None:
    assert unclosed_marks(markup) == marks


@pytest.mark.parametrize(
    ("markup", "fault"),
    [
        ("{{a|" * 20 + "word " * 40_000, None),
        ("{{a|" * 4_000, "too many marks without an end"),
        ("{{a}} [[b]] " * 100_000, None),
        ("a" * (MOST_CHARACTERS + 1), "larger than MediaWiki's limit of 2 MiB"),
    ],
    ids=["few", "many", "closed", "large"],
)
def test_a_page_that_would_hold_up_the_parser_is_named(markup: str, fault: str | None) -> None:
    assert fault_of(markup) == fault


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("&#65;&amp;&#x42;", "A&B"),
        ("a&#" + "9" * 5_000 + ";b", "a\ufffdb"),
        ("a&#" + "0" * 5_000 + "65;b", "aAb"),
        ("a&#" + "0" * 5_000 + "9" * 5_000 + ";b", "a\ufffdb"),
    ],
)
def test_an_entity_of_any_length_is_a_character(text: str, expected: str) -> None:
    assert unescape(text) == expected


@pytest.mark.parametrize("run", ["!" * 5_000, '?"' * 2_500, "-.-!" * 1_250])
def test_a_run_of_signs_is_cut_and_nothing_of_it_is_lost(run: str) -> None:
    assert "".join(split_paragraph(f"He said{run} so.")).replace(" ", "") == f"Hesaid{run}so."


def test_two_headings_of_contents_and_two_of_an_index_cut_a_book_where_one_does() -> None:
    paragraph = "A line of prose that is long enough to be one.\nAnd a second one of it."
    prose = "\n\n".join([paragraph] * 40)
    contents = "CONTENTS\n\nI. A\n\nCONTENTS\n\nII. B"
    index = "INDEX\n\nINDEX\n\n" + "\n\n".join(f"a, {n}" for n in range(9))
    whole = _book(f"{contents}\n\n{prose}\n\n{index}")
    assert isinstance(whole, Document)
    assert whole == _book(prose)

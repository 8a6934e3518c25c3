"""Small real files of every kind of input, from tests/fixtures: read whole, cleaned or dropped."""

import re
from collections import Counter

import pytest
from shared_data import FIXTURES
from source_reading import read_all, reasons, source_of, texts

MARKUP = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|''|==|<\w|</|formula_|\(\)|\xa0|https?://")


@pytest.mark.parametrize(
    ("folder", "start", "end"),
    [
        ("novels", "by Robert Louis Stevenson\nTo S.L.O.", "for many evenings to come."),
        ("gutenberg", "by O. Henry\nOne dollar", "They are the magi."),
    ],
)
def test_a_real_book_begins_with_its_author_and_ends_with_its_last_sentence(
    folder: str, start: str, end: str
) -> None:
    (text,) = texts(read_all(source_of("books", FIXTURES / folder))).values()
    assert text.startswith(start)
    assert text.endswith(end)
    assert "\r" not in text
    assert "Project Gutenberg" not in text
    assert 40 < text.count("\n") < 60  # a line per paragraph


@pytest.mark.parametrize(
    ("kind", "path", "documents", "dropped"),
    [
        ("wikiextractor", "wikiextractor", 8, {"disambiguation": 1, "title only": 2}),
        ("wikipedia_dump", "wikipedia/testcorpus.xml.bz2", 9, {}),
        (
            "wikipedia_dump",
            "wikipedia/tinywiki-latest-pages-articles.xml",
            6,
            {"redirect": 1, "disambiguation": 1},
        ),
    ],
)
def test_every_real_page_of_wikipedia_is_clean_prose_or_dropped_with_its_reason(
    kind: str, path: str, documents: int, dropped: dict[str, int]
) -> None:
    items = read_all(source_of(kind, FIXTURES / path))
    assert Counter(reasons(items).values()) == dropped
    kept = texts(items)
    assert len(kept) == documents
    assert [found[0] for text in kept.values() for found in MARKUP.finditer(text)] == []

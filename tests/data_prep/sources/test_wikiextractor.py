"""What WikiExtractor wrote: its pages, and what it leaves behind in them."""

import bz2
from collections import Counter
from pathlib import Path

import pytest
from source_reading import read_all, reasons, source_of, texts

from data_prep.sources import text_files, wikiextractor
from data_prep.stores.documents import Damage, Document


def _doc(id: str, title: str, *lines: str) -> str:
    body = "\n".join([title, "", *lines])
    return f'<doc id="{id}" url="u?curid={id}" title="{title}">\n{body}\n\n</doc>\n'


def test_pages_are_split_and_the_repeated_title_dropped(tmp_path: Path) -> None:
    (tmp_path / "AA").mkdir()
    text = _doc("1", 'A "quoted" &amp; B', "First.", "Second.") + _doc("2", "C", "C")
    (tmp_path / "AA" / "wiki_00").write_text(text)
    assert read_all(source_of("wikiextractor", tmp_path)) == [
        Document("1", 'A "quoted" & B', "First.\nSecond."),
        Document("2", "C", "C"),
    ]


def test_compressed_output_is_read(tmp_path: Path) -> None:
    (tmp_path / "wiki_00.bz2").write_bytes(bz2.compress(_doc("1", "A", "First.").encode()))
    assert texts(read_all(source_of("wikiextractor", tmp_path))) == {"1": "First."}


@pytest.mark.parametrize("name", ["wiki_00", "wiki_00.bz2"])
def test_a_file_that_is_too_large_unpacked_is_named_and_the_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(text_files, "MOST_BYTES", 1 << 20)
    data = b"a" * (1 << 24)
    (tmp_path / name).write_bytes(bz2.compress(data) if name.endswith(".bz2") else data)
    (tmp_path / "wiki_01").write_text(_doc("1", "A", "First."))
    items = read_all(source_of("wikiextractor", tmp_path))
    assert [item for item in items if isinstance(item, Damage)] == [
        Damage(name, "has more than 1 MiB; cut it into smaller files")
    ]
    assert texts([item for item in items if not isinstance(item, Damage)]) == {"1": "First."}


def test_every_page_is_a_document_or_counted_with_its_reason(tmp_path: Path) -> None:
    stub = _doc("1", "Redirect") + _doc("2", "Only left-overs", "<br>", "formula_1 ()")
    stub += _doc("6", "F", "F may refer to:") + _doc("7", "G", "G is short.")
    unclosed = '<doc id="3" url="" title="Cut">\nCut\n\nHalf a'
    (tmp_path / "wiki_00").write_text(
        "stray\n" + stub + unclosed + "\n" + _doc("4", "D", "A text of some words.")
    )
    (tmp_path / "wiki_01").write_bytes(b"caf\xe9")
    (tmp_path / "wiki_02.bz2").write_bytes(b"no bzip2")
    (tmp_path / "wiki_03").write_text("<html>404</html>")
    (tmp_path / "wiki_04").write_text(_doc("5", "E", "A text of some words.") + unclosed)
    items = read_all(source_of("wikiextractor", tmp_path, min_characters=12))
    assert Counter(reasons(items).values()) == {
        "title only": 1,
        "no prose": 1,
        "disambiguation": 1,
        "too short": 1,
        "page without an end": 1,  # of one id: the second replaces it in the dictionary
        "text outside of a page": 2,
        "unreadable file: UnicodeDecodeError": 1,
        "unreadable file: OSError": 1,
    }
    assert sorted(texts(items)) == ["4", "5"]
    assert len(items) == 12


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
        ("so that formula_1formula_2 holds", "so that holds"),
        ('Andorra (],]) and "De Hoek"] (Greek: Λάρισα])', 'Andorra and "De Hoek" (Greek: Λάρισα)'),
        ('on the interval ("a", "b"] of [0, 1]', 'on the interval ("a", "b"] of [0, 1]'),
        ("s of 2013[ [update]], A (as of May 2012[ [update]])", "As of 2013, A (as of May 2012)"),
        ("On May 6,, he (as in,) wrote,,,, it", "On May 6, he (as in) wrote, it"),
        ("hired [[A (b)|A]] from [[C]]", "hired A from C"),
        ("A.\n[[Category:B]]\n[[File:C.jpg|thumb|[[D]]]]\nE.", "A.\nE."),
        ("A.\n#if: B\n|language =\n!colspan=9|C\nFile:D.jpg|E\nhttp://f.org/g\nH.", "A.\nH."),
        ("!Kung is a language.", "!Kung is a language."),
        ("of [a\nApollo (] in Attic) was", "of [a\nApollo (in Attic) was"),
        ("in A (),, (B), , C", "in A, (B), C"),
    ],
)
def test_remains_of_the_extractor_are_removed(text: str, cleaned: str) -> None:
    assert wikiextractor.clean(text) == cleaned

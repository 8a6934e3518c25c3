"""What WikiExtractor wrote: its pages, and what it leaves behind in them."""

import bz2
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from source_reading import read_all, reasons, source_of, texts

from data_prep.sources import wikiextractor
from data_prep.sources.inputs import text_files
from data_prep.stores.documents import Damage, Document, Reject


def _doc(id: str, title: str, *lines: str) -> str:
    body = "\n".join([title, "", *lines])
    return f'<doc id="{id}" url="u?curid={id}" title="{title}">\n{body}\n\n</doc>\n'


def test_pages_are_split_and_the_repeated_title_dropped(tmp_path: Path) -> None:
    (tmp_path / "AA").mkdir()
    text = _doc("1", 'A "quoted" &amp; B', "It is first.", "It is second.") + _doc("2", "C", "C")
    (tmp_path / "AA" / "wiki_00").write_text(text)
    assert read_all(source_of("wikiextractor", tmp_path)) == [
        Document("1", 'A "quoted" & B', "It is first.\nIt is second."),
        Document("2", "C", "C"),
    ]


def test_compressed_output_is_read(tmp_path: Path) -> None:
    (tmp_path / "wiki_00.bz2").write_bytes(bz2.compress(_doc("1", "A", "It is first.").encode()))
    assert texts(read_all(source_of("wikiextractor", tmp_path))) == {"1": "It is first."}


@pytest.mark.parametrize("name", ["wiki_00", "wiki_00.bz2"])
def test_a_file_that_is_too_large_unpacked_is_named_and_the_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(text_files, "MOST_BYTES", 1 << 20)
    data = b"a" * (1 << 24)
    (tmp_path / name).write_bytes(bz2.compress(data) if name.endswith(".bz2") else data)
    (tmp_path / "wiki_01").write_text(_doc("1", "A", "It is first."))
    items = read_all(source_of("wikiextractor", tmp_path))
    assert [item for item in items if isinstance(item, Damage)] == [
        Damage(name, "has more than 1 MiB; cut it into smaller files")
    ]
    assert texts([item for item in items if not isinstance(item, Damage)]) == {"1": "It is first."}


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


# --- variants of the output ----------------------------------------------------------------------

OLD_JSON = {"id": "1", "url": "u", "title": "A", "text": "A\n\nIt is first.\nIt is second."}
JSON = {"id": "1", "revid": "9", "url": "u", "title": "A", "text": "It is first.\nIt is second."}
BODY = "A\n\nIt is first.\nIt is second.\n\n</doc>\n"


@pytest.mark.parametrize(
    "written",
    [
        f'<doc id="1" url="u" title="A">\n{BODY}',
        f'<doc id="1" revid="9" url="u" title="A">\n{BODY}',
        f'<doc id="1" url="u" title="A" language="en" revision="9">\n{BODY}',
        f'<doc url="u" title="A" id="1">\n{BODY}',
        f'<doc id="1" url="u">\n{BODY}',
        f'\ufeff<doc id="1" url="u" title="A">\r\n{BODY}'.replace("\n", "\r\n"),
        json.dumps(JSON),
        json.dumps(OLD_JSON) + "\n",
        json.dumps(JSON | {"id": 1}, separators=(",", ":"), sort_keys=True) + "\r\n",
    ],
    ids=["doc", "revid", "cirrus", "id last", "no title", "Windows", "json", "old json", "compact"],
)
@pytest.mark.parametrize("name", ["AA/wiki_00", "wiki_00.bz2"])
def test_every_version_s_page_is_read_alike(tmp_path: Path, written: str, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    data = written.encode()
    (tmp_path / name).write_bytes(bz2.compress(data) if name.endswith(".bz2") else data)
    assert read_all(source_of("wikiextractor", tmp_path)) == [
        Document("1", "A", "It is first.\nIt is second.")
    ]


def test_outputs_may_be_mixed_in_a_folder_and_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(
        _doc("1", "A", "It is first.") + json.dumps(JSON | {"id": "2"}) + "\n"
    )
    (tmp_path / "b").write_text(
        json.dumps(JSON | {"id": "3"}) + "\n" + _doc("4", "A", "It is last.")
    )
    assert list(texts(read_all(source_of("wikiextractor", tmp_path)))) == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    "title",
    [
        "A",
        'A "quoted" B',
        'The "x" or "y"',
        "A > B",
        'id="7"',
        "A = {B}",
        "Ä",
        "A &amp; B",
        '"',
    ],
)
@pytest.mark.parametrize("more", ["", ' language="en" revision="9"'])
def test_a_title_is_read_without_the_attributes(tmp_path: Path, title: str, more: str) -> None:
    line = f'<doc id="1" revid="9" url="u?a=b" title="{title}"{more}>'
    (tmp_path / "a").write_text(f"{line}\n{title}\n\nIt is first.\n\n</doc>\n")
    (page,) = read_all(source_of("wikiextractor", tmp_path))
    assert page == Document("1", title.replace("&amp;", "&"), "It is first.")


def test_each_lost_page_is_counted(tmp_path: Path) -> None:
    whole = json.dumps(JSON)
    lines = [whole[:50], '{"id": "2", "title": "B"}', '{"text": 5, "id": "3", "title": ""}', whole]
    (tmp_path / "a").write_text("\n".join(lines) + "\n" + '<doc url="" title="C">\nC\n\nD.\n</doc>')
    (tmp_path / "b").write_text(f'<doc id="7" url="" title="E">\nE\n\nF.\n{json.dumps(JSON)}\n')
    found = Counter(item.reason for item in read_all(source_of("wikiextractor", tmp_path)) if
                    isinstance(item, Reject))  # fmt: skip
    assert found == {
        "line of JSON that is no page": 3,
        "page without an id": 1,
        "page without an end": 1,
    }


def test_lines_of_a_text_that_look_like_a_page_are_text(tmp_path: Path) -> None:
    lines = ['{"id": 1}', '{"a": "title"}', "<doc>", "<doc type=x>", "{{x}}", "{"]
    (tmp_path / "a").write_text(_doc("1", "A", "It is first.", *lines, "It is last."))
    (page,) = read_all(source_of("wikiextractor", tmp_path))
    assert isinstance(page, Document)
    assert page.text.startswith('It is first.\n{"id": 1}\n{"a": "title"}\n<doc>\n<doc type=x>')
    assert page.text.endswith("It is last.")


@pytest.mark.parametrize("part", [' title="', '" url="', ' a="b"', '">', ' id="', "{", '{"a":'])
def test_a_hostile_line_is_read_in_linear_time(tmp_path: Path, part: str) -> None:
    line = '<doc id="1" title="' + part * (1_000_000 // len(part)) + ">"
    (tmp_path / "a").write_text(line + "\n" + part * (1_000_000 // len(part)))
    began = time.process_time()
    read_all(source_of("wikiextractor", tmp_path))
    assert time.process_time() - began < 5


# --- what is removed -----------------------------------------------------------------------------


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

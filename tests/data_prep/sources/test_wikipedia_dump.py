"""Dumps: every page is a document or a reject; broken files are reported; markup becomes prose."""

import bz2
import hashlib
import lzma
import re
import resource
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mwparserfromhell
import pytest
from shared_data import packed
from source_reading import read_all, source_of

from data_prep import collect
from data_prep.core.config import SettingsError
from data_prep.core.files import read_json
from data_prep.sources import wikipedia_dump
from data_prep.stores.documents import Damage, Document, Reject, list_parts, read_part
from data_prep.text.wikitext import is_disambiguation, to_text

HEAD = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">'
    '<siteinfo><namespaces><namespace key="0" case="first-letter"/>'
    '<namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace>'
    "</namespaces></siteinfo>"
)


def _page(title: str, text: str, ns: str = "<ns>0</ns>", more: str = "") -> str:
    return (
        f"<page><title>{title}</title>{ns}<id>7</id>{more}<revision><id>9</id>"
        f'<model>wikitext</model><text xml:space="preserve">{text}</text></revision></page>\n'
    )


PAGES = [
    _page("A", "'''A''' is a [[letter]].\n\n== History ==\nIt is old.&lt;ref&gt;B.&lt;/ref&gt;"),
    _page("B", "#REDIRECT [[A]]"),
    _page("C", "anything", more='<redirect title="A"/>'),
    _page("D", "''D'' may be:\n* [[A]]\n{{Disambiguation|letters}}"),
    _page("Talk:A", "Is it?", ns="<ns>1</ns>"),
    _page("E", "No number of a namespace.", ns=""),
    _page("F", "* [[A]]\n* [[B]]"),
    _page("G", ""),
]
DUMP = HEAD + "".join(PAGES) + "</mediawiki>"


def _read(path: Path) -> list[Document | Reject | Damage]:
    return read_all(source_of("wikipedia_dump", path))


def _read_bytes(folder: Path, data: bytes, name: str = "w.xml") -> list[Document | Reject | Damage]:
    (folder / name).write_bytes(data)
    return _read(folder / name)


def _kept(items: list[Document | Reject | Damage]) -> list[Document]:
    return [item for item in items if isinstance(item, Document)]


# --- pages ---------------------------------------------------------------------------------------


def test_every_page_is_a_document_or_dropped_with_its_reason(tmp_path: Path) -> None:
    items = _read_bytes(tmp_path, DUMP.encode())
    assert _kept(items) == [
        Document("w.xml/1", "A", "A is a letter.\nIt is old."),
        Document("w.xml/6", "E", "No number of a namespace."),
    ]
    assert [(i.id, i.title, i.reason) for i in items if isinstance(i, Reject)] == [
        ("w.xml/2", "B", "redirect"),
        ("w.xml/3", "C", "redirect"),
        ("w.xml/4", "D", "disambiguation"),
        ("w.xml/5", "Talk:A", "namespace 1"),
        ("w.xml/7", "F", "no prose"),
        ("w.xml/8", "G", "empty"),
    ]
    assert len(items) == len(PAGES)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("w.xml.bz2", bz2.compress(DUMP.encode())),
        ("w.xml.xz", lzma.compress(DUMP.encode())),
        ("w.xml-p1p8.bz2", b"".join(bz2.compress(x.encode()) for x in DUMP.partition("</page>"))),
        ("w.xml", DUMP.encode("utf-16")),
        ("w.xml", ('<?xml version="1.0" encoding="utf-8"?>\n' + DUMP).encode("utf-8-sig")),
    ],
    ids=["bz2", "xz", "multistream", "utf-16", "declaration"],
)
def test_a_dump_reads_the_same_however_it_is_packed(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / "plain").mkdir()
    expected = [(i.title, i.text) for i in _kept(_read_bytes(tmp_path / "plain", DUMP.encode()))]
    assert [(i.title, i.text) for i in _kept(_read_bytes(tmp_path, data, name))] == expected


def test_a_page_without_a_dump_around_it_is_read(tmp_path: Path) -> None:
    assert _read_bytes(tmp_path, b"  " + PAGES[0].encode()) == [
        Document("w.xml/1", "A", "A is a letter.\nIt is old.")
    ]


def test_an_unescaped_comment_does_not_end_the_text(tmp_path: Path) -> None:
    page = _page("A", "Before.<!-- a note -->\nAfter.")
    assert [item.text for item in _kept(_read_bytes(tmp_path, page.encode()))] == [
        "Before.\nAfter."
    ]


def test_the_newest_revision_counts_and_only_wikitext_is_text(tmp_path: Path) -> None:
    newer = "<revision><model>{}</model><text>New.</text></revision></page>"
    for model, kept in (("wikitext", ["New."]), ("json", [])):
        page = _page("A", "Old.").replace("</page>", newer.format(model))
        items = _read_bytes(tmp_path, page.encode())
        assert [item.text for item in _kept(items)] == kept
        assert len(items) == 1


@pytest.mark.parametrize(
    "unit",
    ["{{a|", "&lt;ref&gt;", "\n{|", "[[a|", "{{{a|}}", "&lt;b c='/&gt;"],
)
def test_a_page_that_would_hold_the_parser_is_rejected_alone(tmp_path: Path, unit: str) -> None:
    dump = _page("A", "Before.") + _page("Hostile", f"A town {unit * 4_000}") + _page("B", "After.")
    items = _read_bytes(tmp_path, f"<mediawiki>{dump}</mediawiki>".encode())
    assert [item.text for item in _kept(items)] == ["Before.", "After."]
    assert [(i.title, i.reason) for i in items if isinstance(i, Reject)] == [
        ("Hostile", "unreadable markup: too many marks without an end")
    ]


def test_a_page_larger_than_mediawiki_has_is_rejected_alone(tmp_path: Path) -> None:
    dump = _page("Large", "A town. " * 300_000) + _page("B", "After.")
    items = _read_bytes(tmp_path, f"<mediawiki>{dump}</mediawiki>".encode())
    assert [item.text for item in _kept(items)] == ["After."]
    assert [(i.title, i.reason) for i in items if isinstance(i, Reject)] == [
        ("Large", "unreadable markup: larger than MediaWiki's limit of 2 MiB")
    ]


_LAUGHS = "<!DOCTYPE mediawiki [<!ENTITY a0 'ha'>" + "".join(
    f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 10)
)


@pytest.mark.parametrize(
    "xml",
    [
        f"{_LAUGHS}]><mediawiki>{PAGES[0]}<page><title>&a9;</title></page></mediawiki>",
        f"{_LAUGHS}]><mediawiki>{PAGES[0]}<page a='&a9;'><title>B</title></page></mediawiki>",
        f"<mediawiki>{PAGES[0]}<page>{'<a>' * 100_000}</page></mediawiki>",
        f"<mediawiki>{PAGES[0]}<page><title>B</title><a>{'a' * 11_000_000}</a></page></mediawiki>",
        pytest.param(
            f"<mediawiki>{PAGES[0]}<page><title>B</title>{'<a/>' * 5_000_000}</page></mediawiki>",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["entity in a text", "entity in an attribute", "nested", "long text", "many elements"],
)
def test_xml_that_unfolds_is_read_up_to_there_in_little_memory(tmp_path: Path, xml: str) -> None:
    (tmp_path / "w.xml.bz2").write_bytes(bz2.compress(xml.encode(), 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    items = _read(tmp_path / "w.xml.bz2")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800_000  # kB
    assert [item.title for item in _kept(items)] == ["A"]
    assert all(len(item.text) < 100 for item in items if isinstance(item, Document))
    assert len(items) > 1


def test_older_revisions_of_a_page_are_freed(tmp_path: Path) -> None:
    revisions = (
        "<revision><text>Old.</text></revision>" * 3 + "<revision><text>New.</text></revision>"
    )
    (tmp_path / "w.xml").write_text(f"<mediawiki><page>{revisions}</page></mediawiki>")
    for kind, page in wikipedia_dump._events(tmp_path / "w.xml"):
        assert (kind, len(page.findall("revision"))) == ("page", 1)
    assert [item.text for item in _kept(_read(tmp_path / "w.xml"))] == ["New."]


def test_a_page_that_the_parser_gives_up_on_is_rejected_alone(tmp_path, monkeypatch) -> None:
    parse = mwparserfromhell.parse

    def fail(markup: str, **options: Any) -> Any:
        if "old" in markup:
            raise mwparserfromhell.parser.ParserError("given up")
        return parse(markup, **options)

    monkeypatch.setattr(mwparserfromhell, "parse", fail)
    items = _read_bytes(tmp_path, DUMP.encode())
    assert isinstance(items[0], Reject)
    assert items[0].reason == "unreadable markup: ParserError"
    assert [item.title for item in _kept(items)] == ["E"]


def test_a_page_is_freed_after_the_next_one_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.xml").write_text(HEAD + 5_000 * PAGES[0] + "</mediawiki>")
    seen = 0
    for kind, element in wikipedia_dump._events(tmp_path / "w.xml"):
        if kind == "page":
            seen += 1
            # Before it is the emptied last page, after it the rest of one chunk.
            assert seen == 1 or len(element.getprevious()) == 0
            assert element.getparent().index(element) <= 1
            assert len(element.getparent()) < 2_000
    assert seen == 5_000


# --- files ---------------------------------------------------------------------------------------


def test_each_dump_of_a_folder_is_a_task_and_only_dumps_are_read(tmp_path: Path) -> None:
    names = ["b.xml.bz2", "a.xml", "c.xml-p1p9.bz2", "sub/d.xml.xz", "e.xml-p1p9", "f.xml-part.bz2"]
    for name in [*names, "a.xml.md5", "w-index.txt.bz2", "a.xml.gz", "notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    tasks = wikipedia_dump.plan(source_of("wikipedia_dump", tmp_path), 10**9).tasks
    assert [task["name"] for task in tasks] == sorted(names)


def test_a_folder_without_dumps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"holds no \.xml, \.xml\.bz2 or \.xml\.xz file"):
        _read(tmp_path)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("w.xml.md5", "{md5}"),
        ("w.xml.sha1", "{sha1}  w.xml"),
        ("dewiki-20240101-md5sums.txt", "00000000000000000000000000000000  x.xml\n{md5}  w.xml"),
        ("sha1sums.txt", "{sha1} *w.xml"),
    ],
)
def test_a_checksum_next_to_the_dump_is_checked(tmp_path: Path, name: str, line: str) -> None:
    data = DUMP.encode()
    sums = {"md5": hashlib.md5(data).hexdigest(), "sha1": hashlib.sha1(data).hexdigest()}
    (tmp_path / name).write_text(line.format(**sums) + "\n")
    assert len(_read_bytes(tmp_path, data)) == len(PAGES)
    with pytest.raises(RuntimeError, match=r"w\.xml has the .* fetch the dump again, or remove"):
        _read_bytes(tmp_path, data + b"\n")


def test_another_files_checksum_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "md5sums.txt").write_text(f"{'0' * 32}  other.xml\n\n# of today\n")
    assert len(_read_bytes(tmp_path, DUMP.encode())) == len(PAGES)


# --- broken files --------------------------------------------------------------------------------


CORRUPT = bytearray(bz2.compress((PAGES[0] + "</mediawiki>").encode()))
CORRUPT[60] ^= 255


def _cut_in_second_half(pack: Callable[[bytes], bytes]) -> bytes:
    return pack((HEAD + PAGES[5]).encode()) + pack((PAGES[0] + "</mediawiki>").encode())[:-20]


@pytest.mark.parametrize(
    ("data", "kept", "damage"),
    [
        ((HEAD + PAGES[5]).encode(), ["E"], "breaks off after page 1: Premature end of data"),
        (_cut_in_second_half(bz2.compress), ["E"], ".*Compressed file ended before"),
        (_cut_in_second_half(lzma.compress), ["E", "A"], ".*Compressed file ended before"),
        (bz2.compress((HEAD + PAGES[5]).encode()) + CORRUPT, ["E"], "breaks off after page 1: "),
        (b"", [], "breaks off after page 0: "),
        (b"<html><body>404</body></html>", [], r"holds no page; is it MediaWiki's XML\?"),
    ],
    ids=["after a page", "bz2", "xz", "corrupt", "empty", "no dump"],
)
def test_a_broken_dump_is_read_as_far_as_it_goes_and_ends_with_its_damage(
    tmp_path: Path, data: bytes, kept: list[str], damage: str
) -> None:
    *pages, last = _read_bytes(tmp_path, data)
    assert all(isinstance(page, Document) for page in pages), "no page is rejected"
    assert [page.title for page in pages] == kept
    assert isinstance(last, Damage)
    assert last.input == "w.xml"
    assert re.match(damage, last.what)


def test_the_page_in_which_a_dump_breaks_off_is_rejected_as_such(tmp_path: Path) -> None:
    page = PAGES[0].partition("It is old")[0]
    whole, cut, damage = _read_bytes(tmp_path, (HEAD + PAGES[5] + page).encode())
    assert _kept([whole]) == [whole]
    assert isinstance(cut, Reject)
    assert (cut.title, cut.reason) == ("A", "dump breaks off in this page")
    assert damage.what.startswith("breaks off in page 2: Premature end of data")


def _given(tmp_path: Path) -> list[str]:
    """Overrides that collect the dumps of tmp_path/in, including short pages."""
    path = f"source.path={tmp_path / 'in'}"
    return ["+source=wikipedia_dump", path, "source.min_characters=null", f"data_dir={tmp_path}"]


def test_a_damaged_dump_is_collected_as_far_as_it_goes_and_makes_the_exit_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.xml").write_text(HEAD + PAGES[5] + PAGES[0][:150])
    (tmp_path / "in" / "b.xml").write_text(DUMP)
    given = _given(tmp_path)
    for _ in range(2):  # a second start has nothing left to do and reports it again
        assert collect.main(given) == 1
        printed = capsys.readouterr()
        assert "dropped: dump breaks off in this page  1\n" in printed.out
        assert printed.err.startswith("a.xml breaks off in page 2: ")
    manifest = read_json(tmp_path / "documents" / "wikipedia_dump" / "manifest.json")
    assert len(manifest["damaged"]) == 1
    assert manifest["documents"] + sum(manifest["dropped"].values()) == 2 + len(PAGES)
    kept = [row.id for part in list_parts(tmp_path) for row in read_part(part.path)]
    assert kept == ["a.xml/1", "b.xml/1", "b.xml/6"]
    (tmp_path / "in" / "a.xml").write_text(HEAD + PAGES[5] + PAGES[0] + "</mediawiki>")
    assert collect.main(given) == 0


def test_a_dump_that_its_checksum_refuses_leaves_the_others_collected(tmp_path, capsys) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.xml", "b.xml"):
        (tmp_path / "in" / name).write_text(DUMP)
    (tmp_path / "in" / "a.xml.md5").write_text("0" * 32)
    given = _given(tmp_path)
    assert collect.main(given) == 1
    assert (
        "1 of 2 tasks failed: part-00000. Task part-00000: RuntimeError: "
        in capsys.readouterr().err
    )
    assert (tmp_path / "documents" / "wikipedia_dump" / "part-00001.parquet").exists()


# --- markup --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''Bold''', ''slanted'' and l''''art'''.", "Bold, slanted and l'art."),
        ("A [[b|c]] [[d]]s [[:Category:E]].", "A c ds Category:E."),
        ("One\n\n== H ==\nTwo\n=== I ===\nThree", "One\nTwo\nThree"),
        ("A{{b|c={{d}}}} e.<ref name=f>G {{h}}</ref><ref name=f/>", "A e."),
        ("A.\n{| class=b\n| c\n{| \n| d\n|}\n|}\nE.", "A.\nE."),
        ("A.\n{| class=b\n| never closed\n\nc", "A."),
        ("A.\n* [[b]] c\n# {{d}} e\n; f : g\n:: h\nI.", "A.\nI."),
        ("[[File:A.jpg|thumb|B [[c]] d.]]E.", "E."),
        ("[[Bestand:A.jpg|thumb|B.]]E.", "E."),
        ("A.\n[[Kategorie:B]]\n[[Rummad:C|d]] [[E:F]]\n[[de:G]]\n[[zh-min-nan:H]]", "A."),
        ("A.[[de:G]] [[Category:H|i]]", "A."),
        ("A [[wp:B|c]] [[Star Trek: D]].", "A c Star Trek: D."),
        ("A <math>x^2</math>b<!-- c --> __NOTOC__", "A b"),
        ("A http://b.org [http://c.org d] [http://e.org].", "A d."),
        ("A&nbsp;&ndash;&#32;b &lt; c x<sup>2</sup>", "A – b < c x^2"),
        ("A<br />b<blockquote>C</blockquote>d", "A\nb\nC\nd"),
        ("A ({{lang|b}}; c) (d, {{e}}) ({{f}}), {{g}}, h.", "A (c) (d), h."),
        ("一-{zh-cn:域;zh-tw:體}-二-{三}-", "一域二三"),
        ("<nowiki>[[A]]</nowiki> b", "A b"),
        ("<gallery>\nA.jpg|b\n</gallery><div>C</div>", "C"),
        ("A}} b {{ c", "A b c"),
    ],
)
def test_markup_leaves_prose(markup: str, text: str) -> None:
    assert to_text(markup) == text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("Λ ({{lang|grc|''λόγος''}}, {{transl|grc|ALA|logos}})", "Λ (λόγος, logos)"),
        ("B ({{lang-sq|bashki}}; {{IPA-sq|baʃˈki}}) and {{langx|de|C}}", "B (bashki) and C"),
        ("{{nowrap|$3 [[trillion]]}}, {{small|a}}", "$3 trillion, a"),
        ("{{convert|24,200|mi|km}} off", "24,200 mi off"),
        ("{{convert|3|to|5|km|mi|0}}, {{cvt|7|–|10|kg}}", "3 to 5 km, 7–10 kg"),
        ("{{convert|6|ft|2|in|m|abbr=on}} and {{convert|28|C}}", "6 ft 2 in and 28 °C"),
        ("{{Convert|1|l}} or {{convert|5|km|0}}", "1 l or 5 km"),
        ("on 7{{nbsp}}May{{snd}}{{circa|1500}}", "on 7 May – c. 1500"),
        ("{{As of|2009}}, {{as of|2010|5|lc=y}}, {{as of|2011|alt=in 2011}}",
         "As of 2009, as of May 2010, in 2011"),
        ("{{chem|CO|2}} {{frac|2}} {{frac|1|3|4}} {{val|0.9|u=A}}", "CO2 1/2 1 3/4 0.9 A"),
        ("{{USS|Hornet|CV-12|6}} {{nihongo|staff|杖|jō}} {{formatnum: 3003}}",
         "USS Hornet staff 3003"),
        ("Said:{{quote|We [[go]].|author=A}}{{Quote|text=On.}}It", "Said:\nWe go.\nOn.\nIt"),
        ("{{lang|1=grc|2=a=b}} {{lang|grc}} {{convert}}{{frac}}{{as of}}", "a=b"),
    ],
)  # fmt: skip
def test_templates_that_carry_prose_leave_it(markup: str, text: str) -> None:
    assert to_text(f"X {markup} Y") == f"X {text} Y"


def test_namespaces_that_the_dump_names_are_hidden(tmp_path: Path) -> None:
    page = _page("A", "B [[Datei:C|mini|D]] e [[Kategorie:F|g]].")
    items = _read_bytes(tmp_path, f"{HEAD}{page}</mediawiki>".encode())
    assert [item.text for item in _kept(items)] == ["B e."]


@pytest.mark.parametrize(
    ("title", "markup", "is_one"),
    [
        ("A (disambiguation)", "A.", True),
        ("A", "A.\n{{Disambiguation}}", True),
        ("A", "A.\n{{disambig|geo}}", True),
        ("A", "A.\n{{ Human_name disambiguation }}", True),
        ("A", "A.\n{{Begriffsklärung}}", True),
        ("A", "A.\n{{hndis|B, C}}", True),
        ("A", "A.\n__DISAMBIG__", True),
        ("A (Begriffsklärung)", "A.", True),
        ("A (dab hand)", "A.", False),
        ("A", "{{for|others|A (disambiguation)}} A [[b (disambiguation)]].", False),
        ("A", "A [[b]]{{Disambiguation needed|date=May 2015}}.", False),
        ("A", "{{Nota disambigua|b}} A.", False),
        ("A", "{{Begriffsklärungshinweis}} A.", False),
    ],
)
def test_disambiguation_pages_are_distinguished_from_pages_that_point_at_one(
    title, markup, is_one
) -> None:
    assert is_disambiguation(title, markup) is is_one


# --- real dumps ----------------------------------------------------------------------------------


REDIRECTS_AND_MORE = {"redirect": 99, "disambiguation": 8, "namespace 4": 1, "no prose": 1}


@pytest.mark.parametrize(
    ("name", "documents", "dropped"),
    [
        pytest.param(
            "xml/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2", 97,
            REDIRECTS_AND_MORE, marks=pytest.mark.slow),
        ("xml/enwiki-table-markup.xml.bz2", 5, {}),
        ("xml/own-table-markup-multistream.xml.bz2", 5, {}),
        ("xml/own-table-markup-truncated.xml.bz2", 0, {"damaged": 1}),
        ("xml/own-table-markup-truncated.xml.xz", 2,
         {"dump breaks off in this page": 1, "damaged": 1}),
        ("other_languages/bgwiki-latest-pages-articles-shortened.xml.bz2", 1, {"namespace 4": 2}),
        ("xml/enwiki-single-pages.tar.xz", 8, {}),
        ("other_languages/single-pages-16-languages.tar.xz", 20, {}),
    ],
)  # fmt: skip
def test_real_dumps_are_read_page_by_page_and_leave_no_markup(
    tmp_path: Path, name: str, documents: int, dropped: dict[str, int]
) -> None:
    path = packed(f"wiki/{name}")
    if name.endswith(".tar.xz"):
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
        path = tmp_path
    items = _read(path)
    reasons = Counter(
        "damaged" if isinstance(item, Damage) else item.reason
        for item in items
        if not isinstance(item, Document)
    )
    assert reasons == dropped
    kept = _kept(items)
    assert len(kept) == documents
    left = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|''|==|<ref|</|\b(?:File|Image):|https?://")
    assert [match[0] for item in kept for match in left.finditer(item.text)] == []

"""Data sets of rows: Wikipedia, BookCorpus and books, cut anywhere; rows that are broken."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_reading import read_all, reasons, source_of, texts

from data_prep import collect
from data_prep.core.config import SettingsError
from data_prep.core.job import load, require_source
from data_prep.sources import module_of
from data_prep.sources.inputs import dataset_rows as rows
from data_prep.stores.documents import Document, Reject


def _wikipedia(num_rows: int) -> list[dict[str, str]]:
    return [
        {"id": str(n), "url": "u", "title": f"T{n}", "text": f"A  line {n}.\n\nAnother."}
        for n in range(num_rows)
    ]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_wikipedia_rows_become_documents_once_each_whatever_the_cut(tmp_path, kind) -> None:
    pages = _wikipedia(25)
    pages[3]["text"] = " \n"
    (tmp_path / "rows").mkdir()
    for name, share in (("b", pages[15:]), ("a", pages[:15])):
        path = tmp_path / "rows" / f"{name}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(share), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in share))
    source = source_of("wikipedia", tmp_path / "rows")
    items = read_all(source, characters=200)
    assert reasons(items) == {"3": "no prose"}
    assert [item.id for item in items] == [str(n) for n in range(25)]
    assert items[0] == Document("0", "T0", "A line 0.\nAnother.")
    tasks = module_of(source.kind).plan(source, 200, tmp_path / "cache").tasks
    assert len(tasks) > 3


@pytest.mark.parametrize("characters", [1, 300, 10**9])
def test_bookcorpus_rows_are_grouped_alike_whatever_the_cut(tmp_path, characters) -> None:
    sentences = [{"text": f"sentence {n} ."} for n in range(23)]
    for n in range(10, 15):
        sentences[n]["text"] = ""
    pq.write_table(pa.Table.from_pylist(sentences), tmp_path / "a.parquet")
    source = source_of("bookcorpus", tmp_path / "a.parquet", rows_per_document=5)
    items = read_all(source, characters)
    assert reasons(items) == {"row-000000010": "empty"}
    kept = texts(items)
    assert list(kept) == [f"row-{n:09d}" for n in (0, 5, 15, 20)]
    assert kept["row-000000020"] == "sentence 20 .\nsentence 21 .\nsentence 22 ."


def test_quotes_and_contractions_of_bookcorpus_are_put_back(tmp_path: Path) -> None:
    rows = ["`` are n't you being a good boy , megan ? ''", "she said ."]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (book,) = read_all(source_of("bookcorpus", tmp_path, rows_per_document=5))
    assert isinstance(book, Document)
    assert book.text == '" aren\'t you being a good boy , megan ? "\nshe said .'


def test_blanks_before_punctuation_change_no_id() -> None:
    from tokenizers.pre_tokenizers import BertPreTokenizer

    split = [
        [word for word, _ in BertPreTokenizer().pre_tokenize_str(text)]
        for text in ("he 'd seen megan 's plan ( twice ) , twenty-two ; no ?",
                     "he'd seen megan's plan (twice), twenty-two; no?")
    ]  # fmt: skip
    assert split[0] == split[1]


def test_the_manifest_records_how_many_rows_make_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "she said ."}\n' * 30)
    given = ["+source=bookcorpus", f"source.path={tmp_path / 'a.jsonl'}", f"data_dir={tmp_path}"]
    manifest = collect.run(load([*given, "source.rows_per_document=20", "num_workers=1"]))
    assert manifest.settings["rows_per_document"] == 20
    assert (manifest.inputs, manifest.documents) == ({"rows": 30}, 2)


def test_a_bookcorpus_row_can_be_a_whole_book(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "One.\\nTwo."}\n{"text": null}\n')
    items = read_all(source_of("bookcorpus", tmp_path))
    assert items == [
        Document("row-000000000", "", "One.\nTwo."),
        Reject("row-000000001", "", "", "empty"),
    ]


@pytest.mark.parametrize(
    "name",
    ["wiki [en]", "v[12]", "w*", "a?b", "**", "[!a]", "{a,b}", "a#b%20", "~x", "__a__", "http:"],
)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_path_is_a_path_and_no_pattern(tmp_path: Path, name: str, kind: str) -> None:
    for folder in (name, "v1", "wide", "axb", "b"):  # the others are what a pattern would find
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / f"w*[1].{kind}"
        path.write_text(json.dumps({"text": folder}) + "\n")
        if kind == "parquet":
            pq.write_table(pa.table({"text": [folder]}), path)
    assert list(texts(read_all(source_of("bookcorpus", tmp_path / name))).values()) == [name]


@pytest.mark.parametrize("name", ["a::b", "caf\udce9"])
def test_a_path_that_datasets_cannot_read_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.jsonl").write_text('{"text": "One."}\n')
    with pytest.raises(SettingsError, match="reads no path that holds :: or is not UTF-8; rename"):
        read_all(source_of("bookcorpus", tmp_path / name))


@pytest.mark.parametrize(
    ("text", "kind"),
    [(5, "int64"), (["One.", "Two."], "list<"), ({"en": "One."}, "struct<"), (True, "bool")],
)
def test_a_column_that_holds_no_text_is_refused(tmp_path: Path, text: object, kind: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
    with pytest.raises(SettingsError, match=rf"has the columns text of {kind}.*must hold text"):
        read_all(source_of("bookcorpus", tmp_path))


def test_a_parquet_column_of_another_kind_of_text_is_read(tmp_path: Path) -> None:
    for number, kind in enumerate([pa.string(), pa.large_string()]):
        table = pa.table({"text": pa.array(["One.", None], kind)})
        pq.write_table(table, tmp_path / f"{number}.parquet")
        source = source_of("bookcorpus", tmp_path / f"{number}.parquet")
        assert list(texts(read_all(source)).values()) == ["One."]


def _write_rows(path: Path, num_rows: int, **columns: str) -> None:
    row = {"id": "1", "title": "T", "text": "A text of some words.", **columns}
    pq.write_table(pa.Table.from_pylist([row] * num_rows), path, row_group_size=500)


def test_a_damaged_parquet_file_is_named_with_the_place(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        _write_rows(tmp_path / name, 2_000)
    with pq.ParquetFile(tmp_path / "b.parquet") as file:
        offset = file.metadata.row_group(2).column(2).data_page_offset
    data = bytearray((tmp_path / "b.parquet").read_bytes())
    data[offset : offset + 40] = bytes(40)
    (tmp_path / "b.parquet").write_bytes(data)
    with pytest.raises(SettingsError, match=r"as parquet: .*b\.parquet, row group 2: "):
        read_all(source_of("wikipedia", tmp_path))
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(SettingsError, match=r"as parquet: .*b\.parquet: "):
        read_all(source_of("wikipedia", tmp_path))


def test_a_file_with_other_columns_is_named(tmp_path: Path) -> None:
    _write_rows(tmp_path / "a.parquet", 5)
    _write_rows(tmp_path / "b.parquet", 5, body="x")
    said = r"b\.parquet: it has the columns \['id'.*, 'body'\], .*a\."
    with pytest.raises(SettingsError, match=said):
        read_all(source_of("wikipedia", tmp_path))


LINES = [json.dumps(row).encode() for row in _wikipedia(1_500)]
CUT = b"\n".join([*LINES[:700], LINES[700][:30], *LINES[701:1_000]])
NO_UTF_8 = LINES[1_200].replace(b"Another", b"Caf\xed\xa0\x80")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.csv": b"text\n"}, r"holds neither \.parquet nor \.jsonl; point"),
        ({"a.jsonl": b'{"body": "One.", "title": "T"}\n'},
         "has the columns body, title, and lacks id, text"),
        ({"a.jsonl": b"\n".join(LINES), "b.jsonl": CUT},
         r"cannot be read as json: .*b\.jsonl, line 701: "),
        ({"a.jsonl": b"\n".join([*LINES[:1_200], NO_UTF_8, *LINES[1_201:]])},
         r"row 1200 of the data set .* is not UTF-8: .*remove it"),
    ],
    ids=["other files", "columns", "broken line", "no UTF-8"],
)  # fmt: skip
def test_rows_that_cannot_be_read_are_named(tmp_path, files, said) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_all(source_of("wikipedia", tmp_path))


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("wikipedia", r"20231101\.en/\*"),
        ("bookcorpus", r"\*/train\[-/\]\*"),
        ("gutenberg", r"\*/en\[-/\]\*"),
    ],
)
def test_an_unreachable_hub_names_what_to_fetch_and_the_setting(
    name: str, files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # refuses
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)  # and as it was, after the test
    source = require_source(load([f"+source={name}", f"data_dir={tmp_path}"]))
    source.dataset = "nobody/has-this-one"
    expected = (
        rf"hf download nobody/has-this-one --repo-type dataset --revision {source.revision} "
        rf'--include "{files}" --local-dir FOLDER; then set source\.path=FOLDER'
    )
    with pytest.raises(SettingsError, match=expected):
        read_all(source)


def test_the_inputs_name_the_commit_of_the_hub() -> None:
    commit = "b04c8d1ceb2f5cd4588862100d08de323dccfbaa"
    assert rows._commit([f"/cache/a___b/c/0.0.0/{commit}/x.arrow"]) == {"commit": commit}
    assert rows._commit([f"/cache/json/default/0.0.0/{'0' * 64}/x.arrow"]) == {}


def test_pages_that_list_meanings_and_short_ones_are_rejected(tmp_path: Path) -> None:
    pages = [
        {"id": "1", "title": "A", "text": "A may refer to:\n\nB, a town\n\nC, a village"},
        {"id": "2", "title": "D", "text": "D is one."},
        {"id": "3", "title": "E", "text": "E is an article of some words."},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    items = read_all(source_of("wikipedia", tmp_path, min_characters=20))
    assert reasons(items) == {"1": "disambiguation", "2": "too short"}
    assert texts(items) == {"3": "E is an article of some words."}


# --- books ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["text", "TEXT"])
def test_a_raw_book_in_a_row_becomes_what_its_file_becomes(tmp_path: Path, column: str) -> None:
    raw = (
        "The Project Gutenberg eBook of X\r\n\r\nTitle: X, or\r\n\r\n"
        "*** START OF THE PROJECT GUTENBERG EBOOK X ***\r\n\r\n[Illustration]\r\n\r\n"
        + "It was a dark\r\nnight.\r\n\r\nIt _was_ day.\r\n\r\n" * 3
        + "*** END OF THE PROJECT GUTENBERG EBOOK X ***\r\nlicence"
    )
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "x.txt").write_bytes(raw.encode())
    (book,) = read_all(source_of("books", tmp_path / "files"))
    values = [{"id": "1-0", column: raw}] * 2 + [{"id": "2", column: None}]
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet")
    source = source_of("book_rows", tmp_path / "a.parquet", text_column=column)
    assert read_all(source, characters=1) == [
        Document("row-000000000", "X, or", book.text),
        Document("row-000000001", "X, or", book.text),
        Reject("row-000000002", "", "", "empty"),
    ]
    assert book.text.count("\n") == 5

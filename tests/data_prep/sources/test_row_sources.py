"""Wikipedia, BookCorpus and books as rows: cut anywhere, numbered alike, broken anywhere."""

import json
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from row_tables import KINDS, PACKINGS
from source_reading import read_all, reasons, source_of, texts

from data_prep import collect
from data_prep.core.config import SettingsError
from data_prep.core.job import load, require_source
from data_prep.sources import module_of
from data_prep.sources.inputs import numbered_rows
from data_prep.stores.documents import Damage, Document, Reject


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
            pq.write_table(pa.Table.from_pylist(share), path, row_group_size=4)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in share))
    source = source_of("wikipedia", tmp_path / "rows")
    items = read_all(source, characters=200)
    assert reasons(items) == {"3": "no prose"}
    assert [item.id for item in items] == [str(n) for n in range(25)]
    assert items[0] == Document("0", "T0", "A line 0.\nAnother.")
    tasks = module_of(source).plan(source, 200).tasks
    assert len(tasks) > 3


def _write(path: Path, rows: list[dict[str, str]], blank: str = "") -> None:
    """A file of the kind of its name, in row groups of 4; `blank` is before each line of JSON."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(blank + json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json"])
@pytest.mark.parametrize("characters", [1, 300, 10**9])
def test_bookcorpus_rows_are_grouped_alike_whatever_the_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, characters: int
) -> None:
    monkeypatch.setattr(numbered_rows, "_STRETCH", 50)
    sentences = [{"text": f"sentence {n} ."} for n in range(23)]
    for n in range(10, 15):
        sentences[n]["text"] = ""
    _write(tmp_path / f"a.{kind}", sentences[:9], blank=" \n")  # a document crosses the border
    _write(tmp_path / f"b.{kind}", sentences[9:])
    source = source_of("bookcorpus", tmp_path, rows_per_document=5)
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
    assert (manifest.inputs["rows"], manifest.documents) == (30, 2)


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
def test_a_path_with_any_bytes_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.jsonl").write_text('{"text": "One."}\n')
    source = source_of("bookcorpus", tmp_path / name)
    assert list(texts(read_all(source)).values()) == ["One."]


@pytest.mark.parametrize("kind", ["wikipedia", "bookcorpus", "book_rows"])
@pytest.mark.parametrize(
    ("text", "type"),
    [(5, "int"), (["One.", "Two."], "list"), ({"en": "One."}, "dict"), (True, "bool")],
)
def test_a_value_that_is_no_text_is_rejected_with_its_type(tmp_path, kind, text, type) -> None:
    rows = [{"id": "1", "title": "T", "text": text}, {"id": "2", "title": "T", "text": "One."}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = read_all(source_of(kind, tmp_path, text_column="text"))
    assert list(reasons(items).values()) == [f"text of type {type}"]
    assert list(texts(items).values()) == ["One."]


def test_a_parquet_column_of_another_kind_of_text_is_read(tmp_path: Path) -> None:
    for number, kind in enumerate([pa.string(), pa.large_string()]):
        table = pa.table({"text": pa.array(["One.", None], kind)})
        pq.write_table(table, tmp_path / f"{number}.parquet")
        source = source_of("bookcorpus", tmp_path / f"{number}.parquet")
        assert list(texts(read_all(source)).values()) == ["One."]


@pytest.mark.parametrize("kind", ["wikipedia", "bookcorpus", "book_rows"])
def test_a_damaged_file_costs_no_other_and_no_number_of_their_rows(tmp_path, kind) -> None:
    for name in "abcd":
        row = {"id": "1", "title": "T", "text": "A text of some words."}
        table = pa.Table.from_pylist([row] * 2_000)
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=500)
    with pq.ParquetFile(tmp_path / "b.parquet") as file:
        offset = file.metadata.row_group(2).column(2).data_page_offset
    data = bytearray((tmp_path / "b.parquet").read_bytes())
    data[offset : offset + 40] = bytes(40)
    (tmp_path / "b.parquet").write_bytes(data)
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    source = source_of(kind, tmp_path, text_column="text")
    for characters in (20_000, 10**9):
        items = read_all(source, characters)
        damaged = [item.input for item in items if isinstance(item, Damage)]
        assert list(dict.fromkeys(damaged)) == ["b.parquet", "c.parquet"]
        kept = [item.id for item in items if isinstance(item, Document)]
        assert 5_000 <= len(kept) < 6_000
        if kind != "wikipedia":
            assert kept[-1] == "row-000005999"  # what the footers count is numbered


def test_rows_of_json_that_cannot_be_read_are_numbered_and_rejected(tmp_path: Path) -> None:
    lines = [b'{"text": "One."}', b'{"text": "Tw', b'{"text": "Caf\xe9."}', b'{"text": "Four."}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    items = read_all(source_of("bookcorpus", tmp_path), characters=1)
    assert reasons(items) == {
        "row-000000001": "line that is no JSON", "row-000000002": "row that is not UTF-8"
    }  # fmt: skip
    assert texts(items) == {"row-000000000": "One.", "row-000000003": "Four."}


def test_planning_numbered_parquet_reads_footers_alone(tmp_path: Path, monkeypatch) -> None:
    for name in "ab":
        pq.write_table(pa.table({"text": ["One."] * 3_000}), tmp_path / f"{name}.parquet")
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_: pytest.fail("text is read"))
    source = source_of("bookcorpus", tmp_path)
    plan = module_of(source).plan(source, 10_000)
    assert plan.inputs["rows"] == 6_000
    assert len(plan.tasks) > 3


def test_a_changed_file_changes_the_states_of_the_rows_that_are_numbered_after_it(tmp_path) -> None:
    def states() -> list[object]:
        plan = module_of(source).plan(source, 40)
        return plan.states

    source = source_of("book_rows", tmp_path, text_column="text")
    for name in "abc":
        _write(
            tmp_path / f"{name}.parquet", [{"text": "A text of forty characters, as it is."}] * 4
        )
    before = states()
    _write(tmp_path / "b.parquet", [{"text": "A text of forty characters, as it is."}] * 5)
    after = states()
    assert after[:4] == before[:4]
    assert not [state for state in after[4:] if state in before]


@pytest.mark.parametrize(
    ("kind", "files", "said"),
    [
        ("wikipedia", {"a.txt": b"text\n"}, r"holds no file of rows .*; there are 1 \.txt: a\.txt"),
        ("bookcorpus", {"a.csv": b"text\n"}, r"holds no plain .*; there are 1 \.csv: a\.csv"),
        ("wikipedia", {"a.jsonl": b'{"body": "One.", "title": "T"}\n'},
         "has the columns body, title, and lacks text, id; point source.path at files with text"),
        ("bookcorpus", {"a.jsonl": b'{"body": "One.", "title": "T"}\n'}, "and lacks text; point"),
    ],
)  # fmt: skip
def test_what_holds_no_rows_or_other_columns_is_refused(tmp_path, kind, files, said) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=said):
        read_all(source_of(kind, tmp_path))


def test_wikipedia_reads_every_kind_of_rows_and_packing(tmp_path: Path) -> None:
    for number, (kind, packing) in enumerate(product(KINDS, PACKINGS)):
        share = [{"id": f"{number}-{n}", "title": "T", "text": "A text."} for n in range(4)]
        (tmp_path / f"{number}{kind}{packing}").write_bytes(PACKINGS[packing](KINDS[kind](share)))
    items = read_all(source_of("wikipedia", tmp_path))
    assert len(texts(items)) == len(items) == 4 * len(KINDS) * len(PACKINGS)


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

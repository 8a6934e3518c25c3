"""Any files of rows: every kind and packing, cut anywhere, broken anywhere; columns and ids."""

import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_tables import KINDS, PACKINGS
from slow_cases import slow_but
from source_reading import read_all, reasons, source_of, texts

from data_prep import collect
from data_prep.core.config import SettingsError
from data_prep.core.job import load, require_source
from data_prep.core.settings import SourceSettings
from data_prep.encoding import encode_part as task_module
from data_prep.sources import rows
from data_prep.sources.inputs import pieces, row_files
from data_prep.sources.inputs.packed import endings_of
from data_prep.stores.documents import Damage, Document, Reject, list_parts, read_part
from data_prep.stores.token_records import SentenceSettings

ROWS = [
    {"url": f"http://x/{n}", "content": f'A "first", line {n}.\nÄ second; line\tof 語 it.'}
    for n in range(10)
]
DOCUMENTS = [Document(row["url"], "", row["content"].replace("\t", " ")) for row in ROWS]


def _source(path: Path, **more: object) -> SourceSettings:
    return source_of("rows", path, **{"text_column": "content", **more})


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_packing_gives_the_same_documents(tmp_path, kind, packing) -> None:
    (tmp_path / f"a{kind}{packing}").write_bytes(PACKINGS[packing](KINDS[kind](ROWS)))
    assert read_all(_source(tmp_path)) == DOCUMENTS


def test_kinds_are_mixed_in_one_folder(tmp_path: Path) -> None:
    for number, (kind, write) in enumerate(KINDS.items()):
        share = [{**row, "url": f"{kind}{number}{row['url']}"} for row in ROWS]
        (tmp_path / f"{number}{kind}").write_bytes(write(share))
    items = read_all(_source(tmp_path))
    assert len(texts(items)) == len(items) == len(KINDS) * len(ROWS)


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
@settings(max_examples=60, deadline=None)
@given(table=st.lists(st.tuples(_TEXTS, _TEXTS), min_size=1, max_size=8))
def test_any_table_of_text_is_read_as_it_was_written(tmp_path_factory, kind, table) -> None:
    path = tmp_path_factory.mktemp("rows") / f"a{kind}"
    path.write_bytes(KINDS[kind]([{"a": a, "content": b} for a, b in table]))
    found = row_files.read_rows(pieces.Piece(path.name, str(path)), ["content", "a"])
    assert [(row.values["a"], row.values["content"]) for row in found] == table


@given(lengths=st.lists(st.integers(0, 30), max_size=30), most=st.integers(1, 60))
def test_lines_are_in_one_piece_each_wherever_the_file_is_cut(tmp_path_factory, lengths, most):
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    values = [json.dumps({"content": "é" * length}).encode() for length in lengths]
    path.write_bytes(b"\n".join(values))
    place = pieces.Place(path.name, str(path), path.stat().st_size, [])
    plan = pieces.plan_pieces([place], most)
    found = []
    for task in plan.tasks:
        for fields in task:
            piece = pieces.Piece(*fields)
            with pieces.open_piece(piece) as file:
                found += pieces.read_lines(file, piece.first, piece.last)
    assert [line.strip() for _, line in found] == values
    whole = path.read_bytes()
    assert all(whole[place:].startswith(line) for place, line in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("characters", [1, 150, 400])
def test_the_cut_changes_no_document(tmp_path: Path, kind: str, characters: int) -> None:
    for name in "ab":
        (tmp_path / f"{name}{kind}").write_bytes(KINDS[kind](ROWS))
    source = _source(tmp_path, id_column=rows.NUMBERED)
    whole = read_all(source)
    assert read_all(source, characters) == whole
    assert len({item.id for item in whole}) == 20
    num_tasks = len(rows.plan(source, 1).tasks)
    assert num_tasks > 2 if kind in (".jsonl", ".parquet") else num_tasks == 2


@pytest.mark.parametrize("packing", [".gz", ".zst", ".bz2", ".xz"])
def test_a_large_packed_file_is_cut_coarsely(tmp_path: Path, packing: str) -> None:
    many = [{"url": str(n), "content": f"{n * 7919 % 10007:x} " * 9} for n in range(2_000)]
    (tmp_path / f"a.jsonl{packing}").write_bytes(PACKINGS[packing](KINDS[".jsonl"](many)))
    whole = read_all(_source(tmp_path))
    assert len(whole) == 2_000
    assert read_all(_source(tmp_path), 500) == whole
    tasks = rows.plan(_source(tmp_path), 500).tasks
    assert len(tasks) >= 5
    assert tasks[1][0][2:] == [8_000, 16_000]


def test_a_parquet_file_is_cut_by_row_groups(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(KINDS[".parquet"](ROWS))
    plan = rows.plan(_source(tmp_path), 1)
    assert [[piece[2:] for piece in task] for task in plan.tasks] == [
        [[0, 1]],
        [[1, 2]],
        [[2, None]],
    ]
    assert len({json.dumps(state) for state in plan.states}) == 3


def test_planning_reads_no_text_of_large_files(tmp_path: Path, monkeypatch) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(KINDS[".jsonl"](ROWS * 1_000))
    opened = []
    whole = pieces.open_input

    def counted(at: str):
        file = whole(at)
        opened.append((at, file))
        return file

    monkeypatch.setattr(pieces, "open_input", counted)
    plan = rows.plan(_source(tmp_path), 10_000)
    assert len(plan.tasks) > 100
    assert [Path(at).name for at, _ in opened] == ["a.jsonl"]  # its first rows, for their columns


# --- ids, titles, languages ----------------------------------------------------------------------


def _write(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


@pytest.mark.parametrize(
    ("row", "more", "id"),
    [
        ({"id": 7, "url": "u"}, {}, "7"),
        ({"url": "u"}, {}, "u"),
        ({"id": None, "url": "u"}, {}, "u"),
        ({"id": ["x"], "url": ""}, {}, "a.jsonl:0"),
        ({}, {}, "a.jsonl:0"),
        ({"id": 7}, {"id_column": "file:row"}, "a.jsonl:0"),
        ({"id": 7, "doc": "d"}, {"id_column": "doc"}, "d"),
    ],
)
def test_a_document_is_named_by_a_column_or_its_place(tmp_path, row, more, id) -> None:
    _write(tmp_path / "a.jsonl", {**row, "content": "Text."})
    assert list(texts(read_all(_source(tmp_path, **more)))) == [id]


def test_a_row_of_json_is_named_by_its_first_byte_and_others_by_their_number(tmp_path) -> None:
    for kind in (".jsonl", ".csv"):
        (tmp_path / f"a{kind}").write_bytes(KINDS[kind](ROWS))
    ids = list(texts(read_all(_source(tmp_path, id_column="file:row"))))
    assert ids[:10] == [f"a.csv:{n}" for n in range(10)]
    data = (tmp_path / "a.jsonl").read_bytes()
    assert ids[11] == f"a.jsonl:{data.index(b'{', 1)}"


def test_the_title_is_that_of_its_column(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", {"content": "Text.", "name": " A \n title "}, {"content": "B."})
    items = read_all(_source(tmp_path, title_column="name"))
    assert [item.title for item in items] == ["A title", ""]


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [("de", [0, 1, 2]), ("zh", [4, 5, 6]), ("zh-hans", [5]), ("he", [7, 8]), (None, range(10))],
)
def test_a_stated_language_decides_what_is_kept(tmp_path: Path, wanted, kept) -> None:
    stated = ["de", "de_AT", "DE", "en", "zh-Hant", "zh-hans", "zh-tw", "he", "iw", None]
    _write(tmp_path / "a.jsonl", *({"content": "Text.", "id": n, "l": c}
                                   for n, c in enumerate(stated)))  # fmt: skip
    items = read_all(_source(tmp_path, language_column="l", language=wanted))
    assert list(texts(items)) == [str(n) for n in kept]
    assert len(items) == 10


def test_a_stated_language_is_not_detected_again(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", {"text": "Das ist ein ganz deutscher Satz.", "l": "en"})
    given = ["+source=rows", f"source.path={path}", f"data_dir={tmp_path}", "num_workers=1"]
    given += ["source.language_column=l", "source.language=en"]
    assert collect.run(load(given)).documents == 1


def test_a_stated_language_is_stored_and_decides_how_the_document_is_split(tmp_path) -> None:
    stated = ["de", "pt_BR", "ZH-Hant", "nonsense", None]
    text = "Am 11. Januar kam er zu uns, und wir haben den ganzen Abend miteinander gesprochen."
    values = ({"text": text, "id": n, "l": c} for n, c in enumerate(stated))
    path = _write(tmp_path / "a.jsonl", *values)
    given = ["+source=rows", f"source.path={path}", f"data_dir={tmp_path}", "num_workers=1"]
    collect.run(load([*given, "source.language_column=l", "language=multi"]))
    (part,) = list_parts(tmp_path)
    documents = list(read_part(part.path, part.rows))
    assert [document.language for document in documents] == ["de", "pt", "zh-hant", "", ""]
    assert part.has_languages
    language_of = task_module._languages(SentenceSettings("multi", "sentencex", "1"))
    assert [language_of(document)[0] for document in documents] == [
        "de", "pt", "zh-hant", "de", "de",
    ]  # fmt: skip


def test_without_a_language_column_a_part_has_the_columns_it_always_had(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", {"text": "One."})
    collect.run(load(["+source=rows", f"source.path={path}", f"data_dir={tmp_path}"]))
    (part,) = list_parts(tmp_path)
    assert pq.read_schema(part.path).names == ["id", "title", "text"]
    assert not part.has_languages


def test_a_column_that_the_first_file_lacks_is_refused_with_those_there(tmp_path) -> None:
    for kind in KINDS:
        (tmp_path / "a").mkdir(exist_ok=True)
        path = tmp_path / "a" / f"a{kind}"
        path.write_bytes(KINDS[kind](ROWS))
        said = rf"text_column=text: a{kind} has the columns url, content; set source\.text_column"
        with pytest.raises(SettingsError, match=said):
            read_all(source_of("rows", path, text_column="text"))
        with pytest.raises(SettingsError, match="title_column=t: a"):
            read_all(_source(path, title_column="t"))


# --- what is broken ------------------------------------------------------------------------------


def test_broken_rows_are_rejected_and_cost_no_other(tmp_path: Path) -> None:
    lines = [
        b'{"content": "One."}', b'{"content": "cut', b"[1]", b'{"content": 5}', b'{"x": 1}',
        b'{"content": null}', b'{"content": " "}', b'{"content": "Caf\xe9"}', b"",
        b'{"content": "Two.", "score": NaN}', b"[" * 100_000, b'{"content": "\\ud800 Three."}',
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines) + b"\n")
    items = read_all(_source(tmp_path))
    assert list(texts(items).values()) == ["One.", "Two.", "Three."]
    assert list(reasons(items).values()) == [
        "line that is no JSON", "row that is no JSON object", "text of type int", "no text",
        "no text", "empty", "row that is not UTF-8", "line that is no JSON",
    ]  # fmt: skip


def test_broken_rows_of_csv_are_rejected_and_cost_no_other(tmp_path: Path) -> None:
    lines = [
        b"url,content", b"1,One.", b'2,"a"b', b"3,one,too many", b"4", b"", b"5,Caf\xe9",
        b'6,"with a, comma', b'and ""quotes"""', b"7,", b'8,"has no end',
    ]  # fmt: skip
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    items = read_all(_source(tmp_path))
    assert texts(items) == {"1": "One.", "6": 'with a, comma\nand "quotes"'}
    assert list(reasons(items).items()) == [
        ("a.csv:1", "row with broken quotes"),
        ("a.csv:2", "row with more or fewer columns than the header"),
        ("a.csv:3", "row with more or fewer columns than the header"),
        ("a.csv:5", "row that is not UTF-8"),
        ("7", "empty"),
        ("a.csv:8", "row with broken quotes"),
    ]


@pytest.mark.parametrize("sign", ";\t")
def test_a_csv_of_another_delimiter_is_read(tmp_path: Path, sign: str) -> None:
    (tmp_path / "a.csv").write_text(f"url{sign}content\nu{sign}One, two.\n")
    assert texts(read_all(_source(tmp_path))) == {"u": "One, two."}


@pytest.mark.parametrize(
    ("kind", "packing"),
    slow_but(
        [(".csv", ".gz"), (".csv", ".zst"), (".jsonl", ".bz2"), (".jsonl", ".xz")],
        itertools.product((".jsonl", ".csv"), (".gz", ".zst", ".bz2", ".xz")),
    ),
)
def test_a_packed_file_that_breaks_off_gives_what_precedes(tmp_path, kind, packing) -> None:
    many = [{"url": f"{n:06}", "content": f"{n * 7919 % 10007:x} " * 20} for n in range(20_000)]
    packed = PACKINGS[packing](KINDS[kind](many))
    (tmp_path / f"a{kind}{packing}").write_bytes(packed[: len(packed) * 9 // 10])
    (tmp_path / "b.jsonl").write_bytes(KINDS[".jsonl"](ROWS))
    *before, damage = read_all(_source(tmp_path))[:-10]
    assert isinstance(damage, Damage)
    assert damage.input == f"a{kind}{packing}"
    assert [item.id for item in before if isinstance(item, Document)] == [
        f"{n:06}" for n in range(len(before) - sum(isinstance(i, Reject) for i in before))
    ]
    assert len(before) > (10_000 if packing != ".bz2" else 1_000)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl.gz", b"no gzip", "breaks off or is corrupt"),
        ("a.jsonl.zst", b"no zstandard", "breaks off or is corrupt"),
        ("a.jsonl", PACKINGS[".gz"](b"x"), "is packed, and its name does not end in .gz"),
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
        ("a.arrow", b"no arrow", "cannot be read"),
        ("a.arrow", KINDS["_file.arrow"](ROWS)[:400], "cannot be read"),
        ("a.json", b'[{"content": "One."}', "is no JSON"),
        ("a.csv", b"u,v\n1,2\n", "has no column content; its columns are u, v"),
        ("a.parquet", KINDS[".parquet"]([{"content": 5}]), "a column content of int64"),
        ("a.parquet", KINDS[".parquet"]([{"content": ["x"]}]), "a column content of list<"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_costs_no_other(tmp_path, name, data, said):
    (tmp_path / "0.jsonl").write_bytes(KINDS[".jsonl"](ROWS))
    (tmp_path / name).write_bytes(data)
    (tmp_path / "z.jsonl").write_bytes(KINDS[".csv"](ROWS)[:0])
    for characters in (1, 10**9):
        items = read_all(_source(tmp_path), characters)
        assert [item for item in items if isinstance(item, Document)] == DOCUMENTS
        (damage,) = {item for item in items if isinstance(item, Damage)}
        assert damage.input == name
        assert said in damage.what


def test_a_row_of_parquet_or_arrow_that_is_not_utf_8_is_rejected_alone(tmp_path: Path) -> None:
    texts_of = pa.array([b"One.", b"Caf\xe9", b"Two."]).view(pa.string())
    table = pa.table({"content": texts_of})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "b.arrow", table.schema) as writer:
        writer.write_table(table)
    items = read_all(_source(tmp_path))
    assert list(texts(items).values()) == ["One.", "Two."] * 2
    assert reasons(items) == dict.fromkeys(["a.parquet:1", "b.arrow:1"], "row that is not UTF-8")


@pytest.mark.parametrize("kind", ["_stream.arrow", "_file.arrow", ".parquet"])
def test_columns_in_another_order_and_of_other_kinds_are_left_alone(tmp_path, kind) -> None:
    table = [{"n": 1, "content": "One.", "l": [1, 2], "s": {"a": 1}, "url": "u", "z": 2.5}]
    (tmp_path / f"a{kind}").write_bytes(KINDS[kind](table))
    assert texts(read_all(_source(tmp_path))) == {"u": "One."}


def test_offsets_of_an_arrow_file_that_lead_out_of_it_are_damage(tmp_path: Path) -> None:
    data = bytearray(KINDS["_stream.arrow"]([{"content": "One."}] * 3))
    place = data.index((4).to_bytes(4, "little") + (8).to_bytes(4, "little"))
    data[place : place + 4] = (1 << 30).to_bytes(4, "little")
    (tmp_path / "a.arrow").write_bytes(data)
    (damage,) = read_all(_source(tmp_path))
    assert isinstance(damage, Damage)


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MOST_BYTES", 20_000)
    monkeypatch.setattr(row_files, "MOST_BYTES", 20_000)
    monkeypatch.setattr(row_files, "_MOST_CHARACTERS", 20_000)


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet", "_stream.arrow"])
def test_a_row_that_is_too_long_is_rejected_alone(tmp_path, monkeypatch, kind, packing) -> None:
    monkeypatch.setattr(row_files, "_BATCH_BYTES", 1_000)
    table = [{"url": str(n), "content": "a" * size} for n, size in enumerate([9, 30_000, 9])]
    if packing and endings_of(kind)[0] in (".parquet", ".arrow"):
        table[1]["content"] = "b" * 9  # such a file is in memory as a whole
        (tmp_path / f"x{kind}{packing}").write_bytes(PACKINGS[packing](KINDS[kind](table)))
        assert len(texts(read_all(_source(tmp_path)))) == 3
        return
    (tmp_path / f"x{kind}{packing}").write_bytes(PACKINGS[packing](KINDS[kind](table)))
    items = read_all(_source(tmp_path))
    assert [item.id for item in items if isinstance(item, Document)] == ["0", "2"]
    assert any(reason.startswith("row of more than") for reason in reasons(items).values())


@pytest.mark.usefixtures("small_bounds")
def test_a_row_of_csv_that_is_too_long_is_rejected_with_the_bound_of_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"url,content\n0," + b"a" * 30_000 + b"\n")
    assert list(reasons(read_all(_source(tmp_path))).values()) == ["row of more than 64 MiB"]


@pytest.mark.usefixtures("small_bounds")
def test_a_list_of_json_that_is_too_long_is_damage(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(KINDS[".json"](ROWS * 50))
    (tmp_path / "b.parquet.gz").write_bytes(
        PACKINGS[".gz"](KINDS[".parquet"]([{"content": str(n) * 99} for n in range(2_000)]))
    )
    told = [item.what for item in read_all(_source(tmp_path)) if isinstance(item, Damage)]
    assert len(told) == 2
    assert "is one list of more than" in told[0]
    assert "must be in memory; unpack it" in told[1]


# --- places --------------------------------------------------------------------------------------


def test_a_pattern_finds_files_below_the_folder_before_it(tmp_path: Path) -> None:
    for name in ("x/a.jsonl", "x/b.csv", "x/deep/c.jsonl", "x/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        kind = ".csv" if name.endswith("csv") else ".jsonl"
        (tmp_path / name).write_bytes(KINDS[kind](ROWS[:1]))
    source = _source(tmp_path / "x" / "*", id_column="file:row")
    assert list(texts(read_all(source))) == ["a.jsonl:0", "b.csv:0", "deep/c.jsonl:0"]
    assert rows.plan(source, 10).inputs["not_read"] == ["1 .md: README.md"]
    source = _source(tmp_path / "**" / "*.jsonl", id_column="file:row")
    assert list(texts(read_all(source))) == ["x/a.jsonl:0", "x/deep/c.jsonl:0"]
    given = [f"source.path={tmp_path}/x/*.parquet", "+source=rows", f"data_dir={tmp_path}"]
    with pytest.raises(SettingsError, match=r"x/\*\.parquet does not exist"):
        load(given)


def test_several_places_are_one_source(tmp_path: Path) -> None:
    for name in ("one/a.jsonl", "two/a.jsonl", "two/b.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        kind = ".csv" if name.endswith("csv") else ".jsonl"
        (tmp_path / name).write_bytes(KINDS[kind](ROWS[:1]))
    given = Path(f"[{tmp_path}/one,{tmp_path}/two/*.csv,{tmp_path}/one/a.jsonl]")
    source = _source(given, id_column="file:row")
    assert list(texts(read_all(source))) == ["one/a.jsonl:0", "two/b.csv:0"]


def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(SettingsError, match=r"a\.xlsx is no file of rows"):
        read_all(_source(tmp_path / "a.xlsx"))
    with pytest.raises(SettingsError, match=r"holds no file of rows .*; there are 1 \.xlsx"):
        read_all(_source(tmp_path))


def test_a_changed_file_changes_the_state_of_its_tasks_alone(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(KINDS[".jsonl"](ROWS))
    before = rows.plan(_source(tmp_path), 300).states
    (tmp_path / "b.jsonl").write_bytes(KINDS[".jsonl"](ROWS).replace(b"first", b"other"))
    after = rows.plan(_source(tmp_path), 300).states
    changed = [a != b for a, b in zip(before, after, strict=True)]
    assert set(changed) == {True, False}
    assert changed == sorted(changed)


@pytest.mark.slow
def test_the_bytes_are_the_same_for_any_number_of_workers_and_after_a_lost_task(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    for number, (kind, write) in enumerate(KINDS.items()):
        (tmp_path / "in" / f"{number}{kind}").write_bytes(write(ROWS * 6))
    given = ["+source=rows", f"source.path={tmp_path / 'in'}", "source.text_column=content"]
    given += ["source.id_column=file:row", "characters_per_part=9000"]
    made = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        made.append(collect.run(load([*given, f"data_dir={folder}", f"num_workers={workers}"])))
    assert made[0] == made[1]
    assert made[0].documents == len(KINDS) * 60
    assert len(made[0].parts) > 3
    (folder / "documents/rows/part-00002.parquet").unlink()
    (folder / "documents/rows/logs/finished/part-00002.json").unlink()
    assert collect.run(load([*given, f"data_dir={folder}", "num_workers=1"])) == made[0]


def test_stores_made_before_the_settings_of_rows_continue(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("It was a book.")
    source = require_source(
        load(["+source=books", f"source.path={tmp_path / 'in'}", f"data_dir={tmp_path}"])
    )
    identity = collect._identity(source, 10)
    assert not {"id_column", "title_column", "language_column"} & set(identity)

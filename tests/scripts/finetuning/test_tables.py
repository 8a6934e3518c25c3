"""Files of rows: quotes, long fields, encodings; a cure that is named works when followed."""

from __future__ import annotations

import gzip
import re
import subprocess
from pathlib import Path

import pytest

from scripts.finetuning.settings import InputError
from scripts.finetuning.tables import read_table, text_of

PLAIN = "".join(f"a line {n}\tneg\n" for n in range(5))


def rows(path: Path, text: str, quotes: bool | None = None) -> list[tuple[str, ...]]:
    path.write_text(text, newline="")
    found = list(read_table(path, header=True, quotes=quotes))
    assert [row.fault for row in found if row.fault] == []
    return [tuple(row.values.values()) for row in found]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", f'text\tlabel\n{PLAIN}" opens\tpos\n{PLAIN}it said "\tneg\n{PLAIN}'),
        ("a.txt", f'label\ttext\nneg\ta\npos\t"opens\n{PLAIN}neg\tit said"\n'),
        ("a.csv", 'text,label\n"opens,pos\r\nplain,neg\r\nit said",neg\r\n'),
        ("a.tsv", f'text\tlabel\n"opens\tpos\n{PLAIN}'),
        ("a.tsv", 'text\tlabel\n"What?" he said\tpos\n'),
    ],
)
def test_rows_that_a_stray_quote_would_swallow_are_refused_and_read_by_the_cure(
    tmp_path: Path, name: str, text: str
) -> None:
    with pytest.raises(InputError, match=r"line.*task\.quotes=false") as refused:
        rows(tmp_path / name, text)
    opens = 1 + next(n for n, line in enumerate(text.split("\n")) if re.search(r'(^|\t)"', line))
    assert re.search(rf"line(s)? {opens}\b", str(refused.value))
    assert len(rows(tmp_path / name, text, quotes=False)) == text.count("\n") - 1


@pytest.mark.parametrize(
    ("name", "text", "first"),
    [
        ("a.csv", 'text,label\n"a\nb",pos\n"c, d",neg\n', "a\nb"),
        ("a.csv", 'text,label\n"one, two\nb, c",pos\n"c, d",neg\n', "one, two\nb, c"),
        ("a.tsv", 'text\tlabel\n"he said ""no""\nand left"\tpos\n', 'he said "no"\nand left'),
    ],
)
def test_a_field_that_needs_its_quotes_may_have_several_lines(
    tmp_path: Path, name: str, text: str, first: str
) -> None:
    assert rows(tmp_path / name, text)[0][0] == first


def test_what_can_be_read_either_way_is_read_as_typed(tmp_path: Path) -> None:
    text = 'text,label\n"one, two\nb",pos\n'
    with pytest.raises(InputError, match=r"lines 2 to 3 .* otherwise task\.quotes=true"):
        rows(tmp_path / "a.csv", text)
    assert rows(tmp_path / "a.csv", text, quotes=True) == [("one, two\nb", "pos")]


@pytest.mark.parametrize(
    ("quotes", "header", "cure"),
    [(None, "a\tb\tc", "quotes=false"), (False, "a\tb", "quotes=true")],
)
def test_a_row_with_quotes_and_a_wrong_number_of_columns_names_the_setting(
    tmp_path: Path, quotes: bool | None, header: str, cure: str
) -> None:
    (tmp_path / "a.tsv").write_text(f'{header}\n"What?\tno "\tpos\n')
    (row,) = read_table(tmp_path / "a.tsv", header=True, quotes=quotes)
    assert f"task.{cure}" in row.fault


@pytest.mark.parametrize("size", [131_072, 131_073, 400_000])
def test_a_field_of_any_length_is_read(tmp_path: Path, size: int) -> None:
    text = f'text,label\n"{"a, " * (size // 3)}",pos\nb,neg\n'
    assert [len(row[0]) for row in rows(tmp_path / "a.csv", text)] == [size // 3 * 3, 1]


@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("utf-16", "utf-16"), ("utf-16le", "utf-16le"), ("utf-16be", "utf-16be"),
        ("utf-32", "utf-32"), ("latin1", "latin1"), ("windows-1252", "windows-1252"),
    ],
)  # fmt: skip
def test_the_command_that_is_named_makes_a_file_that_is_read(
    tmp_path: Path, encoding: str, named: str
) -> None:
    text = "text\tlabel\ncafé in Zürich\tpos\nold\tneg\n"
    if encoding == "windows-1252":
        text = text.replace("old", "“old”")
    path = tmp_path / "a file.tsv"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(InputError) as refused:
        text_of(path)
    command = str(refused.value).partition("give the new file: ")[2]
    assert f"iconv -f {named} -t utf-8 " in command
    subprocess.run(command, shell=True, check=True)
    assert text_of(tmp_path / "a file.utf8.tsv") == text


def test_single_wrong_bytes_of_a_file_in_utf_8_are_named_by_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\ncafé,a\nZürich,b\n".encode() + b"caf\xe9,c\n")
    with pytest.raises(InputError, match=r"line 4, is not UTF-8 .* but most .* correct that line"):
        text_of(tmp_path / "a.csv")


def test_a_packed_file_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(gzip.compress(b"text,label\n" * 50))
    with pytest.raises(InputError, match="is no text; unpack it"):
        text_of(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.CSV", "a.csv"])
def test_a_byte_order_mark_and_capitals_of_a_name_are_read(tmp_path: Path, name: str) -> None:
    assert rows(tmp_path / name, "\ufefftext,label\na,pos\n") == [("a", "pos")]
    row = next(read_table(tmp_path / name, header=True, quotes=None))
    assert list(row.values) == ["text", "label"]

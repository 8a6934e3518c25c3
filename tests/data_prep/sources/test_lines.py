"""Google's format: a sentence per line, blank lines between documents, cut anywhere."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_tables import PACKINGS
from source_reading import read_all, reasons, source_of, texts

from data_prep import collect, encode, vocab
from data_prep.core.job import load
from data_prep.sources import lines
from data_prep.sources.inputs import pieces
from data_prep.stores.documents import Damage
from data_prep.text.sentences import splitter

TEXT = "Mr. A. said no. He left.\nIt was\n\n\nOne is here.\nÄnd so on.\n  \nLast.\n"
EXPECTED = ["Mr. A. said no. He left.\nIt was", "One is here.\nÄnd so on.", "Last."]


@pytest.mark.parametrize("packing", PACKINGS)
def test_documents_are_the_blocks_between_blank_lines(tmp_path: Path, packing: str) -> None:
    (tmp_path / f"a.txt{packing}").write_bytes(PACKINGS[packing](TEXT.encode()))
    assert list(texts(read_all(source_of("lines", tmp_path))).values()) == EXPECTED


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_a_document_is_named_by_its_first_byte(tmp_path: Path, end: str) -> None:
    data = b"\xef\xbb\xbf" + f"{end}One.{end}{end}Two.".replace("\n", end, 1).encode()
    (tmp_path / "a.txt").write_bytes(data)
    for id, text in texts(read_all(source_of("lines", tmp_path))).items():
        assert data[int(id.partition(":")[2]) :].startswith(text.encode())


@given(
    blocks=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), max_size=8),
    gaps=st.lists(st.sampled_from(["\n", "\n\n\n", " \n", "\u3000\n"]), min_size=8, max_size=8),
    most=st.integers(1, 80),
)
def test_each_document_is_in_one_piece_wherever_the_file_is_cut(
    tmp_path_factory, blocks, gaps, most
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    documents = ["".join(f"{'é' * size}{n}.\n" for size in block) for n, block in enumerate(blocks)]
    text = "".join(d + gap for d, gap in zip(documents, gaps, strict=False))
    (folder / "a.txt").write_text(text)
    (folder / "b.txt").write_text("x\n")
    found = read_all(source_of("lines", folder), most)
    assert [f"{item.text}\n" for item in found] == [*documents, "x\n"]
    assert found == read_all(source_of("lines", folder))


def test_a_large_file_is_several_tasks(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 100)
    plan = lines.plan(source_of("lines", tmp_path), 1_000)
    assert len(plan.tasks) == 7
    assert plan.inputs == {"files": 1, "bytes": len(TEXT.encode()) * 100}


def test_what_cannot_be_a_document_is_rejected_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lines, "MOST_BYTES", 100)
    monkeypatch.setattr(pieces, "MOST_BYTES", 100)
    blocks = [b"One.", b"Caf\xe9.", b"\0", b"a" * 150, b"b b.\n" * 30, b"Two."]
    (tmp_path / "a.txt").write_bytes(b"\n\n".join(blocks))
    items = read_all(source_of("lines", tmp_path))
    assert list(texts(items).values()) == ["One.", "Two."]
    assert list(reasons(items).values()) == [
        "not UTF-8", "empty", "no blank line in 0 MiB", "no blank line in 0 MiB",
    ]  # fmt: skip


def test_a_file_that_breaks_off_gives_what_precedes(tmp_path: Path) -> None:
    packed = PACKINGS[".gz"](
        "".join(f"Line {n * 7919 % 100_003}.\n\n" for n in range(20_000)).encode()
    )
    (tmp_path / "a.txt.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.txt").write_text("Two.")
    *before, damage, last = read_all(source_of("lines", tmp_path))
    assert isinstance(damage, Damage)
    assert len(before) > 1_000
    assert last.text == "Two."


def test_a_line_is_one_sentence_to_encode_and_only_of_this_source(tmp_path: Path) -> None:
    for name in ("google", "plain"):
        (tmp_path / name).mkdir()
        for number in range(30):
            block = f"He came at {number}. She left.\nIt was {number}. They slept.\n"
            (tmp_path / name / f"{number}.txt").write_text(block)
    where = f"data_dir={tmp_path / 'data'}"
    for name, kind in (("google", "lines"), ("plain", "books")):
        given = [f"+source={kind}", f"source.path={tmp_path / name}", f"source.name={name}"]
        collect.run(load([*given, where, "source.min_characters=null", "source.language=null"]))
    signs = [*string.ascii_lowercase, *string.digits]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *signs, *(f"##{s}" for s in signs)]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    vocab.run(load([where, f"vocab_file={tmp_path / 'vocab.txt'}"]))
    given = [where, "heldout_fraction=0.3", "duplicates=keep", "num_workers=1"]
    store = encode.run(load(given))
    counts = {
        source: sum(
            entry.sentences
            for entries in store.splits.values()
            for entry in entries
            if entry.name.startswith(source)
        )
        for source in ("google", "plain")
    }
    assert counts == {"google": 30 * 2, "plain": 30 * 4}


def test_a_blank_paragraph_has_no_sentence() -> None:
    assert splitter("lines", "en")(" \n ") == []

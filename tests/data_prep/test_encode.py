"""data_prep.encode: ids, splits, bytes, what runs again, and what is refused."""

import os
import pydoc_data.topics
import shutil
import sys
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_documents import write_source
from transformers import AutoTokenizer

from data_prep import encode, status, vocab
from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, read_json
from data_prep.core.job import load
from data_prep.core.objectives import Pairing
from data_prep.core.records import TextForm
from data_prep.encoding import encode_part as task_module
from data_prep.encoding.held_out import fitting_fraction, is_heldout
from data_prep.quality.corpus import judge_corpus
from data_prep.stores.documents import Document, list_parts
from data_prep.stores.tokens import TokenStore
from data_prep.text.sentences import split_paragraph
from data_prep.tokenizer import vocab_file, wordpiece
from data_prep.tokenizer.wordpiece import Encoder

TEXTS = {
    name.replace("/", "-"): "\n".join(line.strip() for line in text.splitlines() if line.strip())
    for name, text in sorted(pydoc_data.topics.topics.items())[:40]
}
PARTS = 3
# Many of these texts are similar; test_dedup.py tests which are left out
OVERRIDES = ("heldout_fraction=0.3", "num_workers=2", "duplicates=keep")


def write_documents(data_dir: Path, texts: dict[str, str], source: str = "topics") -> None:
    """A source of PARTS parts."""
    documents = [Document(id_, "", text) for id_, text in texts.items()]
    write_source(data_dir, source, [documents[number::PARTS] for number in range(PARTS)])


def write_vocab(data_dir: Path, *entries: str) -> None:
    path = data_dir / "released.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *entries, ""]))
    vocab.run(load([f"data_dir={data_dir}", f"vocab_file={path}"]))


BEES = {str(number): "A bee." for number in range(30)}


def write_bees(data_dir: Path) -> None:
    """A source of thirty documents, and its vocabulary."""
    write_documents(data_dir, BEES)
    write_vocab(data_dir, "a", "bee", ".")


def run(data_dir: Path, *overrides: str) -> dict:
    return encode.run(load([f"data_dir={data_dir}", *OVERRIDES, *overrides]))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("encoded")
    write_documents(data_dir, TEXTS)
    vocab.run(load([f"data_dir={data_dir}", "vocab_size=1000"]))
    run(data_dir)
    return data_dir


def read_all(data_dir: Path, split: str) -> dict[str, list[list[int]]]:
    """Document name to its sentences, in the order of the store, by plain loops."""
    found = {}
    store = TokenStore.open(data_dir, split)
    for part in map(store.part, range(store.num_parts)):
        for number, name in enumerate(part.documents.to_pylist()):
            sentences = range(part.document_offsets[number], part.document_offsets[number + 1])
            offsets = part.sentence_offsets
            found[name] = [part.ids[offsets[s] : offsets[s + 1]].tolist() for s in sentences]
    return found


def parts_on_disk(data_dir: Path) -> dict[str, bytes]:
    root = data_dir / "tokens"
    files = [*root.glob("*/*.arrow"), root / "manifest.json"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_every_document_is_in_one_split_with_the_ids_of_stock_auto_tokenizer(encoded) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoded / "vocab")
    train, heldout = read_all(encoded, "train"), read_all(encoded, "heldout")
    assert not set(train) & set(heldout)
    assert {f"topics/{id_}" for id_ in TEXTS} == {*train, *heldout}
    for name, sentences in {**train, **heldout}.items():
        text = TEXTS[name.removeprefix("topics/")]
        split = [s for paragraph in text.split("\n") for s in split_paragraph(paragraph)]
        assert tokenizer(split, add_special_tokens=False)["input_ids"] == sentences


def test_the_manifest_holds_the_counts_checksums_and_identity_of_what_lies_there(encoded) -> None:
    manifest = read_json(encoded / "tokens" / "manifest.json")
    for split in ("train", "heldout"):
        store = TokenStore.open(encoded, split)
        store.verify()
        assert store.num_parts == PARTS
        for number, entry in enumerate(manifest["splits"][split]):
            unknown = store.part(number).ids == manifest["special_ids"]["unk"]
            assert entry["unknown_tokens"] == unknown.sum()
    assert manifest["dtype"] == "uint16"
    assert manifest["vocab_size"] == 1000
    assert manifest["lowercase"] is True
    assert manifest["vocab_checksum"] == checksum(encoded / "vocab" / "vocab.txt")
    assert manifest["special_ids"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert set(manifest["dropped"].values()) == {0}


def test_one_worker_or_three_and_a_second_corpus_give_the_same_bytes(encoded, tmp_path) -> None:
    write_documents(tmp_path, TEXTS)
    vocab.run(load([f"data_dir={tmp_path}", "vocab_size=1000"]))
    run(tmp_path, "num_workers=1")
    assert parts_on_disk(tmp_path) == parts_on_disk(encoded)


class WholeSentences(Encoder):
    """The definition: `tokenizers` on whole sentences, without any memory of words."""

    def __init__(self, tokens: list[str], form: TextForm) -> None:
        super().__init__(tokens, form)
        self.tokenizer = wordpiece.make_tokenizer(tokens, form)

    def encode(self, sentences):
        ids = [text.ids for text in self.tokenizer.encode_batch(sentences)]
        return np.array([i for text in ids for i in text], np.uint32), np.array([*map(len, ids)])


def test_the_store_has_the_bytes_that_encoding_whole_sentences_gives(
    encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # the task sets it for its process
    monkeypatch.setattr(task_module, "Encoder", WholeSentences)
    tokens = vocab_file.read_vocab(encoded / "vocab" / "vocab.txt")
    rule = task_module.EncodeRule(TextForm(True), 0.3, None, None, 1, 1)
    for of_documents in list_parts(encoded):
        task_module.encode_part(tmp_path, tokens, rule, (of_documents, {}))
    parts = [path.relative_to(tmp_path) for path in tmp_path.glob("tokens/*/*.arrow")]
    assert len(parts) == 2 * PARTS
    for part in parts:
        assert (tmp_path / part).read_bytes() == (encoded / part).read_bytes()


def test_a_finished_store_is_left_alone(encoded: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in encoded.glob("tokens/*/*.arrow")}
    assert msgspec.to_builtins(run(encoded)) == read_json(encoded / "tokens" / "manifest.json")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_store_whose_documents_are_deleted_is_counted_by_the_command_that_build_names(
    encoded: Path, tmp_path: Path
) -> None:
    for name in ("tokens", "vocab"):
        shutil.copytree(encoded / name, tmp_path / name)
    before = times(tmp_path)
    (tmp_path / "tokens" / "counts.json").unlink()
    with pytest.raises(SettingsError, match=r"counts\.json is missing") as refusal:
        judge_corpus(tmp_path, Pairing.nsp, load(["data_dir=any"]).audit)
    typed = str(refusal.value).split("data_prep.encode ")[1].split(" again")[0].split()
    encode.run(load(typed))
    counts = "tokens/counts.json"
    assert (tmp_path / counts).read_bytes() == (encoded / counts).read_bytes()
    assert times(tmp_path) == before
    for other in (["heldout_fraction=0.4"], typed[1:]):  # to be encoded; to be counted again
        with pytest.raises(ValueError, match="holds no documents"):
            encode.run(load([f"data_dir={tmp_path}", *other]))


def test_a_store_without_counts_is_counted_and_not_encoded_again(encoded, monkeypatch) -> None:
    counts, before = read_json(encoded / "tokens" / "counts.json"), times(encoded)
    (encoded / "tokens" / "counts.json").unlink()
    manifest = run(encoded)
    assert read_json(encoded / "tokens" / "counts.json") == counts
    assert times(encoded) == before
    for split, parts in manifest.splits.items():
        for name in ("documents", "sentences", "tokens"):
            assert counts["splits"][split][name] == sum(getattr(part, name) for part in parts)
    monkeypatch.setattr(encode, "count_corpus", None)  # finished counts are kept
    run(encoded)


def test_another_vocabulary_alone_encodes_everything_again(tmp_path: Path) -> None:
    write_documents(tmp_path, {str(number): "A bee. A cat." for number in range(30)})
    write_vocab(tmp_path, "a", "bee", "cat", ".")
    first = run(tmp_path)
    write_vocab(tmp_path, "bee", "a", "cat", ".")
    assert run(tmp_path).vocab_checksum != first.vocab_checksum
    for split in ("train", "heldout"):
        documents = read_all(tmp_path, split)
        assert documents
        for sentences in documents.values():
            assert [id_ for sentence in sentences for id_ in sentence] == [6, 5, 8, 6, 7, 8]


def test_nothing_of_a_removed_source_survives(tmp_path: Path) -> None:
    write_bees(tmp_path)
    write_documents(tmp_path, BEES, source="zoo")
    assert len(run(tmp_path).splits["train"]) == 2 * PARTS
    shutil.rmtree(tmp_path / "documents" / "zoo")
    run(tmp_path)
    assert len(list(tmp_path.glob("tokens/*/*.arrow"))) == 2 * PARTS
    found = {**read_all(tmp_path, "train"), **read_all(tmp_path, "heldout")}
    assert set(found) == {f"topics/{id_}" for id_ in BEES}


def test_a_failing_task_leaves_no_manifest_and_the_next_start_does_the_rest(tmp_path) -> None:
    write_bees(tmp_path)
    broken = tmp_path / "documents" / "topics" / "part-00001.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    with pytest.raises(RuntimeError, match=r"1 of 3 tasks failed: topics-00001.*00001\.parquet"):
        run(tmp_path)
    with pytest.raises(ValueError, match=r"run python -m data_prep\.encode"):
        TokenStore.open(tmp_path, "train")
    assert not list(tmp_path.glob("tokens/*/topics-00001.arrow"))
    broken.write_bytes(whole)
    run(tmp_path)
    assert len(read_all(tmp_path, "train")) + len(read_all(tmp_path, "heldout")) == 30


def times(data_dir: Path) -> dict[str, int]:
    """When each task's record was written."""
    records = data_dir.glob("tokens/logs/finished/*.json")
    return {path.stem: path.stat().st_mtime_ns for path in records}


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name, time in after.items() if before.get(name) != time}


@pytest.mark.slow
def test_another_source_encodes_its_own_parts_alone_and_comes_to_the_bytes_of_one_start(
    tmp_path: Path,
) -> None:
    for data_dir in (tmp_path / "a", tmp_path / "b"):
        write_bees(data_dir)
    run(tmp_path / "a")
    before = times(tmp_path / "a")
    for data_dir in (tmp_path / "a", tmp_path / "b"):
        write_documents(data_dir, BEES, source="zoo")
        run(data_dir)
    names = {f"zoo-{number:05d}" for number in range(PARTS)}
    assert changed(before, times(tmp_path / "a")) == names
    assert parts_on_disk(tmp_path / "a") == parts_on_disk(tmp_path / "b")


ALL = [f"topics-{number:05d}" for number in range(PARTS)]


def remove_a_part(data_dir: Path) -> None:
    (data_dir / "tokens" / "train" / "topics-00002.arrow").unlink()


def cut_a_part(data_dir: Path) -> None:
    os.truncate(data_dir / "tokens" / "train" / "topics-00002.arrow", 100)


def change_a_document(data_dir: Path) -> None:
    write_documents(data_dir, BEES | {"3": "Bee bee."})  # in the first of PARTS parts


@pytest.mark.parametrize(
    ("change", "override", "again"),
    [
        pytest.param(remove_a_part, "seed=12345", ALL[2:], marks=pytest.mark.slow),
        (cut_a_part, "seed=12345", ALL[2:]),
        (change_a_document, "seed=12345", ALL[:1]),
        pytest.param(lambda data_dir: None, "heldout_fraction=0.5", ALL, marks=pytest.mark.slow),
    ],
)
def test_what_is_lost_or_changed_alone_is_encoded_again(tmp_path, change, override, again) -> None:
    write_bees(tmp_path)
    run(tmp_path)
    before, bytes_before = times(tmp_path), parts_on_disk(tmp_path)
    change(tmp_path)
    run(tmp_path, override)
    assert changed(before, times(tmp_path)) == set(again)
    is_the_same = change in (remove_a_part, cut_a_part)
    assert (parts_on_disk(tmp_path) == bytes_before) == is_the_same


def test_what_has_no_tokens_is_dropped_and_counted_and_special_tokens_stay_text(tmp_path) -> None:
    texts = {str(number): "A bee." for number in range(20)} | {
        "empty": "", "blank": " \n\n ", "controls": "\x07\u200b\n\ufeff",
        "mixed": "\u200b\nA bee. \u200b", "one": "bee", "literal": "a [MASK] [SEP]",
    }  # fmt: skip
    write_documents(tmp_path, texts)
    write_vocab(tmp_path, "a", "bee", ".", "[", "]", "mask", "sep")
    manifest = run(tmp_path)
    found = {**read_all(tmp_path, "train"), **read_all(tmp_path, "heldout")}
    assert len(found) == 23
    assert found["topics/mixed"] == [[5, 6, 7]]
    assert found["topics/one"] == [[6]]
    assert found["topics/literal"] == [[5, 8, 10, 9, 8, 11, 9]]
    # two sentences of "controls" and one of "mixed"; blank lines hold none
    assert manifest.dropped["documents_without_tokens"] == 3
    assert manifest.dropped["sentences_without_tokens"] == 3


ENCODER = Encoder(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", ".", "##a"], TextForm(True)
)


@given(text=st.text(st.sampled_from("aAb. \n\x07\u200b"), max_size=30))
def test_a_document_s_sentences_are_never_empty_and_none_goes_uncounted(text: str) -> None:
    dropped = task_module.Dropped()
    encoding = partial(task_module._encoding(None, [], ENCODER), "en")
    _, (ids, lengths, _) = task_module._encode_document(
        Document("x", "", text), split_paragraph, encoding, dropped
    )
    sentences = [s for paragraph in text.split("\n") for s in split_paragraph(paragraph)]
    assert (lengths > 0).all()
    assert lengths.sum() == len(ids)
    assert len(lengths) + dropped.sentences_without_tokens == len(sentences)
    assert dropped.documents_without_tokens == (len(lengths) == 0)


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_holds_out_the_same_documents_and_more(name, one, other) -> None:
    small, large = sorted((one, other))
    assert is_heldout(name, large) or not is_heldout(name, small)


def test_the_held_out_share_is_the_fraction_and_depends_on_the_name_alone() -> None:
    names = [f"books/{number}" for number in range(20_000)]
    heldout = [name for name in names if is_heldout(name, 0.05)]
    assert 0.045 < len(heldout) / len(names) < 0.055  # 3 standard deviations are 0.0046
    assert heldout[:3] == ["books/14", "books/25", "books/31"]  # for ever


@given(st.integers(0, 2**32), st.sampled_from([4, 5, 10, 60, 500]))
def test_the_fraction_proposed_holds_out_two_documents_and_leaves_two(seed, number) -> None:
    names = [f"{seed}/{n}" for n in range(number)]
    fraction = float(str(fitting_fraction(names)))
    heldout = sum(is_heldout(name, fraction) for name in names)
    assert 2 <= heldout <= number - 2
    smaller = [f for f in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3) if f < fraction]
    assert all(sum(is_heldout(name, f) for name in names) < 2 for f in smaller)


def test_documents_whose_hashes_lie_together_get_a_fraction_with_more_digits() -> None:
    names = [n for n in map(str, range(40_000)) if is_heldout(n, 0.2341)]
    names = [name for name in names if not is_heldout(name, 0.234)]
    assert len(names) >= 4
    fraction = fitting_fraction(names)
    assert 2 <= sum(is_heldout(name, fraction) for name in names) <= len(names) - 2


def test_too_small_a_held_out_split_is_refused_with_a_fraction_that_works(tmp_path) -> None:
    write_bees(tmp_path)
    with pytest.raises(ValueError, match=r"set heldout_fraction=([\d.]+)$") as caught:
        run(tmp_path, "heldout_fraction=0.0001")
    assert not (tmp_path / "tokens" / "manifest.json").exists()
    fraction = str(caught.value).rsplit("=", 1)[1]
    run(tmp_path, f"heldout_fraction={fraction}")


def test_after_a_refused_fraction_status_proposes_the_one_that_works(
    tmp_path, monkeypatch, capfd
) -> None:
    write_bees(tmp_path)
    typed = [f"data_dir={tmp_path}", "heldout_fraction=0.0001", "duplicates=keep"]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "data_prep.encode", *typed])
    with pytest.raises(SettingsError, match=r"set heldout_fraction=([\d.]+)$") as caught:
        run(tmp_path, *typed)
    status.main([f"data_dir={tmp_path}", "duplicates=keep"])
    fitting = str(caught.value).rsplit(" ", 1)[1]
    command = f"python -m data_prep.encode data_dir={tmp_path} duplicates=keep {fitting}"
    assert capfd.readouterr().out.splitlines()[-1] == f"next: {command}"


def test_a_held_out_fraction_that_does_not_fit_the_documents_is_a_wrong_setting(
    tmp_path, capsys
) -> None:
    write_bees(tmp_path)
    typed = [f"data_dir={tmp_path}", "heldout_fraction=0.0001", "duplicates=keep"]
    assert encode.main(typed) == 2
    assert capsys.readouterr().err.startswith("heldout_fraction=0.0001 leaves ")


def test_a_vocabulary_that_does_not_fit_the_text_is_refused(tmp_path: Path) -> None:
    write_documents(tmp_path, {str(number): "Ein Hund. A bee." for number in range(30)})
    write_vocab(tmp_path, "a", "bee", ".")
    with pytest.raises(RuntimeError, match=r"\[UNK\], more than 5%: the vocabulary does not fit"):
        run(tmp_path)
    assert not (tmp_path / "tokens" / "manifest.json").exists()


def test_a_vocabulary_without_documents_names_the_job_to_run_first(tmp_path, capsys) -> None:
    write_vocab(tmp_path, "a")
    assert encode.main([f"data_dir={tmp_path}"]) == 1
    assert "run python -m data_prep.collect" in capsys.readouterr().err


def test_the_program_prints_what_it_made(encoded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encode.main([f"data_dir={encoded}", *OVERRIDES]) == 0
    printed = capsys.readouterr().out
    assert "train" in printed
    assert "heldout" in printed
    assert "dropped  0 sentences without tokens" in printed


def test_every_task_counts_its_parts(encoded: Path) -> None:
    names = {path.name for path in (encoded / "tokens" / "logs" / "counts").iterdir()}
    assert names == {f"topics-{number:05d}.msgpack" for number in range(PARTS)}

"""Whole-word masks by stored words: no word is masked in part, in shards or in training."""

from importlib import metadata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_corpora import run_inline
from made_documents import write_source

from data_prep import build, encode, vocab
from data_prep.core.config import SettingsError
from data_prep.core.files import read_json, write_json
from data_prep.core.job import load
from data_prep.core.records import TextForm
from data_prep.encoding import encode_part as task_module
from data_prep.examples.masking import MaskingRule, dynamic_keys, mask_examples, static_keys
from data_prep.executors import run as executors_run
from data_prep.stores.documents import Document
from data_prep.stores.shard_reader import Rows, Shards
from data_prep.stores.shards import read_shard
from data_prep.stores.token_records import WordSettings
from data_prep.stores.tokens import TokenStore
from data_prep.text.sentences import splitter
from data_prep.text.words import segmenter
from data_prep.tokenizer.vocab_file import SPECIAL_TOKENS, read_vocab
from data_prep.tokenizer.wordpiece import Encoder
from pretrain.data.packing import NewMasks, pack_rows

PARTS = {
    "zh": "北京 清华大学 的 学生 来到 图书馆 ， 我们 研究 语言 模型 BERT 3.14 。 人工智能 技术",
    "ja": "東京 大学 で BERT の 勉強 を して います 。 カラオケ が できる 図書館 は 朝",
    "th": "ผม รัก ประเทศ ไทย มี นักเรียน มาก อ่าน หนังสือ BERT ที่ บ้าน วันนี้ อากาศ ร้อน",
}
SEGMENTER = {"zh": "rjieba", "ja": "fugashi", "th": "pythainlp"}
WHOLE = "masking.unit=whole_word"


def texts(language: str, seed: int, count: int = 30) -> list[str]:
    rng = np.random.default_rng(seed)
    end = " " if language == "th" else "。"
    return [
        "\n".join(
            end.join("".join(rng.choice(PARTS[language].split(), 9)) for _ in range(4)) + end
            for _ in range(3)
        )
        for _ in range(count)
    ]  # fmt: skip


def overrides(data_dir: Path, language: str, *typed: str) -> list[str]:
    return [
        f"data_dir={data_dir}", f"language={language}", "seq_len=64", "heldout_fraction=0.2",
        "duplicates=keep", "num_workers=1", "audit.most_repeated=1", "audit.most_unknown=1",
        "audit.most_told_alone=1", "audit.most_told_together=1", "audit.most_one_sentence=1",
        *typed,
    ]  # fmt: skip


def write_corpus(data_dir: Path, language: str, documents: list[str]) -> None:
    """Documents and a vocabulary of all their characters, alone and as pieces."""
    write_source(data_dir, "made", [[Document(str(n), "", t) for n, t in enumerate(documents)]])
    characters = sorted({c for text in documents for c in text.lower() if not c.isspace()})
    path = data_dir / "words.txt"
    entries = [*SPECIAL_TOKENS.values(), *characters, *(f"##{c}" for c in characters)]
    path.write_text("\n".join(entries))
    vocab.run(load(overrides(data_dir, language, f"vocab_file={path}")))


def prepared(data_dir: Path, language: str, documents: list[str], *typed: str) -> Path:
    write_corpus(data_dir, language, documents)
    encode.run(load(overrides(data_dir, language, *typed)))
    build.run(load(overrides(data_dir, language, *typed)))
    return data_dir / "len64"


@pytest.fixture(scope="module")
def inline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors_run, "run_processes", run_inline)
        yield


@pytest.fixture(scope="module", params=list(PARTS))
def corpus(request, inline, tmp_path_factory) -> tuple[str, Path]:
    data_dir = tmp_path_factory.mktemp(request.param)
    prepared(data_dir, request.param, texts(request.param, 1), WHOLE)
    return request.param, data_dir


def words_of_document(text: str, language: str) -> list[tuple[str, int]]:
    """(character, number of its word) of a document, by plain loops over the segmenter's words."""
    found, number = [], 0
    for line in text.split("\n"):
        for sentence in splitter("sentencex", language)(line):
            for word in segmenter(SEGMENTER[language])(sentence):
                found += [(c.lower(), number) for c in word if not c.isspace()]
                number += 1
    return found


def masked_sets(examples, vocabulary: list[str]):
    """Of each example: document numbers, segments as characters, and which are masked."""
    for i in range(len(examples)):
        first, end = examples.offsets[i], examples.offsets[i + 1]
        tokens = [vocabulary[n].removeprefix("##") for n in examples.input_ids[first:end]]
        masks = slice(examples.masked_offsets[i], examples.masked_offsets[i + 1])
        is_masked = np.isin(np.arange(end - first), examples.masked_positions[masks])
        middle = int(examples.segment_a_lengths[i])
        yield int(examples.document_a[i]), tokens[1 : middle - 1], is_masked[1 : middle - 1]
        yield int(examples.document_b[i]), tokens[middle:-1], is_masked[middle:-1]


def halves(examples, vocabulary, documents, language) -> tuple[int, int]:
    """(segments whose place in their document was found, words that are masked in part)."""
    placed = broken = 0
    for number, tokens, is_masked in masked_sets(examples, vocabulary):
        words = words_of_document(documents[number], language)
        text, segment = "".join(c for c, _ in words), "".join(tokens)
        assert all(len(token) == 1 for token in tokens)
        if text.count(segment) != 1:
            continue
        placed += 1
        at = text.index(segment)
        masked: dict[int, set[bool]] = {}
        for (_, word), is_ in zip(words[at : at + len(tokens)], is_masked, strict=True):
            masked.setdefault(word, set()).add(bool(is_))
        broken += sum(len(kinds) > 1 for kinds in masked.values())
    return placed, broken


def documents_of(data_dir: Path, split: str, made: list[str]) -> list[str]:
    """The texts of a split in the order of their numbers."""
    part = TokenStore.open(data_dir, split).part(0)
    return [made[int(name.removeprefix("made/"))] for name in part.documents.to_pylist()]


def test_no_word_of_the_segmenter_is_masked_in_part(corpus) -> None:
    language, data_dir = corpus
    vocabulary = read_vocab(data_dir / "vocab" / "vocab.txt")
    examples, _ = read_shard(data_dir / "len64" / "train" / "shard-00000.arrow")
    documents = documents_of(data_dir, "train", texts(language, 1))
    placed, broken = halves(examples, vocabulary, documents, language)
    assert placed > 60
    assert broken == 0
    assert 0.1 < len(examples.masked_positions) / len(examples.input_ids) < 0.16


def test_masks_drawn_in_training_are_those_of_build_for_the_same_keys(corpus) -> None:
    _, data_dir = corpus
    shards = Shards.open(data_dir / "len64", "train")
    rule = MaskingRule.from_manifest(shards.manifest, data_dir / "vocab" / "vocab.txt")
    numbers = np.random.default_rng(0).permutation(shards.num_examples)
    rows = shards.rows(numbers)
    examples = rows.read()
    pairs = np.array([
        (shards.read(np.arange(n)).document_a == document).sum()
        for n, document in zip(numbers, examples.document_a, strict=True)
    ])  # fmt: skip
    static = static_keys(12345, 0, examples.document_a, pairs)
    packed = pack_rows(
        rows, np.arange(len(rows)), 64, lambda real: real, NewMasks(static, rows.lengths, rule)
    )
    np.testing.assert_array_equal(packed.masked_positions.numpy(), examples.masked_indices)
    keys = dynamic_keys(7, numbers * 0, numbers)
    copied = mask_examples(
        examples.input_ids, examples.offsets, keys, rule, examples.continues_word
    )
    for source in (rows, Rows.of(examples)):
        new = NewMasks(keys, source.lengths, rule)
        found = pack_rows(source, np.arange(len(source)), 64, lambda real: real, new)
        starts = np.repeat(examples.offsets[:-1], np.diff(copied[1]))
        np.testing.assert_array_equal(found.masked_positions.numpy(), starts + copied[0])


def test_the_column_opens_as_booleans_and_no_segment_begins_inside_a_word(corpus) -> None:
    _, data_dir = corpus
    with pa.OSFile(str(data_dir / "len64" / "train" / "shard-00000.arrow")) as file:
        table = pa.ipc.open_stream(file).read_all()
    some = 0
    for row in table.to_pylist():
        flags, middle = row["continues_word"], row["segment_a_length"]
        assert len(flags) == len(row["input_ids"])
        assert not any(flags[place] for place in (0, 1, middle - 1, middle, -1))
        some += sum(flags)
    assert some > 1000


def test_manifests_name_the_segmenter_and_its_versions(corpus) -> None:
    language, data_dir = corpus
    manifest = read_json(data_dir / "tokens" / "manifest.json")
    words = manifest["settings"]["words"]
    assert words["segmenters"] == {language: SEGMENTER[language]}
    assert words["versions"][SEGMENTER[language]] == metadata.version(SEGMENTER[language])
    assert read_json(data_dir / "len64" / "manifest.json")["words"] == words


def test_without_whole_words_stores_and_shards_have_no_words(inline, tmp_path: Path) -> None:
    made = texts("zh", 2)
    with_words = prepared(tmp_path / "with", "zh", made, WHOLE)
    build.run(load(overrides(tmp_path / "with", "zh", "replace=true")))
    without = prepared(tmp_path / "without", "zh", made)
    for split in ("train", "heldout"):
        name = f"{split}/shard-00000.arrow"
        assert (with_words / name).read_bytes() == (without / name).read_bytes()
    for store in ("tokens", "len64"):
        assert "words" not in str(read_json(tmp_path / "without" / store / "manifest.json"))


def test_whole_words_of_a_store_without_words_are_refused_and_the_cure_helps(
    inline, tmp_path: Path
) -> None:
    write_corpus(tmp_path, "ja", texts("ja", 3))
    encode.run(load(overrides(tmp_path, "ja")))
    for typed in ([], ["language=en"]):  # build need not be given the language
        with pytest.raises(SettingsError, match="made without them") as refused:
            build.run(load([*overrides(tmp_path, "ja", WHOLE), *typed]))
    command = str(refused.value).split("data_prep.encode ")[1].split(" (after")[0]
    encode.run(load([*overrides(tmp_path, "ja"), *command.split()]))
    assert build.run(load(overrides(tmp_path, "ja", WHOLE))).words


def test_words_by_pieces_alone_can_be_asked_for(inline, tmp_path: Path) -> None:
    shards = prepared(tmp_path, "th", texts("th", 4), WHOLE, "language.words=none")
    assert "words" not in read_json(shards / "manifest.json")


def test_a_missing_segmenter_is_refused_before_anything_is_encoded(
    inline, tmp_path: Path, monkeypatch
) -> None:
    write_corpus(tmp_path, "th", texts("th", 5))
    version = metadata.version

    def missing(name: str) -> str:
        if name == "pythainlp":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(SettingsError, match=r"pythainlp.*pip install 'bert-pretraining\[words\]'"):
        encode.run(load(overrides(tmp_path, "th", WHOLE)))
    assert not (tmp_path / "tokens").exists()


def test_of_many_languages_each_document_has_its_own_words(inline, tmp_path: Path) -> None:
    english = "The readers were reading unreadable books in the library all day. It rained. " * 4
    by_language = {**{code: texts(code, 6, 1)[0] * 3 for code in PARTS}, "en": english}
    write_corpus(tmp_path, "multi", [*by_language.values()] * 5)
    encode.run(load(overrides(tmp_path, "multi", WHOLE, "heldout_fraction=0.4")))
    part = TokenStore.open(tmp_path, "train").part(0)
    flags = np.unpackbits(part.continues_word, bitorder="little")[: part.num_tokens]
    vocabulary = read_vocab(tmp_path / "vocab" / "vocab.txt")
    is_piece = np.array([entry.startswith("##") for entry in vocabulary])[part.ids]
    ends = part.sentence_offsets[part.document_offsets]
    seen = set()
    for name, (first, end) in zip(part.documents.to_pylist(), pairwise(ends), strict=True):
        code = [*by_language][int(name.removeprefix("made/")) % 4]
        same = (flags[first:end] == is_piece[first:end]).all()
        assert same == (code == "en"), code
        seen.add(code)
    assert seen == set(by_language)


def test_one_and_three_workers_store_the_same_words(tmp_path: Path) -> None:
    stored = []
    for workers in (1, 3):
        data_dir = tmp_path / str(workers)
        prepared(data_dir, "zh", texts("zh", 7), WHOLE, f"num_workers={workers}")
        stored.append({
            path.relative_to(data_dir): path.read_bytes()
            for folder in ("tokens", "len64") for path in (data_dir / folder).glob("*/*.arrow")
        })  # fmt: skip
    assert stored[0] == stored[1]


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "gone"])
def test_a_column_of_words_that_does_not_fit_its_tokens_is_refused(
    inline, tmp_path: Path, cut: bool
) -> None:
    folder = prepared(tmp_path, "zh", texts("zh", 8), WHOLE)
    said = "continues_word has" if cut else "column continues_word"
    for path in (tmp_path / "tokens/train/made-00000.arrow", folder / "train/shard-00000.arrow"):
        with pa.OSFile(str(path)) as file:
            stream = pa.ipc.open_stream(file)
            batch = stream.read_next_batch()
        if cut:
            fewer = pa.array([[True]] * len(batch), pa.list_(pa.bool_()))
            if "tokens" in path.parts:
                fewer = pa.array([[[True]]] * len(batch), pa.list_(pa.list_(pa.bool_())))
            batch = batch.set_column(batch.num_columns - 1, "continues_word", fewer)
        else:
            batch = batch.drop_columns(["continues_word"])
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
            writer.write_batch(batch)
    manifest = read_json(folder / "manifest.json")
    entry = manifest["splits"]["train"]["shards"][0]
    entry["bytes"] = (folder / "train/shard-00000.arrow").stat().st_size
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(SettingsError, match=said):
        TokenStore.open(tmp_path, "train").part(0)
    with pytest.raises(SettingsError, match=said):
        Shards.open(folder, "train").rows(np.arange(2))


@pytest.mark.parametrize(("stated", "expected"), [("zh-TW", True), ("zh", True), ("en", False)])
def test_a_stated_code_has_the_segmenter_of_its_language(stated: str, expected: bool) -> None:
    tokens = [*SPECIAL_TOKENS.values(), *"我来到北京"]
    words = WordSettings({"zh": "rjieba", "ja": "fugashi"}, {})
    encoding = task_module._encoding(words, tokens, Encoder(tokens, TextForm(lowercase=True)))
    assert encoding(stated, ["我来到北京"]).continues_word.any() == expected

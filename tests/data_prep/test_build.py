"""The shards of data_prep.build: bytes, manifest, pairs and masks, and what is refused."""

import shutil
import tracemalloc
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from made_corpora import FIRST_TEXT_ID, random_documents, run_inline, write_corpus

from data_prep import build
from data_prep.core.config import SettingsError
from data_prep.core.files import read_json, write_json
from data_prep.core.job import load
from data_prep.core.objectives import Pairing
from data_prep.core.settings import DataPrepSettings
from data_prep.examples.build_shard import build_shard
from data_prep.examples.masking import MaskingRule, mask_examples, static_keys
from data_prep.examples.pairs import label_fault
from data_prep.executors import run
from data_prep.stores import shards
from data_prep.stores.shard_checks import verify
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shard_records import ShardsManifest, read_shards_manifest, read_token_counts
from data_prep.stores.shards import read_shard
from data_prep.stores.token_records import read_tokens_manifest

HELDOUT_FROM = 700  # the ids of held-out documents; those of train documents lie below


def settings_of(data_dir: Path, *overrides: str) -> DataPrepSettings:
    small = "audit.fewest_documents=2"
    return load([f"data_dir={data_dir}", "seq_len=64", "num_workers=2", small, *overrides])


def make_corpus(data_dir: Path, documents: int = 60) -> None:
    """Train in three parts, the middle one empty; held-out in three parts, two of them empty."""
    rng = np.random.default_rng(0)
    train = random_documents(rng, documents, vocab_size=HELDOUT_FROM)
    heldout = [
        [[token + HELDOUT_FROM - FIRST_TEXT_ID for token in sentence] for sentence in document]
        for document in random_documents(rng, 12, vocab_size=1000 - HELDOUT_FROM)
    ]
    write_corpus(data_dir, [train[:40], [], train[40:]], [[], heldout, []])


def made_and_built(data_dir: Path, *overrides: str) -> ShardsManifest:
    make_corpus(data_dir)
    return build.run(settings_of(data_dir, *overrides))


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "logs" not in path.parts
    }


@pytest.fixture(scope="module")
def inline():
    """Tasks run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_processes", run_inline)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, inline) -> Path:
    """A corpus built in two passes; tests only read it."""
    data_dir = tmp_path_factory.mktemp("built")
    made_and_built(data_dir, "copies=2")
    return data_dir


def test_one_and_two_workers_write_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for workers in (1, 2):  # first of all tests: here alone the tasks have processes of their own
        data_dir = tmp_path / str(workers)
        documents = random_documents(np.random.default_rng(0), 40)
        write_corpus(data_dir, [documents[:20], documents[20:30]], [documents[30:]])
        build.run(settings_of(data_dir, f"num_workers={workers}"))
        made.append(files_of(data_dir / "len64"))
    assert made[0] == made[1]
    assert len(made[0]) == 5  # three shards, the token counts and the manifest


def all_examples(data_dir: Path, split: str):
    shards = Shards.open(data_dir / "len64", split)
    return shards.read(np.arange(shards.num_examples))


def test_the_manifest_counts_what_the_shards_hold_and_holds_what_training_needs(corpus) -> None:
    manifest, tokens = read_shards_manifest(corpus / "len64"), read_tokens_manifest(corpus)
    for split in ("train", "heldout"):
        examples = all_examples(corpus, split)
        entry = manifest.splits[split]
        assert entry.rows == len(examples) > 0
        assert entry.tokens == len(examples.input_ids)
        assert entry.masked_tokens == len(examples.masked_positions)
        assert entry.random_next == examples.next_sentence_labels.sum()
        assert entry.rows == sum(shard.rows for shard in entry.shards)
    assert verify(corpus / "len64") == []
    for name in ("dtype", "vocab_size", "vocab_checksum", "lowercase", "special_ids"):
        assert getattr(manifest, name) == getattr(tokens, name)
    assert (manifest.seq_len, manifest.masking.rate, manifest.settings.seed) == (64, 0.15, 12345)


def test_stored_ids_are_unmasked_and_random_pairs_alone_have_two_documents(corpus: Path) -> None:
    for split in ("train", "heldout"):
        examples = all_examples(corpus, split)
        assert not (examples.input_ids == 4).any()
        is_random = examples.next_sentence_labels == 1
        np.testing.assert_array_equal(examples.document_a != examples.document_b, is_random)
        assert 0 < is_random.sum() < len(is_random)


def test_a_shard_records_what_it_was_made_from(corpus: Path) -> None:
    _, metadata = read_shard(corpus / "len64" / "train" / "shard-00005.arrow")
    assert metadata["copy"] == "1"
    assert metadata["token_part"] == "part-00002.arrow"
    assert metadata["vocab_checksum"] == read_tokens_manifest(corpus).vocab_checksum
    assert metadata["seed"] == "12345"


def test_every_pass_covers_every_document_with_other_pairs_and_masks(corpus: Path) -> None:
    shards = read_shards_manifest(corpus / "len64").splits["train"].shards
    assert len({shard.checksum for shard in shards}) == len(shards) == 6
    passes = []
    for copy in range(2):
        documents: set[int] = set()
        for part in range(3):
            path = corpus / "len64" / "train" / f"shard-{3 * copy + part:05d}.arrow"
            documents |= set(read_shard(path)[0].document_a.tolist())
        passes.append(documents)
    assert passes[0] == passes[1] == set(range(60))


def test_heldout_partners_come_from_heldout_documents_alone(corpus: Path) -> None:
    for split, is_own in (
        ("train", lambda ids: ids < HELDOUT_FROM),
        ("heldout", lambda ids: ids >= HELDOUT_FROM),
    ):
        ids = all_examples(corpus, split).input_ids
        assert is_own(ids[ids >= FIRST_TEXT_ID]).all()


def test_token_counts_are_those_of_the_targets_of_train(corpus: Path) -> None:
    examples = all_examples(corpus, "train")
    counts = Counter(examples.targets.tolist())
    found = read_token_counts(corpus / "len64", 1000)
    assert len(found) == 1000
    assert {token: int(count) for token, count in enumerate(found) if count} == counts


def test_stored_masks_are_those_of_seed_pass_document_and_pair(corpus: Path) -> None:
    rule = MaskingRule.from_manifest(read_shards_manifest(corpus / "len64"), None)
    for copy, name in ((0, "shard-00000.arrow"), (1, "shard-00003.arrow")):
        examples, _ = read_shard(corpus / "len64" / "train" / name)
        documents = examples.document_a.tolist()
        numbers = np.array([documents[:i].count(document) for i, document in enumerate(documents)])
        keys = static_keys(12345, copy, examples.document_a, numbers)
        positions, _, masked_ids = mask_examples(examples.input_ids, examples.offsets, keys, rule)
        np.testing.assert_array_equal(examples.masked_positions, positions)
        np.testing.assert_array_equal(examples.masked_input_ids, masked_ids)


def test_a_second_run_finds_all_done_and_touches_nothing(tmp_path: Path, inline) -> None:
    first = made_and_built(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "len64").rglob("*")}
    assert build.run(settings_of(tmp_path, "num_workers=1")) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "len64").rglob("*")} == times


def test_shards_of_other_settings_are_removed(tmp_path: Path, inline) -> None:
    made_and_built(tmp_path, "copies=2")
    manifest = build.run(settings_of(tmp_path, "copies=1", "seed=2", "replace=true"))
    found = sorted(path.name for path in (tmp_path / "len64" / "train").iterdir())
    assert found == [shard.name for shard in manifest.splits["train"].shards]
    assert len(found) == 3
    assert read_shard(tmp_path / "len64" / "train" / found[0])[1]["seed"] == "2"


def other_tokens(data_dir: Path) -> None:
    make_corpus(data_dir, documents=55)


def an_older_schema(data_dir: Path) -> None:
    path = data_dir / "len64" / "manifest.json"
    write_json(path, {**read_json(path), "schema_version": 1})


@pytest.mark.parametrize(
    ("change", "typed", "said"),
    [
        (lambda _: None, ["seed=2"], "seed 12345, now 2"),
        (lambda _: None, ["copies=3", "share=1/2"], "copies 1, now 3"),
        (lambda _: None, ["pairs=none"], "pairs nsp, now none"),
        (lambda _: None, ["masking.rate=0.2"], "masking .*0.15.*, now .*0.2"),
        (other_tokens, [], "another token store"),
        (an_older_schema, [], "schema_version 1, now 2"),
    ],
)
def test_whole_shards_of_other_content_are_replaced_only_if_asked(
    tmp_path: Path, inline, change, typed: list[str], said: str
) -> None:
    made_and_built(tmp_path)
    change(tmp_path)
    before = files_of(tmp_path / "len64")
    with pytest.raises(SettingsError, match=rf"len64 holds whole .*{said}.* add replace=true"):
        build.run(settings_of(tmp_path, *typed))
    assert files_of(tmp_path / "len64") == before
    alone = [word for word in typed if not word.startswith("share")]
    build.run(settings_of(tmp_path, *alone, "replace=true"))
    assert files_of(tmp_path / "len64") != before
    build.run(settings_of(tmp_path, *alone))  # and again, with nothing to do


def test_shards_without_a_manifest_are_no_whole_ones(tmp_path: Path, inline) -> None:
    made_and_built(tmp_path)
    (tmp_path / "len64" / "manifest.json").unlink()  # as a start with replace=true that was killed
    assert build.run(settings_of(tmp_path, "seed=2")).settings.seed == 2


def test_a_lost_shard_is_made_again_with_the_same_bytes(tmp_path: Path, inline) -> None:
    made_and_built(tmp_path)
    before = files_of(tmp_path / "len64")
    (tmp_path / "len64" / "train" / "shard-00002.arrow").unlink()
    build.run(settings_of(tmp_path))
    assert files_of(tmp_path / "len64") == before


def lines_as_documents(data_dir: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [[rng.integers(5, 1000, 12).tolist()] for _ in range(60)]
    write_corpus(data_dir, [lines[:50]], [lines[50:]])


def test_documents_of_one_sentence_are_refused_and_leave_no_manifest(tmp_path, inline) -> None:
    lines_as_documents(tmp_path)
    with pytest.raises(RuntimeError, match=r"1\.000 of 50 pairs.*is every line its own document"):
        build.run(settings_of(tmp_path, "audit.most_one_sentence=1"))
    assert not (tmp_path / "len64" / "manifest.json").exists()


@pytest.mark.parametrize("share", ["null", "1/2", "2/2"])
def test_a_store_that_is_unfit_is_refused_before_a_shard_is_written(
    tmp_path, inline, share
) -> None:
    lines_as_documents(tmp_path)
    with pytest.raises(RuntimeError, match="nothing is built") as refusal:
        build.run(settings_of(tmp_path, f"share={share}"))
    for said in ("100.0% of the documents are one", "audit.most_one_sentence"):
        assert said in str(refusal.value)
    assert not (tmp_path / "len64").exists()


def test_few_documents_are_built_with_a_warning(tmp_path: Path, inline, capsys) -> None:
    make_corpus(tmp_path)
    build.run(settings_of(tmp_path, "audit.fewest_documents=61"))
    assert "warning: there are 60 train documents, fewer than" in capsys.readouterr().err
    build.run(settings_of(tmp_path, "audit.fewest_documents=61"))
    assert capsys.readouterr().err == ""  # nothing to do


def test_shards_that_are_there_outlive_a_store_that_is_refused(
    tmp_path: Path, inline, monkeypatch
) -> None:
    made_and_built(tmp_path)
    before = files_of(tmp_path / "len64")
    monkeypatch.setattr(build, "judge_corpus", lambda *_: ({}, ["a fault"], []))
    with pytest.raises(RuntimeError, match="nothing is built"):
        build.run(settings_of(tmp_path, "seed=2", "replace=true"))
    assert files_of(tmp_path / "len64") == before


@pytest.mark.parametrize(
    ("random_next", "rows", "is_fault"),
    [
        (20, 20, False),  # too few to prove anything
        (33, 33, True),
        (5_500, 10_000, False),
        (6_600, 10_000, False),  # 0.66, inside four standard errors of 0.65
        (6_800, 10_000, True),
        (4_200, 10_000, True),
        (0, 0, False),
    ],
)
def test_the_share_of_random_pairs_is_judged_by_its_standard_error(
    random_next: int, rows: int, is_fault: bool
) -> None:
    assert (label_fault(Pairing.nsp, random_next, rows, 0.45, 0.65) is not None) == is_fault


def test_a_fair_coin_swaps_and_texts_without_pairs_have_no_label() -> None:
    assert label_fault(Pairing.sop, 5_100, 10_000, 0.45, 0.65) is None
    fault = label_fault(Pairing.sop, 5_300, 10_000, 0.45, 0.65)
    assert fault.startswith("0.530 of 10,000 pairs are swapped, and 0.5 is what a fair coin gives")
    assert label_fault(Pairing.none, 0, 10_000, 0.45, 0.65) is None


@pytest.mark.parametrize("pairing", [Pairing.sop, Pairing.none])
def test_the_manifest_of_shards_records_another_pairing(tmp_path, inline, pairing) -> None:
    made_and_built(tmp_path)
    manifest = build.run(settings_of(tmp_path, f"pairs={pairing.name}", "replace=true"))
    assert manifest.pairs is manifest.settings.pairs is pairing
    for split in ("train", "heldout"):
        examples, entry = all_examples(tmp_path, split), manifest.splits[split]
        assert entry.rows == len(examples) > 0
        assert entry.random_next is None
        assert (entry.swapped or 0) == examples.next_sentence_labels.sum()
        np.testing.assert_array_equal(examples.document_a, examples.document_b)
        documents = len(np.unique(examples.document_a)) + entry.unpaired_documents
        assert documents == {"train": 60, "heldout": 12}[split]
        own = entry.tokens - pairing.num_special * entry.rows
        stored = sum(part.tokens for part in read_tokens_manifest(tmp_path).splits[split])
        assert own + entry.truncated_tokens == stored
    assert verify(tmp_path / "len64") == []


def test_where_no_document_can_be_ordered_building_is_refused(tmp_path: Path, inline) -> None:
    lines = [[[number] * 12] for number in range(7, 67)]  # every line a document
    write_corpus(tmp_path, [lines[:50]], [lines[50:]])
    with pytest.raises(RuntimeError, match=r"each of its 50 documents is one sentence.*pairs=none"):
        build.run(settings_of(tmp_path, "pairs=sop", "audit.most_one_sentence=1"))
    assert not (tmp_path / "len64" / "manifest.json").exists()
    assert build.run(settings_of(tmp_path, "pairs=none")).splits["train"].rows == 50


def test_shards_of_an_older_schema_are_built_again(tmp_path: Path, inline) -> None:
    made = made_and_built(tmp_path)
    path = tmp_path / "len64" / "manifest.json"
    plain = msgspec.to_builtins(made)
    del plain["pairs"]
    write_json(path, {**plain, "schema_version": 1})
    with pytest.raises(ValueError, match=r"delete it and run python -m data_prep\.build"):
        Shards.open(tmp_path / "len64", "train")
    shutil.rmtree(tmp_path / "len64" / "logs")  # as if an older program had written them
    assert build.run(settings_of(tmp_path, "replace=true")) == made


def test_a_split_of_one_document_is_refused(tmp_path: Path, inline) -> None:
    documents = random_documents(np.random.default_rng(0), 3)
    write_corpus(tmp_path, [documents[:2]], [documents[2:]])
    with pytest.raises(ValueError, match="2 train and 1 held-out documents; each split needs 2"):
        build.run(settings_of(tmp_path))


def test_random_next_source_is_recorded_and_counts_documents_alone_of_their_source(
    tmp_path: Path, inline
) -> None:
    documents = random_documents(np.random.default_rng(0), 43)
    parts = [documents[:20], documents[20:40], documents[40:41]]
    write_corpus(tmp_path, parts, [documents[41:]], sources="abc")
    manifest = build.run(settings_of(tmp_path, "random_next=source"))
    assert manifest.settings.random_next.value == "source"
    assert (manifest.splits["train"].lone_documents, manifest.splits["heldout"].lone_documents) == (
        1, 0,
    )  # fmt: skip
    assert "1 documents are alone of their source" in build.summary(manifest)
    with pytest.raises(SettingsError, match="random_next source, now corpus"):
        build.run(settings_of(tmp_path, "random_next=corpus"))


def corpus_of_languages(data_dir: Path, *codes: str, sources: str | None = None) -> None:
    """A train part for each of `codes`, a letter per document; held out are two of x."""
    rng = np.random.default_rng(0)
    parts = [random_documents(rng, len(of_part)) for of_part in codes]
    write_corpus(
        data_dir, parts, [random_documents(rng, 2)], sources=sources, languages=(codes, ["xx"])
    )


def test_random_next_language_is_recorded_and_counts_documents_alone_of_their_language(
    tmp_path: Path, inline
) -> None:
    corpus_of_languages(tmp_path, "x" * 20 + "y" * 20, "x" * 20 + "z")
    manifest = build.run(settings_of(tmp_path, "random_next=language"))
    assert manifest.settings.random_next.value == "language"
    assert "1 documents are alone of their source and language" in build.summary(manifest)
    with pytest.raises(SettingsError, match="random_next language, now corpus"):
        build.run(settings_of(tmp_path))


def test_random_next_language_of_a_store_without_languages_is_refused_with_its_cure(
    tmp_path: Path,
) -> None:
    make_corpus(tmp_path)
    path = tmp_path / "tokens" / "manifest.json"
    manifest = read_json(path)
    sentences = {"language": "multi", "splitter": "sentencex", "version": "1"}
    write_json(path, manifest | {"settings": manifest["settings"] | {"sentences": sentences}})
    with pytest.raises(SettingsError, match=r"data_prep\.encode data_dir=.* language=multi"):
        build.run(settings_of(tmp_path, "random_next=language"))


@pytest.mark.parametrize(("sources", "same"), [("aa", "corpus"), ("ab", "source")])
def test_of_one_language_random_next_language_is_that_of_the_source(
    tmp_path: Path, inline, sources: str, same: str
) -> None:
    corpus_of_languages(tmp_path, "x" * 20, "x" * 20, sources=sources)
    manifest = build.run(settings_of(tmp_path, "random_next=language"))
    assert manifest.settings.random_next.value == same


@pytest.mark.parametrize(("sources", "pairs"), [("aaa", "nsp"), ("abc", "sop"), ("abc", "none")])
def test_where_random_next_decides_nothing_the_shards_are_the_same(
    tmp_path: Path, inline, sources: str, pairs: str
) -> None:
    documents = random_documents(np.random.default_rng(0), 42)
    made = []
    for number, where in enumerate(("corpus", "source")):
        data_dir = tmp_path / str(number)
        parts = [documents[:20], documents[20:30], documents[30:40]]
        write_corpus(data_dir, parts, [documents[40:]], sources=sources)
        build.run(settings_of(data_dir, f"random_next={where}", f"pairs={pairs}"))
        made.append(files_of(data_dir / "len64"))
    assert made[0] == made[1]


def test_more_parts_than_documents_end_with_shards_without_rows(tmp_path: Path, inline) -> None:
    documents = random_documents(np.random.default_rng(0), 4)
    parts = [[documents[0]], [], [], [documents[1]], []]
    write_corpus(tmp_path, parts, [documents[2:]])
    manifest = build.run(settings_of(tmp_path))
    rows = [shard.rows for shard in manifest.splits["train"].shards]
    assert [count > 0 for count in rows] == [True, False, False, True, False]
    assert Shards.open(tmp_path / "len64", "train").num_examples == sum(rows)


def test_a_vocabulary_changed_since_encoding_is_refused(tmp_path: Path, inline) -> None:
    make_corpus(tmp_path)
    with (tmp_path / "vocab" / "vocab.txt").open("a") as file:
        file.write("more\n")
    with pytest.raises(ValueError, match=r"vocab\.txt is missing or not the vocabulary.*encode"):
        build.run(settings_of(tmp_path))


def test_whole_words_are_masked_together(tmp_path: Path, inline) -> None:
    made_and_built(tmp_path, "masking.unit=whole_word")
    examples = all_examples(tmp_path, "train")
    is_masked = np.zeros(len(examples.input_ids), bool)
    is_masked[examples.masked_indices] = True
    text = examples.input_ids >= FIRST_TEXT_ID
    joined = text[1:] & text[:-1] & (examples.input_ids[1:] % 3 == 0)
    np.testing.assert_array_equal(is_masked[1:][joined], is_masked[:-1][joined])


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, inline) -> None:
    """Ten times the parts, of one size each: a task's peak stays within 10 %."""
    documents = random_documents(np.random.default_rng(0), 1000)
    write_corpus(tmp_path, [documents], [documents[:2]])
    identity = build._identity(settings_of(tmp_path), tmp_path)
    tokens = read_tokens_manifest(tmp_path)
    [part] = tokens.splits["train"]
    peaks = []
    for count in (4, 40):
        names = [f"part-{number:05d}.arrow" for number in range(count)]
        for name in names[1:]:
            folder = tmp_path / "tokens" / "train"
            shutil.copy(folder / part.name, folder / name)
        tokens.splits["train"] = [msgspec.structs.replace(part, name=name) for name in names]
        write_json(tmp_path / "tokens" / "manifest.json", tokens)
        tasks = build.list_tasks(tokens, Pairing.nsp, 1)
        build_shard(tmp_path / "len64", identity, tasks[1])  # loads the kernels
        tracemalloc.start()  # numpy reports its arrays; memory-mapped pages are the system's
        build_shard(tmp_path / "len64", identity, tasks[0])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_the_job_prints_a_table_and_returns_0(corpus: Path, capfd) -> None:
    overrides = [f"data_dir={corpus}", "seq_len=64", "copies=2"]
    assert build.main(overrides) == 0
    out = capfd.readouterr().out
    assert "train" in out
    assert "in no example" in out


@pytest.mark.parametrize("has_records", [True, False])
def test_the_manifest_is_made_of_the_records_of_the_tasks_or_else_of_the_shards(
    tmp_path: Path, inline, monkeypatch: pytest.MonkeyPatch, has_records: bool
) -> None:
    made_and_built(tmp_path)
    folder, read, real = tmp_path / "len64", [], shards.read_shard
    wanted = files_of(folder)
    (folder / "manifest.json").unlink()
    (folder / "token_counts.npy").unlink()
    if not has_records:  # as an earlier version left it
        shutil.rmtree(folder / "logs" / "counts")
    monkeypatch.setattr(shards, "read_shard", lambda path: read.append(path) or real(path))
    build.run(settings_of(tmp_path))
    assert files_of(folder) == wanted
    assert len(read) == (0 if has_records else 6)


def test_the_record_of_other_shards_is_not_used(tmp_path: Path, inline) -> None:
    made_and_built(tmp_path)
    records = tmp_path / "len64" / "logs" / "counts"
    shutil.copytree(records, tmp_path / "former")
    build.run(settings_of(tmp_path, "seed=2", "replace=true"))
    wanted = files_of(tmp_path / "len64")
    shutil.rmtree(records)
    shutil.copytree(tmp_path / "former", records)
    (tmp_path / "len64" / "manifest.json").unlink()
    build.run(settings_of(tmp_path, "seed=2"))
    assert files_of(tmp_path / "len64") == wanted

"""The audit: its metrics are those of a naive count, and every fault of a corpus is named."""

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import damage
import msgspec
import numpy as np
import pytest
from made_corpora import random_documents, run_inline, write_corpus
from made_manifests import SPECIAL_IDS

from data_prep import audit, build
from data_prep.core.files import read_json, write_json
from data_prep.core.job import load
from data_prep.core.objectives import Pairing
from data_prep.executors import run
from data_prep.quality import corpus_counts, shard_counts
from data_prep.stores.shard_reader import Shards
from data_prep.stores.shard_records import ShardEntry
from data_prep.stores.shards import Examples, read_shard, write_shard


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A built corpus; tests copy it before they harm it."""
    data_dir = tmp_path_factory.mktemp("built")
    rng = np.random.default_rng(0)
    write_corpus(data_dir, [random_documents(rng, 150)], [random_documents(rng, 10)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_processes", run_inline)
        build.run(load([f"data_dir={data_dir}", "seq_len=64"]))
    return data_dir


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run in this process."""
    monkeypatch.setattr(run, "run_processes", run_inline)


@pytest.fixture
def corpus(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "corpus"))


def report_of(corpus: Path) -> dict:
    return audit.run(load([f"data_dir={corpus}", "seq_len=64"]))


def rewrite(corpus: Path, change) -> None:
    """Replace the train shard by `change(examples)`, with a manifest that agrees with it."""
    path = corpus / "len64" / "train" / "shard-00000.arrow"
    examples, metadata = read_shard(path)
    examples = Examples(**{name: value.copy() for name, value in vars(examples).items()})
    examples = change(examples) or examples
    write_shard(path, examples, metadata)
    manifest = read_json(corpus / "len64" / "manifest.json")
    train = manifest["splits"]["train"]
    entry = ShardEntry.of(path, examples, Pairing[manifest["pairs"]])
    train["shards"] = [msgspec.to_builtins(entry)]
    train |= {name: train["shards"][0][name] for name in train if name in train["shards"][0]}
    write_json(corpus / "len64" / "manifest.json", manifest)


def test_a_good_corpus_has_no_faults_and_the_job_returns_0(corpus: Path, capfd) -> None:
    assert audit.main([f"data_dir={corpus}", "seq_len=64"]) == 0
    out = capfd.readouterr().out
    assert "random next" in out
    assert "[CLS]" in out


def test_the_report_holds_the_metrics_counted_one_by_one(corpus: Path) -> None:
    report = report_of(corpus)
    assert report == read_json(corpus / "audit" / "64" / "audit.json")
    metrics = report["splits"]["train"]
    examples, _ = read_shard(corpus / "len64" / "train" / "shard-00000.arrow")
    lengths = np.diff(examples.offsets).tolist()
    assert metrics["rows"] == len(lengths)
    assert metrics["mean_length"] == sum(lengths) / len(lengths)
    assert metrics["real_share"] == sum(lengths) / (64 * len(lengths))
    assert metrics["length_counts"] == [lengths.count(n) for n in range(65)]
    random_next = [int(label) for label in examples.next_sentence_labels]
    assert metrics["random_next_share"] == sum(random_next) / len(random_next)
    puts = list(zip(examples.masked_input_ids, examples.targets, strict=True))
    assert metrics["masked_share"] == len(puts) / sum(lengths)
    assert metrics["mask_share"] == sum(put == 4 for put, _ in puts) / len(puts)
    assert metrics["kept_share"] == sum(put == target for put, target in puts) / len(puts)
    shares = [metrics[name] for name in ("mask_share", "random_share", "kept_share")]
    assert sum(shares) == pytest.approx(1)
    assert metrics["repeated_examples"] == 0
    assert len(metrics["shards"]) == 1


def test_the_lengths_of_other_shards_of_the_corpus_are_counted(corpus: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "run_processes", run_inline)
    build.run(load([f"data_dir={corpus}", "seq_len=32"]))
    split = Shards.open(corpus / "len32", "train")
    lengths = split.lengths(np.arange(split.num_examples)).tolist()
    counts = {"32": [lengths.count(n) for n in range(33)]}
    assert report_of(corpus)["other_length_counts"] == counts


def test_five_examples_are_shown_with_their_masks(corpus: Path) -> None:
    shown = report_of(corpus)["examples"]
    assert len(shown) == 5
    for example in shown:
        words = [piece["word"] for piece in example["pieces"]]
        assert (words[0], words[-1], words.count("[SEP]")) == ("[CLS]", "[SEP]", 2)
        assert words[example["segment_a_length"] - 1] == "[SEP]"
        masked = [piece for piece in example["pieces"] if "put" in piece]
        assert masked
        for piece in masked:
            kept = "kept" if piece["put"] == piece["word"] else "random"
            assert piece["kind"] == ("mask" if piece["put"] == "[MASK]" else kept)
        assert example["documents"][0].startswith("made/part-00000-")


def mark_repeated(examples: Examples) -> Examples:
    """The first example twice in place of the second, where both are of one length."""
    lengths = np.diff(examples.offsets)
    same = np.flatnonzero(lengths == lengths[0])[1]
    ids, starts = examples.input_ids, examples.offsets
    ids[starts[same] : starts[same + 1]] = ids[: lengths[0]]
    examples.segment_a_lengths[same] = examples.segment_a_lengths[0]
    return examples


def test_repeated_examples_are_counted(corpus: Path) -> None:
    rewrite(corpus, mark_repeated)
    assert report_of(corpus)["splits"]["train"]["repeated_examples"] == 1


@pytest.fixture(scope="module")
def built_by_pairs(built: Path, tmp_path_factory) -> dict[str, Path]:
    """The same corpus with random pairs, with swapped ones and without pairs."""
    made = {"nsp": built}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_processes", run_inline)
        for pairs in ("sop", "none"):
            made[pairs] = Path(shutil.copytree(built, tmp_path_factory.mktemp(pairs) / "corpus"))
            build.run(
                load([f"data_dir={made[pairs]}", "seq_len=64", f"pairs={pairs}", "replace=true"])
            )
    return made


@pytest.mark.parametrize(
    ("pairs", "said", "form"),
    [
        ("sop", ("swapped", "A follows B"), "[CLS] A [SEP] B [SEP]"),
        ("none", ("one text",), "[CLS] text [SEP]"),
    ],
)
def test_metrics_page_and_card_describe_the_examples(
    built_by_pairs: dict[str, Path], pairs: str, said: tuple[str, ...], form: str, capfd
) -> None:
    data_dir = built_by_pairs[pairs]
    assert audit.main([f"data_dir={data_dir}", "seq_len=64"]) == 0
    told = capfd.readouterr().out
    page = (data_dir / "audit" / "64" / "index.html").read_text()
    card = (data_dir / "len64" / "README.md").read_text()
    for text in (told, page):
        assert all(words in text for words in said)
        assert "random next" not in text
        assert "another document" not in text
    assert form in card
    assert "another document" not in card
    assert (">swapped<" in page) == ("| swapped |" in card) == (pairs == "sop")
    metrics = read_json(data_dir / "audit" / "64" / "audit.json")
    assert ("shortcut" in metrics) == (pairs == "sop")


def lose_masks(examples: Examples) -> Examples:
    """Of each example, the first half of its masks is left."""
    counts = np.diff(examples.masked_offsets)
    place = np.arange(counts.sum()) - np.repeat(examples.masked_offsets[:-1], counts)
    is_left = place < np.repeat(counts // 2, counts)
    masks = {n: getattr(examples, n)[is_left] for n in ("masked_positions", PUT)}
    return replace(examples, masked_offsets=np.cumsum([0, *(counts // 2)]), **masks)


def setting(name: str, where: Any, value: Any) -> Any:
    """A harm: `value`, which may be a function of the examples, into a column."""

    def harm(examples: Examples) -> None:
        getattr(examples, name)[where] = value(examples) if callable(value) else value

    return harm


def make_unknown(examples: Examples) -> None:
    ids = examples.input_ids
    ids[(ids > 4) & (np.arange(len(ids)) % 50 == 0)] = 1


def always_random_entries(examples: Examples) -> None:
    examples.masked_input_ids[examples.masked_input_ids == 4] = 77


ALL = slice(None)
ONE = "1 examples of two documents where all are of one"
LABEL, IDS, PUT = "next_sentence_labels", "input_ids", "masked_input_ids"
invert_labels = setting(LABEL, ALL, lambda e: 1 - e.next_sentence_labels)
label_all_1 = setting(LABEL, ALL, 1)
pair_with_itself = setting("document_b", ALL, lambda e: e.document_a)
point_at_another_document = setting("document_b", 0, lambda e: e.document_b[0] + 1)
unmask = setting(PUT, ALL, lambda e: e.targets)
put_mask_into_the_text = setting(IDS, 1, SPECIAL_IDS["mask"])
put_sep_into_the_text = setting(IDS, 1, SPECIAL_IDS["sep"])
leave_the_vocabulary = setting(IDS, 1, 1000)
lose_the_middle_sep = setting("segment_a_lengths", ALL, lambda e: e.segment_a_lengths + 1)
mask_cls = setting("masked_positions", 0, 0)
descend = setting("masked_positions", slice(2), lambda e: e.masked_positions[1::-1].copy())


@pytest.mark.parametrize(
    ("pairs", "harm", "reason"),
    [
        ("nsp", invert_labels, "pairs labelled random within one document"),
        ("nsp", invert_labels, "pairs labelled next from two documents"),
        ("nsp", pair_with_itself, "pairs labelled random within one document"),
        ("nsp", unmask, "mask_share of the masked positions is 0.0000"),
        ("nsp", always_random_entries, "random_share of the masked positions"),
        ("nsp", put_mask_into_the_text, "1 special ids inside the text"),
        ("nsp", put_sep_into_the_text, "1 special ids inside the text"),
        ("nsp", make_unknown, "of the text's tokens are unknown"),
        ("nsp", lose_the_middle_sep, "examples not of the form [CLS] A [SEP] B [SEP]"),
        ("nsp", mask_cls, "masks on [CLS], [SEP] or out of order"),
        ("nsp", descend, "masks on [CLS], [SEP] or out of order"),
        ("nsp", leave_the_vocabulary, "row 0: input_ids is 1,000, not from 0 to 999"),
        ("nsp", lose_masks, "examples with a wrong number of masks"),
        ("nsp", lose_masks, "positions are masked, the rule asks for"),
        ("sop", point_at_another_document, ONE),
        ("sop", label_all_1, "pairs are swapped, and 0.5 is what a fair coin gives"),
        ("sop", lose_the_middle_sep, "examples not of the form [CLS] A [SEP] B [SEP]"),
        ("none", point_at_another_document, ONE),
        ("none", label_all_1, "labels of examples without a pair"),
        ("none", put_sep_into_the_text, "1 special ids inside the text"),
        ("none", lose_the_middle_sep, "row 0: segment_a_length is"),
        ("none", lose_masks, "examples with a wrong number of masks"),
    ],
)
def test_unfit_examples_are_named(
    built_by_pairs: dict[str, Path], tmp_path: Path, pairs: str, harm, reason, no_page, capfd
) -> None:
    corpus = Path(shutil.copytree(built_by_pairs[pairs], tmp_path / "corpus"))
    rewrite(corpus, harm)
    assert audit.main([f"data_dir={corpus}", "seq_len=64"]) == 1
    assert reason in capfd.readouterr().err


@pytest.fixture
def no_page(monkeypatch) -> None:
    """Without the plots and the page, which take a second."""
    monkeypatch.setattr(audit, "write_page", lambda folder, report: None)


def flip_a_bit(corpus: Path) -> None:
    path = corpus / "len64" / "train" / "shard-00000.arrow"
    damage.flip_a_bit(path)


def change_the_token_store(corpus: Path) -> None:
    path = corpus / "tokens" / "manifest.json"
    write_json(path, {**read_json(path), "dropped": {"others": 1}})


def change_the_vocabulary(corpus: Path) -> None:
    path = corpus / "vocab" / "vocab.txt"
    path.write_text(path.read_text().replace("w5\n", "another\n"))


def bring_a_shard_of_another_corpus(corpus: Path) -> None:
    path = corpus / "len64" / "train" / "shard-00000.arrow"
    examples, metadata = read_shard(path)
    write_shard(path, examples, {**metadata, "vocab_checksum": "0" * 32})
    rewrite(corpus, lambda examples: examples)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (flip_a_bit, "shard-00000.arrow has checksum"),
        (change_the_token_store, "not of the store that the shards came from"),
        (change_the_vocabulary, "vocab.txt has checksum"),
        (bring_a_shard_of_another_corpus, "a shard of another corpus"),
    ],
)
def test_files_that_do_not_belong_together_are_named(corpus, harm, reason, no_page, capfd) -> None:
    harm(corpus)
    assert audit.main([f"data_dir={corpus}", "seq_len=64"]) == 1
    assert reason in capfd.readouterr().err


def test_a_share_of_random_pairs_out_of_bounds_is_named(corpus: Path, capfd) -> None:
    overrides = [f"data_dir={corpus}", "seq_len=64", "audit.random_next_most=0.46"]
    assert audit.main(overrides) == 1
    assert "pairs have a random next sentence, and 0.45 to 0.46 is fit" in capfd.readouterr().err


def test_shards_built_again_lose_the_card_of_the_old_ones(corpus: Path, monkeypatch) -> None:
    report_of(corpus)
    card = corpus / "len64" / "README.md"
    assert card.is_file()
    monkeypatch.setattr(run, "run_processes", run_inline)
    build.run(load([f"data_dir={corpus}", "seq_len=64", "seed=2", "replace=true"]))
    assert not card.exists()


@pytest.fixture
def parted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of three train shards and a held-out one, each a task of the audit."""
    rng = np.random.default_rng(0)
    parts = [random_documents(rng, 40) for _ in range(3)]
    write_corpus(tmp_path, parts, [random_documents(rng, 10)])
    monkeypatch.setattr(shard_counts, "GROUP", 1)
    build.run(load([f"data_dir={tmp_path}", "seq_len=64"]))
    return tmp_path


def run_noted(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int | None = None
) -> list[int]:
    """Audit; the tasks that ran. The process dies in that of `fails_at`."""
    ran: list[int] = []

    def task(data_dir: Path, seq_len: int, one_in: dict[str, int], index: int) -> dict[str, int]:
        if index == fails_at:
            raise KeyboardInterrupt
        ran.append(index)
        return shard_counts.count_group(data_dir, seq_len, one_in, index)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(audit, "count_group", task)
        report_of(corpus)
    return ran


def test_a_report_does_not_depend_on_how_shards_are_grouped(parted: Path, monkeypatch) -> None:
    ones = report_of(parted)
    monkeypatch.setattr(shard_counts, "GROUP", 32)
    assert report_of(parted) == ones
    assert [shard["name"][-7] for shard in ones["splits"]["train"]["shards"]] == ["0", "1", "2"]


def test_a_killed_audit_goes_on_where_it_was(parted: Path, monkeypatch) -> None:
    wanted = report_of(parted)
    assert run_noted(parted, monkeypatch, fails_at=2) == [0, 1]
    assert run_noted(parted, monkeypatch) == [2, 3]
    assert read_json(parted / "audit" / "64" / "audit.json") == wanted


def test_a_shard_that_was_touched_since_is_read_again(parted: Path, monkeypatch) -> None:
    run_noted(parted, monkeypatch, fails_at=2)
    shard = parted / "len64" / "train" / "shard-00000.arrow"
    os.utime(shard, (1, 1))
    assert run_noted(parted, monkeypatch) == [0, 2, 3]


def test_the_next_audit_reads_every_shard_again(parted: Path, monkeypatch) -> None:
    report_of(parted)
    assert not (parted / "audit" / "64" / "logs").exists()
    assert run_noted(parted, monkeypatch) == [0, 1, 2, 3]


def test_shares_of_an_audit_together_make_its_report(parted: Path, monkeypatch, capfd) -> None:
    wanted = report_of(parted)
    common = [f"data_dir={parted}", "seq_len=64"]
    for share in ("1/2", "2/2"):
        assert audit.main([*common, f"share={share}"]) == 0
        assert "2 tasks done" in capfd.readouterr().out
    assert run_noted(parted, monkeypatch) == []
    assert read_json(parted / "audit" / "64" / "audit.json") == wanted


def test_two_processes_find_what_one_finds(parted: Path, monkeypatch) -> None:
    wanted = report_of(parted)
    monkeypatch.undo()  # processes of their own, with groups of 32
    common = [f"data_dir={parted}", "seq_len=64"]
    assert audit.run(load([*common, "num_workers=2"])) == wanted


def test_of_many_examples_a_sample_is_compared(corpus: Path, monkeypatch) -> None:
    def make_alike(examples: Examples) -> None:
        examples.input_ids[:] = np.repeat(np.arange(len(examples)) % 100, np.diff(examples.offsets))

    rewrite(corpus, make_alike)
    whole = report_of(corpus)["splits"]["train"]
    assert whole["repeated_examples"] > 50
    monkeypatch.setattr(corpus_counts, "MOST_HASHES", whole["rows"] // 2 + 1)
    sample = report_of(corpus)["splits"]["train"]
    assert sample.pop("repeated_examples") == pytest.approx(whole.pop("repeated_examples"), rel=0.5)
    assert sample == whole


def test_the_sources_of_a_corpus_of_several_are_shown_the_largest_first() -> None:
    train = {"tokens": 8, "tokens_of_source": {"a": 2, "b" * 20: 6}}
    train["documents_of_source"] = {"a": 1_000, "b" * 20: 1}
    assert audit._source_rows(train) == [
        ["source, train", "b" * 14, "a"],
        ["documents", "1", "1,000"],
        ["of all tokens", "75.0%", "25.0%"],
    ]
    assert audit._source_rows({"tokens_of_source": {"a": 2}, "documents_of_source": {"a": 1}}) == []

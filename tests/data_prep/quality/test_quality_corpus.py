"""The counts of the token store, and the reasons for which build and audit refuse a corpus."""

import numpy as np
import pytest
from made_corpora import random_documents, write_corpus
from made_manifests import SPECIAL_IDS

from data_prep.core.files import read_json
from data_prep.core.job import load
from data_prep.core.objectives import Pairing
from data_prep.quality import corpus_counts
from data_prep.quality.corpus import counts_path, judge_corpus
from data_prep.stores.token_records import TokensManifest, read_tokens_manifest

BOUNDS = load(["data_dir=any"]).audit


def faults_of(tmp_path, train, heldout=(), pairing=Pairing.nsp) -> list[str]:
    write_corpus(tmp_path, train, heldout)
    return judge_corpus(tmp_path, pairing, BOUNDS)[1]


@pytest.fixture
def documents() -> list[list[list[int]]]:
    return random_documents(np.random.default_rng(1), 100)


def test_a_good_store_has_no_faults(tmp_path, documents) -> None:
    assert faults_of(tmp_path, [documents]) == []


def test_texts_without_pairs_may_be_few_and_of_one_sentence(tmp_path, documents) -> None:
    assert faults_of(tmp_path, [[d[:1] for d in documents[:9]]], pairing=Pairing.none) == []


LINE = list(range(5, 30))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda documents: [[d[0]] for d in documents[:70]] + documents[70:],
         "of the documents are one sentence, more than 50%"),
        (lambda documents: [[*document, LINE, LINE] for document in documents],
         "of the tokens stand in a sentence that occurred before, more than 30%"),
        (lambda documents: [[[*s[:-1], SPECIAL_IDS["unk"]] for s in d] for d in documents],
         "of the tokens are unknown, more than 1%; set audit.most_unknown"),
    ],
)  # fmt: skip
def test_a_store_that_teaches_little_is_refused(tmp_path, documents, change, said) -> None:
    (fault,) = faults_of(tmp_path, [change(documents)])
    for part in said.split("; "):
        assert part in fault


@pytest.mark.parametrize("number", [2, 10, 49])
def test_few_documents_are_a_warning(tmp_path, documents, number: int) -> None:
    write_corpus(tmp_path, [documents[:number]])
    _, faults, warnings = judge_corpus(tmp_path, Pairing.nsp, BOUNDS)
    assert faults == []
    assert (
        f"there are {number} train documents, fewer than audit.fewest_documents=50" in warnings[0]
    )
    assert judge_corpus(tmp_path, Pairing.none, BOUNDS)[2] == []


def test_the_metrics_are_those_of_a_naive_count(tmp_path, documents) -> None:
    parts, heldout = [documents[:60], documents[60:] + documents[:10]], [documents[:3]]
    write_corpus(tmp_path, parts, heldout)
    metrics, _, _ = judge_corpus(tmp_path, Pairing.nsp, BOUNDS)
    whole = [document for part in parts for document in part]
    sentences = [tuple(sentence) for document in whole for sentence in document]
    train = metrics["splits"]["train"]
    assert train["documents"] == train["documents_of_source"]["made"] == len(whole)
    assert train["tokens"] == train["tokens_of_source"]["made"] == sum(map(len, sentences))
    assert train["one_sentence_share"] == sum(len(d) == 1 for d in whole) / len(whole)
    repeated = 1 - len(set(sentences)) / len(sentences)
    assert train["repeated_sentences_share"] == pytest.approx(repeated)
    sizes = [int(np.log2(sum(map(len, document)))) for document in whole]
    assert train["document_tokens_log2_counts"][:20] == [sizes.count(n) for n in range(20)]
    assert metrics["heldout_in_train_share"] == 1


def test_a_sample_of_the_sentences_gives_the_share_of_all(tmp_path, monkeypatch) -> None:
    documents = random_documents(np.random.default_rng(2), 2_000)
    monkeypatch.setattr(corpus_counts, "MOST_HASHES", 8_000)
    write_corpus(tmp_path, [documents + documents[:600]])
    metrics, _, _ = judge_corpus(tmp_path, Pairing.nsp, BOUNDS)
    assert metrics["splits"]["train"]["repeated_sentences_share"] == pytest.approx(0.23, abs=0.02)


def test_a_store_without_counts_or_with_those_of_another_names_the_cure(
    tmp_path, documents
) -> None:
    write_corpus(tmp_path, [documents])
    counts = counts_path(tmp_path).read_bytes()
    write_corpus(tmp_path, [documents[1:]])
    for harm in (lambda path: path.write_bytes(counts), lambda path: path.unlink()):
        harm(counts_path(tmp_path))
        with pytest.raises(
            ValueError, match=r"counts\.json is missing.* run python -m data_prep\.enc"
        ):
            judge_corpus(tmp_path, Pairing.nsp, BOUNDS)


def record_parts(data_dir, one_in: int) -> TokensManifest:
    """Count each part of the store as the tasks of encode do; its manifest."""
    manifest = read_tokens_manifest(data_dir)
    of_train, of_heldout = manifest.splits["train"], manifest.splits["heldout"]
    for train, heldout in zip(of_train, of_heldout, strict=True):
        corpus_counts.write_counts(
            data_dir / "tokens", {"train": train, "heldout": heldout}, manifest, one_in, {}
        )
    return manifest


def count_again(data_dir, monkeypatch, manifest: TokensManifest) -> dict:
    """The counts of the store from the records of its parts; none is opened."""
    with monkeypatch.context() as patch:
        patch.setattr(corpus_counts.TokenPart, "open", None)
        return corpus_counts.count_corpus(data_dir / "tokens", manifest, 1)


def test_the_counts_of_the_tasks_together_are_those_of_the_whole_store(
    tmp_path, documents, monkeypatch
) -> None:
    write_corpus(tmp_path, [documents[:60], documents[60:] + documents[:10]], [documents[:3], []])
    manifest = record_parts(tmp_path, one_in=1)
    assert count_again(tmp_path, monkeypatch, manifest) == read_json(counts_path(tmp_path))


@pytest.mark.parametrize("one_in", [1, 4, 64])
def test_tasks_may_sample_more_or_fewer_sentences_than_the_store_needs(
    tmp_path, monkeypatch, one_in: int
) -> None:
    documents = random_documents(np.random.default_rng(2), 3_000)
    monkeypatch.setattr(corpus_counts, "MOST_HASHES", 8_000)
    write_corpus(tmp_path, [documents + documents[:900], documents[:50]], [documents[:9], []])
    counts = count_again(tmp_path, monkeypatch, record_parts(tmp_path, one_in))
    train = counts["splits"]["train"]
    assert train["repeated_sentences_share"] == pytest.approx(0.24, abs=0.05)
    assert train["documents"] == 3_950
    assert counts["heldout_in_train_share"] == 1


def test_a_record_of_another_part_is_not_used_and_one_of_no_part_is_removed(
    tmp_path, documents
) -> None:
    write_corpus(tmp_path, [documents[:60]], [documents[60:]])
    record_parts(tmp_path, one_in=1)
    folder = tmp_path / "tokens" / "logs" / "counts"
    (left,) = folder.iterdir()
    left.with_name("gone-00000.msgpack").write_bytes(left.read_bytes())
    write_corpus(tmp_path, [documents], [documents[:5]])
    assert read_json(counts_path(tmp_path))["splits"]["train"]["documents"] == 100
    assert list(folder.iterdir()) == [left]


@pytest.mark.parametrize("size", [0, 10, -1])
def test_a_record_that_was_cut_or_changed_is_made_again(tmp_path, documents, size: int) -> None:
    write_corpus(tmp_path, [documents], [documents[:5]])
    manifest, counts = record_parts(tmp_path, one_in=1), read_json(counts_path(tmp_path))
    (record,) = (tmp_path / "tokens" / "logs" / "counts").iterdir()
    record.write_bytes(record.read_bytes()[:size])
    assert corpus_counts.count_corpus(tmp_path / "tokens", manifest, 1) == counts

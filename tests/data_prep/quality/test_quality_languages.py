"""What is counted of each language's text, and the damage for which build and audit refuse it."""

import unicodedata
from pathlib import Path

import msgspec
import numpy as np
import pytest
from made_corpora import random_documents, write_corpus

from data_prep.core.files import read_json, write_json
from data_prep.core.job import load
from data_prep.core.objectives import Pairing
from data_prep.core.records import TextForm
from data_prep.quality import corpus_counts
from data_prep.quality.corpus import counts_path, judge_corpus
from data_prep.quality.language_counter import ONE_IN, language_counter, sample_one_in
from data_prep.quality.languages import LanguageCounts, LanguageMetrics, language_faults
from data_prep.stores.token_records import read_tokens_manifest
from data_prep.text.sentences import splitter
from data_prep.tokenizer.wordpiece import Encoder

BOUNDS = load(["data_dir=any"]).audit
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# A sentence of each language, and a code whose rules split text of it
TEXT = {
    "zh": "他昨天去了北京。今天他又回来了！你知道为什么吗？",
    "ja": "これはペンです。あれは本ですか？それは良いですね！",
    "ko": "나는 학교에 갔다. 그는 집에 있었다. 우리는 내일 만난다.",
    "hi": "मैं हिन्दी में लिखता हूँ। वह दिल्ली में रहती है। हम कल फिर मिलेंगे।",
    "vi": "Tôi đã đến trường học. Bạn ấy ở nhà một mình. Chúng tôi gặp nhau vào ngày mai.",
    "th": "ฉันไปโรงเรียนเมื่อวานนี้ เขาอยู่ที่บ้าน",
    "de": "Er wohnt in München. Sie fährt heute über die Brücke. Wir sehen uns morgen.",
    "fr": "Il est venu à Paris en avril. Elle était dans la maison. Nous parlons ensemble ce soir.",
    "en": "He went to school. She was at home. We meet tomorrow.",
}


def metrics_of(text: str, code: str, one_in: int = 1, **casing: bool) -> LanguageMetrics:
    """The metrics of a hundred documents of this text, prepared with the rules of `code`."""
    sentences = splitter("nupunkt" if code == "en" else "sentencex", code)(text)
    form = TextForm(**(casing or {"lowercase": True, "strip_accents": code == "en"}))
    pieces = {c for c in unicodedata.normalize("NFD", text.lower()) + text.lower() if c != " "}
    tokens = [*SPECIAL, *sorted(pieces), *(f"##{c}" for c in sorted(pieces))]
    encoder = Encoder(tokens, form)
    counter = language_counter(encoder, tokens, form, one_in)
    for number in range(100):
        _, lengths = encoder.encode(sentences)
        counter.add("xx", f"made/{number}", sentences, lengths)
    return LanguageMetrics.of(counter.finish()["xx"])


def faults_of(metrics: LanguageMetrics) -> list[str]:
    return list(language_faults({"xx": msgspec.to_builtins(metrics)}, BOUNDS, has_pairs=True))


@pytest.mark.parametrize("code", TEXT)
def test_text_prepared_by_its_own_language_has_no_fault(code: str) -> None:
    metrics = metrics_of(TEXT[code], code)
    assert faults_of(metrics) == []
    assert metrics.unknown_characters_share == metrics.stripped_words_share == 0


@pytest.mark.parametrize(
    ("code", "bound"),
    [
        ("zh", "most_missed_ends"), ("ja", "most_missed_ends"), ("ko", "most_stripped_words"),
        ("hi", "most_stripped_words"), ("vi", "most_stripped_words"), ("th", "most_stripped_words"),
    ],
)  # fmt: skip
def test_text_prepared_as_if_it_were_english_is_refused_with_the_setting(
    code: str, bound: str
) -> None:
    faults = faults_of(metrics_of(TEXT[code], "en"))
    assert any(f"The bound is audit.{bound}" in fault for fault in faults)
    assert all("set language=CODE" in fault for fault in faults)


@pytest.mark.parametrize("code", ["de", "fr", "en"])
def test_text_that_loses_few_accents_is_not_refused(code: str) -> None:
    assert faults_of(metrics_of(TEXT[code], "en")) == []


def test_words_are_counted_as_changed_and_stripped_one_by_one() -> None:
    metrics = metrics_of("Über den Café-Tisch, 3 Äpfel ist gut 北京.", "en", lowercase=True)
    assert metrics.stripped_words_share == metrics.changed_words_share == 3 / 10
    kept = metrics_of("Über den Café-Tisch", "de", lowercase=True, strip_accents=False)
    assert kept.changed_words_share == 0


def test_characters_in_unknown_words_are_counted_whole() -> None:
    tokens = [*SPECIAL, "a", "##a", "b"]
    encoder = Encoder(tokens, TextForm(True))
    counter = language_counter(encoder, tokens, TextForm(True), 1)
    counter.add("xx", "made/1", ["aa zaz b"], np.array([4]))
    counts = counter.finish()["xx"]
    assert (counts.unknown_characters, counts.sampled_characters) == (3, 6)


def test_a_vocabulary_without_the_characters_is_refused() -> None:
    metrics = msgspec.structs.replace(metrics_of(TEXT["zh"], "zh"), unknown_characters_share=0.03)
    (fault,) = faults_of(metrics)
    assert "3.0% of the characters are in words that are [UNK], more than 2%" in fault
    assert "alphabet_coverage" in fault


def test_sentences_that_never_end_are_refused() -> None:
    metrics = msgspec.structs.replace(metrics_of(TEXT["en"], "en"), tokens_per_sentence=300.0)
    assert "a sentence has 300 tokens on average, more than 200" in faults_of(metrics)[0]


def language(**changes: float) -> dict:
    return msgspec.to_builtins(metrics_of(TEXT["de"], "de")) | changes


def test_documents_of_one_sentence_are_refused_by_language_where_there_are_pairs() -> None:
    both = {"de": language(), "xx": language(one_sentence_share=0.8)}
    (fault,) = language_faults(both, BOUNDS, has_pairs=True)
    assert fault.startswith("xx: 80.0% of the documents are one sentence, more than 50%")
    assert list(language_faults(both, BOUNDS, has_pairs=False)) == []


def test_a_language_of_less_than_one_percent_is_shown_and_not_judged() -> None:
    bad = language(stripped_words_share=0.9)
    assert list(language_faults({"de": language(tokens=10**6), "xx": bad}, BOUNDS, True)) == []
    assert len(list(language_faults({"de": language(tokens=10**4), "xx": bad}, BOUNDS, True))) == 1


def test_the_sample_of_sentences_gives_the_shares_of_all() -> None:
    text = " ".join(f"Wir kennen {n} Städte und das." for n in range(64))
    whole, sample = metrics_of(text, "en"), metrics_of(text, "en", one_in=ONE_IN)
    assert (whole.sentences, whole.tokens) == (sample.sentences, sample.tokens)
    assert sample.sampled_characters == pytest.approx(whole.sampled_characters / ONE_IN, rel=0.05)
    assert sample.stripped_words_share == pytest.approx(whole.stripped_words_share, rel=0.05)
    assert sample_one_in(4_000_000) == 1


def with_languages(data_dir: Path, languages: list[dict[str, LanguageCounts]]) -> None:
    """Record these counts for the parts of a store, and count it."""
    manifest = read_tokens_manifest(data_dir)
    of_train, of_heldout = manifest.splits["train"], manifest.splits["heldout"]
    for train, heldout, counts in zip(of_train, of_heldout, languages, strict=True):
        entries = {"train": train, "heldout": heldout}
        corpus_counts.write_counts(data_dir / "tokens", entries, manifest, 1, counts)
    write_json(counts_path(data_dir), corpus_counts.count_corpus(data_dir / "tokens", manifest, 1))


COUNTS = LanguageCounts(documents=10, sentences=80, tokens=800, characters=4_000,
                        sampled_sentences=80, sampled_characters=4_000, words=700)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Path:
    documents = random_documents(np.random.default_rng(1), 100)
    write_corpus(tmp_path, [documents[:60], documents[60:]], [documents[:3], []])
    return tmp_path


def test_the_counts_of_a_language_are_summed_over_the_parts(store: Path) -> None:
    stripped = msgspec.structs.replace(COUNTS, stripped_words=630)
    with_languages(store, [{"de": COUNTS, "ko": stripped}, {"de": COUNTS}])
    metrics, faults, _ = judge_corpus(store, Pairing.nsp, BOUNDS)
    assert metrics["languages"]["de"]["documents"] == 20
    assert metrics["languages"]["ko"]["stripped_words_share"] == 0.9
    assert [fault.split(":")[0] for fault in faults] == ["ko"]


def test_a_store_of_an_earlier_version_has_no_languages(store: Path) -> None:
    with_languages(store, [{"de": COUNTS}, {}])
    assert judge_corpus(store, Pairing.nsp, BOUNDS)[0]["languages"] == {}
    counts = read_json(counts_path(store))
    del counts["languages"]
    write_json(counts_path(store), counts)
    assert judge_corpus(store, Pairing.nsp, BOUNDS)[0]["languages"] == {}

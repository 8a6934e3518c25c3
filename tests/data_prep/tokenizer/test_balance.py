"""How often documents are read, so that languages are balanced: shares, and draws by name."""

import pytest

from data_prep.tokenizer.balance import LEAST_SHARE, copies, language_weights

CORPUS = {"en": 9000.0, "de": 900.0, "zh": 100.0}


def read(corpus: dict[str, float], sample: dict[str, float], exponent: float) -> dict[str, float]:
    """The characters of each language that are read."""
    weights = language_weights(corpus, sample, exponent)
    return {language: weights[language] * sample[language] for language in sample}


@pytest.mark.parametrize("exponent", [0.0, 0.5, 0.7])
def test_shares_are_those_of_the_corpus_to_the_exponent_and_the_sample_keeps_its_size(
    exponent: float,
) -> None:
    found = read(CORPUS, CORPUS, exponent)
    assert sum(found.values()) == pytest.approx(10_000)
    assert found["en"] / found["zh"] == pytest.approx(90**exponent)


def test_an_exponent_of_one_changes_nothing() -> None:
    assert language_weights(CORPUS, CORPUS, 1.0) == pytest.approx(dict.fromkeys(CORPUS, 1.0))


def test_a_sample_of_other_shares_becomes_one_of_the_same_balance() -> None:
    sample = {"en": 100.0, "de": 500.0, "zh": 100.0}
    found, whole = read(CORPUS, sample, 0.7), read(CORPUS, CORPUS, 0.7)
    assert sum(found.values()) == pytest.approx(700)
    assert found["en"] / found["zh"] == pytest.approx(whole["en"] / whole["zh"])


def test_unknown_and_tiny_languages_keep_their_share() -> None:
    corpus = {**CORPUS, "unknown": 500.0, "la": LEAST_SHARE * 9_000}
    found = read(corpus, corpus, 0.5)
    assert (found["unknown"], found["la"]) == pytest.approx((500, corpus["la"]))
    assert sum(found.values()) == pytest.approx(sum(corpus.values()))


def test_a_document_is_read_as_often_as_its_weight_on_average_and_always_alike() -> None:
    for weight in (0.25, 1.0, 2.5):
        times = [copies(f"wiki/{number}", weight) for number in range(4000)]
        assert times == [copies(f"wiki/{number}", weight) for number in range(4000)]
        assert sum(times) / 4000 == pytest.approx(weight, abs=0.03)
        assert set(times) <= {int(weight), int(weight) + 1}

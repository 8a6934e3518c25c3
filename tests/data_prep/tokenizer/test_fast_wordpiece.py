import functools
import pydoc_data.topics
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.tokenizer import fast_wordpiece
from data_prep.tokenizer.fast_wordpiece import AcceleratedEncoder
from data_prep.tokenizer.training import train_vocab
from data_prep.tokenizer.vocab_file import SPECIAL_TOKENS, read_vocab
from data_prep.tokenizer.wordpiece import Encoder

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
RELEASED = {True: "bert-base-uncased-vocab.txt", False: "bert-base-cased-vocab.txt"}
TEXT = [line.strip() for topic in pydoc_data.topics.topics.values() for line in topic.splitlines()]

casings = pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])
installed = pytest.mark.skipif(
    not fast_wordpiece.INSTALLED, reason="nanotoken is not installed: pip install -e '.[fast]'"
)


@functools.cache
def vocab(lowercase: bool) -> list[str]:
    return train_vocab(lambda: [TEXT], 1500, lowercase)


@functools.cache
def unchecked(lowercase: bool) -> AcceleratedEncoder:
    """nanotoken alone: what an encoder does after its first sentences."""
    encoder = AcceleratedEncoder(vocab(lowercase), lowercase)
    encoder._to_compare = 0
    return encoder


@functools.cache
def definition(lowercase: bool) -> Encoder:
    return Encoder(vocab(lowercase), lowercase)


def assert_same(one: Encoder, other: Encoder, sentences: list[str]) -> None:
    for ours, theirs in zip(one.encode(sentences), other.encode(sentences), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)


# what a cache of words or chunks could get wrong: blanks of all kinds, marks that combine or are
# reordered, letters whose case changes their length, dropped characters, parts of a special token
HOSTILE = st.sampled_from(
    " \u00a0\u2003\u2028\u3000\x85\t\n\x00\x0b\x0c\x1c\u200b\u200d\ufeff\ufffd\u0301\u0323\u0345"
    "\u0307\u0338\u1e9e\u0130Iiı\u01c5Σσςéaé漢가\u1112\u1161\u11ab\U0001f1e9[]-'.!<\u226eA"
)


@installed
@casings
@settings(deadline=None)
@given(sentences=st.lists(st.text(max_size=40) | st.text(HOSTILE, max_size=40), max_size=4))
def test_ids_of_any_text_equal_those_of_tokenizers(lowercase: bool, sentences: list[str]) -> None:
    assert_same(unchecked(lowercase), definition(lowercase), sentences)


@installed
@casings
def test_ids_of_plain_text_equal_those_of_tokenizers_met_again_or_not(lowercase: bool) -> None:
    for _ in range(2):
        assert_same(unchecked(lowercase), definition(lowercase), TEXT)


@installed
@pytest.mark.skipif(not (DATA / "unicode").exists(), reason=f"{DATA / 'unicode'} is not there")
@casings
def test_ids_of_hostile_real_lines_equal_those_of_tokenizers(lowercase: bool) -> None:
    tokens = read_vocab(DATA / "vocab" / RELEASED[lowercase])
    encoder = AcceleratedEncoder(tokens, lowercase)
    encoder._to_compare = 0
    paths = sorted((DATA / "unicode").iterdir())
    lines = [line for path in paths for line in path.read_text(errors="replace").split("\n")]
    assert len(lines) > 800
    assert_same(encoder, Encoder(tokens, lowercase), lines)


@installed
@casings
def test_a_special_token_written_in_the_text_stays_text(lowercase: bool) -> None:
    text = "[CLS] a [MASK] b[SEP] [PAD] [UNK]"
    assert_same(unchecked(lowercase), definition(lowercase), [text])
    pieces = [vocab(lowercase)[number] for number in unchecked(lowercase).encode([text])[0]]
    assert not set(pieces) & set(SPECIAL_TOKENS.values())
    assert pieces.count("[") == pieces.count("]") == 5


@installed
def test_an_accelerator_of_other_rules_is_refused_within_the_sentences_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fast_wordpiece, "COMPARED", 3)
    encoder = AcceleratedEncoder(vocab(True), True)
    encoder._accelerator = unchecked(False)._accelerator  # that of cased text, another vocabulary
    alike, other = [[""], ["The list", "É", "It is"]]
    cased = AcceleratedEncoder(vocab(False), False)
    assert not np.array_equal(cased.encode(other)[0], definition(True).encode(other)[0])
    assert_same(encoder, definition(True), alike)
    assert not encoder.refused
    assert_same(encoder, definition(True), other)
    assert encoder.refused
    assert_same(encoder, definition(True), TEXT)


@installed
def test_the_same_ids_cut_elsewhere_are_refused() -> None:
    encoder = AcceleratedEncoder(vocab(True), True)
    ids, lengths = definition(True).encode(["The list", "It"])
    cut_elsewhere = SimpleNamespace(ids=ids, lengths=lengths[::-1])
    encoder._accelerator = SimpleNamespace(encode_batch=lambda *_, **__: cut_elsewhere)
    assert_same(encoder, definition(True), ["The list", "It"])
    assert encoder.refused


@installed
def test_only_the_first_sentences_are_compared_though_they_come_in_several_documents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fast_wordpiece, "COMPARED", 3)
    encoder, met = AcceleratedEncoder(vocab(True), True), []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, s: met.extend(s) or encode(self, s))
    for document in (["a", "b"], ["c", "d", "e"], ["f"]):
        encoder.encode(document)
    assert met == ["a", "b", "c"]
    assert not encoder.refused


def test_without_nanotoken_the_ids_are_those_of_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_wordpiece, "INSTALLED", False)
    encoder = AcceleratedEncoder(vocab(True), True)
    assert encoder._accelerator is None
    assert_same(encoder, definition(True), TEXT)
    assert not encoder.refused

"""Words of languages without spaces: which token continues one, against a plain rendering."""

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.core.records import TextForm
from data_prep.text.words import WINDOW, borders, continues_word, segmenter
from data_prep.tokenizer.vocab_file import SPECIAL_TOKENS
from data_prep.tokenizer.wordpiece import Encoder, make_tokenizer

HAN, KANA, THAI = "我来到北京清华大学的学生東私𠮷", "はがことできるカラオケーﾊﾞ", "ผมรักประเทศไทยน้ำ"
LATIN, DIGITS, BLANKS = "abcefirtBERTéïß", "0123456789.", " \u3000\t"
MARKS, REST = "\u0301\u3099\u200b\u0e48", "。，「」、!?-😀"
CHARACTERS = sorted({*HAN, *KANA, *THAI, *LATIN.lower(), *DIGITS, *MARKS, *REST, *"รันครับ"})
PAIRS = ["こと", "でき", "オケ", "ประ", "รัก", "be", "20"]  # pieces across borders, too
VOCAB = [*SPECIAL_TOKENS.values(), *CHARACTERS, *PAIRS]
VOCAB += [f"##{entry}" for entry in (*CHARACTERS, *PAIRS)]
FORM = TextForm(lowercase=True, strip_accents=False)
ENCODER = Encoder(VOCAB, FORM)
STOCK = make_tokenizer(VOCAB, FORM)
IS_PIECE = np.array([entry.startswith("##") for entry in VOCAB])
SEGMENTERS = ["rjieba", "fugashi", "pythainlp"]


def found(sentences: list[str], name: str | None) -> list[list[bool]]:
    """By sentence, whether each token continues a word."""
    ids, lengths, spans = ENCODER.encode_spans(sentences)
    segment = None if name is None else segmenter(name)
    flags = continues_word(sentences, lengths, spans, IS_PIECE[ids], segment)
    ends = np.cumsum([0, *lengths])
    return [flags[a:b].tolist() for a, b in pairwise(ends)]


def grouped(sentence: str, name: str) -> list[str]:
    """The words of a sentence as they are masked, their tokens with blanks between them."""
    words: list[list[str]] = []
    tokens, [flags] = STOCK.encode(sentence).tokens, found([sentence], name)
    for token, continues in zip(tokens, flags, strict=True):
        if continues:
            words[-1].append(token)
        else:
            words.append([token])
    return [" ".join(word) for word in words]


def is_unspaced(character: str) -> bool:
    return any(
        word in unicodedata.name(character, "") for word in ("THAI", "HIRAGANA", "KATAKANA", "CJK")
    )


def plainly(sentence: str, name: str) -> list[bool]:
    """The same for one sentence, character by character."""
    cuts, end = {0}, 0
    for word in segmenter(name)(sentence):
        start = sentence.index(word, end)
        end = start + len(word)
        cuts |= {start, end}
    flags, before = [], 0
    encoding = STOCK.encode(sentence)
    for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
        opens = not flags or any(place in cuts for place in range(before, start + 1))
        if flags and token.startswith("##"):
            own_script = is_unspaced(sentence[start]) or is_unspaced(sentence[before - 1])
            is_mark = unicodedata.category(sentence[start])[0] == "M" or sentence[start] in "ﾞﾟ"
            opens = opens and own_script and not is_mark
        flags.append(not opens)
        before = end
    return flags


PIECES = st.sampled_from([
    "北京", "清华大学", "学生", "できる", "カラオケ", "ประเทศ", "ไทย", "BERT", "café", "3.14",
    "2019", "か\u3099", "น้ำ",
])  # fmt: skip
SENTENCES = st.lists(
    st.one_of(PIECES, *(st.text(chars, min_size=1, max_size=4) for chars in (
        HAN, KANA, THAI, LATIN, DIGITS, BLANKS, MARKS, REST,
    ))), max_size=12,
).map("".join)  # fmt: skip


@pytest.mark.parametrize("name", SEGMENTERS)
@settings(max_examples=60)
@given(sentences=st.lists(SENTENCES, min_size=1, max_size=4))
def test_words_are_those_of_a_plain_walk_over_the_characters(
    name: str, sentences: list[str]
) -> None:
    assert found(sentences, name) == [plainly(sentence, name) for sentence in sentences]


@given(sentences=st.lists(SENTENCES, min_size=1, max_size=4))
def test_spans_belong_to_the_ids_that_are_encoded_without_them(sentences: list[str]) -> None:
    ids, lengths, spans = ENCODER.encode_spans(sentences)
    other_ids, other_lengths = ENCODER.encode(sentences)
    np.testing.assert_array_equal(ids, other_ids)
    np.testing.assert_array_equal(lengths, other_lengths)
    assert spans.shape == (len(ids), 2)


@pytest.mark.parametrize("name", [None, *SEGMENTERS])
def test_the_first_token_of_a_sentence_continues_none(name: str | None) -> None:
    assert [flags[:1] for flags in found(["北京大学", "", "できる", "\u200b", "ไทย"], name)] == [
        [False], [], [False], [], [False],
    ]  # fmt: skip


def test_chinese_characters_of_a_word_are_one_word() -> None:
    assert grouped("我来到北京清华大学。", "rjieba") == [
        "我",
        "来 到",
        "北 京",
        "清 华 大 学",
        "。",
    ]


def test_japanese_kana_are_cut_where_words_end() -> None:
    assert grouped("カラオケができる", "fugashi") == ["カ ##ラ ##オケ", "##が", "##でき ##る"]


def test_a_thai_phrase_is_cut_into_words() -> None:
    assert grouped("ผมรักประเทศไทย", "pythainlp") == [
        "ผ ##ม", "##รัก", "##ประ ##เ ##ท ##ศ", "##ไ ##ท ##ย",
    ]  # fmt: skip


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_latin_word_stays_whole_whatever_the_segmenter_makes_of_it(name: str) -> None:
    assert grouped("cafétaria", name) == ["c ##a ##f ##é ##t ##a ##r ##i ##a"]


def test_a_piece_that_spans_a_border_ties_both_words() -> None:
    sentence = "ラオケは"  # a piece that no word ends in
    assert found([sentence], "fugashi") == [plainly(sentence, "fugashi")]
    cut = continues_word(
        ["abcd"], np.array([3]), np.array([[0, 1], [1, 3], [3, 4]]), np.array([False] * 3),
        lambda _: ["ab", "cd"],
    )  # fmt: skip
    assert cut.tolist() == [False, True, True]


def test_words_that_leave_out_blanks_are_found_again() -> None:
    assert borders(" ab  c ", str.split) == [1, 3, 5, 6]
    assert borders("ab c", lambda _: ["ab", " ", "c"]) == [0, 2, 3, 4]
    assert borders("", str.split) == []


def test_a_sentence_of_any_length_is_segmented_in_windows() -> None:
    asked: list[str] = []

    def segment(text: str) -> list[str]:
        asked.append(text)
        return [text[:1], text[1:]]

    found = borders("x" * (2 * WINDOW + 3), segment)
    assert [len(text) for text in asked] == [WINDOW, WINDOW, 3]
    ends = [0, 1, WINDOW, WINDOW + 1, 2 * WINDOW, 2 * WINDOW + 1, 2 * WINDOW + 3]
    assert sorted(set(found)) == ends
    assert found == sorted(found)

"""WordPiece: ids like those of stock BertTokenizer, training, and the files of the tokenizer."""

import functools
import os
import pydoc_data.topics
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from shared_data import FIXTURES, packed
from tokenizers import normalizers
from transformers import AutoTokenizer, BertTokenizerFast
from transformers.models.bert.tokenization_bert_legacy import BasicTokenizer, WordpieceTokenizer

from data_prep.core.records import Normalization, TextForm
from data_prep.tokenizer import wordpiece
from data_prep.tokenizer.hf_files import TOKENIZER_FILES, save_tokenizer
from data_prep.tokenizer.training import train_vocab
from data_prep.tokenizer.vocab_file import SPECIAL_TOKENS, check_casing, read_vocab, special_ids
from data_prep.tokenizer.wordpiece import Encoder

TEXT = [line.strip() for topic in pydoc_data.topics.topics.values() for line in topic.splitlines()]

casings = pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])


def released(lowercase: bool) -> Path:
    """Google's vocabulary."""
    return packed(f"vocab/bert-base-{'uncased' if lowercase else 'cased'}-vocab.txt")


def batches_of(texts: list[str], size: int) -> Iterator[list[str]]:
    return (texts[first : first + size] for first in range(0, len(texts), size))


def train(vocab_size: int, lowercase: bool, size: int = 1000) -> list[str]:
    return train_vocab(lambda: batches_of(TEXT, size), vocab_size, TextForm(lowercase))


@functools.cache
def vocab(lowercase: bool) -> list[str]:
    return train(1500, lowercase)


@functools.cache
def encoder_of(lowercase: bool) -> Encoder:
    return Encoder(vocab(lowercase), TextForm(lowercase))


def stock(tokens: list[str], lowercase: bool) -> Any:
    numbers = {token: number for number, token in enumerate(tokens)}
    return BertTokenizerFast(vocab=numbers, do_lower_case=lowercase)


@functools.cache
def stock_of(lowercase: bool) -> Any:
    return stock(vocab(lowercase), lowercase)


def ours(encoder: Encoder, sentences: list[str]) -> list[list[int]]:
    ids, lengths = encoder.encode(sentences)
    assert ids.dtype == np.uint32
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


# ---------------------------------------------------------------- encoding


@casings
@given(sentences=st.lists(st.text(max_size=40), min_size=1, max_size=4))
def test_ids_of_any_text_equal_those_of_stock_bert_tokenizer(lowercase, sentences) -> None:
    assume(not any(token in text for token in SPECIAL_TOKENS.values() for text in sentences))
    expected = stock_of(lowercase)(sentences, add_special_tokens=False)["input_ids"]
    assert ours(encoder_of(lowercase), sentences) == expected


# Characters that may tie a word to its neighbours: all kinds of blanks, combining and reordered
# marks, letters whose case depends on the position, dropped characters, parts of a word.
TYING = st.sampled_from(
    " \u00a0\u2003\u2028\u3000\x85\t\n\x00\x1c\u200b\u200d\ufeff\ufffd\u0301\u0323\u0345\u0307"
    "\u0338\u1e9e\u0130Iiı\u01c5Σσςé漢가\u1112\u1161\u11ab\U0001f1e9\U0001f1ea[]-'.!<\u226ea"
    "一龥㐀々。、，！？「」：；〇ー〜\u3099\u302a\uf900\U00020000"
)


@casings
@given(sentences=st.lists(st.text(TYING | st.just(" "), max_size=30), min_size=1, max_size=4))
def test_word_by_word_the_ids_are_those_of_the_whole_sentence(lowercase, sentences) -> None:
    whole = wordpiece.make_tokenizer(vocab(lowercase), TextForm(lowercase))
    expected = [whole.encode(text, add_special_tokens=False).ids for text in sentences]
    assert ours(encoder_of(lowercase), sentences) == expected


FORMS = [
    TextForm(True, False, Normalization.nfc),
    TextForm(True, None, Normalization.nfc),
    TextForm(False, None, Normalization.nfkc),
    TextForm(True, False, Normalization.nfkc, tokenize_chinese_chars=False),
    TextForm(True, False, clean_text=False),
    TextForm(True, False, Normalization.nfc, turkish_i=True),
]
# As TYING, and characters that NFC or NFKC change, join, reorder or make blanks of
JOINING = TYING | st.sampled_from("=<>≠;`\u1fef\u037e¨…ﬁ＜２\u3099ﾊﾞﾟ\u0344क\u093c\uf900\u09c7\u09be")
LETTERS = [*"aeiıxyzé=<>≠≮;`….,-'!2漢한ハバfiक", *(chr(code) for code in range(0x1100, 0x1113))]


@functools.cache
def saved_with(number: int) -> tuple[Encoder, Any, Any]:
    """Of a form: our encoder, its tokenizer for whole texts, and what `transformers` loads."""
    form = FORMS[number]
    tokens = [*SPECIAL_TOKENS.values(), *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder), tokens, form)
        loaded = AutoTokenizer.from_pretrained(folder)
    return Encoder(tokens, form), wordpiece.make_tokenizer(tokens, form), loaded


@pytest.mark.parametrize("number", range(len(FORMS)), ids=lambda number: str(FORMS[number]))
@example(sentences=["a=\u0338e", "a<\u0323\u0338 \u0338=", "=\u0344", "¨=\u0338…<ﾞ"])
@given(sentences=st.lists(st.text(JOINING, max_size=20) | st.text(max_size=20), max_size=4))
def test_by_every_text_form_the_ids_are_those_of_the_saved_tokenizer(number, sentences) -> None:
    assume(not any(token in "".join(sentences) for token in SPECIAL_TOKENS.values()))
    encoder, whole, loaded = saved_with(number)
    sentences.append("".join(sentences))
    expected = [whole.encode(text, add_special_tokens=False).ids for text in sentences]
    assert ours(encoder, sentences) == expected
    assert loaded(sentences, add_special_tokens=False)["input_ids"] == expected


def test_a_mark_that_unicode_joins_to_punctuation_is_read_with_it() -> None:
    encoder, _, _ = saved_with(0)
    joined, alone = ours(encoder, ["a=\u0338e", "a≠e"])
    assert joined == alone != ours(encoder, ["a=e"])[0]


@pytest.mark.parametrize(
    ("text", "form", "words"),
    [
        ("Café Cafe\u0301", TextForm(True, False, Normalization.nfc), "café café"),
        ("\u1112\u1161\u11ab", TextForm(True, False, Normalization.nfc), "한"),
        ("한", TextForm(True), "\u1112\u1161\u11ab"),  # as BERT: accents are removed from NFD
        ("ﬁ １２ ｶﾞ", TextForm(True, False, Normalization.nfkc), "fi 12 ガ"),
        (
            "İSTANBUL IŞIK",
            TextForm(True, False, Normalization.nfc, turkish_i=True),
            "istanbul ışık",
        ),
        ("I\u0307 I", TextForm(True, False, Normalization.nfc, turkish_i=True), "i ı"),
        ("IŞIK", TextForm(False, turkish_i=True), "IŞIK"),
        ("می\u200cخواهم", TextForm(True, False), "میخواهم"),
        ("می\u200cخواهم", TextForm(True, False, clean_text=False), "می\u200cخواهم"),
        ("日本 x", TextForm(True, tokenize_chinese_chars=False), "日本 x"),
    ],
)
def test_a_text_form_makes_of_a_text_what_its_settings_promise(text, form, words) -> None:
    assert " ".join(wordpiece.make_normalizer(form).normalize_str(text).split(" ")) == words


@pytest.mark.parametrize("most_words", [1, 3, 200])
def test_forgetting_words_changes_no_id_and_bounds_their_number(most_words, monkeypatch) -> None:
    texts = [f"{text} é" for text in TEXT[:300]]  # no words of ASCII text are kept
    expected = stock_of(True)(texts, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(wordpiece, "MOST_WORDS", most_words)
    encoder = Encoder(vocab(True), TextForm(True))
    for text, ids in zip(texts, expected, strict=True):
        assert ours(encoder, [text]) == [ids]
        assert len(encoder._word_ids) <= most_words


def test_a_word_is_encoded_once_and_a_very_long_one_is_not_kept() -> None:
    encoder = Encoder(vocab(True), TextForm(True))
    first = ours(encoder, ["thé list thé", "漢" * 101, "list, " * 9 + "thé"])
    assert set(encoder._word_ids) == {"thé", "list", "list,", ",", "漢"}
    encoder._word_ids._tokenizer = encoder._word_ids._model = None  # asking again would fail
    assert ours(encoder, ["thé list thé", "list, " * 9 + "thé"]) == [first[0], first[2]]


LATIN = st.characters(max_codepoint=0x24F, exclude_characters="\u0130\x85\x1c\x1d\x1e\x1f")


@casings
@given(text=st.text(LATIN | st.sampled_from(" \t\n.,'!-漢字\u0301\ufffd"), max_size=60))
def test_ids_of_latin_text_equal_those_of_google_s_python_rules(lowercase: bool, text: str) -> None:
    # A transcription of google-research/bert tokenization.py. Excluded are characters that Unicode
    # or Python treat differently from what its authors meant (dotted I, separators as blanks).
    numbers = {token: number for number, token in enumerate(vocab(lowercase))}
    pieces = WordpieceTokenizer(numbers, "[UNK]")
    words = BasicTokenizer(do_lower_case=lowercase).tokenize(text)
    expected = [numbers[piece] for word in words for piece in pieces.tokenize(word)]
    assert ours(encoder_of(lowercase), [text]) == [expected]


@pytest.mark.parametrize(("is_released", "at_least"), [(False, 70), (True, 800)])
@casings
def test_hostile_real_lines_have_the_ids_of_stock_bert_tokenizer_and_never_a_special_one(
    lowercase: bool, is_released: bool, at_least: int
) -> None:
    tokens = read_vocab(released(lowercase)) if is_released else vocab(lowercase)
    folder = packed("unicode") if is_released else FIXTURES / "unicode"
    encoder, reference = Encoder(tokens, TextForm(lowercase)), stock(tokens, lowercase)
    texts = [path.read_text(errors="replace") for path in sorted(folder.iterdir())]
    lines = [line for text in texts for line in text.split("\n")]
    plain = [line for line in lines if not any(token in line for token in SPECIAL_TOKENS.values())]
    assert len(lines) > len(plain) > at_least  # some lines do hold special tokens as text
    expected = reference(plain, add_special_tokens=False)["input_ids"]
    assert ours(encoder, plain) == expected
    ids, _ = encoder.encode(lines)
    kept_out = {id_ for name, id_ in encoder.special_ids.items() if name != "unk"}
    assert not kept_out & set(ids.tolist())


@casings
def test_a_special_token_written_in_the_text_stays_text(lowercase: bool) -> None:
    tokens = vocab(lowercase)
    text = "[CLS] a [MASK] b [SEP] [PAD] [UNK]"
    pieces = [tokens[number] for number in ours(encoder_of(lowercase), [text])[0]]
    cased = "".join(pieces).replace("##", "")
    assert cased == (text.lower() if lowercase else text).replace(" ", "")
    assert not set(pieces) & set(SPECIAL_TOKENS.values())
    assert pieces.count("[") == pieces.count("]") == 5


def test_accents_are_removed_only_where_text_is_lower_cased() -> None:
    tokens = [*SPECIAL_TOKENS.values(), "cafe", "café", "Café"]
    assert ours(Encoder(tokens, TextForm(True)), ["Café"]) == [[5]]
    assert ours(Encoder(tokens, TextForm(False)), ["Café café"]) == [[7, 6]]


def test_google_s_own_examples_are_cut_as_in_its_tests() -> None:
    # google-research/bert tokenization_test.py
    tokens = [*SPECIAL_TOKENS.values(), *"want ##want ##ed wa un runn ##ing ,".split()]
    encoder = Encoder(tokens, TextForm(True))
    names = [tokens[number] for number in ours(encoder, ["UNwant\u00e9d,running"])[0]]
    assert names == ["un", "##want", "##ed", ",", "runn", "##ing"]
    assert ours(encoder, ["unwantedX running"]) == [[1, *ours(encoder, ["running"])[0]]]
    assert ours(encoder, [""]) == [[]]


def test_a_word_over_a_hundred_characters_is_unknown() -> None:
    encoder = Encoder([*SPECIAL_TOKENS.values(), "a", "##a"], TextForm(True))
    assert ours(encoder, ["a" * 100, "a" * 101]) == [[5, *[6] * 99], [1]]


# ---------------------------------------------------------------- training


@casings
def test_training_twice_gives_the_same_entries_whatever_the_threads_and_batches(lowercase) -> None:
    program = """if True:
        import pydoc_data.topics, sys
        from data_prep.core.records import TextForm
        from data_prep.tokenizer.training import train_vocab
        texts = [line.strip() for t in pydoc_data.topics.topics.values() for line in t.splitlines()]
        size = int(sys.argv[2])
        batches = lambda: (texts[first:first + size] for first in range(0, len(texts), size))
        print("\\n".join(train_vocab(batches, 1500, TextForm(sys.argv[1] == "True"))))
    """
    for threads, size in ((1, 10**6), (3, 77)):
        own = {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": str(threads > 1)}
        run = subprocess.run(
            [sys.executable, "-c", program, str(lowercase), str(size)], env=os.environ | own,
            cwd=Path(__file__).resolve().parents[3], capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert run.stdout.splitlines() == vocab(lowercase)


@casings
def test_a_trained_vocabulary_has_exactly_the_entries_asked_for_special_tokens_first(
    lowercase: bool,
) -> None:
    tokens = vocab(lowercase)
    assert len(tokens) == len(set(tokens)) == 1500
    assert tokens[:5] == list(SPECIAL_TOKENS.values())
    check_casing(tokens, lowercase)
    ids, _ = encoder_of(lowercase).encode(TEXT)
    assert (ids == 1).mean() < 0.001, "[UNK] in the text of training"


def test_punctuation_and_cjk_characters_have_no_inner_form() -> None:
    tokens = train_vocab(
        lambda: [TEXT, ["漢字 is written. Is it? 漢字。"] * 3], 1500, TextForm(True)
    )
    assert {"漢", "字", ".", "?"} <= set(tokens)
    assert not {"##漢", "##字", "##.", "##?"} & set(tokens)


def test_an_alphabet_takes_at_most_half_the_vocabulary_the_most_frequent_first() -> None:
    texts = [chr(code) * (1 + code % 7) for code in range(0x4E00, 0x4E00 + 500)] + ["abab"] * 9
    texts += [chr(code) * (1 + code % 7) for code in range(0x430, 0x44F)]
    characters = train_vocab(lambda: [texts], 205, TextForm(True))  # without merges
    assert len(characters) == 205
    words = [f"{a}{b}" for a in "abcdefghij" for b in "abcdefghij"] * 2
    tokens = train_vocab(lambda: [texts + words], 205, TextForm(True))
    alphabet = [token for token in tokens[5:] if len(token.removeprefix("##")) == 1]
    assert len(alphabet) <= 100
    assert set("abcdefghij") <= set(alphabet)


def test_too_little_text_is_refused_with_the_size_that_fits() -> None:
    with pytest.raises(ValueError, match=r"vocab_size=9000 .*set vocab_size=(\d+)") as caught:
        train_vocab(lambda: [TEXT[:1000]], 9000, TextForm(True))
    size = int(str(caught.value).rsplit("=", 1)[1])
    assert len(train_vocab(lambda: [TEXT[:1000]], size, TextForm(True))) == size


@casings
@given(text=st.text(max_size=30))
def test_normalising_works_character_by_character_as_the_alphabet_counts(lowercase, text) -> None:
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    whole = sorted(normalizer.normalize_str(text).replace(" ", ""))
    apart = sorted("".join(normalizer.normalize_str(c) for c in text).replace(" ", ""))
    assert whole == apart


# ---------------------------------------------------------------- the tokenizer's files


@casings
@pytest.mark.filterwarnings("error")
def test_auto_tokenizer_reads_the_saved_folder_with_the_same_ids_and_casing(
    lowercase: bool, tmp_path: Path
) -> None:
    tokens = vocab(lowercase)
    save_tokenizer(tmp_path, tokens, TextForm(lowercase))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is BertTokenizerFast
    assert loaded.do_lower_case == lowercase
    assert len(loaded) == len(tokens)
    assert loaded.convert_ids_to_tokens(range(len(tokens))) == tokens
    sample = [*TEXT[::50], "Élan Ünder Straße", unicodedata.normalize("NFD", "Élan")]
    expected = ours(encoder_of(lowercase), sample)
    assert loaded(sample, add_special_tokens=False)["input_ids"] == expected


@casings
def test_the_saved_tokenizer_adds_cls_and_sep_and_knows_the_special_tokens(
    lowercase: bool, tmp_path: Path
) -> None:
    tokens = vocab(lowercase)
    save_tokenizer(tmp_path, tokens, TextForm(lowercase))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = special_ids(tokens)
    a, b = ours(encoder_of(lowercase), ["the list", "it is"])
    pair = loaded("the list", "it is")
    assert pair["input_ids"] == [ids["cls"], *a, ids["sep"], *b, ids["sep"]]
    assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert loaded("[MASK]")["input_ids"] == [ids["cls"], ids["mask"], ids["sep"]]
    for name in ("pad", "unk", "mask"):
        assert getattr(loaded, f"{name}_token_id") == ids[name]


def test_saving_twice_gives_the_same_bytes_and_a_vocabulary_that_reads_back(tmp_path) -> None:
    for folder in ("a", "b"):
        save_tokenizer(tmp_path / folder, vocab(True), TextForm(True))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(TOKENIZER_FILES)
    for name in TOKENIZER_FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert read_vocab(tmp_path / "a" / "vocab.txt") == vocab(True)


@casings
def test_a_released_vocabulary_keeps_its_ids(lowercase: bool, tmp_path: Path) -> None:
    path = released(lowercase)
    tokens = read_vocab(path)
    check_casing(tokens, lowercase)
    assert special_ids(tokens) == {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    save_tokenizer(tmp_path, tokens, TextForm(lowercase))
    assert (tmp_path / "vocab.txt").read_bytes() == path.read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path).mask_token_id == 103


GOOD = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf" + GOOD.encode(), "line 1, begins with a byte order mark.*remove"),
        (GOOD.replace("\n", "\r\n").encode(), "line 1, ends in CR; convert the line ends to LF"),
        (GOOD.encode() + b"b\r\n", "line 7, ends in CR"),
        (GOOD.encode() + b"b\n\xff\n", "line 8, is not UTF-8; convert"),
        (GOOD.encode() + b"b\na\n", r"line 8, repeats 'a' of line 6;.*\[unused8\]"),
        (GOOD.encode() + b"\nb\n", r"line 7, is empty.*\[unused7\]"),
        (GOOD.encode() + b"b\n\n", "line 8, is empty; remove it if it is the last"),
        (GOOD.replace("[MASK]\n", "").encode(), r"lacks \[MASK\].*add them"),
        (b"one\ntwo\n", r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
    ],
)
def test_a_broken_vocabulary_is_refused_with_line_and_cure(tmp_path, raw, message) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message) as caught:
        read_vocab(path)
    assert str(path) in str(caught.value)


def test_a_vocabulary_of_the_other_casing_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match="set lowercase=false"):
        check_casing(vocab(False), lowercase=True)
    with pytest.raises(ValueError, match="set lowercase=true"):
        check_casing(vocab(True), lowercase=False)

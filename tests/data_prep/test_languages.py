"""language=CODE: a profile of conf/language, what it decides, and what refuses another one."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from made_documents import write_source
from transformers import AutoTokenizer

from data_prep import collect, encode, vocab
from data_prep.core.config import SettingsError, choices
from data_prep.core.files import read_json
from data_prep.core.job import load
from data_prep.core.records import TextForm
from data_prep.core.settings import DataPrepSettings
from data_prep.stores.documents import Document
from data_prep.stores.tokens import TokenStore
from data_prep.text.language import is_language, iso_code, known_languages
from data_prep.tokenizer.vocab_file import SPECIAL_TOKENS
from data_prep.tokenizer.wordpiece import make_tokenizer

WANTED = "en de fr es it nl pl ru uk tr vi ar fa he hi bn th zh zh-hans zh-hant ja ko el multi"

GERMAN = "Am 3. Oktober schien die Sonne über Köln. „Kommst du?“, fragte Frau Größer. Er schwieg."
CHINESE = "图书馆早上八点开门。2019年以前是九点。“你是谁？”门卫问。她是新来的老师。"
ENGLISH = "Mr. Brown left at 8.30 a.m. and never came back. Nobody knew why. It rained all day."
TEXTS = {"de": GERMAN, "zh": CHINESE, "en": ENGLISH}

RULES = make_tokenizer([*SPECIAL_TOKENS.values()], TextForm(True, False))
WORDS = [
    *SPECIAL_TOKENS.values(),
    *dict.fromkeys(
        word
        for text in TEXTS.values()
        for word, _ in RULES.pre_tokenizer.pre_tokenize_str(RULES.normalizer.normalize_str(text))
    ),
]


def settings(data_dir: Path, *typed: str) -> DataPrepSettings:
    return load([f"data_dir={data_dir}", "duplicates=keep", "num_workers=1", *typed])


def prepared(data_dir: Path, language: str, texts: list[str]) -> list[list[str]]:
    """The stored sentences of the documents with these texts, as the vocabulary's words."""
    documents = [Document(str(n), "", text) for n, text in enumerate(texts * 20)]
    write_source(data_dir, "texts", [documents])
    vocab_file = data_dir / "words.txt"
    vocab_file.write_text("\n".join(WORDS))
    options = ["heldout_fraction=0.2", f"vocab_file={vocab_file}", f"language={language}"]
    vocab.run(settings(data_dir, *options))
    encode.run(settings(data_dir, *options))
    stock = AutoTokenizer.from_pretrained(data_dir / "vocab")
    part = TokenStore.open(data_dir, "train").part(0)
    ends = part.sentence_offsets[: 1 + part.document_offsets[1]]
    return [stock.convert_ids_to_tokens(part.ids[a:b]) for a, b in pairwise(ends)]


@pytest.mark.parametrize("code", WANTED.split())
def test_every_profile_composes_and_is_of_its_own_code(code: str) -> None:
    language = settings(Path("x"), f"language={code}").language
    assert language.code == code
    assert code == "multi" or code in known_languages()


def test_there_is_a_test_for_every_profile() -> None:
    assert {*WANTED.split(), "other"} == set(choices("language"))


@pytest.mark.parametrize("code", ["sv", "pt", "nb", "sw"])
def test_a_language_without_a_profile_gets_the_safe_one(code: str) -> None:
    found = settings(Path("x"), f"language={code}")
    assert (found.language.code, found.language.splitter.value) == (code, "sentencex")
    assert (found.lowercase, found.strip_accents) == (True, False)


def test_what_is_no_language_is_refused_with_the_profiles() -> None:
    with pytest.raises(SettingsError, match="language=qq is not known; there are ar, bn, de"):
        settings(Path("x"), "language=qq")


def test_the_profile_of_other_languages_is_not_typed_itself() -> None:
    with pytest.raises(SettingsError, match="such as language=sv") as refused:
        settings(Path("x"), "language=other")
    assert settings(Path("x"), str(refused.value).rsplit(" ", 1)[1]).language.code == "sv"


def test_a_typed_value_beats_the_profile(tmp_path: Path) -> None:
    source = ["+source=books", f"source.path={tmp_path}", "language=de"]
    found = settings(tmp_path, *source, "lowercase=false", "source.min_characters=7")
    assert (found.lowercase, found.source.language, found.source.min_characters) == (
        False, "de", 7,
    )  # fmt: skip


@pytest.mark.parametrize("code, shortest", [("en", 1000), ("zh", 300), ("ko", 500)])  # noqa: PT006
def test_a_profile_decides_the_language_and_length_of_books(tmp_path, code, shortest) -> None:
    typed = ["+source=books", f"source.path={tmp_path}", f"language={code}"]
    source = settings(tmp_path, *typed).source
    assert (source.language, source.min_characters) == (code, shortest)


def test_a_corpus_of_many_languages_keeps_them_all(tmp_path: Path) -> None:
    typed = ["+source=books", f"source.path={tmp_path}", "language=multi"]
    assert settings(tmp_path, *typed).source.language is None


def test_the_wikipedia_of_a_language_is_taken_from_the_hub() -> None:
    found = settings(Path("x"), "+source=wikipedia", "language=ko").source
    assert found.subset == "20231101.ko"


@pytest.mark.parametrize(
    ("found", "wanted"),
    [("iw", "he"), ("zh-Hant", "zh"), ("zh", "zh"), ("zh-Hant", "zh-hant"), ("no", "nb"),
     ("tl", "fil"), ("jw", "jv"), ("de", "de"), ("zh-Hant", "zh-Hant"), ("iw", "iw")],
)  # fmt: skip
def test_cld2_s_codes_are_found_under_those_of_iso_639(found: str, wanted: str) -> None:
    assert is_language(found, wanted)


@pytest.mark.parametrize(("found", "wanted"), [("zh-Hant", "zh-hans"), ("en", "de"), ("no", "nn")])
def test_another_language_is_not_taken_for_the_wanted_one(found: str, wanted: str) -> None:
    assert not is_language(found, wanted)


def test_the_codes_of_iso_639_come_back() -> None:
    assert [iso_code(code) for code in ("iw", "no", "de", "zh-Hant")] == [
        "he", "nb", "de", "zh-hant",
    ]  # fmt: skip


def test_german_keeps_its_accents_and_ordinals(tmp_path: Path) -> None:
    first, *_, last = prepared(tmp_path, "de", [GERMAN])
    assert first == "am 3 . oktober schien die sonne über köln .".split()
    assert last == "er schwieg .".split()


def test_chinese_is_cut_at_its_own_marks(tmp_path: Path) -> None:
    sentences = prepared(tmp_path, "zh", [CHINESE])
    assert ["".join(sentence) for sentence in sentences] == [
        "图书馆早上八点开门。", "2019年以前是九点。", "“你是谁？”门卫问。", "她是新来的老师。",
    ]  # fmt: skip


def test_of_many_languages_each_document_is_cut_by_its_own_rules(tmp_path: Path) -> None:
    for code, text in TEXTS.items():
        own = prepared(tmp_path / code, code, [text])
        mixed = prepared(tmp_path / f"multi-{code}", "multi", [text])
        assert mixed == own


def test_other_sentences_are_encoded_again_and_english_manifests_stay_as_they_were(
    tmp_path: Path,
) -> None:
    prepared(tmp_path, "en", [ENGLISH])
    for store in ("vocab", "tokens"):
        stored: dict[str, Any] = read_json(tmp_path / store / "manifest.json")["settings"]
        assert not {"language", "sentences", "alphabet_coverage"} & set(stored)
    prepared(tmp_path, "de", [ENGLISH])
    stored = read_json(tmp_path / "tokens" / "manifest.json")["settings"]
    assert stored["sentences"]["language"] == "de"


def test_a_vocabulary_of_another_language_is_refused_with_the_setting(tmp_path: Path) -> None:
    prepared(tmp_path, "de", [GERMAN])
    with pytest.raises(SettingsError, match="made with language=de: set language=de here"):
        encode.run(settings(tmp_path))
    encode.run(settings(tmp_path, "language=de", "heldout_fraction=0.2"))


def test_traditional_characters_are_chinese_to_collect(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    text = "圖書館早上八點開門，許多學生已經在門口等候。今天的天氣很好，陽光照在窗戶上。" * 20
    (tmp_path / "in" / "a.txt").write_text(text)
    typed = ["+source=books", f"source.path={tmp_path / 'in'}"]
    assert collect.run(settings(tmp_path / "zh", *typed, "language=zh")).documents == 1
    with pytest.raises(RuntimeError, match="language zh-Hant, not zh-hans"):
        collect.run(settings(tmp_path / "hans", *typed, "language=zh-hans"))


def test_a_store_of_many_languages_has_that_of_each_document_and_one_of_a_language_none(
    tmp_path: Path,
) -> None:
    prepared(tmp_path / "multi", "multi", [*TEXTS.values()])
    prepared(tmp_path / "en", "en", [ENGLISH])
    many, one = (TokenStore.open(tmp_path / name, "train") for name in ("multi", "en"))
    codes = [*many.languages_of(0)]
    names = many.part(0).documents.to_pylist()
    assert [codes[place] for place in many.part(0).languages] == [
        ("de", "zh-hans", "en")[int(name.removeprefix("texts/")) % 3] for name in names
    ]
    assert one.part(0).languages is None

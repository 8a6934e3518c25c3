"""Released vocabularies: entries by line whatever they look like, and the casing their files state.

That casing is honoured from the vocabulary to the export, or refused with a cure that works.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from made_documents import write_source
from slow_cases import slow_but
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from data_prep import encode, vocab
from data_prep.core.config import SettingsError
from data_prep.core.job import load
from data_prep.core.records import Normalization, TextForm
from data_prep.stores.documents import Document
from data_prep.stores.token_records import TokensManifest
from data_prep.stores.tokens import TokenStore
from data_prep.tokenizer.hf_files import save_tokenizer
from data_prep.tokenizer.released import differing, stated_rules
from data_prep.tokenizer.store import VocabManifest, read_vocab_store
from data_prep.tokenizer.training import add_words
from data_prep.tokenizer.vocab_file import read_vocab
from data_prep.tokenizer.wordpiece import Encoder

TOKENS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "möchte", "mochte", "müsste", "musste"),
    *("für", "der", "die", "."),
]
CASED = [*TOKENS, "Möchte", "Der"]
TEXT = "Möchte der möchte müsste für die Der."

BLANK_LIKE = ["\u2028", "\u2029", "\x85", "\u3000", "\xa0", " ", "\t", "\x0b", "\u2009x", "x\u2028"]


@pytest.mark.parametrize("entry", BLANK_LIKE, ids=ascii)
def test_an_entry_that_looks_blank_has_the_id_of_its_line(tmp_path: Path, entry: str) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", entry, "b", "##b"]
    path = tmp_path / "vocab.txt"
    path.write_bytes("".join(f"{token}\n" for token in tokens).encode())
    assert read_vocab(path) == tokens
    save_tokenizer(tmp_path / "saved", tokens, TextForm(True))
    assert (tmp_path / "saved" / "vocab.txt").read_bytes() == path.read_bytes()
    assert read_vocab(tmp_path / "saved" / "tokenizer.json") == tokens
    ids, _ = Encoder(tokens, TextForm(True)).encode([f"a {entry} bb"])
    assert ids.tolist() in ([5, 7, 8], [5, 1, 7, 8])  # "x" alone is unknown
    stock = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert stock("a bb", add_special_tokens=False)["input_ids"] == [5, 7, 8]


def test_a_file_of_words_has_a_word_per_line_feed(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("eins\r\nzw\u2028ei\r\ndrei\r\n".encode())
    with pytest.raises(ValueError, match=r"line 2: 'zw\\u2028ei' is cut to zw ei"):
        add_words(TOKENS, path, TextForm(True))
    path.write_bytes(b"eins\r\n\x0c\r\ndrei")
    assert add_words(TOKENS, path, TextForm(True)) == ["eins", "drei"]


def release(folder: Path, config: dict[str, Any] | None = None, **rules: Any) -> Path:
    """A folder with vocab.txt, and tokenizer.json if `rules` of its normalizer are given."""
    is_cased = False in ((config or {}).get("do_lower_case"), rules.get("lowercase"))
    tokens = CASED if is_cased else TOKENS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    if config is not None:
        whole = {"tokenizer_class": "BertTokenizer", **config}
        (folder / "tokenizer_config.json").write_text(json.dumps(whole))
    if rules:
        numbers = {token: number for number, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(**rules)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def make(data_dir: Path, *overrides: str) -> VocabManifest:
    return vocab.run(load([f"data_dir={data_dir}", *overrides]))


GERMAN = {"lowercase": True, "strip_accents": False}  # accents matter
BARE = {"lowercase": False, "strip_accents": True}
STOCK = {"normalization": Normalization.none, "clean_text": True, "turkish_i": False}
SAID = {"do_lower_case": True, "strip_accents": False}


UNLIKE = [
    (None, GERMAN, "tokenizer.json", "true", "möchte der möchte müsste für die der ."),
    (None, BARE, "tokenizer.json", "false", "[UNK] der mochte musste [UNK] die Der ."),
    ({"do_lower_case": False}, {}, "vocab.txt", "false", "Möchte der möchte müsste für die Der ."),
]


@pytest.mark.parametrize(
    ("config", "rules", "file", "lowercase", "words"),
    slow_but(
        UNLIKE,
        [
            *UNLIKE,
            (None, GERMAN, "vocab.txt", "true", "möchte der möchte müsste für die der ."),
            (SAID, {}, "vocab.txt", "true", "möchte der möchte müsste für die der ."),
            ({"do_lower_case": True}, GERMAN, "tokenizer.json", "true",
             "möchte der möchte müsste für die der ."),
            (SAID | {"strip_accents": True}, {}, "vocab.txt", "true",
             "mochte der mochte musste [UNK] die der ."),
            ({}, {}, "vocab.txt", "true", "mochte der mochte musste [UNK] die der ."),
        ],
    ),
)  # fmt: skip
def test_the_casing_that_a_released_tokenizer_states_is_used_from_encode_to_export(
    tmp_path: Path, config, rules, file: str, lowercase: str, words: str
) -> None:
    folder = release(tmp_path / "bert", config, **rules)
    typed = [f"vocab_file={folder / file}", f"lowercase={lowercase}"]
    data_dir = tmp_path / "data"
    manifest = make(data_dir, *typed)
    assert make(data_dir, *typed) == manifest
    documents = [Document(str(n), "", TEXT) for n in range(40)]
    write_source(data_dir, "texts", [documents])
    more = [f"data_dir={data_dir}", "duplicates=keep", "heldout_fraction=0.3", "num_workers=1"]
    encode.MOST_UNKNOWN, before = 1.0, encode.MOST_UNKNOWN
    try:
        encode.run(load(more))
    finally:
        encode.MOST_UNKNOWN = before
    part = TokenStore.open(data_dir, "train").part(0)
    assert [CASED[number] for number in part.ids[: len(words.split())]] == words.split()
    stock = AutoTokenizer.from_pretrained(data_dir / "vocab")  # what the export copies
    assert stock.tokenize(TEXT) == words.split()
    assert not differing(stated_rules(data_dir / "vocab" / "vocab.txt"), manifest.form)


def test_a_tokenizer_with_usual_accents_leaves_the_manifests_as_they_were(tmp_path: Path) -> None:
    folder = release(tmp_path, {"do_lower_case": True, "strip_accents": True})
    make(tmp_path / "data", f"vocab_file={folder / 'vocab.txt'}")
    assert "strip_accents" not in (tmp_path / "data" / "vocab" / "manifest.json").read_text()
    assert "strip_accents" not in TokensManifest.__struct_fields__


@pytest.mark.parametrize(
    ("config", "rules", "stated"),
    [
        (None, {}, {}),
        ({"do_lower_case": None, "strip_accents": None}, {}, STOCK),
        ({"strip_accents": None}, GERMAN, TextForm(True, False).rules),
        ({"do_lower_case": False}, {}, STOCK | {"lowercase": False, "strip_accents": False}),
        ({"strip_accents": True}, {"lowercase": False}, TextForm(False, True).rules),
    ],
)
def test_what_one_file_leaves_out_the_other_states(tmp_path, config, rules, stated) -> None:
    folder = release(tmp_path, config, **rules)
    assert stated_rules(folder / "vocab.txt") == stated_rules(folder / "tokenizer.json") == stated
    (folder / "other.txt").write_bytes((folder / "vocab.txt").read_bytes())
    assert stated_rules(folder / "other.txt") == {}


@pytest.mark.parametrize("rule", ["lowercase", "strip_accents"])
def test_files_that_differ_are_refused_until_one_is_put_right(tmp_path: Path, rule: str) -> None:
    right = {"do_lower_case": True, "strip_accents": False}
    wrong = {"lowercase": {"do_lower_case": False}, "strip_accents": {"strip_accents": True}}[rule]
    folder = release(tmp_path, right | wrong, **GERMAN)
    with pytest.raises(SettingsError, match=rf"tokenizer\.json differ in {rule} .* put it right"):
        make(tmp_path / "data", f"vocab_file={folder / 'vocab.txt'}")
    release(tmp_path, right)
    assert make(tmp_path / "data", f"vocab_file={folder / 'vocab.txt'}").strip_accents is False


def test_another_casing_than_the_settings_is_refused_with_cures_that_work(tmp_path: Path) -> None:
    path = release(tmp_path / "bert", {"do_lower_case": False}) / "vocab.txt"
    with pytest.raises(SettingsError, match=r"has lowercase=false; set lowercase=false .* copy"):
        make(tmp_path / "data", f"vocab_file={path}")
    assert make(tmp_path / "data", f"vocab_file={path}", "lowercase=false").lowercase is False
    alone = release(tmp_path / "alone") / "vocab.txt"
    assert make(tmp_path / "other", f"vocab_file={alone}").lowercase is True


def test_other_accents_than_the_settings_are_refused_with_the_cure(tmp_path: Path) -> None:
    path = release(tmp_path / "bert", {"do_lower_case": True}, **GERMAN) / "vocab.txt"
    typed = [f"vocab_file={path}", "strip_accents=true"]
    with pytest.raises(SettingsError, match="has strip_accents=false; set strip_accents=false "):
        make(tmp_path / "data", *typed)
    assert make(tmp_path / "data", *typed[:1], "strip_accents=false").strip_accents is False


def test_a_cased_tokenizer_without_capitals_is_taken_as_it_states(tmp_path: Path) -> None:
    folder = release(tmp_path, {"do_lower_case": False})
    text = "".join(f"{token}\n" for token in [*TOKENS[:5], "的", "一"])
    (folder / "vocab.txt").write_text(text)
    assert make(tmp_path / "data", f"vocab_file={folder / 'vocab.txt'}", "lowercase=false")


BERT = {"type": "BertNormalizer", "lowercase": True}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"normalizer": {"type": "Sequence", "normalizers": steps}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sequence(), "other steps than NFC or NFKC and then BertNormalizer"),
        (sequence({"type": "NFC"}), "other steps than"),
        (sequence(BERT, {"type": "NFC"}), "other steps than"),
        (sequence({"type": "NFC"}, {"type": "NFKC"}, BERT), "other steps than"),
        (sequence({"type": "Replace", "pattern": {"String": "a"}, "content": "b"}, BERT),
         "other steps than"),
        (sequence({"type": "NFD"}, BERT), "'NFD'"),
        ({"normalizer": {"type": "Lowercase"}}, "'Lowercase'"),
        ({"normalizer": None}, "normalizer"),
        ({"pre_tokenizer": None}, "pre_tokenizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "'Whitespace'"),
        ({"model": {"continuing_subword_prefix": ""}}, "continuing_subword_prefix"),
        ({"model": {"unk_token": "<unk>"}}, "'<unk>'"),
        ({"model": {"max_input_chars_per_word": 20}}, "20"),
    ],
)  # fmt: skip
def test_rules_that_are_not_followed_are_refused(tmp_path: Path, change, message: str) -> None:
    path = release(tmp_path, **GERMAN) / "tokenizer.json"
    content = json.loads(path.read_text())
    for name, value in change.items():
        merged = {**content[name], **value} if name == "model" else value
        content[name] = merged
    path.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=message):
        make(tmp_path / "data", f"vocab_file={path}")
    assert not (tmp_path / "data").exists()


MECAB = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_lower_case": "yes"}, "is not a tokenizer's settings"),
        (MECAB, "words are cut by mecab before .* leave vocab_file out"),
        (MECAB | {"subword_tokenizer_type": "character"}, "by mecab and pieces by character"),
        ({"tokenizer_class": "RoFormerTokenizer"}, "=RoFormerTokenizer, whose rules are not"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "there is none beside it; copy it there"),
        ({"do_basic_tokenize": False}, "do_basic_tokenize=false, which is not done here"),
        ({"never_split": ["a"]}, "never_split, which is not done"),
        ({"mask_token": {"content": "<mask>"}}, r"mask_token=<mask>, and a BERT's is \[MASK\]"),
    ],
)
def test_a_config_of_other_rules_or_a_broken_one_is_refused(tmp_path, config, message) -> None:
    folder = release(tmp_path, config)
    with pytest.raises(SettingsError, match=f"tokenizer_config.json .*{message}"):
        make(tmp_path / "data", f"vocab_file={folder / 'vocab.txt'}")


FORMS = [
    TextForm(True, False, Normalization.nfc),
    TextForm(True, None, Normalization.nfkc),
    TextForm(False, clean_text=False),
    TextForm(True, tokenize_chinese_chars=False),
    TextForm(True, False, Normalization.nfc, turkish_i=True),
]


@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_text_form_is_taken_over_from_files_as_they_are_released(
    tmp_path: Path, form: TextForm, file: str
) -> None:
    save_tokenizer(tmp_path / "bert", TOKENS if form.lowercase else CASED, form)
    assert stated_rules(tmp_path / "bert" / file) == form.rules
    path = f"vocab_file={tmp_path / 'bert' / file}"
    assert make(tmp_path / "data", path, *str(form).split()).form == form
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        same = (tmp_path / "bert" / name).read_bytes()
        assert (tmp_path / "data" / "vocab" / name).read_bytes() == same


@pytest.mark.parametrize("language", ["en", "tr"])
@pytest.mark.parametrize("form", [*FORMS, TextForm(True)], ids=str)
def test_following_the_cure_of_another_text_form_leads_to_a_vocabulary(
    tmp_path: Path, form: TextForm, language: str
) -> None:
    save_tokenizer(tmp_path / "bert", TOKENS if form.lowercase else CASED, form)
    cased = f"lowercase={not form.lowercase}".lower()
    typing = [f"vocab_file={tmp_path}/bert/vocab.txt", f"language={language}", cased]
    with pytest.raises(SettingsError, match="its tokenizer has ") as refused:
        make(tmp_path / "data", *typing)
    cure = str(refused.value).split("; set ")[1].split(" (or")[0]
    assert make(tmp_path / "data", *typing, *cure.split()).form == form


def test_words_are_added_by_the_casing_of_the_released_tokenizer(tmp_path: Path) -> None:
    folder = release(tmp_path, SAID)
    (tmp_path / "words.txt").write_text("Größe\n")
    typed = [f"vocab_file={folder / 'vocab.txt'}", f"add_words={tmp_path / 'words.txt'}"]
    make(tmp_path / "data", *typed)
    assert read_vocab_store(tmp_path / "data")[0][-1] == "größe"


def test_a_tokenizer_alone_is_not_answered_with_a_vocabulary_file_that_is_not_there(tmp_path):
    save_tokenizer(tmp_path / "bert", TOKENS, TextForm(True, False))
    (tmp_path / "bert" / "vocab.txt").unlink()
    with pytest.raises(SettingsError, match=r"set strip_accents=false$"):
        make(tmp_path / "data", f"vocab_file={tmp_path}/bert/tokenizer.json", "strip_accents=true")


def test_capitals_that_a_lower_casing_tokenizer_never_uses_are_taken_as_it_states(tmp_path) -> None:
    folder = release(tmp_path, {"do_lower_case": True})
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in CASED))
    assert make(tmp_path / "data", f"vocab_file={folder / 'vocab.txt'}").vocab_size == len(CASED)


def test_the_name_proposed_for_an_entry_is_not_taken(tmp_path: Path) -> None:
    tokens = [*TOKENS, "[unused16]", "", "[unused15]"]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    with pytest.raises(SettingsError, match=r"line 15, is empty; .* such as \[unused17\]"):
        read_vocab(tmp_path / "vocab.txt")

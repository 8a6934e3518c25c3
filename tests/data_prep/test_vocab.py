"""data_prep.vocab: trained, released and extended vocabularies, and what is refused."""

import pydoc_data.topics
import shutil
from pathlib import Path

import pytest
from made_documents import write_source
from transformers import AutoTokenizer

from data_prep import vocab
from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, read_json, write_json
from data_prep.core.job import load
from data_prep.stores.documents import Document, list_parts
from data_prep.tokenizer import store
from data_prep.tokenizer.hf_files import TOKENIZER_FILES
from data_prep.tokenizer.vocab_file import read_vocab

TEXTS = list(pydoc_data.topics.topics.values())
SPECIAL = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


def write_documents(data_dir: Path, texts: list[str], source: str = "topics") -> None:
    documents = [Document(str(number), "", text) for number, text in enumerate(texts)]
    write_source(data_dir, source, [documents])


def make(data_dir: Path, *overrides: str) -> store.VocabManifest:
    return vocab.run(load([f"data_dir={data_dir}", *overrides]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("trained")
    write_documents(data_dir, TEXTS)
    make(data_dir, "vocab_size=1000")
    return data_dir


def write_released(folder: Path, text: str = SPECIAL + "the\n") -> Path:
    (folder / "released.txt").write_text(text)
    return folder / "released.txt"


def contents(data_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (data_dir / "vocab").iterdir()}


def test_a_trained_vocabulary_has_the_size_asked_for_and_a_manifest_that_describes_it(
    trained: Path,
) -> None:
    tokens, manifest = store.read_vocab_store(trained)
    assert len(tokens) == manifest.vocab_size == 1000
    assert manifest.lowercase is True
    assert manifest.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert manifest.checksum == checksum(trained / "vocab" / "vocab.txt")
    assert set(contents(trained)) == {*TOKENIZER_FILES, "manifest.json"}
    assert AutoTokenizer.from_pretrained(trained / "vocab").vocab_size == 1000


def test_two_corpora_of_the_same_text_get_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    write_documents(tmp_path, TEXTS)
    make(tmp_path, "vocab_size=1000", "num_workers=3")
    assert contents(tmp_path) == contents(trained)


def test_of_a_large_corpus_a_sample_of_parts_is_trained_on(tmp_path: Path) -> None:
    for number in range(8):
        write_documents(tmp_path, TEXTS[number::8], source=f"topics{number}")
    parts = list_parts(tmp_path)
    characters = sum(part.characters for part in parts)
    [whole, half] = (
        make(tmp_path, "vocab_size=500", f"vocab_characters={most}").settings.documents
        for most in (characters, characters // 2)
    )
    assert set(whole) == {part.key for part in parts}
    assert set(half) < set(whole)
    used = sum(part.characters for part in parts if part.key in half)
    assert characters / 4 < used <= characters / 2


def test_a_finished_vocabulary_is_kept_and_made_again_for_other_settings_or_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_documents(tmp_path, TEXTS[:40])
    first = make(tmp_path, "vocab_size=500")
    with monkeypatch.context() as patched:
        patched.setattr(vocab, "train_vocab", lambda *_: pytest.fail("trained again"))
        assert make(tmp_path, "vocab_size=500") == first
    assert make(tmp_path, "vocab_size=600").vocab_size == 600
    assert not make(tmp_path, "vocab_size=600", "lowercase=false").lowercase
    write_documents(tmp_path, TEXTS[40:80])
    assert make(tmp_path, "vocab_size=500").checksum != first.checksum


@pytest.mark.parametrize("typed", [["vocab_size=600"], ["vocab_size=500", "lowercase=false"], []])
def test_the_vocabulary_of_whole_shards_is_replaced_only_if_asked(
    tmp_path: Path, typed: list[str]
) -> None:
    write_documents(tmp_path, TEXTS[:40])
    first = make(tmp_path, "vocab_size=500")
    write_json(tmp_path / "len128" / "manifest.json", {"vocab_checksum": first.checksum})
    assert make(tmp_path, "vocab_size=500") == first
    if not typed:  # more documents, which the vocabulary serves as it is
        write_documents(tmp_path, TEXTS[40:80], source="more")
        typed = ["vocab_size=500"]
    with pytest.raises(SettingsError, match=r"len128 hold the ids .*data_prep\.status .*replace="):
        make(tmp_path, *typed)
    assert store.read_vocab_store(tmp_path)[1] == first
    assert make(tmp_path, *typed, "replace=true") != first
    make(tmp_path, "vocab_size=700")  # the shards are of none of these


@pytest.mark.parametrize("name", [name for name in TOKENIZER_FILES if name != "vocab.txt"])
def test_a_lost_file_of_the_tokenizer_is_written_again_also_after_more_documents(
    tmp_path: Path, name: str
) -> None:
    write_documents(tmp_path, TEXTS[:40])
    first = make(tmp_path, "vocab_size=500")
    write_json(tmp_path / "len128" / "manifest.json", {"vocab_checksum": first.checksum})
    write_documents(tmp_path, TEXTS[40:80], source="more")
    before = contents(tmp_path)
    (tmp_path / "vocab" / name).unlink()
    assert make(tmp_path, "vocab_size=500") == first
    assert contents(tmp_path) == before
    (tmp_path / "vocab" / name).unlink()
    with pytest.raises(SettingsError, match="replace=true"):
        make(tmp_path, "vocab_size=600")


def test_a_vocabulary_killed_before_its_manifest_counts_as_missing(tmp_path: Path) -> None:
    write_documents(tmp_path, TEXTS[:40])
    first = make(tmp_path, "vocab_size=500")
    (tmp_path / "vocab" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"run python -m data_prep\.vocab data_dir="):
        store.read_vocab_store(tmp_path)
    assert make(tmp_path, "vocab_size=500") == first


def test_a_released_vocabulary_is_taken_over_entry_for_entry_without_documents(tmp_path) -> None:
    path = write_released(tmp_path, "[PAD]\n[unused0]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n##s\n")
    manifest = make(tmp_path, f"vocab_file={path}")
    assert manifest.vocab_size == 8
    assert manifest.special_ids == {"pad": 0, "unk": 2, "cls": 3, "sep": 4, "mask": 5}
    assert read_vocab(tmp_path / "vocab" / "vocab.txt") == read_vocab(path)
    assert AutoTokenizer.from_pretrained(tmp_path / "vocab").mask_token_id == 5


def test_a_cased_vocabulary_is_refused_where_text_is_lower_cased(tmp_path: Path) -> None:
    path = tmp_path / "cased.txt"
    path.write_text(SPECIAL + "The\nthe\n")
    with pytest.raises(SettingsError, match=r"cased\.txt.*set lowercase=false"):
        make(tmp_path, f"vocab_file={path}")
    assert not (tmp_path / "vocab").exists()
    assert make(tmp_path, f"vocab_file={path}", "lowercase=false").lowercase is False


def test_too_few_documents_for_the_size_are_refused_with_the_size_that_fits(tmp_path) -> None:
    write_documents(tmp_path, TEXTS[:3])
    with pytest.raises(ValueError, match=r"vocab_size=30522 .*set vocab_size="):
        make(tmp_path)


def test_a_vocabulary_that_is_too_large_for_the_text_is_a_wrong_setting(tmp_path, capsys) -> None:
    write_documents(tmp_path, ["One text. A second sentence.", "Another text."])
    assert vocab.main([f"data_dir={tmp_path}", "vocab_size=60000", "num_workers=1"]) == 2
    assert capsys.readouterr().err.startswith("vocab_size=60000 asks for more entries than ")


def test_a_changed_vocabulary_is_refused_by_name(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "vocab", tmp_path / "vocab")
    path = tmp_path / "vocab" / "vocab.txt"
    path.write_text(path.read_text() + "more\n")
    with pytest.raises(ValueError, match=r"vocab\.txt is not the file that .* describes"):
        store.read_vocab_store(tmp_path)


def test_a_vocabulary_of_another_version_is_refused(tmp_path: Path) -> None:
    make(tmp_path, f"vocab_file={write_released(tmp_path)}")
    manifest_path = tmp_path / "vocab" / "manifest.json"
    write_json(manifest_path, read_json(manifest_path) | {"schema_version": 99})
    with pytest.raises(ValueError, match=r"vocab/manifest\.json .* 99 .*schema_version"):
        store.read_vocab_store(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "is not a file; give the path"), (SPECIAL + "a\na\n", "line 7, repeats 'a'")],
)
def test_the_program_ends_with_2_and_the_cure_for_a_wrong_vocab_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    path = tmp_path / "released.txt"
    if text is not None:
        path.write_text(text)
    assert vocab.main([f"data_dir={tmp_path}", f"vocab_file={path}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_the_program_prints_what_it_made(tmp_path, capsys) -> None:
    assert vocab.main([f"data_dir={tmp_path}", f"vocab_file={write_released(tmp_path)}"]) == 0
    assert "entries     6" in capsys.readouterr().out


@pytest.fixture
def released(tmp_path: Path) -> Path:
    return write_released(tmp_path, SPECIAL + "the\ncat\n##s\nco\n##vi\n##d\n[unused0]\n")


def test_added_words_follow_the_released_entries_and_are_found_whole(tmp_path, released) -> None:
    words = tmp_path / "words.txt"
    words.write_text("COVID\ncat\n\ncovid\nCafé\n")  # lower-cased, there already, blank, twice
    manifest = make(tmp_path, f"vocab_file={released}", f"add_words={words}")
    tokens, _ = store.read_vocab_store(tmp_path)
    assert tokens == [*read_vocab(released), "covid", "cafe"]
    assert manifest.added_words == ["covid", "cafe"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "vocab")
    assert tokenizer.tokenize("the Covids, Café") == ["the", "covid", "##s", "[UNK]", "cafe"]
    words.write_text("covid\n")
    assert make(tmp_path, f"vocab_file={released}", f"add_words={words}").vocab_size == 13


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("covid-19", r"line 2: 'covid-19' is cut to covid - 19 before"),
        ("new york", r"line 2: 'new york' is cut to new york before"),
        ("a" * 101, r"line 2: 'a+' has 101 characters before"),
    ],
)
def test_a_word_that_would_never_be_found_whole_is_refused_with_its_line(
    tmp_path: Path, released: Path, word: str, message: str
) -> None:
    words = tmp_path / "words.txt"
    words.write_text(f"fine\n{word}\n")
    with pytest.raises(SettingsError, match=message):
        make(tmp_path, f"vocab_file={released}", f"add_words={words}")
    assert not (tmp_path / "vocab").exists()


def test_words_are_added_to_a_released_vocabulary_alone(tmp_path: Path, released: Path) -> None:
    with pytest.raises(SettingsError, match=r"add_words=w\.txt .*set vocab_file"):
        make(tmp_path, "add_words=w.txt")
    with pytest.raises(SettingsError, match=r"add_words=w\.txt is not a file"):
        make(tmp_path, f"vocab_file={released}", "add_words=w.txt")


def test_a_tokenizer_json_is_taken_with_the_entries_added_to_it(tmp_path, released) -> None:
    make(tmp_path, f"vocab_file={released}")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "vocab")
    tokenizer.add_tokens(["covid"])
    tokenizer.save_pretrained(tmp_path / "theirs")
    make(tmp_path / "again", f"vocab_file={tmp_path / 'theirs/tokenizer.json'}")
    assert store.read_vocab_store(tmp_path / "again")[0] == [*read_vocab(released), "covid"]
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {"type": "BPE", "vocab": {}}, "added_tokens": []}')
    with pytest.raises(SettingsError, match=r"no tokenizer of kind WordPiece .*'BPE'"):
        make(tmp_path, f"vocab_file={path}")


GERMAN = (
    "Der alte Fischer ging am frühen Morgen zum Hafen und löste die Taue seines Bootes. "
    "Über dem Wasser lag dichter Nebel, und die Möwen schrien, als hätten sie Hunger. "
)


def write_two_languages(data_dir: Path) -> None:
    """A hundred English documents and four German ones, of which each has words of its own."""
    write_documents(data_dir, TEXTS, source="topics")
    words = [f"{a}{b}ung" for a in "Wer Ver Ent Zer Ab Auf Aus".split() for b in ("brech", "fahr")]
    texts = [GERMAN + " ".join(words[n::2]) + ". " + GERMAN for n in range(2)]
    write_documents(data_dir, texts, source="wiki")


def test_a_small_language_has_more_entries_by_the_exponent_and_its_shares_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_two_languages(tmp_path)
    typed = ["vocab_size=1000", "duplicates=keep", "strip_accents=false"]
    whole = make(tmp_path, *typed)
    assert "xponent" not in (tmp_path / "vocab" / "manifest.json").read_text()
    before = set(read_vocab(tmp_path / "vocab" / "vocab.txt"))
    assert make(tmp_path, *typed, "vocab_language_exponent=1") == whole
    assert vocab.main([f"data_dir={tmp_path}", *typed, "vocab_language_exponent=0.3"]) == 0
    balanced = set(read_vocab(tmp_path / "vocab" / "vocab.txt"))
    german = {"fischer", "hafen", "wasser", "über", "möwen", "nebel"}
    assert len(german & before) < len(german & balanced)
    shares = store.read_vocab_store(tmp_path)[1].languages
    assert shares["de"].sample > 5 * shares["de"].corpus
    assert sum(share.sample for share in shares.values()) == pytest.approx(1)
    assert "de 0." in capsys.readouterr().out


def test_of_a_large_corpus_the_exponent_takes_parts_of_every_source(tmp_path: Path) -> None:
    for number in range(8):
        write_documents(tmp_path, TEXTS[number::8], source=f"topics{number}")
    write_documents(tmp_path, [GERMAN * 3], source="wiki")
    most = sum(part.characters for part in list_parts(tmp_path)) // 2
    typed = ["vocab_size=500", f"vocab_characters={most}", "vocab_language_exponent=0.7"]
    drawn = make(tmp_path, *typed).settings.documents
    assert {name.split("/")[0] for name in drawn} == {*(f"topics{n}" for n in range(8)), "wiki"}


def test_many_languages_are_balanced_by_default_and_one_is_not() -> None:
    assert load(["data_dir=any", "language=multi"]).vocab_language_exponent == 0.7
    assert load(["data_dir=any", "language=de"]).vocab_language_exponent is None

"""The data of a run is checked by its manifest, before torch is imported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_manifests import shards_manifest, split_entry, tokens_manifest

from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, read_json, write_json
from data_prep.core.objectives import Pairing
from data_prep.core.records import Normalization, TextForm
from data_prep.tokenizer.hf_files import save_tokenizer
from data_prep.tokenizer.vocab_file import SPECIAL_TOKENS, read_vocab
from pretrain import run
from pretrain.config.settings import DataSettings, MaskMode
from pretrain.data.corpus import manifest_of


def corpus(folder: Path, rows: int = 5) -> DataSettings:
    (folder / "vocab").mkdir()
    vocab = folder / "vocab/vocab.txt"
    vocab.write_text("\n".join(SPECIAL_TOKENS.values()) + "\n")
    splits = {"train": split_entry(rows=rows), "heldout": split_entry(rows=1)}
    manifest = shards_manifest(
        splits, vocab_checksum=checksum(vocab), vocab_size=len(SPECIAL_TOKENS)
    )
    write_json(folder / "len128/manifest.json", manifest)
    return DataSettings(dir=str(folder), seq_len=128, pairs=Pairing.nsp, masking=MaskMode.static)


def test_a_whole_corpus_is_accepted(tmp_path: Path) -> None:
    assert manifest_of(corpus(tmp_path)).splits["train"].rows == 5


@pytest.mark.parametrize("asked", [Pairing.sop, Pairing.none])
def test_shards_of_other_pairs_are_refused_with_both_values_and_the_cure(tmp_path, asked) -> None:
    data = corpus(tmp_path)
    data.pairs = asked
    with pytest.raises(SettingsError) as refused:
        manifest_of(data)
    said = str(refused.value)
    assert f"data.pairs={asked.name}, but the shards in" in said
    assert "were built with pairs=nsp; set data.pairs=nsp, or" in said
    assert (
        f"data_prep.build data_dir={tmp_path} seq_len=128 pairs={asked.name} replace=true" in said
    )


def write_broken(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("{")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda _: None, ""),
        (lambda folder: write_json(folder / "tokens/manifest.json", tokens_manifest()),
         "len128 is trained on as it is, but out of date are build 128 (other token store);"),
        (lambda folder: write_broken(folder / "documents/duplicates.json"), ""),
    ],
)  # fmt: skip
def test_training_on_shards_that_are_out_of_date_prints_one_line(
    tmp_path: Path, capsys, harm, said: str
) -> None:
    data = corpus(tmp_path)
    (tmp_path / "tokens").mkdir()
    harm(tmp_path)
    run._warn_of_changes(data)
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == bool(said)


def other_length(folder: Path, seq_len: int, **changes: object) -> None:
    plain = read_json(folder / "len128/manifest.json")
    write_json(folder / f"len{seq_len}/manifest.json", plain | {"seq_len": seq_len} | changes)


def test_the_nearest_length_that_would_do_is_proposed(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    data.seq_len = 512
    for length, changes in ((32, {}), (256, {}), (384, {"pairs": "none"}), (500, {"dtype": "x"})):
        other_length(tmp_path, length, **changes)
    with pytest.raises(SettingsError, match=r"set data\.seq_len=(\d+), which is there") as refused:
        manifest_of(data)
    data.seq_len = int(str(refused.value).split("seq_len=")[1].split(",")[0])
    assert manifest_of(data).seq_len == 256


def test_where_no_other_length_would_do_or_each_phase_has_its_own_none_is_proposed(
    tmp_path: Path,
) -> None:
    data = corpus(tmp_path)
    data.seq_len = 512
    with pytest.raises(SettingsError) as refused:
        manifest_of(data, has_one_length=False)
    assert "which is there" not in str(refused.value)
    data.pairs = Pairing.none
    with pytest.raises(SettingsError, match="seq_len=512 pairs=none") as refused:
        manifest_of(data)
    assert "which is there" not in str(refused.value)


def test_where_tokens_are_missing_too_the_job_that_prints_the_others_is_named(tmp_path) -> None:
    data = corpus(tmp_path)
    data.seq_len = 512
    cure = f"python -m data_prep.status data_dir={tmp_path} seq_len=512 prints"
    with pytest.raises(SettingsError, match=re.escape(cure)):
        manifest_of(data)


def test_shards_of_the_other_accents_are_refused(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    stated = {"do_lower_case": True, "strip_accents": False}
    write_json(tmp_path / "vocab/tokenizer_config.json", stated)
    with pytest.raises(SettingsError, match=r"strip_accents=false, and .* were encoded with"):
        manifest_of(data)
    path = tmp_path / "len128/manifest.json"
    write_json(path, {**read_json(path), "strip_accents": False})
    manifest_of(data)


def test_shards_of_another_unicode_form_are_refused(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    path = tmp_path / "vocab/vocab.txt"
    save_tokenizer(path.parent, read_vocab(path), TextForm(True, None, Normalization.nfc))
    with pytest.raises(SettingsError, match=r"normalization=nfc, .* with normalization=none; put"):
        manifest_of(data)
    path = tmp_path / "len128/manifest.json"
    write_json(path, {**read_json(path), "normalization": "nfc"})
    manifest_of(data)


def test_a_manifest_of_another_number_of_entries_is_refused_with_both_numbers(tmp_path) -> None:
    data = corpus(tmp_path)
    path = tmp_path / "len128/manifest.json"
    write_json(path, {**read_json(path), "vocab_size": 2**31 - 1})
    with pytest.raises(SettingsError, match=r"has 5 entries, .*says 2,147,483,647"):
        manifest_of(data)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no examples in its train split"):
        manifest_of(corpus(tmp_path, rows=0))


def forget_the_pairs(folder: Path, data: DataSettings) -> None:
    path = folder / "len128/manifest.json"
    write_json(path, {k: v for k, v in read_json(path).items() if k != "pairs"})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder, _: (folder / "vocab/vocab.txt").write_text("[PAD]\n[UNK]\nnew\n"),
         "is not the vocabulary that the shards"),
        (lambda folder, _: (folder / "vocab/vocab.txt").unlink(), r"vocab\.txt is missing"),
        (forget_the_pairs, r"field `pairs`; delete it and run .*data_prep\.build"),
        (lambda _, data: setattr(data, "seq_len", 512), r"set data\.seq_len=128, which is there"),
    ],
)  # fmt: skip
def test_a_wrong_vocabulary_manifest_or_length_is_refused_with_the_cure(
    tmp_path, harm, said
) -> None:
    data = corpus(tmp_path)
    harm(tmp_path, data)
    with pytest.raises(SettingsError, match=said):
        manifest_of(data)


def test_a_wrong_setting_is_refused_without_importing_torch() -> None:
    program = (
        "import sys; from pretrain.run import main; status = main(['+model=base', 'optim.eps=0']);"
        "sys.exit(status if 'torch' not in sys.modules else 99)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 2, answer.stderr
    assert "optim.eps=0" in answer.stderr

"""How every job starts: settings with their checks, messages and exit statuses."""

import errno
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from data_prep import audit, build, collect, dedup, encode, plan, status, vocab
from data_prep.core.config import SettingsError
from data_prep.core.job import load, start
from data_prep.core.settings import (
    USED_BY,
    USED_BY_ALL,
    DataPrepSettings,
    SourceKind,
    SourceSettings,
)
from data_prep.sources import module_of

SOURCES = sorted((Path(__file__).resolve().parents[3] / "conf/source").glob("*.yaml"))
JOBS = [collect, dedup, vocab, encode, build, audit, status, plan]


def test_cfg_prints_the_settings_and_does_nothing(tmp_path: Path, capfd) -> None:
    assert collect.main([f"data_dir={tmp_path}", "+source=sample", "--cfg", "seq_len=64"]) == 0
    shown = OmegaConf.create(capfd.readouterr().out)
    assert (shown.seq_len, shown.source.kind) == (64, "sample")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("typed", [["+source=books", "source.path=."], ["language=sv"]])
def test_without_the_detector_of_languages_its_cure_is_named(monkeypatch, typed) -> None:
    monkeypatch.setitem(sys.modules, "pycld2", None)  # as if it was not installed
    with pytest.raises(SettingsError, match=r"pip install pycld2 .*source\.language=null"):
        load(["data_dir=x", *typed])


@pytest.mark.parametrize("kind", [SourceKind.wikipedia_dump, SourceKind.wikipedia])
def test_without_the_parser_of_wiki_markup_its_cure_is_named(monkeypatch, kind) -> None:
    monkeypatch.setitem(sys.modules, "mwparserfromhell", None)
    for name in [*sys.modules]:
        if name.startswith(("data_prep.text.wiki", "data_prep.sources.wiki")):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SettingsError, match=f"{kind.value} needs .* pip install mwparserfromhell"):
        module_of(SourceSettings(name="x", kind=kind))


def test_without_the_detector_text_of_every_language_can_be_prepared(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pycld2", None)
    assert load(["data_dir=x", "+source=books", "source.path=.", "source.language=null"])


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (dedup, "run python -m data_prep.collect"),
        (vocab, "run python -m data_prep.collect"),
        (encode, "run python -m data_prep.vocab"),
        (build, "run python -m data_prep.encode"),
        (audit, "run python -m data_prep.build"),
        (status, "{folder} holds no corpus; begin with python -m data_prep.collect"),
    ],
)
def test_an_empty_folder_is_status_1_with_the_job_to_run_first(
    job: ModuleType, message: str, tmp_path: Path, capfd
) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert job.main([f"data_dir={folder}"]) == 1
        shown = capfd.readouterr()
        assert message.format(folder=folder) in shown.err
        assert "Traceback" not in shown.err
        assert shown.out == ""


@pytest.mark.parametrize("job", JOBS)
def test_a_wrong_setting_is_status_2(job: ModuleType, tmp_path: Path, capfd) -> None:
    assert job.main([f"data_dir={tmp_path}", "seq_len=0"]) == 2
    assert capfd.readouterr() == ("", "seq_len=0; it takes from 8 to 65535\n")


@pytest.mark.parametrize("job", [vocab, status])
def test_a_job_of_one_task_refuses_a_share(job: ModuleType, tmp_path: Path, capfd) -> None:
    assert job.main([f"data_dir={tmp_path}", "share=1/2"]) == 2
    assert "share=1/2: this job is a single task" in capfd.readouterr().err


@pytest.mark.parametrize("job", JOBS)
def test_a_data_dir_that_is_no_folder_is_status_2(job: ModuleType, tmp_path: Path, capfd) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    places = ("file", "", "a file"), ("link", "/a/b", "a link that leads nowhere")
    for name, below, what in places:
        assert job.main([f"data_dir={tmp_path / name}{below}", "+source=sample"]) == 2
        shown = capfd.readouterr().err
        assert f"{tmp_path / name} is {what}, not a folder; choose another folder\n" in shown
        assert shown.count("\n") == 1


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP]
)
def test_a_folder_that_the_system_refuses_is_status_2_and_a_sentence(
    tmp_path: Path, capfd, number: int
) -> None:
    def job(settings: DataPrepSettings) -> None:
        raise OSError(number, os.strerror(number), f"{settings.data_dir}/tokens")

    assert start(job, [f"data_dir={tmp_path}"], summary=lambda settings, result: "") == 2
    shown = capfd.readouterr().err
    assert shown.startswith(f"{tmp_path}/tokens: {os.strerror(number)}; ")
    assert "choose" in shown
    assert shown.count("\n") == 1


def test_a_name_that_is_too_long_and_a_link_to_itself_are_status_2(tmp_path: Path, capfd) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for folder in ("x" * 300, "loop"):
        assert collect.main([f"data_dir={tmp_path / folder}", "+source=sample"]) == 2
        assert "choose" in capfd.readouterr().err


def test_an_interrupted_job_prints_how_to_continue(tmp_path: Path, capfd) -> None:
    def job(settings: DataPrepSettings) -> None:
        raise KeyboardInterrupt

    assert start(job, [f"data_dir={tmp_path}"], summary=lambda settings, result: "") == 130
    assert capfd.readouterr().err == "interrupted; the same command continues\n"


def test_no_source_is_answered_with_the_sources_there_are(tmp_path: Path) -> None:
    expected = (
        r"add \+source=NAME, one of bookcorpus, books, gutenberg, lines, own, rows, sample, warc, "
        "wikiextractor, wikipedia, wikipedia_dump"
    )
    with pytest.raises(SettingsError, match=expected):
        collect.run(load([f"data_dir={tmp_path}"]))


def test_a_folder_is_required() -> None:
    with pytest.raises(SettingsError, match=r"data_dir is not set; .* add data_dir=FOLDER"):
        load([])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("+source=books", r"source\.path is not set; .* add source\.path=FOLDER"),
        ("source=books source.path=/no", r"source\.path=/no does not exist"),
        ("+source=book", "source=book is not known; there are bookcorpus, books"),
        ("source=sample source.name=a/b", "must be the name of one folder"),
        (
            "source=sample source.text_column=body source.split=train",
            r"source\.split, source\.text_column: not used by source\.kind=sample, "
            "which uses name, kind, language; leave it out",
        ),
        ("source=sample source.options={a:1}", r"source\.options: not used by source\.kind=sample"),
        ("source=rows source.path=. source.keep_verse=true", r"source\.keep_verse: not used by"),
        (
            "source=wikipedia source.min_characters=0",
            "min_characters=0; it takes 1 or more, or null",
        ),
        ("seq_len=7", "seq_len=7; it takes from 8 to 65535"),
        ("masking.rate=1", r"masking\.rate=1\.0; it takes more than 0"),
        ("masking.random_share=0.3", "their sum may not exceed 1"),
        ("num_workers=0", "num_workers=0; it takes 1 or more, or null"),
        ("heldout_fraction=1", r"heldout_fraction=1\.0; it takes \[0, 1\)"),
        ("audit.random_next_least=0.9", "must be ascending"),
        ("audit.most_told_alone=80", r"told_alone=80\.0; it takes \[0, 1\]"),
        ("vocabsize=3", "no setting 'vocabsize'; did you mean vocab_size"),
        ("share=3/2", "share=3/2; it takes K/N"),
        ("share=0/2", "share=0/2; it takes K/N"),
        ("share=half", "share=half; it takes K/N"),
        ("share=1/2 executor=slurm", "share=1/2 is for executor=local, not slurm"),
        ("array_size=0", "array_size=0; it takes 1 or more"),
        ("executor=dask", "executor: .*dask"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_cure(overrides: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(["data_dir=d", *overrides.split()])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_source_s_file_holds_every_setting_that_its_kind_uses(path: Path) -> None:
    shown = OmegaConf.load(path)
    used = USED_BY.get(SourceKind(shown.kind), ("plugin", "path", "options"))
    assert {*shown, "language"} == {*used, *USED_BY_ALL}


def test_every_wrong_number_is_listed_at_once() -> None:
    with pytest.raises(SettingsError, match=r"^seed=-1; .*\ncopies=0; it takes from 1 to 65535$"):
        load(["data_dir=d", "copies=0", "seed=-1"])


def test_a_language_has_its_profile_in_capitals_too() -> None:
    assert (
        load(["data_dir=d", "language=ZH"]).language == load(["data_dir=d", "language=zh"]).language
    )

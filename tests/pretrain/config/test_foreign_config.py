"""config.yaml of a run that somebody else made: read as plain data, or refused in one line.

Nothing of Hydra, no interpolation, no code: the folder may be hostile.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from foreign_runs import HOSTILE_YAML, SECRET, bomb, command, put_code
from made_history import MadeRun, killed_and_stopped

from data_prep.core.config import SettingsError, as_dict, as_yaml, compose
from pretrain import report
from pretrain.config.load import settings_of
from pretrain.config.phases import phases_of
from pretrain.config.settings import Settings


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """config.yaml of a run that could be read."""
    return MadeRun(tmp_path / "x").folder / "config.yaml"


def append(config: Path, text: str) -> None:
    with config.open("a") as file:
        file.write(text)


def refusal(config: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        settings_of(config.parent)
    message = str(caught.value)
    assert message.isprintable(), "one line, without control characters"
    assert len(message) < 1000
    assert message.startswith(str(config))
    return message


@pytest.mark.parametrize("text", HOSTILE_YAML.values(), ids=HOSTILE_YAML.keys())
def test_what_is_more_than_plain_settings_is_refused_in_one_line(
    config: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SECRET_KEY", SECRET)
    append(config, text)
    assert SECRET not in refusal(config)


def test_a_bomb_of_aliases_is_refused_at_once(config: Path) -> None:
    config.write_text(bomb())
    began = time.monotonic()
    assert "an anchor or an alias" in refusal(config)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("seed: 12345", "seed: many", "run.seed"),
        ("seed: 12345", "seed: [1]", "run.seed"),
        ("seed: 12345", "seed: null", "run.seed"),
        ("resume: auto", "resume: '\\e[2J'", "run.resume"),
        ("global_batch: 32", "global_batch: 1.5", "optim.global_batch"),
        ("global_batch: 32", "global_batch: '32'", "optim.global_batch"),
        ("seed: 12345", "seed: 1\n  sede: 2", "run.sede"),
        ("phases: []", "phases: 1", "phases"),
        ("phases: []", "phases: [{changes: {}, moment: kept}]", "phases[0].moment"),
        ("phases: []", "phases: [1]", "phases[0]"),
    ],
)
def test_a_wrong_type_or_an_unknown_key_is_named_with_its_file(
    config: Path, old: str, new: str, key: str
) -> None:
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    message = refusal(config)
    assert key in message
    assert "use the version of this project that wrote it" in message


def test_a_group_that_is_no_mapping_is_refused(config: Path) -> None:
    config.write_text("model: 3\n")
    assert "model: Expected object, got int" in refusal(config)


def test_settings_that_the_file_lacks_have_their_defaults(config: Path) -> None:
    config.write_text("run: {name: x}\noptim: {learning_rate: 1e-6}\n")
    expected, _ = compose(
        "config", Settings, ["+model=base", "run.name=x", "optim.learning_rate=1e-6"]
    )
    assert settings_of(config.parent) == expected


def test_text_that_looks_like_another_type_stays_text(config: Path) -> None:
    names = ["1e-6", "null", "true", "1:30", "2026-01-01", "0x1f", "1_000", "~", ".nan", "- a: b"]
    settings, _ = compose("config", Settings, ["+model=tiny"])
    settings.monitor.sentences = names
    config.write_text(as_yaml(settings))
    assert settings_of(config.parent).monitor.sentences == names


def test_an_interpolation_in_settings_is_nowhere_resolved(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should one come so far, against the readers' refusal."""
    monkeypatch.setenv("FAKE_SECRET_KEY", SECRET)
    settings = settings_of(config.parent)
    settings.log.project = "${oc.env:FAKE_SECRET_KEY}"
    assert SECRET not in str(as_dict(settings))
    assert SECRET not in as_yaml(settings)
    assert phases_of(settings)[0].settings.log.project == "${oc.env:FAKE_SECRET_KEY}"


def test_a_value_that_could_not_be_read_back_is_refused_where_it_is_typed() -> None:
    with pytest.raises(SettingsError, match="may hold the text"):
        compose("config", Settings, ["+model=tiny", r"log.project='\${oc.env:HOME}'"])


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "link", "dangling link"])
def test_what_is_no_file_is_refused_without_waiting(config: Path, kind: str) -> None:
    real = config.rename(config.with_name("real.yaml"))
    match kind:
        case "pipe":
            os.mkfifo(config)
        case "folder":
            config.mkdir()
        case "device":
            config.symlink_to("/dev/zero")
        case "link":
            config.symlink_to(real)
        case _:
            config.symlink_to("nowhere")
    refusal(config)


@pytest.mark.parametrize(
    "module",
    [
        "pretrain.runs",
        "pretrain.report",
        *(pytest.param(f"pretrain.{m}", marks=pytest.mark.slow) for m in ("export", "evaluate")),
    ],
)
def test_no_command_runs_code_of_a_run_s_folder(tmp_path: Path, module: str) -> None:
    run = killed_and_stopped(tmp_path / "shared_run").folder
    put_code(run)
    append(run / "config.yaml", HOSTILE_YAML["hydra.searchpath"])
    word = f"dir={tmp_path}" if module == "pretrain.runs" else f"run={run}"
    done = command(module, word, cwd=tmp_path)
    assert not (tmp_path / "CODE_RAN").exists()
    assert "there is no setting 'hydra'" in done.stdout + done.stderr
    assert done.returncode == (0 if module == "pretrain.runs" else 2)
    assert "Traceback" not in done.stderr


def test_no_environment_variable_reaches_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_SECRET_KEY", SECRET)
    run = killed_and_stopped(tmp_path / "x").folder
    path = run / "config.yaml"
    path.write_text(
        path.read_text().replace("project: bert-pretraining", "project: ${oc.env:FAKE_SECRET_KEY}")
    )
    target = tmp_path / "report.html"
    assert report.main([f"run={run}", f"target={target}"]) == 2
    error = capsys.readouterr().err
    assert "'${oc.env:FAKE_SECRET_KEY}'" in error
    assert SECRET not in error
    assert not target.exists()

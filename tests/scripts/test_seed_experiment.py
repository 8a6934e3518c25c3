"""The experiment's bookkeeping: what is finished is not done again, and what the table says."""

import itertools
import shutil
import sys
from pathlib import Path

import orjson
import pytest

from data_prep.core.files import read_json, write_json
from pretrain.config.load import load
from scripts.finetuning.settings import load as load_finetuning
from scripts.seed_experiment import PRETRAINING, STARTS, TASKS, Arguments, Experiment, main


@pytest.fixture
def finished(tmp_path, monkeypatch, capsys) -> list[str]:
    """A folder, out, in which everything is done; the arguments that it was done with.

    Other commands fail.
    """
    typed = without_records(tmp_path / "out")
    monkeypatch.setattr(sys, "executable", "/bin/true")
    assert main(typed) == 0
    monkeypatch.setattr(sys, "executable", "/bin/false")
    capsys.readouterr()
    return typed


def without_records(out: Path) -> list[str]:
    """The results of an experiment that does not know who made them, and its arguments."""
    folders = {name: out.parent / name for name in ("nsp", "none", "glue", "squad", "wnut")}
    for folder in folders.values():
        folder.mkdir()
    for name in ("nsp", "none"):
        write_json(out / "runs" / name / "export/config.json", {})
        records = [{"step": step, "eval/mlm_loss": 9.0 - step / 1000} for step in (250, 500)]
        lines = b"\n".join(map(orjson.dumps, records))
        (out / "runs" / name / "metrics.jsonl").write_bytes(lines)
    for (number, start), task in itertools.product(enumerate(STARTS), TASKS):
        rate = {"batch_size": 16, "learning_rate": number * 1e-4, "epochs": 4.0}
        result = {
            "metrics": ["dev_first", "dev_second"],
            "figures": {
                "dev_first": {"mean": 60.0 + number, "std": 1.5},
                "dev_second": {"mean": 50.0, "std": None},
            },
            "chosen": {"regularization": 10.0} if start == "words" else rate,
            "seeds": [{"seed": n, "dev_first": 61.0, "dev_second": 50.0} for n in (1, 2, 3)],
        }
        write_json(out / "finetune" / f"{start}-{task}" / "results.json", result)
    return [f"out={out}", *(f"{name}={folder}" for name, folder in folders.items())]


def test_what_is_finished_is_only_written_up(finished, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(finished) == 0
    text = (out / "experiment.md").read_text()
    assert "| sst2 dev_first | 60.0 ± 1.5 | 61.0 ± 1.5 | 62.0 ± 1.5 | 63.0 ± 1.5 |" in text
    assert "| sst2 dev_second | 50.0 | 50.0 | 50.0 | 50.0 |" in text
    assert "| squad dev_second | | 50.0 | 50.0 | 50.0 |" in " ".join(text.split())
    assert "Rates: sst2 0.0001, 0.0002, 0.0003; rte 0.0001, 0.0002, 0.0003;" in text
    facts = read_json(out / "experiment.json")
    assert len(facts["commands"]) == 2 + 3 * len(TASKS) + 4, "words: of classification only"
    assert all(command in text for command in facts["commands"])
    assert (out / "experiment.png").stat().st_size > 10_000
    told = capsys.readouterr().out
    assert (told.count("done before"), told.count("as it is")) == (3 * len(TASKS) + 4, 2)


def test_a_command_that_fails_is_named_and_ends_it(finished, tmp_path, capsys) -> None:
    (tmp_path / "out/finetune/none-rte/results.json").unlink()
    assert main(finished) == 1
    captured = capsys.readouterr()
    assert "status 1" in captured.err
    assert "-m scripts.finetune_classification +task=rte" in captured.err
    assert "runs/none/export start=pretrained" in captured.err


@pytest.mark.parametrize("added", ["seeds=4", "rates=1e-3,1e-4"])
def test_seeds_and_rates_are_added_to_what_is_there(finished, capsys, added) -> None:
    assert main([*finished, added]) == 1
    assert "start=random" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("examples=8000", "max_train_examples=4000 then, max_train_examples=8000 now"),
        ("epochs=9", "epochs=4 then, epochs=9 now"),
    ],
)
def test_what_was_fine_tuned_with_other_settings_is_kept(
    finished, tmp_path, capsys, changed, named
) -> None:
    assert main([*finished, changed]) == 2
    error = capsys.readouterr().err
    assert f"sst2 was fine-tuned otherwise: {named}; out=ANOTHER" in error
    assert f"runs={tmp_path / 'out/runs'} keeps both" in error


@pytest.mark.parametrize("is_deleted", [False, True])
def test_each_cure_for_results_of_other_settings_lets_it_begin(
    finished, tmp_path, capsys, is_deleted
) -> None:
    cure = []
    if is_deleted:
        shutil.rmtree(tmp_path / "out/finetune/random-sst2")
    else:
        cure = [f"out={tmp_path / 'another'}", f"runs={tmp_path / 'out/runs'}"]
    typed = [word for word in finished if not (cure and word.startswith("out="))]
    assert main([*typed, *cure, "examples=8000", "tasks=sst2", "starts=random"]) == 1
    assert "max_train_examples=8000" in capsys.readouterr().err


def test_what_was_fine_tuned_before_a_model_was_trained_further_is_kept(
    finished, tmp_path, capsys
) -> None:
    (tmp_path / "out/runs/nsp/export/model.safetensors").write_text("other weights")
    assert main(finished) == 2
    captured = capsys.readouterr()
    assert "nsp-sst2 was fine-tuned otherwise: its model has been trained further" in captured.err
    assert captured.out.count("done before") == 3, "all but nsp do not depend on it"


def test_a_pretraining_with_other_settings_than_before_is_continued(
    finished, tmp_path, capsys
) -> None:
    write_json(tmp_path / "out/runs/none.made_by.json", {"words": ["-m"], "model": None})
    assert main([*finished, "run.extend=true"]) == 1
    assert "-m pretrain.run" in capsys.readouterr().err


def test_a_command_that_is_refused_is_not_said_to_continue(
    finished, tmp_path, capsys, monkeypatch
) -> None:
    (tmp_path / "out/finetune/none-rte/results.json").unlink()
    refusing = tmp_path / "refuses"
    refusing.write_text("#!/bin/sh\nexit 2\n")
    refusing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(refusing))
    assert main(finished) == 2
    assert "this was refused, and says above why" in capsys.readouterr().err


def test_what_is_not_given_or_not_there_is_named(tmp_path, capsys) -> None:
    assert main([f"out={tmp_path}", f"nsp={tmp_path}", "starts=nsp", "tasks=squad,poetry"]) == 2
    error = capsys.readouterr().err
    assert "squad= is not given" in error
    assert "tasks=poetry is none of sst2, rte" in error
    assert "none=" not in error


def test_a_misspelt_argument_is_named_though_all_is_done(finished, capsys) -> None:
    assert main([*finished, "question=5"]) == 2
    assert "question" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["seeds=0", "epochs=0", "batch=0", "rates=fast"])
def test_a_number_that_fine_tuning_does_not_take_is_refused_before_the_pretraining(
    finished, tmp_path, capsys, wrong
) -> None:
    (tmp_path / "out/runs/nsp/export/config.json").unlink()
    assert main([*finished, wrong]) == 2
    assert wrong.partition("=")[2] in capsys.readouterr().err


def test_the_words_alone_of_a_task_without_classes_are_not_asked_for(finished, capsys) -> None:
    assert main([*finished, "starts=words", "tasks=squad,wnut17"]) == 2
    error = capsys.readouterr().err
    assert "has nothing for tasks=squad,wnut17; it is for tasks=sst2,rte,mrpc,stsb" in error


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("start", ["random", "none", "nsp"])
def test_every_start_tries_all_rates_on_every_task(tmp_path: Path, task: str, start: str) -> None:
    given = Arguments(
        out=tmp_path, glue=Path("g"), squad=Path("s"), wnut=Path("w"), rates="3e-5,2e-5"
    )
    [_, _, *typed] = Experiment(given, []).finetuning(start, task)
    assert load_finetuning(typed).grid.learning_rate == [3e-5, 2e-5]


@pytest.mark.parametrize("name", ["nsp", "none"])
def test_the_pretrainings_settings_are_accepted(tmp_path: Path, name: str) -> None:
    given = Arguments(out=tmp_path, nsp=Path("a"), none=Path("b"))
    [_, _, *typed] = Experiment(given, ["+model=tiny", "phases=[]"]).pretraining(name)
    assert typed[: len(PRETRAINING)] == list(PRETRAINING)
    settings, _ = load(typed, world_size=1)
    assert (settings.data.pairs.name, settings.phases) == (name, [])

"""python -m pretrain.evaluate and pretrain.average: checkpoints, exports and means on shards."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_in_fork import TINY, finished_run
from safetensors.torch import load_file, save_file

from data_prep.core.files import checksum, read_json, write_json
from data_prep.core.objectives import Pairing
from pretrain import average, evaluate
from pretrain.run_folder.jsonl import readable_lines

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def run(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps, evaluated and saved at 2 and 4."""
    folder = tmp_path_factory.mktemp("evaluated")
    finished_run(
        [*TINY, f"data.dir={sample_dir}", "schedule.total_steps=4", "eval.every_steps=2",
         "eval.max_examples=40", "checkpoint.every_steps=2"],
        folder,
    )  # fmt: skip
    return folder / "runs/x"


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """What the command prints as JSON."""

    def of(*typed: str) -> dict[str, Any]:
        status = evaluate.main([*typed, "json=true"])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        found: dict[str, Any] = json.loads(printed.out)
        return found

    return of


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def of(*typed: str) -> str:
        assert evaluate.main(typed) == 2
        return capsys.readouterr().err

    return of


@pytest.mark.parametrize("step", [2, 4])
def test_on_a_run_s_own_shards_the_metrics_are_those_that_it_logged(run, answer, step) -> None:
    found = answer(f"run={run}", f"checkpoint={step}", "max_examples=40")
    logged = {m["step"]: m for m in readable_lines(run / "metrics.jsonl") if "eval/loss" in m}
    assert found["metrics"] == {name: logged[step][name] for name in found["metrics"]}
    assert "eval/nsp_accuracy" in found["metrics"]
    assert found["model"].endswith(f"step-{step:08d}")


@pytest.mark.slow
def test_without_a_checkpoint_it_is_the_newest_and_an_export_gives_the_same(run, answer) -> None:
    newest = answer(f"run={run}")
    folder = run / "checkpoints/step-00000004"
    assert answer(f"run={run}", f"checkpoint={folder}") == newest
    data = Path(newest["shards"]).parent
    exported = answer(f"run={run / 'export'}", f"data.dir={data}", "data.seq_len=128")
    assert exported["metrics"] == pytest.approx(newest["metrics"], rel=1e-5)
    assert exported["examples"] == newest["of_examples"]


def test_another_split_is_evaluated_by_its_name(run, answer) -> None:
    found = answer(f"run={run}", "split=train", "max_examples=7")
    assert (found["split"], found["examples"]) == ("train", 7)
    assert found["metrics"] != answer(f"run={run}", "max_examples=7")["metrics"]


@pytest.mark.parametrize("pairing", [Pairing.none, Pairing.sop])
def test_of_shards_with_other_pairs_the_mlm_loss_alone_is_evaluated(
    run, answer, sample_dirs, pairing
) -> None:
    found = answer(f"run={run}", f"data.dir={sample_dirs(pairing)}", "max_examples=9")
    assert found["note"] == f"MLM alone: the model has pairs=nsp, the shards {pairing.name}"
    assert "eval/nsp_loss" not in found["metrics"]
    assert found["metrics"]["eval/loss"] == found["metrics"]["eval/mlm_loss"]


def with_vocabulary(sample_dir: Path, folder: Path, change: Callable[[list[bytes]], Any]) -> Path:
    """The sample's shards, as if encoded with a changed vocabulary."""
    shutil.copytree(sample_dir / "vocab", folder / "vocab")
    shutil.copytree(sample_dir / "len128", folder / "len128")
    path, manifest_path = folder / "vocab/vocab.txt", folder / "len128/manifest.json"
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))
    manifest = read_json(manifest_path)
    manifest |= {"vocab_size": len(lines), "vocab_checksum": checksum(path)}
    write_json(manifest_path, manifest)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.__setitem__(900, b"frobnicate\n"), "entry 900 is 'frobnicate' there"),
        (lambda lines: lines.append(b"frobnicate\n"), "entry 4096 is 'frobnicate' there and nothi"),
        (lambda lines: lines.pop(), "is nothing there and "),
    ],
)
@pytest.mark.parametrize("what", ["", "export"])
def test_shards_of_another_vocabulary_are_refused_with_the_first_entry(
    run, refusal, sample_dir, tmp_path, change, message, what
) -> None:
    other = with_vocabulary(sample_dir, tmp_path / "other", change)
    text = refusal(f"run={run / what}", f"data.dir={other}")
    assert message in text
    assert "encode the texts with vocab_file=" in text


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["checkpoint=3"], "step-00000003 is no folder; "),
        (["checkpoint=nowhere"], "nowhere is no folder"),
        (["split=dev"], "split=dev is none of heldout, train"),
        (["data.dir=nowhere"], "there are no shards of 128 tokens in nowhere"),
        (
            ["data.dir=s3://bucket/shards"],
            "data.dir is a URL, and shards are read from a local folder",
        ),
        (["data.seq_len=77"], "there are no shards of 77 tokens"),
        (["max_examples=0"], "max_examples=0; it takes 1 or more"),
        (["data_dir=x"], "it takes run=PATH checkpoint=TEXT data.dir=PATH data.seq_len=N"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(run, refusal, typed, message) -> None:
    text = refusal(f"run={run}", *typed)
    assert message in text
    assert text.count("\n") == 1


def test_an_export_needs_data_and_a_folder_that_is_no_model_is_refused(run, refusal) -> None:
    assert "data.dir is missing" in refusal(f"run={run / 'export'}")
    assert "run=" in (text := refusal(f"run={run / 'logs'}"))
    assert "init_from" not in text


def test_a_broken_checkpoint_is_refused(run, refusal, tmp_path) -> None:
    copy = tmp_path / "x"
    shutil.copytree(run, copy)
    path = copy / "checkpoints/step-00000004/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "that checkpoint is broken: model.safetensors has" in refusal(
        f"run={copy}", "checkpoint=4"
    )


def test_a_model_without_an_mlm_head_has_no_loss(run, refusal, sample_dir, tmp_path) -> None:
    shutil.copytree(run / "export", tmp_path / "encoder")
    path = tmp_path / "encoder/model.safetensors"
    weights = {n: w for n, w in load_file(path).items() if not n.startswith("cls.")}
    save_file(weights, path)
    data = [f"data.dir={sample_dir}", "data.seq_len=128"]
    text = refusal(f"run={tmp_path / 'encoder'}", *data)
    assert "has no MLM head" in text


def test_the_mean_of_the_last_checkpoints_is_exported_and_evaluated_next_to_the_last(
    run, answer, tmp_path, capsys
) -> None:
    target = tmp_path / "mean"
    assert average.main([f"run={run}", f"target={target}"]) == 0
    printed = capsys.readouterr().out
    first, last = (
        load_file(run / f"checkpoints/step-{step:08d}/model.safetensors") for step in (2, 4)
    )
    bias = "mlm_head.transform.bias"
    exported = load_file(target / "model.safetensors")["cls.predictions.transform.dense.bias"]
    assert torch.equal(exported, ((first[bias].double() + last[bias]) / 2).float())
    data = Path(answer(f"run={run}", "max_examples=2")["shards"]).parent
    losses = [
        answer(*of, "max_examples=40")["metrics"]["eval/mlm_loss"]
        for of in ([f"run={run}"], [f"run={target}", f"data.dir={data}", "data.seq_len=128"])
    ]
    (line,) = [line for line in printed.splitlines() if line.startswith("MLM loss")]
    assert [float(word) for word in line.split()[-2:]] == pytest.approx(losses, abs=1e-4)
    text = (target / "README.md").read_text()
    assert "The weights are the mean of those after steps 2, 4." in text
    assert f"| MLM loss (nats per masked token) | {losses[1]:.4f} |" in text

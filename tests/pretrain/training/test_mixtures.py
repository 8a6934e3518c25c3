"""Runs on a mixture of two sources: what they train on and log, on other ranks and after a kill."""

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import at_step
from run_in_fork import TINY, finished_run, pretrain_run
from small_corpus import SEQ_LEN, cut

from data_prep.core.objectives import Pairing
from data_prep.stores.shard_reader import Shards
from pretrain.config.settings import DataSettings, MaskMode
from pretrain.data.mixture import MixedOrder
from pretrain.run_folder.jsonl import readable_lines
from pretrain.training.evaluate_model import evaluate_model

pytestmark = pytest.mark.distributed

SEED, BATCH, NUM_BOOKS, NUM_WIKI = 12345, 8, 31, 22
PHASE = "moments: kept, optimizer_step: kept, loss_scaler: kept"
RUN = (
    *TINY, "schedule.total_steps=6", "eval.every_steps=5", "checkpoint.every_steps=2",
    "monitor.batch_checksums=true", "data.masking=dynamic", "engine=fp32",
    "engine.timeout_minutes=1", "data.mixture={books:1,wiki:3}",
    "phases=[{changes: {data: {mixture: {books: 7, wiki: 1}}, schedule: {total_steps: 4}}, "
    f"{PHASE}}}]",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture") / "data"
    names = ("books", "wiki", "books")
    return cut(sample_dir, folder, [20, NUM_WIKI, NUM_BOOKS - 20], [9, 5, 2], names)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two phases on one rank."""
    folder = tmp_path_factory.mktemp("straight")
    finished_run([*RUN, f"data.dir={data}"], folder)
    return folder / "runs/x"


def records(run: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in readable_lines(run / "metrics.jsonl") if name in line]


def test_each_record_has_the_shares_and_epochs_of_the_sources(data: Path, straight: Path) -> None:
    shards = Shards.open(data / f"len{SEQ_LEN}", "train")
    expected = []
    for number, mixture, steps in (
        (1, {"books": 1, "wiki": 3}, 6),
        (2, {"books": 7, "wiki": 1}, 4),
    ):
        settings = DataSettings(
            str(data), SEQ_LEN, Pairing.nsp, MaskMode.dynamic, mixture=dict(mixture)
        )
        order = MixedOrder.open(shards, settings, SEED + number - 1)
        for step in range(steps):
            ids = order.examples(0, BATCH * (step + 1))[1]
            is_wiki = (ids >= 20) & (ids < 20 + NUM_WIKI)
            expected.append((is_wiki[-BATCH:].mean(), is_wiki.sum() / NUM_WIKI))
    name = "data/source/wiki"
    found = [(r[f"{name}/share"], r[f"{name}/epoch"]) for r in records(straight, "train/loss")]
    assert found == pytest.approx(np.array(expected))
    assert all(
        math.isclose(r[f"{name}/share"] + r["data/source/books/share"], 1)
        for r in records(straight, "train/loss")
    )


def test_the_held_out_metrics_of_the_sources_add_up_to_those_of_all(
    data: Path, straight: Path
) -> None:
    held_out = Shards.open(data / f"len{SEQ_LEN}", "heldout")
    masked = held_out.masked_counts(np.arange(16))
    is_wiki = np.isin(np.arange(16), np.r_[9:14])
    evaluations = records(straight, "eval/loss")
    assert [line["step"] for line in evaluations] == [5, 6, 10]
    for line in evaluations:
        for name, weights in (
            ("mlm_loss", masked), ("mlm_accuracy", masked),
            ("nsp_loss", np.ones(16)), ("nsp_accuracy", np.ones(16)),
        ):  # fmt: skip
            of_wiki, of_books = (line[f"eval/{name}/{source}"] for source in ("wiki", "books"))
            share = weights[is_wiki].sum() / weights.sum()
            assert share * of_wiki + (1 - share) * of_books == pytest.approx(line[f"eval/{name}"])
        assert line["eval/mlm_loss/wiki"] != line["eval/mlm_loss/books"]


def test_evaluate_gives_the_metrics_of_the_sources_that_the_run_logged(straight: Path) -> None:
    last = records(straight, "eval/loss")[-1]
    found = evaluate_model(straight, None, None, None, "heldout", None).metrics
    assert {"eval/mlm_loss/books", "eval/nsp_accuracy/wiki"} <= set(found)
    assert found == {name: pytest.approx(last[name], rel=1e-5) for name in found}


def test_the_plan_and_the_model_card_name_the_sources(straight: Path) -> None:
    assert (
        "of each source: books 0.39, wiki 1.64" in (straight.parents[1] / "output.txt").read_text()
    )
    card = (straight / "export/README.md").read_text()
    assert "MLM loss of books (nats per masked token)" in card
    assert "wiki: 3.0" in card


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_killed_and_continued_on_one_train_on_the_same_batches(
    data: Path, straight: Path, tmp_path: Path
) -> None:
    arguments = [*RUN, f"data.dir={data}"]
    statuses, output = pretrain_run(arguments, tmp_path, ranks=2, hook=at_step(6))
    assert -signal.SIGKILL in statuses, output
    finished_run(arguments, tmp_path)
    mine, theirs = (records(run, "data/batch") for run in (tmp_path / "runs/x", straight))
    names = ("step", "data/batch", "data/source/books/share", "data/source/wiki/epoch")
    assert [[r[n] for n in names] for r in mine] == [[r[n] for n in names] for r in theirs]
    for name in ("train/loss", "eval/loss", "eval/mlm_loss/wiki"):
        losses = [[r[name] for r in records(run, name)] for run in (tmp_path / "runs/x", straight)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_mixture_that_does_not_fit_is_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    typed = [*TINY, f"data.dir={data}", "data.mixture={books:1,web:1}"]
    statuses, output = pretrain_run(typed, tmp_path)
    assert statuses == [2]
    assert output.splitlines()[-1] == (
        "pretrain.run: data.mixture={books:1,web:1}: 'web' is no source of it; 'wiki' has no "
        f"weight; {data} has books ({NUM_BOOKS} examples), wiki ({NUM_WIKI} examples)"
    )
    assert not (tmp_path / "runs").exists()

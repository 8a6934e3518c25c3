"""data_prep.plan: a sample is prepared, the table names all stages, nothing is left behind."""

import pydoc_data.topics
from pathlib import Path

import pytest

from data_prep import plan
from data_prep.core.job import load


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Twelve books of 50 kB."""
    (tmp_path / "books").mkdir()
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    for number in range(12):
        path = tmp_path / "books" / f"{number:02d}.txt"
        path.write_text("\n\n".join(texts[number::12]))
    return tmp_path / "books"


@pytest.mark.slow
def test_a_sample_of_the_source_is_measured_and_removed(books, tmp_path, capsys) -> None:
    given = [
        "+source=books", f"source.path={books}", "source.language=null", "num_workers=2",
        f"data_dir={tmp_path / 'd'}", "vocab_size=2000", "plan.seq_lens=[64]", "plan.nodes=3",
        "plan.bytes=1e9", "filters=[c4_lines]", "filter.sources=[books]",
    ]  # fmt: skip
    assert plan.main(given) == 0
    shown = capsys.readouterr().out
    for stage in (
        "collect",
        "filter",
        "dedup",
        "vocab",
        "encode",
        "build 64",
        "audit 64",
        "together",
    ):
        assert f"\n{stage:12}" in shown
    assert "input     1.0 GB: " in shown
    assert "machines  3 nodes of 2 cores\n" in shown
    assert list((tmp_path / "d").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no source is given; add +source=NAME"),
        (["+source=books", "source.path=nowhere"], "source.path=nowhere does not exist"),
        (["+source=sample", "plan.nodes=0"], "plan.nodes=0; it takes 1 or more"),
        (["+source=sample", "plan.bytes=0"], "plan.bytes=0.0; it takes 1 or more, or null"),
        (["+source=sample", "plan.seq_lens=[4]"], "plan.seq_lens: 4; it takes from 8 to 65535"),
    ],
)
def test_wrong_input_is_one_line(given: list[str], message: str, capfd) -> None:
    assert plan.main(given) == 2
    shown = capfd.readouterr()
    assert message in shown.err
    assert (shown.err.count("\n"), shown.out) == (1, "")


def test_a_task_that_is_too_large_for_a_sample_is_refused_with_what_to_do(
    tmp_path: Path, capfd, monkeypatch
) -> None:
    monkeypatch.setattr("data_prep.planning.sample.LARGEST", 5)
    (tmp_path / "a.txt").write_text("A long text.")
    given = ["+source=books", f"source.path={tmp_path}"]
    assert plan.main(given) == 2
    told = capfd.readouterr().err
    assert "a task of source.kind=books reads 0 MB" in told
    assert "head -c 10M FILE >CUT; of parquet, write some rows), and plan.bytes=12\n" in told


def test_the_settings_of_a_plan_have_defaults() -> None:
    settings = load(["data_dir=d"])
    assert (settings.plan.nodes, settings.plan.bytes, settings.plan.seq_lens) == (
        1,
        None,
        [128, 512],
    )

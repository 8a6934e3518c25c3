"""The page about a run: complete, escaped, and rendered by a real browser."""

import json
import math
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from browser import chromium
from made_history import MadeRun, killed_and_stopped
from matplotlib.figure import Figure
from matplotlib.image import imread
from page_reader import PageReader
from run_in_fork import TINY, finished_run

from data_prep.core.command import status_of
from pretrain import report
from pretrain.reporting import page as page_module
from pretrain.reporting import plots
from pretrain.run_folder.history import History


def page(folder: Path, *more: str) -> PageReader:
    """The page, which fetches nothing."""
    assert report.main([f"run={folder}", *more]) == 0
    found = PageReader((folder / "report.html").read_text())
    assert all(link.startswith("#") for link in found.links)
    return found


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    return killed_and_stopped(tmp_path / "x")


def test_the_page_shows_what_was_trained_how_far_and_in_how_many_starts(made: MadeRun) -> None:
    text = page(made.folder).text
    assert "BERT with 2 layers of size 128, MLM and NSP" in text
    assert "100 of 100 steps in 0:01:50, 3 starts" in text
    assert "58.8% of the wall time in steps that count" in text
    assert "signal SIGUSR1" in text


def test_every_curve_with_metrics_is_drawn(made: MadeRun) -> None:
    found = page(made.folder)
    assert found.tags.count("svg") == 4  # MLM loss and accuracy, speed, goodput
    assert len(found.ids) == len(set(found.ids)), "two charts share an id"


def test_fine_tuned_checkpoints_are_a_curve_per_task(made: MadeRun) -> None:
    folder = made.folder
    figures = [(step, {"dev_accuracy": {"mean": 50.0 + step}}) for step in (4, 8)]
    lines = [{"step": n, "task": "rte", "figures": made, "seeds": 2} for n, made in figures]
    (folder / "downstream.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    text = page(folder).text
    assert "Fine-tuned on rte" in text
    assert "dev_accuracy 58; 2 seed(s)." in text


def test_text_from_data_and_settings_is_escaped(tmp_path: Path) -> None:
    made = killed_and_stopped(
        tmp_path / "x", "data.dir='<script>alert(1)</script> $x^2$'", "log.project='<b>&amp;'"
    )
    made.event(171, "spike", step=100, text="<img src=x onerror=alert(2)>")
    found = page(made.folder)
    assert not {"script", "img"} & set(found.tags)
    for text in ("<script>alert(1)</script>", "<b>&amp;", "<img src=x onerror=alert(2)>"):
        assert text in found.text


def test_the_page_fetches_and_runs_nothing(made: MadeRun) -> None:
    folder = made.folder
    found = page(folder)
    assert not {"script", "link", "iframe", "object", "base"} & set(found.tags)
    html = (folder / "report.html").read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"@import|url\((?!#)", html)


def test_early_and_late_guesses_are_next_to_each_other(made: MadeRun) -> None:
    for step, word in ((20, "the"), (40, "old"), (60, "a"), (80, "red"), (100, "<b>door")):
        made.guesses(step, {"He opened the [MASK].": [[word, 0.5], ["of", 0.25]]})
    text = " ".join(page(made.folder).text.split())
    for column in ("after 20 steps", "after 60 steps", "after 100 steps"):
        assert column in text
    assert "the 50%, of 25%" in text
    assert "<b>door 50%" in text
    assert "red" not in text.split("Guesses for [MASK]")[1]


def test_a_profile_is_shown_by_rank_with_what_took_most_time(made: MadeRun) -> None:
    top = {"name": "<b>gemm", "calls": 1200, "own_ms": 12.5, "share": 0.5}
    rank = {
        "rank": 0, "steps": 2, "counted": "kernels", "ms": 24.6, "idle": 0.25,
        "communication": 0.125, "exposed": 0.0625, "top": [top],
    }  # fmt: skip
    summary = {"first_step": 10, "last_step": 11, "ranks": [rank, {**rank, "rank": 1}]}
    (made.folder / "profile").mkdir()
    path = made.folder / "profile" / "summary.json"
    path.write_text(json.dumps(summary))
    text = " ".join(page(made.folder).text.split("Profile of steps 10 to 11")[1].split())
    assert re.search(r"0 ?12\.3 ?25\.0% ?12\.5% ?6\.2% ?1 ?12\.3", text)
    assert re.search(r"kernels of rank 0 ?calls.*<b>gemm ?1,200 ?12\.50 ?50\.0%", text)
    path.write_text(json.dumps({**summary, "ranks": []}))
    assert "Profile of steps" not in page(made.folder).text


def test_what_is_unexpected_comes_first(made: MadeRun) -> None:
    facts = {"what": "plateau", "text": "too high", "findings": ["masks: 1 %"]}
    made.event(171, "expectation", step=100, **facts)
    text = page(made.folder).text
    assert text.index("too high masks: 1 %") < text.index("Results")


def test_the_published_band_is_drawn_under_its_own_metric(tmp_path: Path) -> None:
    large = ("model=large", "optim.global_batch=65536", "optim.learning_rate=6e-3")
    made = MadeRun(tmp_path / "x", *large)
    made.event(0, "started", step=0, ranks=1)
    for step in (500, 600, 700):
        made.record(step, step, train__loss=6.5, train__mlm_loss=6.0, band__low=6.0, band__high=7.0)
    page(made.folder)
    html = (made.folder / "report.html").read_text()
    figures = html.split("<figure>")[1:]
    drawn = [re.search("<h3>(.*?)</h3>", f)[1] for f in figures if "published runs" in f]
    assert drawn == ["Sum of both losses"]


def test_the_plan_is_next_to_the_actual_values(trained: Path) -> None:
    text = " ".join(page(trained).text.split("Plan and actual")[1].split())
    assert re.match(r"planned ?actual ?difference ?steps ?4 ?4 ", text)


@pytest.fixture(scope="module")
def trained(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of four steps."""
    folder = tmp_path_factory.mktemp("trained")
    typed = [*TINY, "schedule.total_steps=4", "eval.max_examples=8", f"data.dir={sample_dir}"]
    finished_run(typed, folder)
    return folder / "runs" / "x"


def test_a_real_run_has_every_section(trained: Path) -> None:
    found = page(trained)
    for heading in ("Curves", "Updates", "Speed", "Use of the hardware", "Guesses", "Starts"):
        assert heading in found.text, heading
    assert len(found.ids) == len(set(found.ids))


def test_where_the_data_is_gone_the_page_lacks_only_the_plan(trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    config = moved / "config.yaml"
    config.write_text(re.sub(r"(data:\n  dir: ).*", r"\1/nowhere", config.read_text()))
    shown = page(moved)
    assert "plan and actual" not in shown.text.lower()
    assert "/nowhere" in shown.text


@pytest.mark.parametrize(
    ("target", "why"),
    [("{}", "name a file, not a folder or a device"), ("/dev/full", "name a file, not a folder"),
     ("{}/config.yaml/x.html", "a file is where a folder must be"),
     ("{}/config.yaml/deeper/x.html", "a file is where a folder must be")],
)  # fmt: skip
def test_a_target_that_cannot_be_a_file_is_one_line(
    made: MadeRun, target: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run={made.folder}", f"target={target.format(made.folder)}"]
    assert status_of(partial(report.main, words)) == 2
    refused = capsys.readouterr().err
    assert why in refused
    assert refused.count("\n") == 1


def test_another_run_is_next_to_it_with_the_differences(tmp_path: Path, made: MadeRun) -> None:
    run = made.folder
    other = killed_and_stopped(tmp_path / "y", "optim.learning_rate=3e-4").folder
    text = " ".join(page(run, f"other={other}").text.split())
    rows = r"setting ?x ?y ?optim.learning_rate ?0.0015 ?0.0003"
    assert re.search(f"Differences from y ?{rows}", text)


def test_equal_settings_are_reported_as_equal(tmp_path: Path, made: MadeRun) -> None:
    run = made.folder
    other = killed_and_stopped(tmp_path / "y").folder
    assert "None: the same settings." in page(run, f"other={other}").text


def test_a_run_without_a_step_has_a_page(tmp_path: Path) -> None:
    assert "has not reached its first step" in page(MadeRun(tmp_path / "x").folder).text


def test_a_run_that_died_is_reported_first(tmp_path: Path) -> None:
    made = MadeRun(tmp_path / "x")
    made.event(0, "started", step=0, ranks=1)
    made.record(10, 30, train__mlm_loss=5.0)
    assert "The run died after step 30: no last step, no signal" in page(made.folder).text


@pytest.mark.parametrize(
    ("y", "seen"),
    [
        ([2.5], [2.5]),  # one evaluation
        ([1.0, math.nan, 3.0, math.nan], [1.0, 3.0]),  # stretches of one record
        ([1.0, 2.0, math.nan, 4.0], [4.0]),
        ([1.0, 2.0, 3.0], []),
    ],
)
def test_a_point_that_no_line_leads_to_has_a_mark(y: list[float], seen: list[float]) -> None:
    axes = Figure().add_subplot()
    line = plots.Line("held-out", list(range(len(y))), y)
    plots._plot(axes, plots.Chart("x", "step", "nats", [line]))
    marks = [drawn for drawn in axes.lines if drawn.get_marker() == "o"]
    assert [value for mark in marks for value in mark.get_ydata()] == seen


def test_a_published_band_leaves_room_for_the_mark_of_one_evaluation() -> None:
    axes = Figure().add_subplot()
    line, band = plots.Line("held-out", [7], [2.5]), plots.Band("published", [0, 9], [1, 1], [3, 3])
    plots._plot(axes, plots.Chart("x", "step", "nats", [line], [band]))
    left, right = axes.get_xlim()
    assert left < 7 < right


def test_a_long_run_is_drawn_as_means(tmp_path: Path) -> None:
    made = MadeRun(tmp_path / "x")
    made.event(0, "started", step=0, ranks=1)
    for step in range(1, 5001):
        made.record(step, step, train__mlm_loss=5.0)
    assert report.main([f"run={made.folder}"]) == 0
    assert (made.folder / "report.html").stat().st_size < 200_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_in_light_and_in_dark(
    tmp_path: Path, made: MadeRun, scheme: str
) -> None:
    folder = made.folder
    page(folder)
    picture = tmp_path / "page.png"
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={tmp_path}/profile", "--window-size=1280,1600",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        "--enable-logging=stderr", f"--screenshot={picture}", f"file://{folder}/report.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, "the page's policy refuses something of its own"
    pixels = imread(picture)[..., :3]
    paper = pixels[2, 2].mean()
    assert paper < 0.2 if scheme == "dark" else paper > 0.9
    marked = abs(pixels - pixels[2, 2]).max(axis=2) > 0.3
    assert 0.005 < marked.mean() < 0.3, "neither empty nor one block"
    right_half = marked[400:, 640:]  # the second column of charts
    assert right_half.any()
    assert not marked[:, -5:].any(), "nothing reaches over the edge"


def test_the_run_is_read_and_never_changed(made: MadeRun) -> None:
    folder = made.folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    page_module.page(History.read(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

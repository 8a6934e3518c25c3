"""The fault drill: its table, its verdicts, its refusals, and some faults for real."""

import http.client
import json
from pathlib import Path

import pytest

from data_prep.core.files import write_json
from pretrain.config.load import load
from scripts import drill
from scripts.drill import SIZES, table
from scripts.drills import faults, harness
from scripts.drills.harness import RANKS, STEPS, Drill, Outcome, Seen

GOOD = Outcome("kill", Seen(1.25, "rank 0 ends"), 7, 9.06, "equal")
BAD = Outcome("flip", Seen(None, ""), failures=("waiting for step 17: not within 240 s",))


def finished(folder: Path, checksum: str, last: int = STEPS) -> harness.Run:
    """A run of `last` steps, with one file in its last checkpoint."""
    run = harness.Run(folder, [])
    files = {"m": {"bytes": 1, "checksum": checksum}}
    write_json(run.checkpoint(STEPS) / "manifest.json", {"schema_version": 1, "files": files})
    lines = [json.dumps({"step": step, "train/loss": 1.0}) for step in range(1, last + 1)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    return run


def judge(folder: Path, run: harness.Run, statuses: list[int | None]) -> Outcome:
    settings, _ = load(SIZES, RANKS)
    drilled = Drill(folder, [], settings)
    drilled.reference = {"m": "a"}
    return drilled.judged(run, Seen(1.0, "it ends"), statuses)


def test_the_table_has_a_line_for_each_fault() -> None:
    head, line = table([GOOD]).splitlines()
    assert head.split("  ")[0] == "fault"
    assert [cell.strip() for cell in line.split("  ") if cell] == [
        "kill", "1.2 s", "rank 0 ends", "7", "9.1 s", "equal",
    ]  # fmt: skip


def test_failed_expectations_stand_below_the_table() -> None:
    assert table([GOOD, BAD]).splitlines()[-1] == (
        "FAILED  flip: waiting for step 17: not within 240 s"
    )


def test_as_markdown_every_line_has_the_same_columns() -> None:
    lines = table([GOOD, GOOD], markdown=True).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {7}


@pytest.mark.parametrize(
    ("checksum", "last", "statuses", "weights", "failure"),
    [
        ("a", STEPS, [0, 0], "equal", None),
        ("b", STEPS, [0, 0], "NOT EQUAL", "the last checkpoint is not that of the undisturbed run"),
        ("a", STEPS, [0, 1], "equal", "the last start ended with statuses [0, 1]"),
        ("a", STEPS - 1, [0, 0], "equal", "metrics.jsonl holds the steps [1, 2,"),
    ],
)
def test_a_run_holds_with_the_same_last_checkpoint_good_statuses_and_every_step(
    tmp_path, checksum, last, statuses, weights, failure
) -> None:
    outcome = judge(tmp_path, finished(tmp_path / "x", checksum, last), statuses)
    assert outcome.weights == weights
    assert len(outcome.failures) == (failure is not None)
    assert "".join(outcome.failures).startswith(failure or "")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("faults=kill,fire", "faults=fire is not known; there are kill, kill_all"),
        ("schedule.total_steps=7", "'schedule.total_steps=7' is no setting of the drill"),
        ("model.hidden_size=65", "is not a multiple of model.num_attention_heads=2"),
        ("data.dir=nowhere", "there are no shards of 128 tokens in nowhere"),
    ],
)
def test_what_cannot_be_drilled_is_refused(word, said, capsys) -> None:
    assert drill.main([word]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_holds_something_is_not_written_into(tmp_path, capsys) -> None:
    (tmp_path / "mine").touch()
    assert drill.main([f"out={tmp_path}"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_the_broken_server_answers_every_request_with_an_error() -> None:
    with faults._broken_server() as address:
        for method in ("GET", "POST"):
            connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
            connection.request(method, "/graphql", body=b"{}")
            assert connection.getresponse().status == 500
            connection.close()


@pytest.mark.slow
def test_a_run_survives_a_killed_rank_a_flipped_byte_and_a_loss_that_is_no_number(
    sample_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "drill"
    status = drill.main([f"data.dir={sample_dir}", "faults=kill,flip,nan", f"out={out}"])
    assert status == 0, capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (out / "drill.md").read_text().splitlines()[2:]
    ]
    by_fault = {row[0]: row for row in rows}
    assert list(by_fault) == ["none", "kill", "flip", "nan"]
    assert by_fault["kill"][5] == by_fault["flip"][5] == "equal"
    assert by_fault["nan"][5] == "equal to a run that left that batch out"
    assert int(by_fault["kill"][3]) < int(by_fault["flip"][3])  # one checkpoint further back
    assert "its checksum differs" in by_fault["flip"][2]

"""The job that filters documents: what later stages read, counts, restarts, refusals."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_documents import write_source

from data_prep import dedup
from data_prep import filter as filtering
from data_prep.core.config import SettingsError
from data_prep.core.files import checksum, read_json
from data_prep.core.job import ShareDone, load
from data_prep.core.settings import DataPrepSettings
from data_prep.quality import corpus
from data_prep.quality.report.plots import dropped_by_reason
from data_prep.stores.documents import (
    Document,
    FilteredManifest,
    list_parts,
    read_filtered_manifest,
    read_part,
)

PROSE = (
    "The river rose in the night, and nobody slept. By noon it stood at the mill. It fell again. "
    "We left the town with them. That was all."
)
COOKIES = "The Gazette uses cookies, and you accept them."
FILTERS = "[boilerplate,line_duplicates,gopher_quality,pii,decontaminate,language_score]"


def page(number: int, *more: str) -> Document:
    story = PROSE.replace("river", f"river number {number * number}")
    others = [f"It was {day} again, and the water of {number} stood still." for day in range(9)]
    return Document(f"page{number:02d}", "", "\n".join([story, *others, *more]))


def with_two_sources(data_dir: Path) -> Path:
    """Web pages in two parts, two books, and a task with a sentence of page03."""
    mail = "Write to editor{}@paper.org if you know more about it."
    pages = [page(n, COOKIES, mail.format(n)) for n in range(12)]
    short = Document("short", "", "Home\nHome | News | Sport")
    write_source(data_dir, "web", [pages[:6], [*pages[6:], short]])
    write_source(data_dir, "books", [[page(100), page(101)]])
    question = "The river number 9 rose in the night, and nobody slept. By noon"
    (data_dir / "task.json").write_text(json.dumps({"question": question}))
    return data_dir


def load_for(data_dir: Path, *overrides: str) -> DataPrepSettings:
    task = f"filter.decontaminate_against={data_dir}/task.json"
    return load([f"data_dir={data_dir}", f"filters={FILTERS}", task, *overrides])


def run(data_dir: Path, *overrides: str) -> dict[str, FilteredManifest]:
    return {one.source: one for one in filtering.run(load_for(data_dir, *overrides))}


@pytest.fixture(scope="module")
def filtered(tmp_path_factory) -> Path:
    """Both sources after all filters, by three workers."""
    data_dir = with_two_sources(tmp_path_factory.mktemp("filtered"))
    run(data_dir, "num_workers=3")
    return data_dir


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    return with_two_sources(tmp_path)


def texts(folder: Path) -> dict[str, str]:
    """The texts of a source by id."""
    parts = sorted(folder.glob("*.parquet"))
    return {document.id: document.text for part in parts for document in read_part(part)}


def files(folder: Path) -> dict[str, bytes]:
    """All but the logs, which have times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "logs" not in path.parts
    }


def ended(data_dir: Path) -> dict[str, float]:
    """When each task ended; a task that runs again has another time."""
    paths = (data_dir / "filtered").glob("*/logs/finished/*.json")
    return {f"{path.parts[-4]}/{path.stem}": read_json(path)["ended"] for path in paths}


def test_the_filters_take_out_what_they_match_and_nothing_else(filtered: Path) -> None:
    before, after = (texts(filtered / kind / "web") for kind in ("documents", "filtered"))
    expected = {
        name: text.replace(f"\n{COOKIES}", "").replace(
            f"editor{int(name[4:])}@paper.org", "email@example.com"
        )
        for name, text in before.items()
        if name != "short"
    }
    expected["page03"] = expected["page03"].partition("\n")[2]  # the line that the task has
    assert after == expected


def test_a_part_without_matches_has_the_same_bytes(filtered: Path) -> None:
    name = "books/part-00000.parquet"
    assert checksum(filtered / "filtered" / name) == checksum(filtered / "documents" / name)


def test_the_next_stages_read_the_filtered_parts(filtered: Path) -> None:
    assert {part.path.parent.parent for part in list_parts(filtered)} == {filtered / "filtered"}
    dedup.run(load_for(filtered))
    made_from = read_json(filtered / "documents" / "duplicates.json")["made_from"]["documents"]
    assert made_from == {part.key: part.checksum for part in list_parts(filtered)}


def test_drops_and_changes_are_counted_by_rule(filtered: Path) -> None:
    manifest = read_filtered_manifest(filtered / "filtered" / "web")
    assert {
        f"{name}: {rule}": (done.documents, done.changes)
        for name, rules in manifest.counts.items()
        for rule, done in rules.items()
    } == {
        "boilerplate: frequent line": (0, 12),
        "gopher_quality: short doc": (1, 0),
        "pii: e-mail address": (0, 12),
        "decontaminate: shares an n-gram with a task": (0, 1),
    }
    assert (manifest.documents, manifest.documents_before) == (12, 13)


def test_the_audit_counts_what_filters_dropped_and_changed(filtered: Path) -> None:
    web = corpus.collected(filtered)["web"]
    assert (web["documents"], web["dropped"]) == (12, {"gopher_quality: short doc": 1})
    assert web["changed"]["pii: e-mail address"] == 12
    report = {"corpus": {"sources": {"web": web}, "dropped": {}}, "splits": {}}
    shown = dropped_by_reason(report)
    assert shown["web: pii: e-mail address (lines or texts)"] == 12
    assert shown["web: gopher_quality: short doc (documents)"] == 1


def test_samples_of_each_rule_name_their_documents(filtered: Path) -> None:
    counts = read_filtered_manifest(filtered / "filtered" / "web").counts
    samples = counts["pii"]["e-mail address"].samples
    assert len({sample.id for sample in samples}) == 5
    assert all(s.text == f"editor{int(s.id[4:])}@paper.org" for s in samples)


def test_a_dropped_document_is_kept_with_its_reason(filtered: Path) -> None:
    (path,) = (filtered / "filtered" / "web" / "rejects").iterdir()
    (row,) = pq.read_table(path).to_pylist()
    assert row == {
        "id": "short", "title": "", "text": "Home\nHome | News | Sport",
        "reason": "gopher_quality: short doc",
    }  # fmt: skip


def test_one_worker_and_another_corpus_of_the_same_text_give_the_same_bytes(
    filtered: Path, collected: Path
) -> None:
    run(collected, "num_workers=1")
    assert files(collected / "filtered") == files(filtered / "filtered")


def test_only_what_has_other_text_or_filters_is_filtered_again(collected: Path) -> None:
    run(collected, "filters=[pii]")
    first = ended(collected)
    run(collected, "filters=[pii]")
    assert ended(collected) == first
    run(collected, "filters=[line_duplicates]", "filter.sources=[books]")
    second = ended(collected)
    write_source(collected, "web", [[page(0)], [page(1)]])
    run(collected, "filters=[pii]", "filter.sources=[web]")
    third = ended(collected)
    changed = [{name for name in now if now[name] != then[name]}
               for then, now in ((first, second), (second, third))]  # fmt: skip
    assert changed == [
        {"books/part-00000"},
        {"web/part-00000", "web/part-00001"},
    ]


def test_text_that_was_collected_anew_is_refused_until_it_is_filtered_or_its_filters_go(
    filtered: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(filtered, tmp_path / "copy")
    write_source(copy, "web", [[page(0)]])
    with pytest.raises(ValueError, match="have changed since they were filtered"):
        list_parts(copy)
    shutil.rmtree(copy / "filtered" / "web")
    assert {part.path.parts[-3] for part in list_parts(copy)} == {"documents", "filtered"}


def test_a_filter_that_has_not_finished_is_refused_by_the_next_stages(
    filtered: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(filtered, tmp_path / "copy")
    (copy / "filtered" / "web" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="the store is not finished"):
        list_parts(copy)


def test_shares_of_counting_adding_up_and_filtering_give_the_same_bytes(
    filtered: Path, collected: Path
) -> None:
    for _ in range(3):
        for share in ("1/2", "2/2"):
            with pytest.raises(ShareDone):
                run(collected, f"share={share}", "num_workers=1")
    before = ended(collected)
    run(collected)
    assert ended(collected) == before
    assert files(collected / "filtered") == files(filtered / "filtered")


def test_filters_that_leave_nothing_are_refused_with_their_counts(collected: Path) -> None:
    write_source(collected, "web", [[Document("short", "", "Home")]])
    with pytest.raises(RuntimeError, match=r"no document \(gopher_quality: short doc: 1 document"):
        run(collected, "filters=[gopher_quality]", "filter.sources=[web]")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["filters=[c4_line]"], "c4_line is not known; there are boilerplate, line_duplicates"),
        (["filters=[pii,pii]"], "each filter runs once"),
        (["filters=[]"], "filters is empty; add filters="),
        (["filter.sources=[wiki]"], "wiki is not collected; there are books, web"),
        (["filter.decontaminate_against=null"], r"add filter.decontaminate_against=\[FILE"),
        (["filter.decontaminate_against=no.json"], "no.json is not a file"),
        (["language=zh"], "gopher_quality counts words by the blanks between them"),
        (["filter.least_language_share=2"], r"it takes \[0, 1\]"),
    ],
)
def test_what_cannot_be_filtered_is_refused_with_its_cure(filtered, overrides, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        run(filtered, *overrides)


def test_the_job_prints_what_each_rule_did_with_an_escaped_sample(filtered: Path, capsys) -> None:
    write_source(filtered, "odd", [[page(7, "Mail \x1b[2Jx@y.org, please.")]])
    arguments = [f"data_dir={filtered}", "filters=[pii]", "filter.sources=[odd]"]
    assert filtering.main(arguments) == 0
    shutil.rmtree(filtered / "documents" / "odd")
    printed = capsys.readouterr().out
    assert "documents            1 of 1 are kept" in printed
    assert "pii: e-mail address  1 times\n                     e.g. " in printed
    assert "\x1b" not in printed

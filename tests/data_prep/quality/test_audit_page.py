"""The audit page, its plots and the data set card: complete, escaped, readable by datasets."""

import copy
import re
import shutil
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
from browser import chromium
from made_corpora import random_documents, run_inline, write_corpus
from made_manifests import documents_manifest
from page_reader import PageReader

from data_prep import audit, build
from data_prep.core.files import read_json, write_json
from data_prep.core.job import load
from data_prep.executors import run
from data_prep.quality.report import page as audit_page
from data_prep.quality.report.dataset_card import card
from data_prep.quality.report.plots import draw
from data_prep.stores.shard_reader import Shards

PLOTS = ("lengths_64", "document_tokens", "sources", "labels_and_masks", "dropped")


@pytest.fixture(scope="module")
def audited(tmp_path_factory) -> Path:
    """A corpus whose every word is a script, audited."""
    data_dir = tmp_path_factory.mktemp("audited")
    rng = np.random.default_rng(0)
    write_corpus(data_dir, [random_documents(rng, 150)], [random_documents(rng, 10)])
    made = documents_manifest(
        documents=160, dropped={"<script>alert('reason')</script> $": 3}, characters=5,
        settings={"kind": "books", "path": "<script>|"},
    )  # fmt: skip
    write_json(data_dir / "documents" / "made" / "manifest.json", made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_processes", run_inline)
        build.run(load([f"data_dir={data_dir}", "seq_len=64"]))
    vocab = data_dir / "vocab" / "vocab.txt"
    vocab.write_text(
        re.sub(r"^(w|##p)(\d+)", r'\1<script>alert("\2")</script>', vocab.read_text(), flags=re.M)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_processes", run_inline)
        audit.run(load([f"data_dir={data_dir}", "seq_len=64"]))
    return data_dir


@pytest.fixture
def report(audited: Path) -> dict:
    return read_json(audited / "audit" / "64" / "audit.json")


@pytest.fixture
def page(audited: Path) -> PageReader:
    return PageReader((audited / "audit" / "64" / "index.html").read_text())


def test_a_script_in_a_document_is_text_on_the_page(page: PageReader) -> None:
    assert "script" not in page.tags
    assert page.text.count('<script>alert("') > 50
    assert "<script>alert('reason')</script>" in page.text


def test_the_page_fetches_nothing(page: PageReader) -> None:
    assert len(page.links) == len(PLOTS)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)


def test_every_table_fits_a_window_of_1200_pixels(audited: Path, tmp_path: Path) -> None:
    text = (audited / "audit" / "64" / "index.html").read_text()
    # Of a large corpus, in the table with the most columns
    text = re.sub(r"<td>160</td><td>5</td><td>[\d,]+</td>", "<td>6,407,814</td>"
                  "<td>17,123,456,789</td><td>3,912,345,678</td>", text)  # fmt: skip
    assert "17,123,456,789" in text
    script = (
        "<script>onload = () => document.body.textContent = 'widths ' + Array.from("
        "document.querySelectorAll('.table'), t => t.scrollWidth + '/' + t.clientWidth).join(' ')"
        "</script>"
    )
    measured = tmp_path / "page.html"
    measured.write_text(re.sub("<meta http-equiv[^>]*>", script, text))
    done = subprocess.run(
        [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900",
         f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{measured}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    pairs = re.findall(r"(\d+)/(\d+)", done.stdout.split("widths ")[-1])
    assert len(pairs) >= 5
    assert [wide for wide, room in pairs if int(wide) > int(room)] == []


def test_warnings_stand_on_the_page_next_to_the_verdict(report: dict) -> None:
    text = audit_page.page(
        {**report, "faults": [], "warnings": ["few <b> documents"]}, draw(report)
    )
    assert "Fit for training" in text
    assert "Warning: few &lt;b&gt; documents" in text


def test_every_plot_lies_next_to_the_page(audited: Path) -> None:
    folder = audited / "audit" / "64"
    for name in PLOTS:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


def test_lengths_of_every_seq_len_are_plotted(report: dict) -> None:
    both = {**report, "other_length_counts": {"32": [0] * 30 + [1, 2, 3]}}
    titles = [title for title, _ in draw(both).values()]
    assert titles[:2] == [f"Length of the examples at {seq_len} (train)" for seq_len in (32, 64)]


def test_copies_of_documents_are_shown_as_text(report: dict, tmp_path: Path) -> None:
    report["corpus"]["copies"] = {
        "sources": {"made": {"documents": 160, "exact": 3, "near": 4_321}},
        "groups": 9,
        "largest": [{"kept": "made/7", "title": "<script>", "copies": 5}],
    }
    audit_page.write_page(tmp_path, report)
    page = PageReader((tmp_path / "index.html").read_text())
    assert "script" not in page.tags
    assert "made/7: <script>" in page.text
    assert "4,321" in page.text


def test_every_source_has_its_shares(report: dict) -> None:
    train = report["corpus"]["splits"]["train"]
    train["documents_of_source"] = {"made": 30, "books": 120}
    train["tokens_of_source"] = {"made": 2_000, "books": 6_000}
    train["tokens"] = 8_000
    rows = audit_page._source_rows(report["corpus"])
    assert [[row[0], *row[-2:]] for row in rows] == [
        ["books", "80.0%", "75.0%"],
        ["made", "20.0%", "25.0%"],
    ]


def test_every_reason_is_on_the_page(page: PageReader, report: dict) -> None:
    assert report["faults"]
    assert all(fault in page.text for fault in report["faults"])


def test_each_masked_piece_is_marked_by_its_kind(audited: Path, report: dict) -> None:
    text = (audited / "audit" / "64" / "index.html").read_text()
    pieces = [piece for example in report["examples"] for piece in example["pieces"]]
    for kind in ("mask", "random", "kept"):
        wanted = sum(piece.get("kind") == kind for piece in pieces)
        assert len(re.findall(f'<mark class="{kind}" title="input: ', text)) == wanted


def test_the_same_report_gives_the_same_page(report: dict) -> None:
    assert audit_page.page(report, draw(report)) == audit_page.page(report, draw(report))


def test_a_report_of_damaged_shards_has_a_page_and_no_card(report: dict, tmp_path: Path) -> None:
    damaged = {**copy.deepcopy(report), "splits": {}, "examples": [], "faults": ["a flipped bit"]}
    damaged.pop("shortcut")
    audit_page.write_page(tmp_path, damaged)
    assert "a flipped bit" in (tmp_path / "index.html").read_text()
    assert not (tmp_path / "lengths_64.png").exists()


def test_a_half_written_page_is_never_seen(report: dict, tmp_path: Path, monkeypatch) -> None:
    audit_page.write_page(tmp_path, report)
    whole = (tmp_path / "index.html").read_bytes()

    def fail(*_) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(audit_page, "page", fail)
    with pytest.raises(OSError, match="disk full"):
        audit_page.write_page(tmp_path, report)
    assert (tmp_path / "index.html").read_bytes() == whole


def test_load_dataset_reads_the_folder_by_its_card(audited: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(audited / "len64", tmp_path / "len64"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded) == ["heldout", "train"]
    split = Shards.open(folder, "train")
    assert len(loaded["train"]) == split.num_examples
    assert loaded["train"][7]["input_ids"] == split.read(np.array([7])).input_ids.tolist()


def test_the_card_names_settings_sources_sizes_and_the_verdict(report: dict) -> None:
    text = card(report)
    assert "| `masking.rate` | 0.15 |" in text
    assert "| made | books | &lt;script>&#124; | 160 |" in text
    assert f"| train | {report['splits']['train']['rows']:,} |" in text
    assert "\nlicense:\n- unknown\n" in text
    assert "unfit for training" in text
    assert "fit for training." in card({**report, "faults": []})


def test_the_card_has_the_licence_of_every_source(report: dict) -> None:
    for kind in ("wikiextractor", "wikipedia", "sample"):
        settings = {"kind": kind, "path": None}
        source = {"documents": 1, "characters": 5, "dropped": {}, "settings": settings}
        report["corpus"]["sources"][kind] = source
    text = card(report)
    assert "license:\n- unknown\n- other\n- cc-by-sa-4.0\n- gfdl\n" in text
    assert text.count("CC BY-SA 4.0 and GFDL |") == 2
    assert "unknown: that of each file read" in text
    assert "Python Software Foundation License 2" in text


def test_the_card_has_urls_and_names_of_files_but_no_folder_of_this_machine(report: dict) -> None:
    settings = report["corpus"]["sources"]["made"]["settings"]
    for path, shown in {
        "/home/me/novels": "novels",
        "[/home/me/a.txt,s3://public/b]": "a.txt, s3://public/b",
        "texts/mine": "texts/mine",
    }.items():
        settings["path"] = path
        assert f"| made | books | {shown} |" in card(report)


LANGUAGE = {
    "documents": 9, "tokens": 100, "one_sentence_share": 0.25, "sentences_per_document": 8.0,
    "tokens_per_sentence": 24.5, "characters_per_token": 4.0, "unknown_characters_share": 0.015,
    "changed_words_share": 0.5, "stripped_words_share": 0.25, "missed_ends_per_sentence": 0.75,
}  # fmt: skip


def test_a_language_has_a_row_on_page_and_card_and_the_largest_is_first(report: dict) -> None:
    languages = {"<b>|x": LANGUAGE, "de": LANGUAGE | {"tokens": 900}}
    report["corpus"]["languages"] = languages
    cells = ["9", "25.0%", "8.0", "24.5", "4.0", "1.50%", "50.0%", "25.0%", "0.75"]
    page = audit_page.page(report, {})
    row = "".join(f"<td>{cell}</td>" for cell in cells)
    assert page.index(f"<td>de</td>{row}") < page.index(f"<td>&lt;b&gt;|x</td>{row}")
    text = card(report)
    row = " | ".join(cells)
    assert text.index(f"| de | {row} |") < text.index(f"| &lt;b>&#124;x | {row} |")


def test_the_terminal_shows_the_largest_languages_and_counts_the_others(report: dict) -> None:
    names = ["ab", "cd", "ef", "gh", "ij", "kl", "mn"]
    sizes = enumerate(names, start=100)
    report["corpus"]["languages"] = {name: LANGUAGE | {"tokens": n} for n, name in sizes}
    text = audit.summary(report)
    (head,) = (line for line in text.splitlines() if line.startswith("language "))
    assert head.split()[1:] == names[:1:-1]
    assert "... and 2 languages of fewer tokens, see audit.json" in text

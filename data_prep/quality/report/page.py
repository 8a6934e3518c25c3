"""The audit page: plots, and one index.html that needs no network, script or other file."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_prep.core.files import whole_or_absent
from data_prep.core.objectives import Pairing
from data_prep.quality.report.plots import draw, dropped_by_reason
from data_prep.quality.report.tables import (
    CORPUS,
    REPEATED,
    REPEATED_EXAMPLES,
    SHARDS,
    language_table,
    table_rows,
)

Report = dict[str, Any]
Table = tuple[str, list[str], list[list[str]]]  # heading, titles of the columns, rows

TEMPLATE = "audit.html"


def write_page(folder: Path, report: Report) -> None:
    """Write the plots and index.html of a report to `folder`, each whole or not at all."""
    plots = draw(report)
    for name, (_, png) in plots.items():
        with whole_or_absent(folder / name) as temporary:
            temporary.write_bytes(png)
    with whole_or_absent(folder / "index.html") as temporary:
        temporary.write_text(page(report, plots), encoding="utf-8")


def page(report: Report, plots: dict[str, tuple[str, bytes]]) -> str:
    """The whole page. Jinja escapes all text of the corpus and of its settings."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        report,
        tables=_tables(report),
        plots=[(title, base64.b64encode(png).decode("ascii")) for title, png in plots.values()],
        meanings=Pairing[report["made"]["settings"]["pairs"]].meanings,
    )


def _tables(report: Report) -> list[Table]:
    splits, corpus = report["splits"], report["corpus"]
    corpus_splits = corpus["splits"]
    repeated = [
        *table_rows(REPEATED, corpus_splits),
        ["tokens in sentences of train", "", f"{corpus['heldout_in_train_share']:.2%}"],
        *table_rows(REPEATED_EXAMPLES, splits),
    ]
    dropped = [[name, f"{count:,}"] for name, count in dropped_by_reason(report).items()]
    sources = ["", "documents", "characters", "train tokens", "of documents", "of tokens"]
    tables = [
        ("Shards", ["", *splits], table_rows(SHARDS, splits)),
        ("Corpus", ["", *corpus_splits], table_rows(CORPUS, corpus_splits)),
        ("Sources", sources, _source_rows(corpus)),
        *([("Languages", *language_table(corpus["languages"]))] if corpus["languages"] else []),
        ("Repetition", ["", *corpus_splits], repeated),
        ("Dropped and cut", ["reason", "number"], dropped),
    ]
    if corpus["copies"]:
        tables += _copies(corpus["copies"])
    if shortcut := report.get("shortcut"):
        rows = [["the more frequent label", f"{shortcut['majority']:.1%}", "0%"]]
        for label, name in (
            ("words and lengths of either segment", "alone"),
            ("and the words that they share", "together"),
        ):
            right, avoided = shortcut[f"{name}_accuracy"], shortcut[f"{name}_skill"]
            rows.append([label, f"{right:.1%}", f"{avoided:.0%}"])
        head = ["from", "right", "mistakes avoided"]
        tables.append(("Labels predicted by a bag of words", head, rows))
    return tables


def _source_rows(corpus: Report) -> list[list[str]]:
    train = corpus["splits"]["train"]
    documents, tokens = train["documents_of_source"], train["tokens_of_source"]
    return [
        [
            source,
            *(
                f"{corpus['sources'][source][name]:,}" if source in corpus["sources"] else "-"
                for name in ("documents", "characters")
            ),
            f"{tokens.get(source, 0):,}",
            *(
                f"{of.get(source, 0) / max(of_all, 1):.1%}"
                for of, of_all in ((documents, train["documents"]), (tokens, train["tokens"]))
            ),
        ]
        for source in sorted({*corpus["sources"], *tokens})
    ]


def _copies(copies: Report) -> list[Table]:
    """Copies of other documents by source, and the largest groups of them."""
    names = ["documents", "exact", "near"]
    sources = [
        [source, *(f"{counts[name]:,}" for name in names)]
        for source, counts in sorted(copies["sources"].items())
    ]
    groups = [
        [f"{group['kept']}: {group['title']}", f"{group['copies']:,}"]
        for group in copies["largest"]
    ]
    tables: list[Table] = [("Copies of other documents", ["", *names], sources)]
    if groups:
        heading = f"The largest of {copies['groups']:,} groups of copies"
        tables.append((heading, ["kept", "copies"], groups))
    return tables

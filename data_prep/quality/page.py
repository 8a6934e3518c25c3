"""audit.json for the eye: plots, and one index.html that needs no network, script or other file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from data_prep.core.files import whole_or_absent
from data_prep.core.objectives import Pairing
from data_prep.quality.plots import draw, dropped_by_reason
from data_prep.quality.tables import CORPUS, REPEATED, REPEATED_EXAMPLES, SHARDS, table_rows

Report = dict[str, Any]

# Whatever a corpus holds, a browser runs and fetches nothing for this page.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a202c; max-width: 1340px; margin: 2em auto;
  padding: 0 1.5em; }
h1 { font-size: 1.6em; margin-bottom: .2em } h2 { font-size: 1.2em; margin: 1.6em 0 .5em }
.table { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15em .9em .15em 0; text-align: right; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; min-width: 7em }
tr { border-bottom: 1px solid #e2e8f0 } th { color: #4a5568; font-weight: 600 }
.columns { display: grid; gap: 0 2.5em; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)) }
img { width: 100%; margin-bottom: 1em }
.verdict { overflow-wrap: anywhere; padding: .6em 1em; border-left: 6px solid; margin: 1em 0 }
.fit { border-color: #2f855a; background: #f0fff4 } .unfit { border-color: #c53030; background: #fff5f5 }
.example { border: 1px solid #e2e8f0; border-radius: 6px; padding: .8em 1.1em; margin: .8em 0;
  line-height: 1.9; max-width: 75em; overflow-wrap: anywhere }
.example p { margin: .3em 0 } .label { font-weight: 600 } .muted, .special { color: #5a6779 }
.special { font-size: .75em } .side { font-weight: 600; color: #5a6779; margin-right: .6em }
mark { padding: .1em .3em; border-radius: 4px; color: inherit }
mark.mask { background: #bee3f8 } mark.random { background: #fbd38d } mark.kept { background: #c6f6d5 }
"""
KINDS = {
    "mask": "[MASK] stands here in the input; the model has to find this word",
    "random": "another word stands here in the input; the model has to find the one struck out",
    "kept": "this word stands here in the input too; the model has to find it all the same",
}


def write_page(folder: Path, report: Report) -> None:
    """Write the plots and index.html of a report to `folder`, each whole or not at all."""
    plots = draw(report)
    for name, (_, png) in plots.items():
        with whole_or_absent(folder / name) as temporary:
            temporary.write_bytes(png)
    with whole_or_absent(folder / "index.html") as temporary:
        temporary.write_text(page(report, plots), encoding="utf-8")


def page(report: Report, plots: dict[str, tuple[str, bytes]]) -> str:
    """The whole page. Every string of the corpus or of a person is escaped."""
    images = "".join(
        f'<img alt="{escape(title)}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode("ascii")}">'
        for title, png in plots.values()
    )
    title = f"Audit at {report['seq_len']} tokens"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{title}</h1>{_made(report)}{_verdict(report['faults'])}\n"
        f'<div class="columns">{_tables(report)}</div>\n'
        f'<h2>Plots</h2><div class="columns">{images}</div>\n'
        f"{_examples(report)}</body></html>\n"
    )


def _made(report: Report) -> str:
    made = report["made"]
    casing = "uncased" if made["lowercase"] else "cased"
    settings = ", ".join(
        f"{name} {value}" for name, value in made["settings"].items() if name != "masking"
    )
    return (
        f'<p class="muted">{escape(casing)} vocabulary of {made["vocab_size"]:,} entries; '
        f"{escape(settings)}</p>"
    )


def _verdict(faults: Sequence[str]) -> str:
    if not faults:
        return '<div class="verdict fit">Fit for training: no check failed.</div>'
    reasons = "".join(f"<li>{escape(fault)}</li>" for fault in faults)
    return f'<div class="verdict unfit">Unfit for training:<ul>{reasons}</ul></div>'


def _tables(report: Report) -> str:
    splits, corpus = report["splits"], report["corpus"]
    repeated = [
        *table_rows(REPEATED, corpus["splits"]),
        ["tokens in sentences of train", "", f"{corpus['heldout_in_train_share']:.2%}"],
        *table_rows(REPEATED_EXAMPLES, splits),
    ]
    tables = [
        _table("Shards", ["", *splits], table_rows(SHARDS, splits)),
        _table("Corpus", ["", *corpus["splits"]], table_rows(CORPUS, corpus["splits"])),
        _table(
            "Sources",
            ["", "documents", "characters", "train tokens", "of documents", "of tokens"],
            _source_rows(corpus),
        ),
        _table("Repetition", ["", *corpus["splits"]], repeated),
        _table(
            "Dropped and cut",
            ["reason", "number"],
            [[name, f"{count:,}"] for name, count in dropped_by_reason(report).items()],
        ),
    ]
    if corpus["copies"]:
        tables.append(_copies(corpus["copies"]))
    if shortcut := report.get("shortcut"):
        rows = [
            [label, f"{shortcut[f'{name}_accuracy']:.1%}", f"{shortcut[f'{name}_skill']:.0%}"]
            for label, name in (
                ("words and lengths of either segment", "alone"),
                ("and the words that they share", "together"),
            )
        ]
        rows.insert(0, ["the more frequent label", f"{shortcut['majority']:.1%}", "0%"])
        heading = "Labels told by a bag of words"
        tables.append(_table(heading, ["from", "right", "mistakes avoided"], rows))
    return "".join(tables)


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


def _copies(copies: Report) -> str:
    """Documents that are copies of others, and the largest groups of them."""
    sources = [
        [source, *(f"{figures[name]:,}" for name in ("documents", "exact", "near"))]
        for source, figures in sorted(copies["sources"].items())
    ]
    groups = [
        [f"{group['kept']}: {group['title']}", f"{group['copies']:,}"]
        for group in copies["largest"]
    ]
    heading = f"The largest of {copies['groups']:,} groups of copies"
    return _table(
        "Copies of other documents", ["", "documents", "exact", "near"], sources
    ) + _table(heading, ["kept", "copies"], groups) * bool(groups)


def _table(heading: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="table"><h2>{escape(heading)}</h2><table><tr>{titles}</tr>{body}</table></div>'
    )


def _examples(report: Report) -> str:
    if not report["examples"]:
        return ""
    pairing = Pairing[report["made"]["settings"]["pairs"]]
    examples = "".join(_example(example, pairing) for example in report["examples"])
    legend = " ".join(
        f'<mark class="{kind}" title="{escape(text)}">{name}</mark> {escape(text)}.<br>'
        for (kind, text), name in zip(KINDS.items(), ("masked", "replaced", "kept"), strict=True)
    )
    return f"<h2>Examples</h2><p>{legend}</p>{examples}"


def _example(example: Report, pairing: Pairing) -> str:
    pieces, cut = example["pieces"], example["segment_a_length"]
    a, b = example["documents"]
    label = pairing.meanings[example["next_sentence_label"]]
    b_text = f'<p><span class="side">B</span>{_text(pieces[cut:])}</p>' if pieces[cut:] else ""
    return (
        f'<div class="example"><p><span class="label">{label}</span> <span class="muted">example '
        f"{example['example']:,}, {len(pieces)} tokens, of {escape(a)}"
        f"{'' if a == b else f' and {escape(b)}'}</span></p>"
        f'<p><span class="side">A</span>{_text(pieces[:cut])}</p>'
        f"{b_text}</div>"
    )


def _text(pieces: Sequence[dict[str, str]]) -> str:
    """Pieces as words: one that continues a word stands at it without a space."""
    return "".join(
        ("" if piece["word"].startswith("##") else " ") + _piece(piece) for piece in pieces
    )


def _piece(piece: dict[str, str]) -> str:
    word = escape(piece["word"].removeprefix("##"))
    if "put" not in piece:
        return f'<span class="special">{word}</span>' if word in ("[CLS]", "[SEP]") else word
    kind, put = piece["kind"], escape(piece["put"])
    title = f"input: {put}; answer: {escape(piece['word'])}"
    shown = f"<del>{word}</del> {put}" if kind == "random" else word
    return f'<mark class="{kind}" title="{title}">{shown}</mark>'

"""README.md beside the shards: the card of the data set, which `datasets.load_dataset` reads too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.core.files import whole_or_absent
from data_prep.core.objectives import Pairing

Report = dict[str, Any]

# The only part that a program reads: without it the manifests beside the shards would be taken as rows.
HEAD = """---
license: [{licences}]
language_creators: [found]
task_categories: [fill-mask]
configs:
- config_name: default
  data_files:
  - split: train
    path: train/*.arrow
  - split: heldout
    path: heldout/*.arrow
---
"""
# By kind of source: the hub's names, and in words. A collection's own files may say otherwise:
# whoever passes them on looks there.
WIKIPEDIA = (("cc-by-sa-4.0", "gfdl"), "text of Wikipedia: CC BY-SA 4.0 and GFDL")
LICENCES = {
    "sample": (("other",), "Python Software Foundation License 2"),
    "wikiextractor": WIKIPEDIA,
    "wikipedia_dump": WIKIPEDIA,
    "wikipedia": WIKIPEDIA,
    "bookcorpus": (("unknown",), "none stated; rights of the authors"),
}
UNKNOWN = (
    ("unknown",),
    "unknown: that of each file read (Project Gutenberg's are in the public domain in the USA)",
)
COLUMNS = """
| column | |
| --- | --- |
| `input_ids` | `{form}`, unmasked, unpadded |
| `segment_a_length` | tokens up to and with the first `[SEP]` |
| `next_sentence_label` | 0: {label_0}, 1: {label_1} |
| `masked_positions`, `masked_input_ids` | where the static mask lies, and what stands there in the input |
| `document_a`, `document_b` | number of A's and B's document in the split |
"""


def write_card(folder: Path, report: Report) -> None:
    """Write README.md into the folder of the shards; without figures of them there is none."""
    path = folder / "README.md"
    if not report["splits"]:
        path.unlink(missing_ok=True)  # an earlier one would speak for other bytes
        return
    with whole_or_absent(path) as temporary:
        temporary.write_text(card(report), encoding="utf-8")


def card(report: Report) -> str:
    """The card's text."""
    made, faults = report["made"], report["faults"]
    casing = "uncased" if made["lowercase"] else "cased"
    verdict = (
        "The audit found them fit for training."
        if not faults
        else "**The audit found them unfit for training:**\n\n"
        + "\n".join(f"- {fault}" for fault in faults)
    )
    pairing = Pairing[made["settings"]["pairs"]]
    label_0, label_1 = pairing.meanings
    what = "Documents' sentences" if pairing is Pairing.none else "Sentence pairs"
    form = "[CLS] text [SEP]" if pairing is Pairing.none else "[CLS] A [SEP] B [SEP]"
    columns = COLUMNS.format(form=form, label_0=label_0, label_1=label_1)
    settings = [
        *((name, value) for name, value in made["settings"].items() if name != "masking"),
        *((f"masking.{name}", value) for name, value in made["settings"]["masking"].items()),
    ]
    kinds = [
        source["settings"].get("kind", "")
        for _, source in sorted(report["corpus"]["sources"].items())
    ]
    licences = dict.fromkeys(name for kind in kinds for name in LICENCES.get(kind, UNKNOWN)[0])
    head = HEAD.format(licences=", ".join(licences or UNKNOWN[0]))
    return (
        f"{head}\n# {what} of up to {report['seq_len']} tokens for BERT's pretraining\n\n"
        f"Shards of masked examples in the WordPiece ids of an {casing} vocabulary of "
        f"{made['vocab_size']:,} entries. {verdict}\n\n"
        '```python\nfrom datasets import load_dataset\n\nload_dataset("FOLDER OF THIS FILE")\n```\n'
        f"{columns}\n## Sources\n\n{_sources(report['corpus'])}\n"
        f"## Sizes\n\n{_sizes(report)}\n"
        f"## Settings\n\n| setting | value |\n| --- | --- |\n"
        + "".join(f"| `{name}` | {value} |\n" for name, value in settings)
    )


def _sources(corpus: Report) -> str:
    tokens = corpus["splits"]["train"]["tokens_of_source"]
    lines = [
        "| source | kind | from | documents | train tokens | dropped | licence |\n",
        "| --- | --- | --- | ---: | ---: | --- | --- |\n",
    ]
    for name in sorted({*corpus["sources"], *tokens}):
        source = corpus["sources"].get(name, {"settings": {}, "dropped": {}, "documents": 0})
        settings = source["settings"]
        kind = settings.get("kind", "-")
        origin = settings.get("path") or settings.get("dataset") or "-"
        dropped = ", ".join(f"{reason}: {n:,}" for reason, n in source["dropped"].items()) or "none"
        cells = [
            *(name, kind, origin, f"{source['documents']:,}", f"{tokens.get(name, 0):,}"),
            *(dropped, LICENCES.get(kind, UNKNOWN)[1]),
        ]
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |\n")
    return "".join(lines)


def _cell(text: str) -> str:
    """Text of a person in a table of Markdown, where a bar ends a cell and HTML is obeyed."""
    text = " ".join(text.split())
    for sign, harmless in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;")):
        text = text.replace(sign, harmless)
    return text


def _sizes(report: Report) -> str:
    label = Pairing[report["made"]["settings"]["pairs"]].label_1
    title = label.replace("_", " ") if label else "label 1"
    lines = [f"| | examples | tokens | mean length | {title} | masked | unknown |\n"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
    for name, split in report["splits"].items():
        if split["rows"]:
            lines.append(
                f"| {name} | {split['rows']:,} | {split['tokens']:,} | {split['mean_length']:.1f} "
                f"| {split.get(f'{label}_share', 0):.2%} | {split['masked_share']:.2%} "
                f"| {split['unknown_share']:.3%} |\n"
            )
    return "".join(lines)

"""README.md next to the shards: the data set card, which `datasets.load_dataset` reads, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from data_prep.core.files import whole_or_absent
from data_prep.core.objectives import Pairing
from data_prep.core.printable import without_folder
from data_prep.core.settings import paths_in
from data_prep.quality.report.tables import language_table

Report = dict[str, Any]

TEMPLATE = Path(__file__).with_name("card.md")

# By kind of source: the hub's names, and in words. The files of a collection may say otherwise:
# whoever passes them on checks them.
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


def write_card(folder: Path, report: Report) -> None:
    """Write README.md into the folder of the shards; remove it if there are no metrics of them."""
    path = folder / "README.md"
    if not report["splits"]:
        path.unlink(missing_ok=True)  # an earlier one would describe other bytes
        return
    with whole_or_absent(path) as temporary:
        temporary.write_text(card(report), encoding="utf-8")


def card(report: Report) -> str:
    """The card's text."""
    settings = report["made"]["settings"]
    pairing = Pairing[settings["pairs"]]
    is_single = pairing is Pairing.none
    masking = {f"masking.{name}": value for name, value in settings["masking"].items()}
    kinds = [
        source["settings"].get("kind", "")
        for _, source in sorted(report["corpus"]["sources"].items())
    ]
    licences = dict.fromkeys(name for kind in kinds for name in LICENCES.get(kind, UNKNOWN)[0])
    # Without data_files, `datasets` would read the manifests next to the shards as rows
    files = [{"split": name, "path": f"{name}/*.arrow"} for name in ("train", "heldout")]
    data = DatasetCardData(
        license=list(licences or UNKNOWN[0]),
        language_creators=["found"],
        task_categories=["fill-mask"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    head, rows = language_table(report["corpus"]["languages"])
    text = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        what="Documents' sentences" if is_single else "Sentence pairs",
        form="[CLS] text [SEP]" if is_single else "[CLS] A [SEP] B [SEP]",
        seq_len=report["seq_len"],
        made=report["made"],
        faults=report["faults"],
        meanings=pairing.meanings,
        sources=_sources(report["corpus"]),
        languages=(head, [[_cell(cell) for cell in row] for row in rows]),
        label=(pairing.label_1 or "label 1").replace("_", " "),
        sizes=_sizes(report["splits"], pairing),
        settings={name: settings[name] for name in settings if name != "masking"} | masking,
    )
    return str(text)


def _sources(corpus: Report) -> list[list[str]]:
    tokens = corpus["splits"]["train"]["tokens_of_source"]
    rows = []
    for name in sorted({*corpus["sources"], *tokens}):
        source = corpus["sources"].get(name, {"settings": {}, "dropped": {}, "documents": 0})
        settings = source["settings"]
        kind = settings.get("kind", "-")
        paths = map(without_folder, paths_in(settings.get("path") or ""))
        origin = ", ".join(paths) or settings.get("dataset") or "-"
        dropped = ", ".join(f"{reason}: {n:,}" for reason, n in source["dropped"].items()) or "none"
        cells = [
            *(name, kind, origin, f"{source['documents']:,}", f"{tokens.get(name, 0):,}"),
            *(dropped, LICENCES.get(kind, UNKNOWN)[1]),
        ]
        rows.append([_cell(cell) for cell in cells])
    return rows


def _cell(text: str) -> str:
    """A person's text in a table of Markdown, where a bar ends a cell and HTML is interpreted."""
    text = " ".join(text.split())
    for sign, harmless in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;")):
        text = text.replace(sign, harmless)
    return text


def _sizes(splits: Report, pairing: Pairing) -> list[list[str]]:
    return [
        [
            *(name, f"{split['rows']:,}", f"{split['tokens']:,}", f"{split['mean_length']:.1f}"),
            *(f"{split.get(f'{pairing.label_1}_share', 0):.2%}", f"{split['masked_share']:.2%}"),
            f"{split['unknown_share']:.3%}",
        ]
        for name, split in splits.items()
        if split["rows"]
    ]

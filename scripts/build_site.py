"""Build the documentation as a site with search: python -m scripts.build_site (make docs).

README.md becomes the front page; CONTRIBUTING.md, CHANGELOG.md and docs/ become its pages. They are
copied to build/site/source with their links rewritten: on GitHub a link may point to any file of
the repository, on the site only to a page. zensical reads mkdocs.yml and writes build/site/html.
The exit status is 1 if a link, an anchor or an image leads nowhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_prep.core.command import status_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}

# A fenced block, a code span, or a link: only the last has groups.
_LINK = re.compile(r"^```.*?^```|`[^`\n]*`|\[([^\]]*)\]\(([^)\s]+)\)", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^```.*?^```|^#+ ([^\n]+)$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """All pages, by their paths in the repository."""
    return [
        *(Path(name) for name in PAGES),
        *sorted(p.relative_to(ROOT) for p in ROOT.glob("docs/*.md")),
    ]


def links(page: Path) -> Iterator[tuple[str, Path, str]]:
    """A page's links to files of the repository: as written, the file's path, the anchor."""
    for match in _LINK.finditer((ROOT / page).read_text(encoding="utf-8")):
        if match[2] and not re.match(r"[a-z]+:", match[2]):
            name, _, anchor = match[2].partition("#")
            yield match[2], Path(os.path.normpath(page.parent / name)) if name else page, anchor


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs.yml's slugify make them."""
    found = _HEADING.finditer((ROOT / page).read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", match[1].strip().lower()).replace(" ", "-")
        for match in found
        if match[1]
    }


def broken_links() -> list[str]:
    """A line for each link whose file or anchor does not exist."""
    broken = []
    for page in pages():
        for written, path, anchor in links(page):
            if not (ROOT / path).exists():
                broken.append(f"{page}: {written}: there is no {path}")
            elif anchor and anchor not in anchors(path):
                broken.append(f"{page}: {written}: {path} has no heading #{anchor}")
    return broken


def stage(folder: Path) -> None:
    """Copy all pages and their images to `folder`, with links that work there."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder)
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        (folder / str(_name(page))).write_text(
            _LINK.sub(partial(_link, page=page), text), encoding="utf-8"
        )


def _name(path: Path) -> str | None:
    """The path of a page or image on the site; None for a file that is only in the repository."""
    if str(path) in PAGES:
        return PAGES[str(path)]
    return str(path.relative_to("docs")) if path.is_relative_to("docs") else None


def _link(match: re.Match[str], *, page: Path) -> str:
    """A link for the site: to a page, or only the text if the file is no page.

    In a code span GitHub's tables need a backslash before a bar, which the site would show.
    """
    if match[0].startswith("`") and not match[0].startswith("```"):
        return match[0].replace(r"\|", "|")
    if not match[2] or re.match(r"[a-z]+:|#", match[2]):
        return match[0]
    name, hash_sign, anchor = match[2].partition("#")
    target = _name(Path(os.path.normpath(page.parent / name)))
    return match[1] if target is None else f"[{match[1]}]({target}{hash_sign}{anchor})"


def stale_drawings() -> list[Path]:
    """The Graphviz sources in docs/images whose committed SVG is of another version."""
    return [
        source
        for source in sorted((ROOT / "docs/images").glob("*.dot"))
        if not (drawing := source.with_suffix(".svg")).exists()
        or _mark(source) not in drawing.read_text(encoding="utf-8")
    ]


def draw(source: Path) -> None:
    """Draw a Graphviz source as SVG next to it. Needs dot (apt-get install graphviz)."""
    svg = subprocess.run(["dot", "-Tsvg", source], check=True, text=True, capture_output=True)
    source.with_suffix(".svg").write_text(svg.stdout + _mark(source), encoding="utf-8")


def _mark(source: Path) -> str:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return f"<!-- drawn by make docs from {source.name}, sha256 {digest} -->\n"


def main() -> int:
    if broken := broken_links():
        print("\n".join(broken), file=sys.stderr)
        return 1
    for source in stale_drawings():
        draw(source)
    stage(ROOT / "build/site/source")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status == 0:
        print("build/site/html/index.html; with search: python -m http.server -d build/site/html")
    return int(status != 0)


if __name__ == "__main__":
    raise SystemExit(status_of(main))

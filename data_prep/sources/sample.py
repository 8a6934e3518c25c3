"""The sample: text inside every CPython, so it needs no download.

These are the topics of the English manual (pydoc_data.topics) and the docstrings of the standard
library, read from source files without importing them: an import can do anything. Grammars,
tables, code, signatures and markup are dropped.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from data_prep.core.settings import SourceSettings
from data_prep.sources.inputs.plan import SourcePlan, cut_by_size
from data_prep.sources.inputs.text_files import list_files
from data_prep.stores.documents import Document, Reject
from data_prep.text.cleaning import clean_line, clean_paragraphs

# Tests have docstrings about tests; other packages do not belong to the library.
_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}

_DRAWN_LINE = re.compile(r"\s*[-=~^*+#\"'.`:|_]{3,}[-=~^*+#\"'.`:|_\s]*$")
_TABLE_ROW = re.compile(r"\s*[|+]")
_NO_PROSE = re.compile(
    r"\s*(>>>|\.\. |\$ |:(?:param|type|rtype|returns?|raises?|[ic]?var)\b|@\w)|.*::="
)
_LIST_MARK = re.compile(r"^\s*(?:--?|[*•]|\(?\d+[.)])\s+(?=\S)")
_ROLE = re.compile(r":[a-z:]+:`([^`]*)`")
_MARKUP = re.compile(r"``|`|\*\*|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)|(?<=:):$")
_WORD = re.compile(r"[A-Za-z][a-z]*(?:['’][a-z]+)?[,;:]?")


def plan(source: SourceSettings, characters_per_part: int) -> SourcePlan:
    """Tasks of names: topics/<name>, and modules/<path of a source file>."""
    from pydoc_data.topics import topics

    library = Path(sysconfig.get_path("stdlib"))
    files, _ = list_files([library], lambda path: path.suffix == ".py", _NOT_THE_LIBRARY)
    names = [f"topics/{name}" for name in sorted(topics)]
    sizes = [len(topics[name.removeprefix("topics/")]) for name in names]
    names += [f"modules/{path.relative_to(library).as_posix()}" for path in files]
    sizes += [path.stat().st_size for path in files]
    runs = cut_by_size(sizes, characters_per_part)
    return SourcePlan(
        tasks=[[names[index] for index in run] for run in runs],
        inputs={"topics": len(topics), "modules": len(files)},
        states=[[names, sizes]] * len(runs),
    )


def read(source: SourceSettings, task: list[str]) -> Iterator[Document | Reject]:
    """A document or a reject for each topic and module."""
    from pydoc_data.topics import topics

    library = Path(sysconfig.get_path("stdlib"))
    for name in task:
        kind, _, rest = name.partition("/")
        if kind == "topics":
            yield _document(name, rest, [topics[rest]], "no prose")
            continue
        module = ".".join(Path(rest).with_suffix("").parts).removesuffix(".__init__")
        try:
            texts = docstrings((library / rest).read_bytes())
        except SyntaxError as error:
            yield Reject(name, module, "", f"not valid Python: {type(error).__name__}")
            continue
        yield _document(name, module, texts, "no prose" if texts else "no docstring")


def docstrings(code: bytes) -> list[str]:
    """The docstrings of a module, its classes and its functions, in the order of the source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old escapes in the library
        tree = ast.parse(code)
    return [text for node in [tree, *_documented(tree)] if (text := ast.get_docstring(node))]


def prose(text: str) -> list[str]:
    """The sentences and headings of a plain-text manual page or docstring, as paragraphs."""
    paragraphs: list[str] = []
    lines = inspect.cleandoc(text).expandtabs().split("\n")
    block: list[str] = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if _DRAWN_LINE.match(line) or not line.strip():
            paragraphs += _paragraphs(block)
            block = []
        elif _DRAWN_LINE.match(after) and not block and not _TABLE_ROW.match(line):
            paragraphs.append(_plain(line))  # a heading
        else:
            block.append(line)
    return list(filter(None, paragraphs + _paragraphs(block)))


def _documented(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Classes and functions below a node, in the order of the source. Expressions have none."""
    for field in ("body", "handlers", "cases", "orelse", "finalbody"):
        for child in getattr(node, field, ()):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield child
            yield from _documented(child)


def _paragraphs(block: list[str]) -> list[str]:
    """The paragraphs of a block between blank lines: each list item is one."""
    joined: list[str] = []
    for line in block:
        if _NO_PROSE.match(line):
            break  # a doctest, directive or grammar continues to the end of the block
        if _TABLE_ROW.match(line):
            continue
        if not joined or _LIST_MARK.match(line):
            joined.append(_LIST_MARK.sub("", line))
        else:
            joined[-1] += f" {line.strip()}"
    return [text for text in map(_plain, joined) if is_prose(text)]


def is_prose(text: str) -> bool:
    """Whether a text has four words or more, is mostly words and ends like a sentence."""
    tokens = text.split()
    words = sum(bool(_WORD.fullmatch(token.strip("()\"'.!?“”‘’"))) for token in tokens)
    return words >= 4 and words >= 0.7 * len(tokens) and text[-1] in ".:!?)\"'”’"


def _plain(text: str) -> str:
    return clean_line(_MARKUP.sub("", _ROLE.sub(r"\1", text)))


def _document(id: str, title: str, texts: list[str], reason: str) -> Document | Reject:
    text = clean_paragraphs([paragraph for text in texts for paragraph in prose(text)])
    if not text:
        return Reject(id, title, "\n\n".join(texts), reason)
    return Document(id, title, text)

"""The layout of the packages: what each may import, without circles, and how many files it has."""

import ast
import re
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
TOPS = ("data_prep", "pretrain", "scripts")
FILES = {
    ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in TOPS
    for path in sorted((PROJECT / top).rglob("*.py"))
}
PACKAGES = [name for name, path in FILES.items() if path.name == "__init__.py"]
PARTS = [name for name in PACKAGES if name not in TOPS]
FINE_TUNING = [
    "scripts.finetuning",
    "scripts.prediction",
    "scripts.predict",
    *(n for n in FILES if "finetune_" in n),
]


def package_of(module: str) -> str:
    return module if module in PACKAGES else module.rpartition(".")[0]


def imports(module: str) -> list[tuple[int, str]]:
    """Line and module of every import of this project's modules, those in functions included."""
    found = []
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [(node.lineno, name) for name in names if name in FILES]
    return found


def stated(package: str) -> list[str]:
    """What a package's docstring says it may import."""
    text = ast.get_docstring(ast.parse(FILES[package].read_text())) or ""
    (sentence,) = re.findall(r"^May import: (.*?)\.$", text, re.M | re.S)
    return [] if sentence == "nothing of this project" else sentence.split(",")


def allowed(package: str) -> list[str]:
    return [name.strip() for name in stated(package)]


@pytest.mark.parametrize("package", PARTS)
def test_a_part_imports_only_what_its_docstring_names(package: str) -> None:
    modules = [name for name in FILES if package_of(name) == package]
    offending = [
        f"{FILES[module].relative_to(PROJECT)}:{line} imports {target}"
        for module in modules
        for line, target in imports(module)
        if package_of(target) not in (package, *allowed(package))
        and target not in (*TOPS, *allowed(package))
    ]
    assert not offending, f"{package} may import {allowed(package)}"


@pytest.mark.parametrize("package", PARTS)
def test_a_part_names_nothing_that_it_does_not_import(package: str) -> None:
    used = {
        name
        for module in FILES
        if package_of(module) == package
        for _, target in imports(module)
        for name in (target, package_of(target))
    }
    assert set(allowed(package)) <= used


@pytest.mark.parametrize(
    "graph",
    [
        {package: allowed(package) for package in PARTS},
        {name: [target for _, target in imports(name)] for name in FILES},
    ],
    ids=["parts", "files"],
)
def test_nothing_imports_itself_through_others(graph) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def found_in(importer: str, is_wrong: Callable[[str], bool]) -> list[str]:
    """The wrong imports of a package or a file, with their lines."""
    return [
        f"{FILES[module].relative_to(PROJECT)}:{line} imports {target}"
        for module in FILES
        if f"{module}.".startswith(f"{importer}.")
        for line, target in imports(module)
        if is_wrong(target)
    ]


@pytest.mark.parametrize(
    ("importer", "imported"),
    [("data_prep", "pretrain"), ("data_prep", "scripts"), ("pretrain", "scripts")]
    + [(name, "pretrain") for name in FINE_TUNING],
)
def test_modules_that_must_stand_alone_do(importer: str, imported: str) -> None:
    assert not found_in(importer, lambda target: f"{target}.".startswith(f"{imported}."))


@pytest.mark.parametrize("importer", FINE_TUNING)
def test_fine_tuning_imports_only_the_core_of_data_prep(importer: str) -> None:
    assert not found_in(
        importer, lambda t: t.startswith("data_prep") and package_of(t) != "data_prep.core"
    )


@pytest.mark.parametrize("package", PARTS)
def test_a_part_has_at_most_12_files(package: str) -> None:
    folder = FILES[package].parent
    assert len([path for path in folder.iterdir() if path.is_file()]) <= 13  # __init__.py and 12


def test_files_at_the_top_are_commands() -> None:
    for top in TOPS:
        for path in (PROJECT / top).glob("*.py"):
            if path.name != "__init__.py":
                assert '__name__ == "__main__"' in path.read_text(), path


def test_no_group_is_repeated_possessively() -> None:
    """Python before 3.11.5 then loses matches (cpython#106052); (?>(?:X)*) says the same."""
    possessive = re.compile(r"\)(?:[*+?]|\{[\d,]+\})\+")
    assert not [path for path in FILES.values() if possessive.search(path.read_text())]

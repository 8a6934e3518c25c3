"""`bert-data collect ...` starts `python -m data_prep.collect ...`, and so on for each command.

A door only finds the module: settings, messages and exit statuses are the module's own.
"""

from __future__ import annotations

import ast
import difflib
import importlib.metadata
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from data_prep.core.command import CONSOLE, DOORS, status_of
from data_prep.core.entry import PROJECT, commands, print_help

DISTRIBUTION = "bert-pretraining"


@dataclass(frozen=True)
class Door:
    """A command, how its modules' names begin, and the module that it starts without a word."""

    name: str
    prefix: str
    default: str | None

    def words(self) -> dict[str, str]:
        """The modules by the word that is typed for each, such as `collect`."""
        names = [name for name in commands() if name.startswith(self.prefix)]
        return {name.removeprefix(self.prefix): name for name in names}


DATA, PRETRAIN, FINETUNE, PREDICT = (Door(name, *modules) for name, modules in DOORS.items())


def data() -> int:
    """`bert-data collect|vocab|encode|build|...`."""
    return _status(DATA)


def pretrain() -> int:
    """`bert-pretrain +model=base ...`, and `bert-pretrain plan|export|...`."""
    return _status(PRETRAIN)


def finetune() -> int:
    """`bert-finetune classification|qa|tagging|table`."""
    return _status(FINETUNE)


def predict() -> int:
    """`bert-predict model=DIR ...`."""
    return _status(PREDICT)


def _status(door: Door) -> int:
    answer: Callable[[], int | None] = partial(_open, door, sys.argv[1:])
    return status_of(answer)


def _open(door: Door, typed: list[str]) -> int:
    """Replace this process by the module that was typed, or answer."""
    words, word = door.words(), typed[0] if typed else ""
    os.environ[CONSOLE] = "1"
    if word == "--version":
        print(DISTRIBUTION, importlib.metadata.version(DISTRIBUTION))
        return 0
    if word in words:
        module, typed = words[word], typed[1:]
    elif word in ("-h", "--help") or (door.default is None and not word):
        _print_usage(door)
        return 0 if word else 2
    elif door.default is None or (words and not _is_setting(word)):
        near = difflib.get_close_matches(word, words, n=1)
        meant = f"did you mean {door.name} {near[0]}? There are" if near else "there are"
        print(f"{door.name}: there is no {word!r}; {meant} {', '.join(words)}", file=sys.stderr)
        return 2
    else:
        module = door.default
    # Not the folder it is typed in: a file there must not take a package's place
    os.environ["PYTHONSAFEPATH"] = "1"
    # `python -m` as it is typed by hand, in this process: one id for signals and launchers
    os.execv(sys.executable, [sys.executable, "-m", module, *typed])


def _is_setting(word: str) -> bool:
    """Whether a word is one of the default module's: a setting, an option, a file, or none."""
    return not word or "=" in word or word[0] in "-@+"


def _print_usage(door: Door) -> None:
    words = {word: module for word, module in door.words().items() if module != door.default}
    if words:
        print(f"usage: {door.name} COMMAND [SETTING=VALUE ...]   --help after it prints the rest")
        width = max(map(len, words))
        for word, module in words.items():
            print(f"  {word:<{width}}  {_first_line(module)}")
        print()
    if door.default:
        start = "" if not words else f"{door.name} SETTING=VALUE ... starts {door.default}:\n\n"
        print(start, end="", flush=True)
        print_help(door.default)


def _first_line(module: str) -> str:
    """What a command does: the first line of its docstring, without how it is typed."""
    with open(os.path.join(PROJECT, *module.split(".")) + ".py", encoding="utf-8") as file:
        lines = (ast.get_docstring(ast.parse(file.read())) or "").splitlines()
    return lines[0].partition(": python -m")[0].rstrip(".") if lines else ""

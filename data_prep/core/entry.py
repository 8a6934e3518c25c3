"""What is answered before a command's own imports: --help, and what keeps it from starting.

Only the standard library is imported, in the syntax of Python 3.6, which clusters still have: this
runs first in every process, whatever Python and environment it was started with.
"""

import os
import sys

TOPS = ("data_prep", "pretrain", "scripts")
# The folder of the packages: the checkout, or where pip puts packages
PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OWN_CONF = "BERT_CONFIG_DIR"  # the folder of --config-dir; the processes that we start inherit it
# Of the packages that each needs; what an extra installs is in EXTRAS
_NEEDED = {
    "data_prep": ("msgspec", "hydra", "numba"),
    "pretrain": ("msgspec", "hydra", "numba", "torch", "deepspeed"),
    "scripts": ("msgspec", "hydra", "numba", "torch"),
}
EXTRAS = {
    "data": (
        "datasets", "jinja2", "lxml", "matplotlib", "nupunkt", "rensa", "sentencex", "zstandard",
    ),
    "docs": ("zensical",),
    "finetune": ("accelerate", "datasets", "scipy", "sklearn", "transformers"),
    "hub": ("huggingface_hub",),
    "report": ("jinja2", "matplotlib"),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}  # fmt: skip
# By the start of a command's name, the first that fits
_EXTRA_OF = (
    ("data_prep.slurm", None),
    ("data_prep.", "data"),
    ("pretrain.push", "hub"),
    ("pretrain.report", "report"),
    ("scripts.build_site", "docs"),
    ("scripts.check_wheels", None),
    ("scripts.drill", None),
    ("scripts.start_node", None),
    ("scripts.", "finetune"),
)


def answer() -> None:
    """Exit with an answer if this process is a command of the project that does not get further.

    0: --help was typed, and is printed: the docstring of the command, in which `{model}` stands for
    the names in conf/model/, and `{data_prep.yaml}` for the content of that file. 2, with one
    sentence: the module is no command, or this Python is too old or lacks the project's packages.
    """
    if sys.version_info < (3, 11):  # noqa: UP036  the user's may be older than the project's
        found = ".".join(map(str, sys.version_info[:2]))
        why = f"Python 3.11 to 3.14 is needed, and {sys.executable} is {found}; {_cure()}"
        sys.stderr.write(f"error: {why}\n")
        raise SystemExit(2)
    name = _started()
    if name is None:
        return
    _print_no_stack_of_ctrl_c(name)
    if not _is_command(os.path.join(PROJECT, *name.split(".")) + ".py"):
        _refuse(name, _no_command(name))
    _take_config_dir(name)
    if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
        from data_prep.core.command import status_of

        raise SystemExit(status_of(lambda: print_help(name)))
    from importlib.util import find_spec

    for package in _NEEDED[name.split(".")[0]]:
        if find_spec(package) is None:
            _refuse(name, f"{sys.executable} has no package {package}; {_cure()}")
    extra = next((extra for start, extra in _EXTRA_OF if name.startswith(start)), None)
    why = why_not(extra) if extra else None
    if why:
        _refuse(name, why)


def why_not(extra: str) -> "str | None":
    """The package of an extra that is missing here, with the cure; None if all are there."""
    from importlib.util import find_spec

    for package in EXTRAS[extra]:
        if find_spec(package) is None:
            return (
                f"{sys.executable} has no package {package}, which the extra {extra} installs: "
                f'pip install "bert-pretraining[{extra}]"'
            )
    return None


def conf_folders() -> "list[str]":
    """The folders of settings: that of --config-dir, if it was typed, then the project's `conf/`.

    `data_prep/conf` is a link to `conf/` in a checkout, and a folder where a wheel is installed.
    """
    own = os.environ.get(OWN_CONF)
    return ([own] if own else []) + [os.path.join(PROJECT, "data_prep", "conf")]


def _take_config_dir(name: str) -> None:
    """Take `--config-dir FOLDER` off the command line, and into the environment."""
    for number, word in enumerate(sys.argv):
        if number and word.split("=", 1)[0] == "--config-dir":
            end = number + (1 if "=" in word else 2)
            os.environ[OWN_CONF] = os.path.abspath(sys.argv[end - 1].split("=", 1)[-1])
            del sys.argv[number:end]
            break
    for folder in conf_folders():
        if not os.path.isdir(folder):
            _refuse(name, f"{folder} is no folder; --config-dir takes one with settings in files")


def _print_no_stack_of_ctrl_c(name: str) -> None:
    """Make Ctrl-C one line from here on: the imports of a command take seconds."""
    usual = sys.excepthook

    def hook(kind, error, trace):  # type: ignore[no-untyped-def]
        if not issubclass(kind, KeyboardInterrupt):
            usual(kind, error, trace)
        else:
            sys.stderr.write(_as_typed(name) + ": interrupted\n")
            sys.stderr.flush()
            os._exit(130)

    sys.excepthook = hook


def _cure() -> str:
    if not os.path.exists(os.path.join(PROJECT, "pyproject.toml")):  # installed by pip
        return "`pip install bert-pretraining` in that environment installs what is missing"
    return (
        "use the project's environment: `source .venv/bin/activate` in the checkout; "
        "`make install` makes it"
    )


def commands() -> "list[str]":
    """The modules that users start, sorted."""
    return sorted(
        f"{package}.{file[: -len('.py')]}"
        for package in (*TOPS, "scripts.bench")
        for folder in [os.path.join(PROJECT, *package.split("."))]
        for file in os.listdir(folder)
        if file.endswith(".py") and _is_command(os.path.join(folder, file))
    )


def print_help(name: str) -> None:
    """Print the docstring of a command, with what its placeholders stand for."""
    import ast
    import re

    with open(os.path.join(PROJECT, *name.split(".")) + ".py", encoding="utf-8") as file:
        text = ast.get_docstring(ast.parse(file.read())) or ""
    text = re.sub(r"\{([a-z_.]+)\}", lambda found: _of_conf(found[1]), text)
    sys.stdout.write(_as_typed(text) + "\n")


def _of_conf(name: str) -> str:
    paths = [os.path.join(folder, name) for folder in conf_folders()]
    files = [path for path in paths if os.path.isfile(path)]
    if not files:
        names = {file for path in paths if os.path.isdir(path) for file in os.listdir(path)}
        return "|".join(sorted(f[: -len(".yaml")] for f in names if f.endswith(".yaml")))
    with open(files[0], encoding="utf-8") as file:
        return file.read().rstrip()


def _started() -> "str | None":
    """The module of this project that is being started; None if it is imported by another."""
    if sys.argv[0] == "-m":  # its package is imported first, and this with it
        typed = sys.orig_argv[-len(sys.argv)]
        name = typed[2:] if typed.startswith("-m") else typed
    else:
        path = os.path.relpath(os.path.abspath(sys.argv[0]), PROJECT)
        name = os.path.splitext(path)[0].replace(os.sep, ".")
    return name if name.split(".")[0] in TOPS else None


def _is_command(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, encoding="utf-8") as file:
        return '\nif __name__ == "__main__":' in file.read()


def _no_command(name: str) -> str:
    import difflib

    known = commands()
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    hint = f"did you mean python -m {near[0]}? " if near else ""
    lines = [
        f"  {package}: {', '.join(c.rpartition('.')[2] for c in known if _package(c) == package)}"
        for package in sorted(set(map(_package, known)))
    ]
    return f"this is no command; {hint}python -m PACKAGE.NAME takes\n" + "\n".join(lines)


def _package(module: str) -> str:
    return module.rpartition(".")[0]


def _refuse(name: str, why: str) -> None:
    sys.stderr.write(_as_typed(f"{name}: {why}\n"))
    raise SystemExit(2)


def _as_typed(text: str) -> str:
    from data_prep.core.command import as_typed  # in the syntax of Python 3.11

    return as_typed(text)

"""Find the fastest engine settings of a model on this machine.

    python -m pretrain.tune +model={model} [GROUP=NAME ...] [SETTING=VALUE ...]
        [ranks=N] [steps=5] [out=tuned.yaml] [limit_minutes=20] [total_minutes=N]

Tries token budgets, activation checkpointing if memory is short, and layers compiled or not, each
for a few steps in processes of their own. Prints a table, and writes the fastest that fits. They
change only rounding and which dropout masks are drawn. What you type of
engine.tokens_per_micro_batch, engine.compile and engine.activation_checkpointing stays as it is.
engine.shard is not tried: on one machine both values are one. python -m pretrain.plan prints which
is faster on several nodes.

ranks           processes on this machine; default: one for each GPU, or one on a CPU
steps           steps that count in each trial, after two more; default: 5
out             file for the settings, which a run reads with @FILE; default: tuned.yaml
limit_minutes   of one trial; default: 20
total_minutes   of all; what is then not tried is listed; default: no limit

Exit status: 0 found; 1 nothing works on this machine; 2 wrong settings.
"""

from __future__ import annotations

import math
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.core.command import as_typed, status_of
from data_prep.core.config import SettingsError, as_yaml
from data_prep.core.files import whole_or_absent
from data_prep.core.records import read_record
from pretrain.config.arguments import parse_arguments
from pretrain.config.load import load
from pretrain.config.settings import Compile, Device, Settings
from pretrain.data.corpus import folder_of, manifest_of, prepare_sample
from pretrain.tuning.search import Candidate, Outcome, Search, budgets, table
from pretrain.verification.launcher import launch

TRIAL = ("-m", "pretrain.tuning.trial")
OWN = ("ranks", "steps", "out", "limit_minutes", "total_minutes")
TRIED = ("tokens_per_micro_batch", "compile", "activation_checkpointing")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the docstring of this module lists the exit statuses."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    own = [word for word in arguments if word.partition("=")[0] in OWN]
    typed = [word for word in arguments if word not in own]
    try:
        return tune(typed, **parse_arguments(_options, own))
    except SettingsError as error:
        print(as_typed(f"pretrain.tune: {error}"), file=sys.stderr)
        return 2


def _options(
    ranks: int | None = None,
    steps: int = 5,
    out: Path = Path("tuned.yaml"),
    limit_minutes: float = 20.0,
    total_minutes: float = math.inf,
) -> None:
    """The command's own arguments."""


def tune(
    typed: Sequence[str],
    ranks: int | None = None,
    steps: int = 5,
    out: Path = Path("tuned.yaml"),
    limit_minutes: float = 20.0,
    total_minutes: float = math.inf,
) -> int:
    """Try, print the table and write the fastest. Raises SettingsError as a run does."""
    search = find(typed, ranks, steps, limit_minutes, total_minutes)
    if (fastest := search.fastest) is None:
        print(
            as_typed("pretrain.tune: nothing that was tried works on this machine"), file=sys.stderr
        )
        return 1
    with whole_or_absent(out) as temporary:
        temporary.write_text(as_yaml(fastest.settings))
    print(f"\nfastest  {' '.join(fastest.overrides)}\nfile     {out}")
    print(as_typed(f"next     python -m pretrain.run {shlex.join([*typed, f'@{out}'])}"))
    return 0


def find(
    typed: Sequence[str],
    ranks: int | None,
    steps: int,
    limit_minutes: float,
    total_minutes: float = math.inf,
) -> Search:
    """Try, and print the table. Raises SettingsError as a run does."""
    for name, count in (("ranks", 1 if ranks is None else ranks), ("steps", steps)):
        if count < 1:
            raise SettingsError(f"{name}={count}; it takes 1 or more")
    for name, minutes in (("limit_minutes", limit_minutes), ("total_minutes", total_minutes)):
        if minutes <= 0:
            raise SettingsError(f"{name}={minutes:g}; it takes more than 0")
    end = time.monotonic() + 60 * total_minutes
    is_cuda, count = _devices(load(typed, ranks or 1)[0])
    ranks = ranks or count
    settings, on_sample = load(typed, ranks)
    if on_sample and not (folder_of(settings.data) / "manifest.json").exists():
        prepare_sample(settings.data)
    size = manifest_of(settings.data).vocab_size
    print(f"{ranks} rank(s), {folder_of(settings.data)}, vocabulary of {size:,}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bert-tune-") as folder:

        def measure(candidate: Candidate) -> Outcome:
            limit_s = min(60 * limit_minutes, end - time.monotonic())
            if limit_s <= 0:
                found = Outcome(fault=f"not tried: {total_minutes:g} minutes were over")
            else:
                words = [*typed, *candidate.overrides]
                found = _trial(words, ranks, steps, limit_s, Path(folder))
            print(table({candidate: found}, "")[1].removesuffix("  <- fastest"), flush=True)
            return found

        search = _space(settings, typed, ranks, is_cuda, measure)
        search.run()
    print("\n".join(["", *table(search.trials, "GPU" if is_cuda else "host")]))
    return search


def _devices(settings: Settings) -> tuple[bool, int]:
    """Whether the trials run on GPUs, and how many ranks this machine has room for."""
    if settings.engine.device is Device.cpu:
        return False, 1
    import torch

    from pretrain.distributed.device import cuda_is_usable

    return (True, torch.cuda.device_count()) if cuda_is_usable() else (False, 1)


def _space(
    settings: Settings,
    typed: Sequence[str],
    ranks: int,
    is_cuda: bool,
    measure: Callable[[Candidate], Outcome],
) -> Search:
    """What is tried: everything that was not typed."""
    fixed = {word.partition("=")[0].lstrip("+").removeprefix("engine.") for word in typed}
    engine = settings.engine
    usual = engine.compile is Compile.true or (
        engine.compile is Compile.auto and is_cuda and engine.zero_stage < 3
    )
    can_compile = is_cuda and engine.zero_stage < 3  # on a CPU it takes minutes per shape
    plain = engine.activation_checkpointing
    return Search(
        [engine.tokens_per_micro_batch] if TRIED[0] in fixed else budgets(settings, ranks),
        [usual] if TRIED[1] in fixed or not can_compile else [usual, not usual],
        [plain] if TRIED[2] in fixed else [plain, not plain],
        measure,
        has_between=settings.optim.tokens_per_step is None,
    )


def _trial(words: Sequence[str], ranks: int, steps: int, limit_s: float, folder: Path) -> Outcome:
    """Run one trial; one that is killed or takes too long is an outcome, too."""
    result, output = folder / "result.json", folder / "output.txt"
    result.unlink(missing_ok=True)
    output.unlink(missing_ok=True)
    arguments = [str(result), str(steps), *words]
    with launch(arguments, ranks, output, TRIAL) as launched:
        statuses = launched.wait(limit_s, grace_s=5)
    if result.exists():
        return read_record(result, Outcome, "try again")
    if None in statuses:
        return Outcome(fault=f"stopped after {limit_s / 60:.3g} minutes")
    if all(status is not None and status <= 0 for status in statuses):  # by no error of its own
        return Outcome(fault="was killed, as the system does without memory", is_too_large=True)
    lines = output.read_text(errors="replace").strip().splitlines() or ["no output"]
    return Outcome(fault=lines[-1][:200])


if __name__ == "__main__":
    sys.exit(status_of(main))

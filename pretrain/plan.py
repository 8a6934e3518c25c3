"""Plan a run before it runs: steps, tokens, memory, days, money, energy.

    python -m pretrain.plan +model={model}
        [cluster={cluster}]
        [GROUP=NAME ...] [SETTING=VALUE ...] [json=true]

Takes what `pretrain.run` takes, needs neither data nor GPU, and refuses what the run would refuse.
With data= or data.dir= it reads the shards' lengths and vocabulary; without, it assumes them.

cluster=NAME cluster.nodes=N   the hardware, in conf/cluster; default: this machine, measured
plan.padding=full              pad every sequence, as most published runs do
plan.lengths                   mean lengths assumed without prepared data
json=true                      print the plan as JSON

example: python -m pretrain.plan +model=large recipe=nvidia_lamb cluster=dgx_a100 cluster.nodes=32
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import orjson

from data_prep.core.command import as_typed, status_of
from data_prep.core.config import SettingsError, as_yaml, choices
from pretrain.config import load as load_module
from pretrain.config.phases import check_phases, phases_of
from pretrain.config.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Plan from the command line. 0: planned; 1: it does not fit the memory; 2: wrong settings."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    typed = [a for a in arguments if a not in ("--cfg", "json=true", "json=false")]
    try:
        settings = load(typed)
        if "--cfg" in arguments:
            print(as_yaml(settings), end="")
            return 0
        from pretrain.planning import table
        from pretrain.planning.estimate import forecast

        found = forecast(settings, has_data=bool(keys(typed) & {"data", "data.dir"}))
    except SettingsError as error:
        print(as_typed(f"pretrain.plan: {error}"), file=sys.stderr)
        return 2
    if "json=true" in arguments:
        print(orjson.dumps(table.as_dict(found), option=orjson.OPT_INDENT_2).decode())
    else:
        print("\n".join(table.lines(found)))
    return 0 if found.fits else 1


def clusters() -> list[str]:
    """The names that cluster= takes."""
    return [name for name in choices("cluster") if name != "none"]


def keys(typed: Sequence[str]) -> set[str]:
    """The settings and groups that were typed."""
    return {argument.split("=", 1)[0].lstrip("+") for argument in typed}


def load(typed: Sequence[str]) -> Settings:
    """Settings of a plan, checked for all ranks of the cluster; default: this machine.

    Raises SettingsError as `pretrain.run` does on that many ranks, with the nodes that fit.
    """
    if "cluster" not in keys(typed):
        typed = [*typed, "cluster=local"]
    settings, _ = load_module.load(typed, world_size=1)
    cluster = settings.cluster
    if cluster.gpu is None:
        raise SettingsError(f"cluster=none has no hardware; there are {', '.join(clusters())}")
    ranks = cluster.nodes * cluster.gpus_per_node
    try:
        check_phases(settings, ranks)
    except SettingsError as error:
        optims = [phase.settings.optim for phase in phases_of(settings)]
        batch = min(optim.global_batch for optim in optims)
        nodes = batch // cluster.gpus_per_node
        counts_tokens = any(optim.tokens_per_step is not None for optim in optims)
        if batch >= ranks or nodes < 1 or counts_tokens:
            raise
        raise SettingsError(f"{error}, or cluster.nodes={nodes} or fewer") from error
    return settings


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    sys.exit(status_of(main))

"""A run before it runs: its arithmetic, and on named hardware its memory, time, money and energy.

    python -m pretrain.plan +model=large recipe=nvidia_lamb cluster=dgx_a100 cluster.nodes=32

takes what `pretrain.run` takes, needs neither data nor GPU, and refuses what the run would refuse.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import orjson

from data_prep.core.config import SettingsError, as_yaml, choices
from pretrain.config import load as load_module
from pretrain.config.phases import check_phases, phases_of
from pretrain.config.settings import Settings

HELP = """\
python -m pretrain.plan +model={model} [cluster={cluster}] [GROUP=NAME ...] [SETTING=VALUE ...] [json=true]

What a run will take: steps, tokens, memory, days, money, energy. Settings are those of pretrain.run, and
  cluster=NAME cluster.nodes=N   the hardware, in conf/cluster; without it this machine, which is measured
  plan.padding=full              as published runs do it; plan.lengths: where there is no prepared data
example: python -m pretrain.plan +model=large recipe=nvidia_lamb cluster=dgx_a100 cluster.nodes=32 engine=bf16
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Plan from the command line. 0: planned; 1: it does not fit the memory; 2: wrong settings."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        print(HELP.format(model="|".join(choices("model")), cluster="|".join(clusters())), end="")
        return 0
    as_json = "json=true" in arguments
    typed = [a for a in arguments if a not in ("--cfg", "json=true", "json=false")]
    try:
        settings = load(typed)
        if "--cfg" in arguments:
            print(as_yaml(settings), end="")
            return 0
        from pretrain.planning.estimate import forecast

        found = forecast(settings)
    except SettingsError as error:
        print(f"pretrain.plan: {error}", file=sys.stderr)
        return 2
    if as_json:
        print(orjson.dumps(found.as_dict(), option=orjson.OPT_INDENT_2).decode())
    else:
        print("\n".join(found.lines()))
    return 0 if found.fits else 1


def clusters() -> list[str]:
    """The hardware that can be named."""
    return [name for name in choices("cluster") if name != "none"]


def load(typed: Sequence[str]) -> Settings:
    """Settings of a plan, checked for all of the cluster's ranks; this machine where none is named.

    Raises SettingsError as `pretrain.run` does on so many ranks, with the nearest number of nodes.
    """

    names = {argument.split("=", 1)[0].lstrip("+") for argument in typed}
    if "cluster" not in names:
        typed = [*typed, "cluster=local"]
    settings, _ = load_module.load(typed, world_size=1)
    cluster = settings.cluster
    if cluster.gpu is None:
        raise SettingsError(f"cluster=none has no hardware; there are {', '.join(clusters())}")
    ranks = cluster.nodes * cluster.gpus_per_node
    try:
        check_phases(settings, ranks)
    except SettingsError as error:
        batch = min(phase.settings.optim.global_batch for phase in phases_of(settings))
        nodes = batch // cluster.gpus_per_node
        of_tokens = any(p.settings.optim.tokens_per_step is not None for p in phases_of(settings))
        if batch >= ranks or nodes < 1 or of_tokens:
            raise
        raise SettingsError(f"{error}, or cluster.nodes={nodes} or fewer") from error
    return settings


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    sys.exit(main())

"""Start the ranks of one node, for schedulers that decide by its exit status: Kubernetes.

    NUM_NODES=2 NODE_RANK=0 RANKS_PER_NODE=8 MASTER_ADDR=HOST python -m scripts.start_node SETTINGS

All arguments are settings of pretrain.run. HOST is that of node 0; MASTER_PORT is 29500 by default.
SIGTERM to any node makes the ranks of all nodes save and end. Exit status:

    0   finished; or stopped, on a node other than 0
    2   wrong settings or data: starting again would not help
    75  stopped by a signal, with all saved: start all nodes again to continue (node 0)
    1   failed: start all nodes again to continue from the last checkpoint

torchrun turns every status of a rank into 1.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError
from pretrain.metrics.slurm_status import VARIABLE, WORDS
from pretrain.verification.launcher import RUN, Launched

STOPPED = os.EX_TEMPFAIL  # 75
GRACE_S = 60.0  # for the other ranks to end once one has failed
NAMES = ("NUM_NODES", "NODE_RANK", "RANKS_PER_NODE")


def main() -> int:
    """Start the ranks, pass SIGTERM on to them, and wait for all."""
    with tempfile.TemporaryDirectory() as folder:
        word = Path(folder) / "word"  # rank 0's last: saved, or stopped
        try:
            environments = rank_environments({**os.environ, VARIABLE: str(word)})
        except SettingsError as error:
            print(f"scripts.start_node: {error}", file=sys.stderr)
            return 2
        told: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
        with start(sys.argv[1:], environments) as ranks:
            signal.signal(signal.SIGTERM, lambda *_: ranks.send(signal.SIGTERM))
            if told:
                ranks.send(signal.SIGTERM)
            statuses = ranks.wait(math.inf, GRACE_S)
        return node_status(statuses, word.read_text() if word.exists() else "")


def rank_environments(given: Mapping[str, str]) -> list[dict[str, str]]:
    """The variables of each rank of this node, by those of the node."""
    wrong = [name for name in NAMES if not given.get(name, "").isdecimal()]
    wrong += [] if given.get("MASTER_ADDR") else ["MASTER_ADDR"]
    if wrong:
        shown = ", ".join(f"{name}={given.get(name, '')}" for name in wrong)
        raise SettingsError(f"{shown}: give three numbers, and node 0's host as MASTER_ADDR")
    num_nodes, node, num_ranks = (int(given[name]) for name in NAMES)
    if node >= num_nodes:
        raise SettingsError(f"NODE_RANK={node} must be below NUM_NODES={num_nodes}")
    return [
        {
            "OMP_NUM_THREADS": "1",
            "MASTER_PORT": "29500",
            **given,
            "RANK": str(node * num_ranks + local),
            "WORLD_SIZE": str(num_nodes * num_ranks),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(num_ranks),
        }
        for local in range(num_ranks)
    ]


def start(arguments: Sequence[str], environments: Sequence[Mapping[str, str]]) -> Launched:
    """One process per environment, which prints where this one does."""
    command = [sys.executable, "-u", *RUN, *arguments]
    return Launched(
        [subprocess.Popen(command, env=env, start_new_session=True) for env in environments],
        Path(os.devnull),
    )


def node_status(statuses: Sequence[int | None], word: str) -> int:
    """The exit status of the node, by those of its ranks and rank 0's last word."""
    if 2 in statuses:
        return 2
    if any(statuses):
        return 1
    return STOPPED if word == WORDS["stopped"] else 0


if __name__ == "__main__":
    sys.exit(status_of(main))

"""The fastest settings that `pretrain.tune` finds in some minutes.

    python -m scripts.bench.gpu.tune [model=large] [device=cuda] [sequences=256] [steps=3]
        [minutes=2] [settings='engine=bf16']

On random tokens with Wikipedia's lengths. `sequences` is the batch of a step, `steps` those that
count in each trial. What `settings` names, divided by blanks, stays as it is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from data_prep.core.config import SettingsError
from pretrain.tune import find
from pretrain.tuning.search import Outcome
from scripts.baselines.synthetic_shards import write_synthetic_data
from scripts.bench.parts import harness
from scripts.bench.parts.harness import Record


@harness.benchmark("tune")
def main(
    model: str = "large",
    device: str = "cuda",
    sequences: int = 256,
    steps: int = 3,
    minutes: float = 2.0,
    settings: str = "",
) -> Record:
    """The benchmark. Raises SettingsError if nothing works."""
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic_data(Path(folder), 1024)
        words = [
            f"+model={model}", f"data.dir={folder}", "data.seq_len=512",
            f"engine.device={device}", f"optim.global_batch={sequences}", *settings.split(),
        ]  # fmt: skip
        search = find(words, 1, steps, limit_minutes=minutes, total_minutes=minutes)
    if search.fastest is None:
        faults = [found.fault for found in search.trials.values()]
        raise SettingsError(f"no trial worked: {'; '.join(dict.fromkeys(faults))}")
    return {
        "device": device,
        "fastest": _numbers(search.trials[search.fastest]),
        "overrides": search.fastest.overrides,
        "trials": [
            {"overrides": candidate.overrides, **_numbers(found), "fault": found.fault}
            for candidate, found in search.trials.items()
        ],
        "tried": len(search.trials),
    }


def _numbers(found: Outcome) -> dict[str, float | None]:
    names = ("tokens_per_second", "peak_share", "memory_gb")
    return {name: getattr(found, name) for name in names}


if __name__ == "__main__":
    harness.run(main)

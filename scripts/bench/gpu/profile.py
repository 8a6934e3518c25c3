"""A short run with `profile.steps`: where the time of a step goes.

    python -m scripts.bench.gpu.profile [model=large] [device=cuda] [sequences=64]
        [tokens=16384] [minutes=2] [folder=build/bench/profile]

Trains 14 steps on random tokens with Wikipedia's lengths, and records steps 10 to 13. The run with
its trace and memory snapshot is `folder`/run, and replaces an earlier one. It is ended after
`minutes`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from data_prep.core.config import SettingsError
from pretrain.metrics import trace
from pretrain.run_folder.jsonl import readable_lines
from pretrain.verification.launcher import launch
from scripts.baselines.synthetic_shards import write_synthetic_data
from scripts.bench.parts import harness
from scripts.bench.parts.harness import Record

LAST_STEP, PROFILED = 14, (10, 13)
METRICS = ("perf/tokens_per_second", "perf/mfu", "perf/device_memory_gb", "perf/host_memory_gb")


@harness.benchmark("profile")
def main(
    model: str = "large",
    device: str = "cuda",
    sequences: int = 64,
    tokens: int = 16_384,
    minutes: float = 2.0,
    folder: Path = Path("build/bench/profile"),
) -> Record:
    """The benchmark. Raises SettingsError if the run fails, or leaves no profile."""
    for part in ("data", "run"):  # the folder may hold more than a run of ours
        shutil.rmtree(folder / part, ignore_errors=True)
    write_synthetic_data(folder / "data", LAST_STEP * sequences)
    words = [
        f"+model={model}", f"data.dir={folder / 'data'}", "data.seq_len=512",
        f"run.dir={folder}", "run.name=run", f"engine.device={device}",
        f"engine.tokens_per_micro_batch={tokens}", f"optim.global_batch={sequences}",
        f"schedule.total_steps={LAST_STEP}", f"profile.steps=[{PROFILED[0]},{PROFILED[1]}]",
        "monitor.every_steps=1", "monitor.sentences=[]", "eval.max_examples=8",
    ]  # fmt: skip
    with launch(words, 1, folder / "output.txt") as run:
        statuses = run.wait(60 * minutes)
    print((folder / "output.txt").read_text(errors="replace"))
    summary = trace.read_summary(folder / "run")
    if statuses != [0] or summary is None or not summary.ranks:
        raise SettingsError(f"the run ended with {statuses[0]}: see {folder / 'output.txt'}")
    print("\n".join(trace.lines(summary)))
    (rank,) = summary.ranks
    return {
        "device": device,
        "ms_per_step": rank.ms / rank.steps,
        "idle": rank.idle,
        "exposed_communication": rank.exposed,
        **_metrics(folder / "run"),
        "top": [{"name": top.name, "calls": top.calls, "ms": top.own_ms} for top in rank.top],
    }


def _metrics(run_folder: Path) -> dict[str, float]:
    """The run's own, of the last step before the profile."""
    records = [r for r in readable_lines(run_folder / "metrics.jsonl") if METRICS[0] in r]
    before = [record for record in records if record["step"] < PROFILED[0]]
    return {name: before[-1][name] for name in METRICS if before[-1].get(name) is not None}


if __name__ == "__main__":
    harness.run(main)

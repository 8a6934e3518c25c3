"""Fine-tune every checkpoint of a run, to see how downstream metrics grow.

    python -m scripts.evaluate_checkpoints run=runs/x +task=sst2 [SETTING=VALUE ...]

Settings are those of fine-tuning. Each checkpoint is exported and fine-tuned,
and adds one line per task to runs/x/downstream.jsonl, which python -m pretrain.report draws. The
same command skips what is done.

{finetune.yaml}
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.core.command import status_of
from data_prep.core.config import SettingsError, as_dict
from data_prep.core.files import remove_folder, whole_or_absent
from scripts.finetuning import results
from scripts.finetuning.run import FREE, finetune
from scripts.finetuning.settings import InputError, load

FILE = "downstream.jsonl"
FOLDER = "downstream"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, or 2 with a message if something cannot be used."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    runs = [word.removeprefix("run=") for word in arguments if word.startswith("run=")]
    typed = [word for word in arguments if not word.startswith("run=")]
    try:
        if not runs:
            raise InputError("no run is named; add run=FOLDER, such as run=runs/x")
        lines = evaluate(Path(runs[-1]), typed)
    except SettingsError as error:
        sys.stderr.write(f"scripts.evaluate_checkpoints: {error}\n")
        return 2
    for line in lines:
        shown = f"{line['task']}  step {line['step']:>9,}"
        for name, value in line["figures"].items():
            deviation = "" if value["std"] is None else f" ± {value['std']:.2f}"
            shown += f"  {name} {value['mean']:.2f}{deviation}"
        print(shown)
    return 0


def evaluate(run: Path, typed: Sequence[str]) -> list[dict[str, Any]]:
    """Fine-tune every whole checkpoint of `run`; return this task's lines of the file, by step.

    Raises InputError if there is no checkpoint, or one cannot be exported.
    """
    checkpoints = sorted(path.parent for path in run.glob("checkpoints/step-*/manifest.json"))
    if not checkpoints:
        raise InputError(f"{run}/checkpoints holds no checkpoint; train until the first is written")
    task = load([*typed, f"model={run}"]).task.name
    fingerprint = _fingerprint(typed, run)
    lines = _lines(run / FILE)
    done = {
        line["step"]
        for line in lines
        if line["task"] == task and line["fingerprint"] == fingerprint
    }
    for checkpoint in checkpoints:
        step = int(checkpoint.name.removeprefix("step-"))
        if step in done:
            continue
        folder = run / FOLDER / f"{task}-{checkpoint.name}"
        remove_folder(folder)
        model = folder / "export"
        _export(run, checkpoint, model)
        summary = finetune(load([*typed, f"model={model}", f"out={folder}"]))
        for name in ("export", "trials", "model"):
            remove_folder(folder / name)
        lines = [line for line in lines if (line["task"], line["step"]) != (task, step)]
        lines.append(
            {
                "step": step,
                "task": task,
                "figures": {name: summary["figures"][name] for name in summary["metrics"]},
                "seeds": len(summary["seeds"]),
                "results": str(folder.relative_to(run) / results.FILE),
                "fingerprint": fingerprint,
            }
        )
        lines.sort(key=lambda line: (line["task"], line["step"]))
        with whole_or_absent(run / FILE) as temporary:
            temporary.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return [line for line in lines if line["task"] == task]


def _fingerprint(typed: Sequence[str], run: Path) -> str:
    """A digest of the settings that change the metrics."""
    plain = as_dict(load([*typed, f"model={run}"]))
    kept = {name: value for name, value in plain.items() if name not in FREE}
    kept |= {name: plain[name] for name in ("seeds", "first_seed", "grid")}
    return hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=16).hexdigest()


def _export(run: Path, checkpoint: Path, target: Path) -> None:
    """Run the export command, so that fine-tuning sees only the resulting folder."""
    words = [f"run={run}", f"checkpoint={checkpoint}", f"target={target}"]
    command = [sys.executable, "-m", "pretrain.export", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise InputError(f"{checkpoint} cannot be exported: {ended.stderr.strip()[-500:]}")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(status_of(main))

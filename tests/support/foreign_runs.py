"""Run folders as somebody hostile would make them, and what must come of reading one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
SECRET = "sk-THIS-IS-A-FAKE-SECRET"

# Appended to a whole config.yaml: name: text
HOSTILE_YAML = {
    "hydra.searchpath": 'hydra:\n  searchpath: ["pkg://shared_run.conf"]\n',
    "a defaults list": "defaults:\n- /model: base\n- _self_\n",
    "another group of hydra": "hydra/launcher: basic\n",
    "a target": "callbacks:\n  _target_: os.system\n  _args_: [touch CODE_RAN]\n",
    "a python object": "extra: !!python/object/apply:os.system ['touch CODE_RAN']\n",
    "a python name": "extra: !!python/name:os.system\n",
    "a tag of YAML": "extra: !!binary aGk=\n",
    "a tag of their own": "extra: !include /etc/passwd\n",
    "an anchor": "extra: &a [1]\n",
    "an alias": "extra: *a\n",
    "a merge": "extra:\n  <<: {seed: 1}\n",
    "a second document": "---\nrun: {seed: 1}\n",
    "the environment": "extra: ${oc.env:FAKE_SECRET_KEY}\n",
    "the time": "extra: ${now:%Y}\n",
    "an interpolation in another": "extra: ${oc.env:${run.name}}\n",
    "an interpolation in a key": "? ${oc.env:FAKE_SECRET_KEY}\n: 1\n",
    "an escaped interpolation": 'extra: "\\x24{oc.env:FAKE_SECRET_KEY}"\n',
    "a list as a key": "? [1, 2]\n: 1\n",
    "a key twice": "log: {wandb: true}\n",
    "depth": f"extra: {'[' * 50_000}\n",
    "size": f"extra: {'x' * (1 << 20)}\n",
    "a NUL byte": "extra: \0\n",
    "a long number": f"extra: {'9' * 100_000}\n",
    "a number in sixties": f"extra: 1{':1' * 100_000}\n",
    "no mapping": "- 1\n",
}


def bomb(levels: int = 30) -> str:
    """YAML of a few hundred bytes with 2^levels values: a billion laughs."""
    return "a0: &a0 ha\n" + "".join(
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, levels)
    )


def put_code(run: Path) -> None:
    """A package in the run's folder that leaves CODE_RAN where it is imported."""
    (run / "conf").mkdir()
    for package in (run, run / "conf"):
        (package / "__init__.py").write_text("open('CODE_RAN', 'w').close()\n")


def command(module: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m module words` in `cwd`, from which it could import, with a secret set."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{cwd}{os.pathsep}{PROJECT}",
        "FAKE_SECRET_KEY": SECRET,
    }
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

"""The same command under every launcher, with two ranks on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from run_in_fork import _free_port

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

PROJECT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        ("{python} -m pretrain.run", 1),
        (
            "{python} -m torch.distributed.run --nproc-per-node=2 --master-port={port} "
            "-m pretrain.run",
            2,
        ),
        ("{bin}/deepspeed --num_gpus=2 --master_port={port} --module pretrain.run", 2),
    ],
    ids=["bare", "torchrun", "deepspeed"],
)
def test_a_run_starts_and_ends_under_every_launcher(sample_dir, tmp_path, launcher, ranks) -> None:
    bin_folder = Path(sys.executable).parent
    # not the launcher's own port, which another test may use at the same time
    names = {"python": sys.executable, "bin": bin_folder, "port": _free_port()}
    command = [word.format(**names) for word in launcher.split()]
    typed = (
        "+model=tiny run.name=x model.hidden_size=32 optim.global_batch=8 schedule.total_steps=3 "
        "monitor.every_steps=1 eval.max_examples=8"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
    }
    answer = subprocess.run(
        [*command, *typed.split(), f"data.dir={sample_dir}"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    logs = "".join(path.read_text() for path in (tmp_path / "runs/x/logs").glob("*"))
    assert answer.returncode == 0, answer.stdout + answer.stderr + logs
    lines = (tmp_path / "runs/x/metrics.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["step"] for line in lines] == [1, 2, 3, 3]
    assert len(list((tmp_path / "runs/x/logs").iterdir())) == ranks
    assert (tmp_path / "runs/x/export/model.safetensors").exists()
    assert answer.stdout.count("held-out after 3 steps") == 1

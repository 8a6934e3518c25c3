"""Ranks from the launchers' variables, where they meet, and what they exchange."""

import os
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
from ranks_harness import run_ranks

from data_prep.core.config import SettingsError
from pretrain.distributed import ranks
from pretrain.distributed.ranks import LaunchedRank, Ranks, environment_rank, environment_world_size

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29500",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "gpu[03-04]",
}  # fmt: skip
# what the shell of sbatch has: a job, even a task number, and no step of its own
BATCH_SHELL = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", *SRUN):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "rank", "world_size"),
    [
        ({}, 0, 1),
        ({**SRUN, **TORCHRUN}, 5, 8),  # torchrun inside srun: torchrun's word holds
        (SRUN, 3, 4),
    ],
    ids=["bare python", "torchrun and deepspeed", "srun"],
)
def test_every_launcher_is_known_by_its_variables(
    monkeypatch, environment, rank, world_size
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (environment_rank(), environment_world_size()) == (rank, world_size)


@pytest.mark.parametrize("tasks_of_the_job", ["4", "16"])
def test_a_step_counts_its_own_tasks_and_not_its_job_s(tasks_of_the_job) -> None:
    launched = ranks._launched({**SRUN, "SLURM_NTASKS": tasks_of_the_job})
    assert launched == LaunchedRank(rank=3, world_size=4, local_rank=1)


@pytest.mark.parametrize(
    "environment",
    [
        BATCH_SHELL,
        {**SRUN, "SLURM_STEP_ID": str(0xFFFFFFFA)},  # salloc with an interactive step
        {**SRUN, "SLURM_STEP_ID": str(0xFFFFFFFB)},  # the batch step
        {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": ""},
    ],
)
def test_a_shell_inside_a_job_is_one_process(environment: dict[str, str]) -> None:
    assert ranks._launched(environment) is None


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, 1),
        ({**SRUN, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, 0),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, 3),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, 1),
    ],
    ids=["Open MPI", "Open MPI in a step of Slurm", "MPICH", "MVAPICH"],
)
def test_mpirun_is_refused_with_the_cure(monkeypatch, environment, rank) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert environment_rank() == rank, "one of them prints"
    with pytest.raises(SettingsError, match=r"of mpirun .*: start with torchrun or srun"):
        environment_world_size()


@pytest.mark.parametrize(
    ("more", "world_size"),
    [
        ({**SRUN, "PMI_RANK": "3", "PMI_SIZE": "4"}, 4),  # as srun --mpi=pmi2 sets them
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, 1),
        ({**TORCHRUN, "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8"}, 8),
    ],
    ids=["srun", "a single process", "a script that sets RANK"],
)
def test_variables_of_mpi_alone_are_no_mpirun(monkeypatch, more, world_size) -> None:
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    assert environment_world_size() == world_size


@pytest.mark.parametrize(
    ("is_terminal", "task", "is_refused"),
    [(True, "1", True), (False, "1", False), (True, str(os.getpid()), False), (True, None, False)],
    ids=["a shell of srun", "a script", "the task itself", "an old Slurm"],
)
def test_python_typed_in_a_shell_of_a_step_with_other_tasks_is_refused(
    monkeypatch, is_terminal: bool, task: str | None, is_refused: bool
) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: is_terminal)
    environment = {**SRUN, **({} if task is None else {"SLURM_TASK_PID": task})}
    if not is_refused:
        assert ranks._launched(environment) == LaunchedRank(3, 4, 1)
        return
    cure = "task 3 of 4 of a Slurm step; in an interactive shell: srun -n1, or unset SLURM_PROCID"
    with pytest.raises(SettingsError, match=cure):
        ranks._launched(environment)
    alone = {**environment, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert ranks._launched(alone) == LaunchedRank(0, 1, 1)


@pytest.mark.parametrize("wrong", [{"RANK": "a"}, {"RANK": "8"}, {"LOCAL_RANK": "-1"}])
def test_numbers_of_a_launcher_that_cannot_be_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="they must be numbers, and RANK below WORLD_SIZE"):
        ranks._launched({**TORCHRUN, **wrong})


def test_half_a_launcher_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="RANK=5 is set and WORLD_SIZE, LOCAL_RANK"):
        ranks._launched({"RANK": "5", "MASTER_ADDR": "node-a", "MASTER_PORT": "29500"})


def test_tasks_of_a_step_meet_on_its_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no scontrol
    assert ranks._address(SRUN).startswith("gpu03:")


def test_steps_of_one_job_meet_at_ports_of_their_own() -> None:
    plain = {**SRUN, "SLURM_STEP_NODELIST": "a"}
    points = {ranks._address({**plain, "SLURM_STEP_ID": str(step)}) for step in range(20)}
    assert len(points) == 20


@pytest.mark.parametrize("job_id", ["1", "999", "4711", "67043327"])
def test_ports_lie_where_the_system_hands_out_none(job_id: str) -> None:
    point = ranks._address({**SRUN, "SLURM_JOB_ID": job_id, "SLURM_STEP_NODELIST": "a"})
    assert 20_000 <= int(point.split(":")[1]) < 32_768


def test_a_batch_script_may_name_the_address() -> None:
    given = {**SRUN, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "12345"}
    assert ranks._address(given) == "10.0.0.7:12345"


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("localhost", "localhost"), ("gpu-a,gpu-b", "gpu-a"), ("gpu[03-07,12],login1", "gpu03"),
        ("gpu[12,14-15]-ib", "gpu12-ib"), ("rack-2-node7.cluster.edu", "rack-2-node7.cluster.edu"),
    ],
)  # fmt: skip
def test_first_host_is_read_without_scontrol(monkeypatch, node_list, first) -> None:
    monkeypatch.setenv("PATH", "")
    assert ranks._first_host(node_list) == first


def test_scontrol_is_asked_where_it_is_there(monkeypatch, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("bin")
    (folder / "scontrol").write_text('#!/bin/sh\n[ "$1 $2" = "show hostnames" ] && echo "$3-x y"\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    assert ranks._first_host("a") == "a-x"


def test_a_taken_port_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        cure = rf"port {port} of .* is taken by another program; give a free one .MASTER_PORT"
        with pytest.raises(RuntimeError, match=cure):
            ranks._store(LaunchedRank(0, 2, 0), timedelta(seconds=5))


def test_a_single_process_starts_inside_a_batch_shell_and_exports_nothing(monkeypatch) -> None:
    for name, value in BATCH_SHELL.items():
        monkeypatch.setenv(name, value)
    code = (
        "import os; from pretrain.distributed import ranks; r = ranks.start(1.0); "
        "print(r.rank, r.world_size, r.sum([1.5]), r.any(True), r.broadcast('x'), "
        "'RANK' in os.environ); r.stop()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "0 1 [1.5] True x False"


ENDING = """
import atexit, sys, threading, torch
from pretrain.distributed.ranks import exit_with

def work():
    while True:
        torch.ones(9).sum().item()

atexit.register(print, "exit handlers have run")

def main():
    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    for _ in range(1_000):  # until both are in torch's own code
        torch.ones(9).sum()
    %s

exit_with(main)
"""


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [("return 3", 3, ""), ("raise OSError('the disk')", 1, "OSError: the disk\n")],
    ids=["returns", "raises"],
)
def test_a_process_ends_with_its_status_though_threads_are_inside_torch(end, status, said) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING % end], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "exit handlers have run\n"), done.stderr
    assert done.stderr.endswith(said)


@pytest.mark.parametrize("full", ["stdout", "stderr"])
def test_a_log_on_a_full_disk_ends_no_run(full: str) -> None:
    code = (
        "import sys; from pretrain.distributed.ranks import exit_with\n"
        f"exit_with(lambda: print('x' * 99999, file=sys.{full}, flush=True))"
    )
    with open("/dev/full", "w") as disk:
        done = subprocess.run([sys.executable, "-c", code], **{full: disk})
    assert done.returncode == 0


def talk(ranks: Ranks) -> tuple[list[float], bool, bool, bool, object]:
    summed = ranks.sum([2**53, 0.1 * ranks.rank])
    anyone, noone = ranks.any(ranks.rank == 1), ranks.any(False)
    ranks.barrier()
    return summed, anyone, noone, ranks.any(True), ranks.broadcast({"of": ranks.rank})


@pytest.mark.distributed
def test_every_rank_hears_the_same() -> None:
    expected = ([2.0**54 + 2.0**53, 0.1 * 1 + 0.1 * 2], True, False, True, {"of": 0})
    assert run_ranks(talk, 3) == [expected] * 3


def fail_on_rank_1(ranks: Ranks) -> None:
    if ranks.rank == 1:
        raise ValueError("no more")
    ranks.barrier()


@pytest.mark.distributed
def test_a_failing_rank_ends_the_others() -> None:
    with pytest.raises(RuntimeError, match="ValueError: no more"):
        run_ranks(fail_on_rank_1, 2)


@pytest.mark.parametrize(
    ("environment", "here"),
    [
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}, 4),
        ({**TORCHRUN, "LOCAL_SIZE": "2"}, 2),  # the deepspeed launcher's
        (TORCHRUN, 0),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "2"}, 2),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "3"}, 1),
        (SRUN, 0),
    ],
)
def test_the_ranks_of_a_node_are_counted_as_the_launcher_sets_them(environment, here: int) -> None:
    launched = ranks._launched(environment)
    assert launched is not None
    assert launched.local_world_size == here

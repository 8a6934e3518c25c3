"""Numbers that cannot fit this host's memory are refused by arithmetic, and no others."""

import os
import resource
from pathlib import Path

import pytest
from made_manifests import shards_manifest, split_entry
from run_in_fork import TINY, pretrain_run

from data_prep.core.config import SettingsError, compose
from data_prep.core.files import memory_bytes
from pretrain.config.load import load
from pretrain.config.phases import phases_of
from pretrain.config.settings import Settings
from pretrain.planning import host_memory
from pretrain.planning.host_memory import check_host_memory

GB = 10**9
SECOND = "moments: kept, optimizer_step: kept, loss_scaler: kept"


def check(
    *typed: str, room: int = 64 * GB, ranks: int = 1, here: int = 1, is_cpu: bool = True
) -> None:
    """Check a run of base, or what is typed, on examples of 100 tokens."""
    settings = compose("config", Settings, ["+model=base", "data.seq_len=128", *typed])[0]
    phases = phases_of(settings)
    train = split_entry(rows=1000, tokens=100_000, masked_tokens=15_000)
    manifests = [shards_manifest({"train": train}, vocab_size=30_522)] * len(phases)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_memory, "memory_bytes", lambda: room)
        check_host_memory(phases, manifests, ranks, here, is_cpu)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["optim.global_batch=100000000"], r"optim.global_batch=100000000 takes .* set optim.glo"),
        (["optim.tokens_per_step=8192000000000"], r"optim.tokens_per_step=8192000000000 takes "),
        (["model.hidden_size=120000", "model.num_attention_heads=1"], "model.hidden_size=120000"),
        (["model.num_hidden_layers=1000000000"], r"num_hidden_layers=1000000000.*of at most"),
        (["model.intermediate_size=1000000000"], "intermediate_size=1000000000"),
        (["model.max_position_embeddings=1000000000"], "max_position_embeddings=1000000000"),
        (["model.pad_vocab_size_multiple_of=1000000000"], "parameters and take"),
        (["engine.tokens_per_micro_batch=100000000", "optim.global_batch=100000"],
         r"micro-batches of 10,000,000 tokens.* set engine.tokens_per_micro_batch=\d+ or less"),
        ([f"phases=[{{changes: {{optim: {{global_batch: 100000000}}}}, {SECOND}}}]"],
         "phase 2: optim.global_batch=100000000"),
    ],
)  # fmt: skip
def test_a_number_that_cannot_fit_is_refused_with_bound_and_cure(typed, message) -> None:
    with pytest.raises(SettingsError, match=message):
        check(*typed)


@pytest.mark.parametrize(
    "typed",
    [
        [], ["+model=large"], ["recipe=roberta_like"], ["optim.global_batch=100000"],
        ["engine.tokens_per_micro_batch=100000000"],  # never filled by 256 sequences
        ["optim.tokens_per_step=8192000"], ["model.num_hidden_layers=100"],
    ],
)  # fmt: skip
def test_what_may_fit_is_not_refused(typed: list[str]) -> None:
    check(*typed)


@pytest.mark.parametrize("key", ["optim.global_batch", "engine.tokens_per_micro_batch"])
def test_the_bound_that_is_named_is_accepted(key: str) -> None:
    typed = ["optim.global_batch=2000000", "engine.tokens_per_micro_batch=20000000"]
    if key == "optim.global_batch":
        typed[0] = "optim.global_batch=100000000"
    with pytest.raises(SettingsError) as refused:
        check(*typed)
    bound = str(refused.value).split(f"set {key}=")[1].split(" ")[0]
    small = {"engine.tokens_per_micro_batch": "8192", "optim.global_batch": "2000000", key: bound}
    check(*(f"{name}={value}" for name, value in small.items()))


def test_ranks_of_one_host_share_its_memory_and_other_hosts_have_their_own() -> None:
    typed = ["optim.global_batch=12000000"]
    check(*typed, ranks=8, here=1, is_cpu=False)
    with pytest.raises(SettingsError, match="or spread the ranks over more hosts"):
        check(*typed, ranks=8, here=8, is_cpu=False)


def test_a_gpu_holds_the_activations_itself() -> None:
    typed = ["engine.tokens_per_micro_batch=100000000", "optim.global_batch=100000"]
    check(*typed, is_cpu=False)


@pytest.mark.parametrize(
    "typed", ["optim.global_batch=100000000", "model.num_hidden_layers=1000000000"]
)
@pytest.mark.distributed
def test_a_run_that_cannot_fit_ends_before_anything_is_allocated(
    typed: str, sample_dir: Path, tmp_path: Path
) -> None:
    def little_memory(rank: int) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(resource.RLIMIT_DATA, (1024 * used + 4 * GB, -1))

    statuses, output = pretrain_run(
        [*TINY, f"data.dir={sample_dir}", typed], tmp_path, hook=little_memory
    )
    assert statuses == [2], output
    assert f"{typed.removeprefix('model.')}" in output
    assert os.listdir(tmp_path) == ["output.txt"]


@pytest.mark.parametrize(
    "typed",
    [
        "schedule.total_steps=1000000000000000000000", "schedule.total_steps=9007199254740992",
        "eval.every_steps=1000000000000000000", "checkpoint.keep=1000000000000000000",
    ],
)  # fmt: skip
def test_a_count_that_cannot_be_counted_is_refused(typed: str) -> None:
    with pytest.raises(SettingsError, match=typed.replace(".", r"\.")):
        load(["+model=base", typed], world_size=1)


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/job/step", "job/memory.max"),
        ("0::/job/step", "job/step/memory.max"),
        ("4:memory:/job", "memory/job/memory.limit_in_bytes"),
    ],
)
def test_the_memory_of_this_process_is_that_of_its_cgroups(line, file, tmp_path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text(f"1:cpu:/\n{line}\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nSwapTotal:     3 kB\n")
    assert memory_bytes(tmp_path, tmp_path) > GB, "no limit"
    limit = tmp_path / file
    limit.parent.mkdir(parents=True)
    limit.write_text("max\n")
    assert memory_bytes(tmp_path, tmp_path) > GB
    limit.write_text("1000000\n")
    assert memory_bytes(tmp_path, tmp_path) == 1_000_000 + 3 * 1024

"""One run that goes on with other numbers of ranks and ZeRO stages each time it was ended."""

import itertools
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from killing import Kill, at_step
from run_in_fork import TINY, pretrain_run
from several_buckets import use_several_buckets
from small_corpus import SEQ_LEN, contents, cut, numbers_by_content

from data_prep.stores.shard_reader import Shards
from pretrain.data.shuffle import ExampleOrder
from pretrain.data.train_loader import GlobalBatch
from pretrain.engine.engine import Engine
from pretrain.run_folder.jsonl import readable_lines

pytestmark = pytest.mark.distributed

SEED = 12345
RUN = (
    *TINY, "model.hidden_dropout_prob=0", "model.attention_probs_dropout_prob=0", "engine=fp32",
    "engine.timeout_minutes=1", "eval.every_steps=100",
)  # fmt: skip


def remembering(data: Path, folder: Path, start: int) -> Callable[[int], None]:
    """A hook: each rank writes down which examples are in the batches that it trains on."""
    numbers = numbers_by_content(Shards.open(data / f"len{SEQ_LEN}", "train"))

    def hook(rank: int) -> None:
        train_step = Engine.train_step
        seen = (folder / f"seen-{start}-{rank}.jsonl").open("ab", buffering=0)

        def remember(self: Engine, batch: GlobalBatch, rate: float) -> Any:
            rows = itertools.chain(*map(contents, batch.micro_batches))
            line = [batch.position, [numbers[row] for row in rows]]
            seen.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            return train_step(self, batch, rate)

        Engine.train_step = remember

    return hook


def seen_by(folder: Path, start: int, ranks: int) -> dict[int, list[int]]:
    """Position -> the numbers of its examples, over the ranks of one start."""
    seen = defaultdict(list)
    for rank in range(ranks):
        for line in (folder / f"seen-{start}-{rank}.jsonl").read_bytes().splitlines():
            position, numbers = orjson.loads(line)
            seen[position] += numbers
    return {position: sorted(numbers) for position, numbers in seen.items()}


def losses(folder: Path) -> list[float]:
    lines = readable_lines(folder / "runs/x/metrics.jsonl")
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == list(range(1, len(training) + 1))
    return [line["train/loss"] for line in training]


def stopped_at(step: int) -> Callable[[int], None]:
    """A hook: each rank is told to end, as Slurm does before the time limit."""
    return at_step(step, signal.SIGUSR1, of_rank=None)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ranks_and_stages_may_change_at_every_start_of_one_run(sample_dir, tmp_path) -> None:
    """1 rank, then 2, 4, 2, 1 under ZeRO 0, 1, 2, 3, 1; killed and stopped by turns; 3.4 epochs."""
    num_examples, size, last_step, interval = 53, 6, 30, 4
    data = cut(sample_dir, tmp_path / "data", [31, 0, 22], [9, 2])
    arguments = [
        *RUN, f"data.dir={data}", f"optim.global_batch={size}", f"schedule.total_steps={last_step}",
        f"checkpoint.every_steps={interval}",
    ]  # fmt: skip
    chain: list[tuple[int, int, Any]] = [
        (1, 0, Kill(7, "the training step", victims=(0,))),
        (2, 1, stopped_at(6)),  # steps 5 to 10
        (4, 2, Kill(17, "the training step", victims=(0, 1, 2, 3))),
        (2, 3, Kill(23, "reading a batch", witness=1, victims=(1,))),
        (1, 1, None),
    ]
    straight, changed = tmp_path / "straight", tmp_path / "changed"
    straight.mkdir(), changed.mkdir()
    run(arguments, data, straight, 0, 1, 0, None)
    for start, (ranks, stage, end) in enumerate(chain):
        run(arguments, data, changed, start, ranks, stage, end)

    assert losses(changed) == pytest.approx(losses(straight), rel=1e-4)
    assert len(losses(changed)) == last_step
    expected = seen_by(straight, 0, 1)
    order = ExampleOrder(num_examples, SEED)
    assert expected == {
        p: sorted(order.examples(p, size)[1].tolist()) for p in range(0, last_step * size, size)
    }
    positions = []
    for start, (ranks, _, _) in enumerate(chain):
        seen = seen_by(changed, start, ranks)
        complete = {p: numbers for p, numbers in seen.items() if len(numbers) == size}
        assert complete == {p: expected[p] for p in complete}, "the same examples, on any ranks"
        positions.append(set(complete))
    assert set().union(*positions) == set(range(0, last_step * size, size))
    redone = [len(done & again) for done, again in itertools.pairwise(positions)]
    assert redone[1] == 0, "nothing is trained twice after a signal"
    # A kill while the last checkpoint is being written costs one interval more
    assert max(redone) < 2 * interval


def run(
    arguments: Sequence[str], data: Path, folder: Path, start: int, ranks: int, stage: int, end: Any
) -> None:
    """One start, which `end`, a hook, may end early."""
    remember = remembering(data, folder, start)

    def hook(rank: int) -> None:
        use_several_buckets(elements=5_000)
        remember(rank)
        if end is not None:
            end(rank)

    typed = [*arguments, f"engine.zero_stage={stage}"]
    statuses, output = pretrain_run(typed, folder, ranks=ranks, hook=hook)
    if isinstance(end, Kill):
        assert all(statuses[rank] == -signal.SIGKILL for rank in end.victims), output
    else:
        assert statuses == [0] * ranks, output


def on_two_nodes(hook: Callable[[int], None] | None) -> Callable[[int], None]:
    """A hook: 4 ranks have the variables of two nodes, and several buckets; then `hook`."""

    def hook_on_a_node(rank: int) -> None:
        use_several_buckets(elements=5_000)
        os.environ |= {"LOCAL_RANK": str(rank % 2), "LOCAL_WORLD_SIZE": "2"}
        if hook is not None:
            hook(rank)

    return hook_on_a_node


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_sharded_within_nodes_and_killed_on_one_is_the_run_that_never_was(
    sample_dir: Path, tmp_path: Path
) -> None:
    """4 ranks as 2 nodes; then it goes on with shards among 2 ranks, up to rounding."""
    data = cut(sample_dir, tmp_path / "data", [31, 0, 22], [9, 2])
    arguments = [*RUN, f"data.dir={data}", "optim.global_batch=6", "checkpoint.every_steps=4"]
    arguments += ["schedule.total_steps=12", "optim=lamb", "monitor.every_steps=1"]
    within = [*arguments, "engine.shard=node"]
    kill = Kill(7, "the training step", victims=(3,))
    starts = {
        "straight": [(4, within, None)],
        "killed": [(4, within, kill), (4, within, None)],
        "changed": [(4, within, kill), (2, arguments, None)],
    }
    found = {}
    for name, of_run in starts.items():
        folder = tmp_path / name
        folder.mkdir()
        for ranks, typed, end in of_run:
            hook = on_two_nodes(end) if ranks == 4 else None
            statuses, output = pretrain_run(typed, folder, ranks=ranks, hook=hook)
            assert (statuses == [0] * ranks) == (end is None), output
        found[name] = losses(folder)
    assert len(found["straight"]) == 12
    assert found["killed"] == found["straight"]
    assert found["changed"] == pytest.approx(found["straight"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_by_tokens_goes_on_with_other_ranks_over_the_same_examples(
    sample_dir: Path, tmp_path: Path
) -> None:
    """1 rank, then 4, then 2, with dropout: it follows the micro-batches, not the ranks."""
    last_step = 12
    data = cut(sample_dir, tmp_path / "data", [31, 0, 22], [9, 2])
    arguments = [
        *RUN, f"data.dir={data}", f"schedule.total_steps={last_step}", "checkpoint.every_steps=4",
        "optim.tokens_per_step=2048", "model.hidden_dropout_prob=0.1",
    ]  # fmt: skip
    chain: list[tuple[int, Any]] = [
        (1, Kill(6, "the training step", victims=(0,))), (4, stopped_at(4)), (2, None),
    ]  # fmt: skip
    straight, changed = tmp_path / "straight", tmp_path / "changed"
    straight.mkdir(), changed.mkdir()
    run(arguments, data, straight, 0, 1, 1, None)
    for start, (ranks, end) in enumerate(chain):
        run(arguments, data, changed, start, ranks, 1, end)
    assert losses(changed) == pytest.approx(losses(straight), rel=1e-5)
    expected, order = seen_by(straight, 0, 1), ExampleOrder(53, SEED)
    for position, numbers in expected.items():
        assert numbers == sorted(order.examples(position, len(numbers))[1].tolist())
    assert len({len(numbers) for numbers in expected.values()}) > 1
    last: set[int] = set()
    for start, (ranks, _) in enumerate(chain):
        seen = seen_by(changed, start, ranks)
        complete = {p for p, numbers in seen.items() if len(numbers) == len(expected[p])}
        assert all(seen[p] == expected[p] for p in complete)
        last |= complete
    assert last == set(expected)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "shards"), [(3, [47]), (2, [0, 1, 40, 0, 6])])
def test_uneven_data_and_prime_numbers_give_every_rank_the_same_steps(
    sample_dir: Path, tmp_path: Path, ranks: int, shards: list[int]
) -> None:
    """47 examples, 7 a batch; more ranks than shards, or empty shards; 2 held-out examples."""
    last_step = 14
    data = cut(sample_dir, tmp_path / "data", shards, [0, 2])
    arguments = [
        *RUN, f"data.dir={data}", "optim.global_batch=7", f"schedule.total_steps={last_step}",
    ]  # fmt: skip
    run(arguments, data, tmp_path, 0, ranks, 1, None)
    steps = [(tmp_path / f"seen-0-{rank}.jsonl").read_bytes().count(b"\n") for rank in range(ranks)]
    assert steps == [last_step] * ranks
    assert len(losses(tmp_path)) == last_step
    times = Counter(itertools.chain(*seen_by(tmp_path, 0, ranks).values()))
    assert Counter(times.values()) == {2: 43, 3: 4}, "98 = 2 x 47 + 4: nobody is left out"

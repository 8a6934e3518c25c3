"""A faster ZeRO 1 and 2 than DeepSpeed's: buckets that are reduced during the backward pass.

DeepSpeed copies gradients four times on their way to the optimizer, uses an all-reduce where a
reduce-scatter needs half the bytes, gathers all weights before the next step may begin, waits three
times per step for whether the norm is finite, and makes the views of all weights again. Its own
overlap is refused at ZeRO 1 if the caller decides where a step ends.
These are private methods, hence the exact pin of DeepSpeed in pyproject.toml.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.engine.deepspeed_setup import (
    DeepSpeedZeroOptimizer,
    lazy_init_hp_params_optimizer_state,
)
from pretrain.engine.sharding import Sharding
from pretrain.optim.buckets import buckets, module_of, runs
from pretrain.optim.norms import squared_norms

Groups = list[dict[str, Any]]

SHORT = 2**16  # elements: reading so many takes a GPU less time than launching a kernel


def cut(
    groups: Groups,
    names: Mapping[nn.Parameter, str],
    num_ranks: int,
    in_bf16: Collection[Tensor] = (),
) -> tuple[Groups, list[list[int]]]:
    """The optimizer's groups as runs, of which DeepSpeed shards each by itself; the buckets.

    Parameters with working copies `in_bf16` are in runs of their own, because a run has one type.
    """
    groups = [
        {**group, "params": of_one_type}
        for group in groups
        for is_bf16 in (False, True)
        if (of_one_type := [p for p in group["params"] if (p in in_bf16) is is_bf16])
    ]
    sizes = [{names[p]: p.numel() for p in group["params"]} for group in groups]
    parameters = {name: parameter for parameter, name in names.items()}
    of_groups = runs(sizes, num_ranks)
    pieces = [
        {**group, "params": [parameters[name] for name in run]}
        for group, of_group in zip(groups, of_groups, strict=True)
        for run in of_group
    ]
    return pieces, buckets(of_groups, names.values())


class Bucket:
    """Runs of parameters whose gradients are reduced by one collective.

    Its buffer holds rank 0's part of each run, then rank 1's, and so on. It also adds up the
    gradients of the micro-batches. The weights of the runs are gathered and waited for together.
    """

    def __init__(
        self,
        parameters: Sequence[Sequence[nn.Parameter]],
        shares: Sequence[int],
        num_ranks: int,
        num_copies: int,
        dtype: torch.dtype,
    ) -> None:
        """`parameters` of each run, and `shares`, the elements that a rank gets of it.

        `num_ranks` hold the parts of a run, in each of `num_copies`. `dtype` is that of the sums.
        """
        self._shares, self._num_ranks, self._dtype = [*shares], num_ranks, dtype
        self._num_averaged = num_ranks * num_copies
        self.parameters = [p for run in parameters for p in run]
        self.num_missing = len(self.parameters)  # gradients of this micro-batch
        # where the elements [start, end) of a parameter lie in the buffer
        self._places: list[tuple[nn.Parameter, int, int, int]] = []
        self._paddings: list[tuple[int, int]] = []
        first, row = 0, sum(shares)
        for run, share in zip(parameters, shares, strict=True):
            filled = 0
            for parameter in run:
                start = 0
                while start < parameter.numel():  # it may continue in the next rank's part
                    rank, inside = divmod(filled, share)
                    end = min(parameter.numel(), start + share - inside)
                    self._places.append((parameter, start, end, rank * row + first + inside))
                    filled += end - start
                    start = end
            for rank in range(filled // share, num_ranks):  # padding of the last part
                inside = max(0, filled - rank * share)
                self._paddings.append((rank * row + first + inside, share - inside))
            first += share
        self._buffer: Tensor | None = None
        self._work: Any = None
        self._mine: Tensor | None = None  # what the collective writes
        self._sums: Tensor | None = None
        self._across: Any = None  # the work of adding up the copies' sums
        self._gatherings: list[Any] = []

    def add_gradients(self) -> None:
        """Add the gradients of a micro-batch to the buffer, and free them."""
        gradients = {p: p.grad.view(-1) for p in self.parameters if p.grad is not None}
        sources = [gradients[p][start:end] for p, start, end, _ in self._places]
        is_first = self._buffer is None
        if self._buffer is None:
            elements = self._num_ranks * sum(self._shares)
            self._buffer = sources[0].new_empty(elements, dtype=self._dtype)
            for first, length in self._paddings:
                self._buffer[first : first + length].zero_()
        targets = [self._buffer[at : at + end - start] for _, start, end, at in self._places]
        if not is_first:
            _cast_short(sources, self._dtype)
        # torch's kernels for many tensors take sources of one type
        for dtype in dict.fromkeys(source.dtype for source in sources):
            same = [i for i, source in enumerate(sources) if source.dtype == dtype]
            (torch._foreach_copy_ if is_first else torch._foreach_add_)(
                [targets[i] for i in same], [sources[i] for i in same]
            )
        for parameter in self.parameters:
            parameter.grad = None

    def reduce(self, group: Any) -> None:
        """Begin to add up over the ranks of `group`, those of one copy."""
        buffer = self._buffer
        assert buffer is not None, "the gradients are added first"
        self._mine = buffer
        if self._num_ranks > 1:
            self._mine = buffer.new_empty(sum(self._shares))
            if buffer.dtype == torch.float16:  # the sum might overflow
                buffer.div_(self._num_averaged)
            self._work = torch.distributed.reduce_scatter_single(
                self._mine, buffer, group=group, async_op=True
            )

    def finish(self) -> None:
        """Wait for a copy's part of the averages, if a reduction has begun, and add it up."""
        if self._mine is None:
            return
        if self._work is not None:
            self._work.wait()
            if self._mine.dtype != torch.float16:
                self._mine.div_(self._num_averaged)
        self._sums = self._mine if self._sums is None else self._sums.add_(self._mine)
        self._buffer = self._mine = self._work = None

    def reduce_across(self, group: Any) -> None:
        """Begin to add up what the copies have, over `group`, the ranks with the same shares."""
        self.finish()
        self._across = torch.distributed.all_reduce(self._sums, group=group, async_op=True)

    def take(self) -> list[Tensor]:
        """This rank's averages of each run, which are forgotten here."""
        self.finish()
        if self._across is not None:
            self._across.wait()
            self._across = None
        sums, self._sums = self._sums, None
        assert sums is not None, "a parameter had no gradient in the step's last micro-batch"
        return [*torch.split(sums, self._shares)]

    def gather(self, whole: Sequence[Tensor], shares: Sequence[Tensor], group: Any) -> None:
        """Begin to gather the weights of each run from the ranks' `shares` of them."""
        if self._num_ranks == 1:
            return
        for weights, share in zip(whole, shares, strict=True):
            gathering = torch.distributed.all_gather_single(
                weights, share, group=group, async_op=True
            )
            self._gatherings.append(gathering)

    def wait_for_weights(self) -> None:
        """Wait until the weights are there; on a GPU its stream waits, and not the host."""
        while self._gatherings:
            self._gatherings.pop().wait()


def _cast_short(tensors: list[Tensor], dtype: torch.dtype) -> None:
    """Replace the short ones of another type by copies in `dtype`.

    torch has one kernel that casts many tensors, but none that adds many of another type: it adds
    them one by one, and short ones are many.
    """
    places = [i for i, x in enumerate(tensors) if x.dtype != dtype and x.numel() <= SHORT]
    if not places:
        return
    sizes = [tensors[i].numel() for i in places]
    copies = torch.split(tensors[0].new_empty(sum(sizes), dtype=dtype), sizes)
    torch._foreach_copy_(copies, [tensors[i] for i in places])
    for i, copy in zip(places, copies, strict=True):
        tensors[i] = copy


class LeanZero(DeepSpeedZeroOptimizer):  # type: ignore[misc]
    """DeepSpeed's optimizer of ZeRO 1 and 2 with some methods replaced; its state is unchanged.

    DeepSpeed has a group for each run, and shards it by itself; the optimizer has one per label, as
    it was made, with the flat shards of its runs.
    """

    # Whether the step ends with this micro-batch. Set it before the backward pass
    is_last_micro_batch = False

    @classmethod
    def take_over(
        cls,
        optimizer: DeepSpeedZeroOptimizer,
        stage: int,
        groups: Groups,
        buckets: Sequence[Sequence[int]],
        model: nn.Module,
        sharding: Sharding,
        in_bf16: Collection[Tensor] = (),
    ) -> None:
        """Change the class of an optimizer that DeepSpeed built over the runs that `cut` made.

        `groups` are those that were cut, and become the optimizer's again. ZeRO `stage` 2 reduces
        in every micro-batch, to keep no more than two buckets of whole gradients. The forward pass
        reads the weights `in_bf16` in bfloat16, copied from the fp32 masters once per step.
        """
        assert type(optimizer) is DeepSpeedZeroOptimizer
        assert not any(any(padding) for padding in optimizer.round_robin_bit16_padding)
        for flat, run in zip(optimizer.bit16_groups_flat, optimizer.bit16_groups, strict=True):
            storage = flat.untyped_storage().data_ptr()
            assert all(p.untyped_storage().data_ptr() == storage for p in run)
        for hook in optimizer._grad_acc_hooks:  # DeepSpeed's own, of its ZeRO 2
            hook.remove()
        optimizer.__class__ = cls
        if in_bf16:
            optimizer._make_working_copies(in_bf16)
        for group in groups:
            runs = [g for g in optimizer.optimizer.param_groups if g["label"] == group["label"]]
            group["params"] = [flat for run in runs for flat in run["params"]]
        optimizer.optimizer.param_groups = groups
        optimizer._reduces_every_micro_batch = stage == 2
        optimizer._sharding = sharding
        optimizer._make_buckets(buckets)
        optimizer._wait_in_forward_passes(model)

    def _make_working_copies(self, in_bf16: Collection[Tensor]) -> None:
        for run, parameters in enumerate(self.bit16_groups):
            if parameters[0] in in_bf16:
                flat = self.bit16_groups_flat[run] = self.bit16_groups_flat[run].bfloat16()
                shares = self.get_data_parallel_partitions(flat, run)
                self.parallel_partitioned_bit16_groups[run] = shares
                self._update_model_bit16_weights(run)
        self._link_all_hp_params()  # it kept views of the fp32 weights

    def _make_buckets(self, of_runs: Sequence[Sequence[int]]) -> None:
        self._of_runs = of_runs
        self._buckets = [
            Bucket(
                [self.bit16_groups[run] for run in indices],
                [self.partition_size[run] for run in indices],
                len(self._sharding.ranks),
                self._sharding.num_copies,
                torch.float32 if self.dtype == torch.bfloat16 else self.dtype,
            )
            for indices in of_runs
        ]
        self._first_incomplete = 0
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                count = functools.partial(self._count_gradient, bucket)
                hook = parameter.register_post_accumulate_grad_hook(count)  # type: ignore[no-untyped-call]
                self._grad_acc_hooks.append(hook)

    def _wait_in_forward_passes(self, model: nn.Module) -> None:
        """Let each module that runs as one wait for its own weights when it begins."""
        for name in dict.fromkeys(module_of(name) for name, _ in model.named_parameters()):
            module = model.get_submodule(name)
            needed = {*module.parameters()}
            of_module = [b for b in self._buckets if not needed.isdisjoint(b.parameters)]
            module.register_forward_pre_hook(functools.partial(_wait_for_weights, of_module))

    def wait_for_weights(self) -> None:
        """Wait until all weights are there, for whoever reads them outside a forward pass."""
        _wait_for_weights(self._buckets)

    @torch.no_grad()
    def _count_gradient(self, bucket: Bucket, parameter: Tensor) -> None:
        """Called by autograd with each gradient; the last one of a bucket reduces it.

        Buckets are reduced in their order, which is the same on all ranks.
        """
        bucket.num_missing -= 1
        if bucket.num_missing:
            return
        bucket.add_gradients()
        while self._first_incomplete < len(self._buckets):
            next_one = self._buckets[self._first_incomplete]
            if next_one.num_missing:
                return
            if self.is_last_micro_batch or self._reduces_every_micro_batch:
                next_one.reduce(self.dp_process_group)
            if self._first_incomplete > 0:
                self._continue(self._buckets[self._first_incomplete - 1])
            self._first_incomplete += 1
        self._continue(self._buckets[-1])
        self._first_incomplete = 0
        for each in self._buckets:
            each.num_missing = len(each.parameters)

    def _continue(self, bucket: Bucket) -> None:
        """Go on with a bucket once the next one's reduction has begun.

        Copies are added up once per step. Waiting for the reduction within a copy only now leaves
        it the time that the backward pass took for the next bucket.
        """
        if self._reduces_every_micro_batch:
            bucket.finish()
        if self.is_last_micro_batch and self._sharding.across is not None:
            bucket.reduce_across(self._sharding.across)

    def reduce_gradients(self, pipeline_parallel: bool = False) -> None:
        """Do nothing where DeepSpeed's ZeRO 1 ends a step: hooks have reduced the gradients."""

    def finalize_gradient_accumulation_boundary(self) -> None:
        """Do nothing where DeepSpeed's ZeRO 2 ends a step: hooks have reduced the gradients."""

    def overlapping_partition_gradients_reduce_epilogue(self) -> None:
        """Do nothing where DeepSpeed's ZeRO 2 ends a backward pass: hooks have done it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Clip, update, and begin to gather the weights.

        The host waits for whether the norm is finite.
        """
        parts = dict(
            zip(
                itertools.chain(*self._of_runs),
                itertools.chain(*(bucket.take() for bucket in self._buckets)),
                strict=True,
            )
        )
        gradients = [parts[run] for run in range(len(parts))]
        square = squared_norms(gradients).sum()
        self._sharding.sum(square)
        norm = square.sqrt().float()  # of the scaled gradient
        scale = self.loss_scale
        self.overflow = not math.isfinite(norm)
        self._update_scale(self.overflow)
        self._global_grad_norm = math.inf if self.overflow else norm / scale
        if self.overflow:
            return
        clip = ((norm / scale + 1e-6) / self.clip_grad).clamp(min=1.0)
        for flat, gradient in zip(self.single_partition_of_fp32_groups, gradients, strict=True):
            flat.grad = gradient.to(flat.dtype).mul_(1 / (clip * scale))
        del parts, gradients
        self.optimizer.step()
        for flat in self.single_partition_of_fp32_groups:
            flat.grad = None
        self._gather_weights()

    @torch.no_grad()
    def update_lp_params(self) -> None:
        """Gather the weights that the forward pass reads from the masters."""
        self.wait_for_weights()
        self._gather_weights()

    def _gather_weights(self) -> None:
        """Begin to, in the order in which a forward pass needs them: backwards, and back again."""
        rank = torch.distributed.get_rank(self.dp_process_group)
        for bucket, indices in reversed([*zip(self._buckets, self._of_runs, strict=True)]):
            shares = [self.parallel_partitioned_bit16_groups[run][rank] for run in indices]
            for share, run in zip(shares, indices, strict=True):
                share.copy_(self.single_partition_of_fp32_groups[run])
            whole = [self.bit16_groups_flat[run] for run in indices]
            bucket.gather(whole, shares, self.dp_process_group)

    def _lazy_init_hp_params_optimizer_state(self) -> None:
        """As DeepSpeed's, by runs in place of the optimizer's groups."""
        for run, flat in zip(self.bit16_groups, self.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(run, flat, self.optimizer.state)


def _wait_for_weights(buckets: Sequence[Bucket], *_: object) -> None:
    for bucket in buckets:
        bucket.wait_for_weights()

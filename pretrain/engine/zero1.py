"""A faster ZeRO 1 and 2 than DeepSpeed's: one reduction, one wait for the device per step.

DeepSpeed copies gradients four times on their way to the optimizer, uses an all-reduce where a
reduce-scatter needs half the bytes, waits three times per step for whether the norm is finite, and
makes the views of all weights again.
These are private methods, hence the exact pin of DeepSpeed in pyproject.toml.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.engine.deepspeed_setup import DeepSpeedZeroOptimizer, GradPartitionBufferGroup
from pretrain.optim.norms import squared_norms


class LeanZero(DeepSpeedZeroOptimizer):  # type: ignore[misc]
    """DeepSpeed's optimizer of ZeRO 1 and 2 with some methods replaced; its state is unchanged."""

    @classmethod
    def take_over(cls, optimizer: DeepSpeedZeroOptimizer) -> None:
        """Change the class of an optimizer that DeepSpeed built."""
        assert type(optimizer) is DeepSpeedZeroOptimizer
        assert not any(any(padding) for padding in optimizer.round_robin_bit16_padding)
        for flat, group in zip(optimizer.bit16_groups_flat, optimizer.bit16_groups, strict=True):
            storage = flat.untyped_storage().data_ptr()
            assert all(p.untyped_storage().data_ptr() == storage for p in group)
        optimizer.__class__ = cls

    @torch.no_grad()
    def reduce_gradients(self, pipeline_parallel: bool = False) -> None:
        """Average over the ranks, at ZeRO 1: each receives its part of every parameter group.

        One collective for all groups: the buffer holds rank 0's parts, then rank 1's, and so on.
        """
        world_size = torch.distributed.get_world_size(self.dp_process_group)
        share = sum(self.partition_size)  # elements per rank
        example = self.get_gradient_for_reduction(self.bit16_groups[0][0])
        buffer = example.new_empty(world_size * share)
        by_rank, first = buffer.view(world_size, share), 0
        sources: list[Tensor] = []
        targets: list[Tensor] = []
        for parameters, size in zip(self.bit16_groups, self.partition_size, strict=True):
            parts = by_rank[:, first : first + size]
            first, filled = first + size, 0
            for parameter in parameters:
                gradient = self.get_gradient_for_reduction(parameter).view(-1)
                while gradient.numel():  # it may continue in the next rank's part
                    rank, start = divmod(filled, size)
                    target = parts[rank, start : start + gradient.numel()]
                    sources.append(gradient[: target.numel()])
                    targets.append(target)
                    filled += target.numel()
                    gradient = gradient[target.numel() :]
            for rank in range(filled // size, world_size):  # padding of the last part
                parts[rank, max(0, filled - rank * size) :].zero_()
        torch._foreach_copy_(targets, sources)
        del sources, gradient
        self.zero_grad(set_to_none=True)
        mine = buffer
        if world_size > 1:
            mine = buffer.new_empty(share)
            if buffer.dtype == torch.float16:  # the sum might overflow
                buffer.div_(world_size)
            torch.distributed.reduce_scatter_single(mine, buffer, group=self.dp_process_group)
            if buffer.dtype != torch.float16:
                mine.div_(world_size)
        for group, part in enumerate(mine.split(self.partition_size)):
            self.averaged_gradients[group] = GradPartitionBufferGroup([part], part)

    def _update_model_bit16_weights(self, group_index: int) -> None:
        """Do nothing: the weights are views of what was gathered, and stay it.

        DeepSpeed makes these views again in every step, parameter by parameter, while the device
        waits for the next forward pass.
        """

    def check_overflow(self, partition_gradients: bool = True) -> None:
        """Do nothing: `step` checks the norm, which is not finite if a gradient is not."""
        self.overflow = False

    def scaled_global_norm(self, norm_type: int = 2) -> Tensor:
        """The norm of the scaled gradient, fp32, in one collective for all groups."""
        assert norm_type == 2
        gradients = [g for group in self.averaged_gradients.values() for g in group]
        square = squared_norms(gradients).sum()
        torch.distributed.all_reduce(square, group=self.dp_process_group)
        return square.sqrt().float()

    def unscale_and_clip_grads(self, grad_groups_flat: list[Tensor], total_norm: Tensor) -> None:
        """Unscale and clip as DeepSpeed does, without checking the norm again: `step` has."""
        clip = ((total_norm / self.loss_scale + 1e-6) / self.clip_grad).clamp(min=1.0)
        for gradient in grad_groups_flat:
            gradient.mul_(1 / (clip * self.loss_scale))

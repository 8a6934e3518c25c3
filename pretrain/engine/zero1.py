"""What is done otherwise than DeepSpeed's own ZeRO 1 and 2: one reduction, one wait for the device.

DeepSpeed copies gradients four times on their way to the optimizer, all-reduces what a reduce-scatter
does for half the bytes, and asks the device three times a step whether the norm is finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.engine.deepspeed_setup import DeepSpeedZeroOptimizer, GradPartitionBufferGroup
from pretrain.optim.norms import squared_norms


class LeanZero(DeepSpeedZeroOptimizer):  # type: ignore[misc]
    """DeepSpeed's optimizer of ZeRO 1 and 2, whose methods these replace; its state is not touched."""

    @classmethod
    def take_over(cls, optimizer: DeepSpeedZeroOptimizer) -> None:
        """Make an optimizer that DeepSpeed has built one of these."""
        assert type(optimizer) is DeepSpeedZeroOptimizer
        assert not any(any(padding) for padding in optimizer.round_robin_bit16_padding)
        optimizer.__class__ = cls

    @torch.no_grad()
    def reduce_gradients(self, pipeline_parallel: bool = False) -> None:
        """Average over the ranks, at ZeRO 1: each receives its part of every parameter group alone.

        One collective for all groups: the buffer holds rank 0's parts, then rank 1's, and so on.
        """
        world_size = torch.distributed.get_world_size(self.dp_process_group)
        share = sum(self.partition_size)  # of a rank
        example = self.get_gradient_for_reduction(self.bit16_groups[0][0])
        buffer = example.new_empty(world_size * share)
        by_rank, first = buffer.view(world_size, share), 0
        sources: list[Tensor] = []
        places: list[Tensor] = []
        for parameters, size in zip(self.bit16_groups, self.partition_size, strict=True):
            parts = by_rank[:, first : first + size]
            first, filled = first + size, 0
            for parameter in parameters:
                gradient = self.get_gradient_for_reduction(parameter).view(-1)
                while gradient.numel():  # it may go on in the next rank's part
                    rank, start = divmod(filled, size)
                    place = parts[rank, start : start + gradient.numel()]
                    sources.append(gradient[: place.numel()])
                    places.append(place)
                    filled += place.numel()
                    gradient = gradient[place.numel() :]
            for rank in range(filled // size, world_size):  # what fills the last part up
                parts[rank, max(0, filled - rank * size) :].zero_()
        torch._foreach_copy_(places, sources)
        del sources, gradient
        self.zero_grad(set_to_none=True)
        mine = buffer
        if world_size > 1:
            mine = buffer.new_empty(share)
            if buffer.dtype == torch.float16:  # a sum of all might be too large for it
                buffer.div_(world_size)
            torch.distributed.reduce_scatter_single(mine, buffer, group=self.dp_process_group)
            if buffer.dtype != torch.float16:
                mine.div_(world_size)
        for group, part in enumerate(mine.split(self.partition_size)):
            self.averaged_gradients[group] = GradPartitionBufferGroup([part], part)

    def check_overflow(self, partition_gradients: bool = True) -> None:
        """Nothing: a gradient that is not finite makes the norm so, and that one is looked at."""
        self.overflow = False

    def scaled_global_norm(self, norm_type: int = 2) -> Tensor:
        """The gradient's norm before it is unscaled, fp32, in one collective for all groups."""
        assert norm_type == 2
        gradients = [g for group in self.averaged_gradients.values() for g in group]
        square = squared_norms(gradients).sum()
        torch.distributed.all_reduce(square, group=self.dp_process_group)
        return square.sqrt().float()

    def unscale_and_clip_grads(self, grad_groups_flat: list[Tensor], total_norm: Tensor) -> None:
        """As DeepSpeed's, but that it asks no more whether the norm is finite: `step` has."""
        clip = ((total_norm / self.loss_scale + 1e-6) / self.clip_grad).clamp(min=1.0)
        for gradient in grad_groups_flat:
            gradient.mul_(1 / (clip * self.loss_scale))

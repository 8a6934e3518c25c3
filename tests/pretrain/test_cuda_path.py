"""The model on CUDA tensors that hold no numbers: devices and shapes, checked without a GPU.

Gradients on such tensors need a build of torch for CUDA, so this is the forward pass alone.
"""

from __future__ import annotations

import dataclasses

import torch
from model_samples import random_batch, small_settings
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain.model import BertForPreTraining


def test_no_tensor_of_the_forward_pass_is_left_on_the_cpu() -> None:
    batch = random_batch([5, 17, 9], vocab_size=100, seed=0)
    with FakeTensorMode(allow_non_fake_inputs=False), torch.no_grad():
        with torch.device("cuda"):
            model = BertForPreTraining(small_settings(), 100)
            on_device = {
                field.name: torch.empty(value.shape, dtype=value.dtype)
                for field in dataclasses.fields(batch)
                if isinstance(value := getattr(batch, field.name), torch.Tensor)
            }
        outputs = model(dataclasses.replace(batch, **on_device))
    assert [output.device.type for output in outputs] == ["cuda"] * 4
    assert [output.shape for output in outputs] == [torch.Size([])] * 4

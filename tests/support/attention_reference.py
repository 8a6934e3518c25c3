"""What a GPU's attention kernels compute, written for CPU tensors: numbers for the path of CUDA.

torch's own operators, `aten::_flash_attention_forward` and `_backward` and the same of
`_efficient_attention`, have no CPU kernel; with these in their place the product's call goes all
its way, through autograd and compilation.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.model import attention
from pretrain.model.attention import Kernel


@contextmanager
def on_the_cpu(kernel: Kernel = Kernel.flash) -> Iterator[None]:
    """In this context `attention` takes the one call that it takes on a GPU."""
    with (
        torch.library._scoped_library("aten", "IMPL") as library,
        pytest.MonkeyPatch.context() as patch,
    ):
        library.impl("_flash_attention_forward", _forward, "CPU")
        library.impl("_flash_attention_backward", _backward, "CPU")
        library.impl("_efficient_attention_forward", _efficient_forward, "CPU")
        library.impl("_efficient_attention_backward", _efficient_backward, "CPU")
        patch.setattr(attention, "kernel_of", lambda *_: kernel)
        yield


def _forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, cu_seqlens_k: Tensor, longest: int,
    longest_k: int, dropout_p: float, is_causal: bool, return_mask: bool, **rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(T, H, K) each; the logarithms of the softmax's sums are (H, T) and fp32.

    As the real one, it draws from torch's generator where there is dropout, and gives back with
    what the mask can be drawn again.
    """
    assert cu_seqlens.dtype == torch.int32
    assert not is_causal
    assert not return_mask
    assert all(value in (None, -1) for value in rest.values()), rest
    seed = torch.randint(2**62, (2,)) if dropout_p else torch.zeros(2, dtype=torch.int64)
    out, sums = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
    for i, part in enumerate(_parts(cu_seqlens, longest)):
        scores = _scores(q[part], k[part])
        sums[:, part] = scores.logsumexp(-1)
        probabilities = scores.softmax(-1) * _kept(scores, dropout_p, seed, i)
        out[part] = torch.einsum("hqk,khd->qhd", probabilities, v[part].float()).to(q.dtype)
    return out, sums, seed.view(torch.uint64), seed.new_empty(()).view(torch.uint64), q.new_empty(0)


def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor,
    cu_seqlens: Tensor, cu_seqlens_k: Tensor, longest: int, longest_k: int, dropout_p: float,
    is_causal: bool, seed: Tensor, unused: Tensor, **rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grads = tuple(torch.empty_like(x) for x in (q, k, v))
    for i, part in enumerate(_parts(cu_seqlens, longest)):
        probabilities = torch.exp(_scores(q[part], k[part]) - sums[:, part, None])
        kept = _kept(probabilities, dropout_p, seed.view(torch.int64), i)
        grad = grad_out[part].float()
        dropped = torch.einsum("qhd,khd->hqk", grad, v[part].float()) * kept
        row = (grad * out[part].float()).sum(-1).t().unsqueeze(-1)
        of_scores = probabilities * (dropped - row) * q.shape[-1] ** -0.5
        grads[0][part] = torch.einsum("hqk,khd->qhd", of_scores, k[part].float()).to(q.dtype)
        grads[1][part] = torch.einsum("hqk,qhd->khd", of_scores, q[part].float()).to(q.dtype)
        grads[2][part] = torch.einsum("hqk,qhd->khd", probabilities * kept, grad).to(q.dtype)
    return grads


def _efficient_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: None, cu_seqlens: Tensor, cu_seqlens_k: Tensor,
    longest: int, longest_k: int, dropout_p: float, mask_type: int, wants_sums: bool, **rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:  # fmt: skip
    """(1, T, H, K) each. The real one has the sums by sequence, which nothing else reads."""
    assert bias is None
    assert mask_type == 0
    assert wants_sums, "for the backward pass"
    out, sums, seed, unused, _ = _forward(
        q[0], k[0], v[0], cu_seqlens, cu_seqlens_k, longest, longest_k, dropout_p, False, False,
        **rest,
    )  # fmt: skip
    return out[None], sums, seed.view(torch.int64), unused.view(torch.int64), longest, longest_k


def _efficient_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: None, out: Tensor, cu_seqlens: Tensor,
    cu_seqlens_k: Tensor, longest: int, longest_k: int, sums: Tensor, dropout_p: float,
    seed: Tensor, unused: Tensor, mask_type: int, wants_bias: bool, **rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grads = _backward(
        grad_out[0], q[0], k[0], v[0], out[0], sums, cu_seqlens, cu_seqlens_k, longest, longest_k,
        dropout_p, False, seed, unused,
    )  # fmt: skip
    dq, dk, dv = (grad[None] for grad in grads)
    return dq, dk, dv, q.new_empty(0)


def _parts(cu_seqlens: Tensor, longest: int) -> list[slice]:
    ends = cu_seqlens.tolist()
    parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
    assert all(part.stop - part.start <= longest for part in parts)
    return parts


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("qhd,khd->hqk", q.float(), k.float()) * q.shape[-1] ** -0.5


def _kept(scores: Tensor, dropout_p: float, seed: Tensor, sequence: int) -> Tensor:
    """0 where a probability is dropped, else what makes up for those: the mask of one sequence."""
    generator = torch.Generator().manual_seed(int(seed[0]) + sequence)
    return (torch.rand(scores.shape, generator=generator) >= dropout_p) / (1 - dropout_p)

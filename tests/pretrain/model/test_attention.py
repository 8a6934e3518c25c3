"""Block-diagonal attention against a naive loop in float64."""

import importlib.util
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_samples import random_batch
from torch import Tensor

from pretrain.model import attention as attention_module
from pretrain.model.attention import attention, use_fa3


def naive(qkv: Tensor, lengths: list[int]) -> Tensor:
    """One query and one head at a time, as the formula is written."""
    num_tokens, _, num_heads, head_dim = qkv.shape
    out = torch.zeros(num_tokens, num_heads, head_dim, dtype=qkv.dtype)
    start = 0
    for n in lengths:
        for t in range(start, start + n):
            for h in range(num_heads):
                keys = qkv[start : start + n, 1, h]
                weights = torch.softmax(keys @ qkv[t, 0, h] / math.sqrt(head_dim), 0)
                out[t, h] = weights @ qkv[start : start + n, 2, h]
        start += n
    return out.flatten(1)


def random_qkv(lengths: list[int], num_heads: int, head_dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(lengths), 3, num_heads, head_dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 2


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.integers(1, 3),
    st.sampled_from([1, 4, 8]),
    st.integers(0, 1_000),
)
def test_it_equals_a_naive_loop_over_sequences_heads_and_queries(
    lengths: list[int], num_heads: int, head_dim: int, seed: int
) -> None:
    qkv = random_qkv(lengths, num_heads, head_dim, seed)
    got = attention(qkv, random_batch(lengths, 50, seed), 0.0)
    torch.testing.assert_close(got, naive(qkv, lengths), rtol=1e-10, atol=1e-12)


def test_no_gradient_crosses_the_border_of_a_sequence() -> None:
    lengths = [4, 7, 3]
    qkv = random_qkv(lengths, 2, 8, seed=0).requires_grad_()
    attention(qkv, random_batch(lengths, 50, 0), 0.0)[4:11].sum().backward()
    assert (qkv.grad[:4] == 0).all()
    assert (qkv.grad[11:] == 0).all()
    assert (qkv.grad[4:11, 2] != 0).all()


def test_scores_of_a_thousand_overflow_in_no_type() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        qkv = (random_qkv([5, 9], 2, 16, seed=1) * 100).to(dtype)
        assert attention(qkv, random_batch([5, 9], 50, 1), 0.0).isfinite().all()


def test_dropout_zeroes_probabilities_at_its_rate_and_keeps_their_mean() -> None:
    lengths = [64, 32]
    qkv = torch.zeros(96, 3, 4, 64)  # equal scores: each probability is 1 / length
    for start, n in ((0, 64), (64, 32)):
        qkv[start : start + n, 2, :, :n] = torch.eye(n).unsqueeze(1)  # so the output shows them
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = attention(qkv, random_batch(lengths, 50, 0), 0.25).view(96, 4, 64)
    probabilities = torch.cat([out[:64].flatten() * 64, out[64:, :, :32].flatten() * 32])
    kept = probabilities != 0
    assert abs(kept.float().mean().item() - 0.75) < 0.02
    torch.testing.assert_close(probabilities[kept], torch.full_like(probabilities[kept], 1 / 0.75))


@pytest.mark.parametrize(
    ("device", "capability", "dropout_p", "is_installed", "expected"),
    [
        ("cuda", (9, 0), 0.0, True, True),
        ("cuda", (9, 0), 0.0, False, False),
        ("cuda", (9, 0), 0.1, True, False),
        ("cuda", (10, 0), 0.0, True, False),
        ("cpu", (9, 0), 0.0, True, False),
    ],
)
def test_flash_attention_3_is_for_hopper_without_dropout_where_it_is_installed(
    device, capability, dropout_p, is_installed, expected, monkeypatch
) -> None:
    activated: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: is_installed or None)
    monkeypatch.setattr(attention_module, "activate_flash_attention_impl", activated.append)
    assert use_fa3(torch.device(device), dropout_p) is expected
    assert activated == ["FA3"] * expected


def test_a_module_without_the_kernel_leaves_flash_attention_2(monkeypatch, caplog) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("Module does not expose FA3 kernels")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(attention_module, "activate_flash_attention_impl", fail)
    assert not use_fa3(torch.device("cuda"), 0.0)
    assert "stays FlashAttention 2" in caplog.text

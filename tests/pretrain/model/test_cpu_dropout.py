"""Dropout by 16-bit lanes, of vectors and of attention: its rate, its places, its gradients."""

import math

import pytest
import torch
from torch import Tensor

from pretrain.model import cpu_attention
from pretrain.model.cpu_attention import attention_with_dropout
from pretrain.model.cpu_dropout import Dropout, draw_kept, draws_lanes


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_rate_is_p_in_every_lane_within_five_standard_errors(p: float) -> None:
    count = 400_000
    kept, _ = draw_kept(torch.empty(count), p)
    for lane in range(4):
        share = kept[lane::4].mean().item()
        assert abs(share - (1 - p)) < 5 * math.sqrt(p * (1 - p) / (count / 4)), lane


def test_neighbours_fall_independently_of_each_other() -> None:
    count, p = 400_000, 0.1
    dropped = 1 - draw_kept(torch.empty(count), p)[0]
    for distance in (1, 2, 3, 4, 5, 64):
        both = (dropped[:-distance] * dropped[distance:]).mean().item()
        # the standard error of a product's share; neighbours' products hang together, hence the 2
        assert abs(both - p**2) < 5 * 2 * math.sqrt(p**2 / count), distance


def test_p_is_exact_to_a_65536th_and_the_scale_is_that_of_the_p_in_use() -> None:
    for p in (0.1, 0.3, 1e-6, 0.25):
        scale = draw_kept(torch.empty(4), p)[1]
        assert abs((1 - 1 / scale) - p) <= 0.5 / 2**16 + 1e-12
    assert draw_kept(torch.empty(4), 0.25)[1] == 1 / 0.75


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 5), (2, 3, 4)])
def test_what_stays_is_scaled_and_its_gradient_too(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    assert out.shape == shape
    assert ((out == 0) | (out == 2)).all()
    assert torch.equal(x.grad, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_type_stays_and_evaluation_changes_nothing(dtype: torch.dtype) -> None:
    x = torch.ones(100, dtype=dtype)
    dropout = Dropout(0.5)
    assert dropout(x).dtype is dtype
    assert (dropout(x) == 0).any()
    assert dropout.eval()(x) is x


def test_the_same_seed_drops_the_same_elements_and_the_next_draw_others() -> None:
    x, dropout = torch.ones(1000), Dropout(0.5)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


def test_it_does_not_run_in_compiled_code_or_next_to_many_threads(monkeypatch) -> None:
    x = torch.ones(8)
    assert draws_lanes(x, 0.1)
    assert not draws_lanes(x, 0.0)
    assert not draws_lanes(x.to("meta"), 0.1)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not draws_lanes(x, 0.1)
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert not draws_lanes(x, 0.1)


def test_attention_and_its_gradient_are_those_of_the_formula_with_the_drawn_elements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Tensor] = []

    def record(like: Tensor, p: float) -> tuple[Tensor, float]:
        kept, scale = draw_kept(like, p)
        drawn.append(kept.clone() * scale)  # it is used as a buffer
        return kept, scale

    monkeypatch.setattr(cpu_attention, "draw_kept", record)
    lengths = [5, 1, 0, 7]  # 0: a slot without a sequence
    qkv = torch.randn(13, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    out = attention_with_dropout(qkv, lengths, 0.25)
    expected = []
    for block, factor in zip(torch.split(qkv, [5, 1, 7]), drawn, strict=True):
        q, k, v = block.permute(1, 2, 0, 3)
        expected.append((torch.softmax(q @ k.mT / 2, -1) * factor @ v).transpose(0, 1))
    plain = torch.cat(expected).flatten(1)
    torch.testing.assert_close(out, plain, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(out)
    got, wanted = (torch.autograd.grad((x * weights).sum(), qkv)[0] for x in (out, plain))
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)

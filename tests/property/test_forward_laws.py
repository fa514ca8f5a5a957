"""Laws of products out of forward passes, on small networks in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradalign.forward import Direction, MicroBatch


def build(width):
    torch.manual_seed(width)
    return nn.Sequential(nn.Embedding(9, width), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 9)).double()


def logprobs_of(model):
    def logprobs(ids):
        return model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]

    return logprobs


def case(seed, rows, length, width):
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(9, (rows, length + 1), generator=random)
    mask = torch.rand(rows, length, generator=random) < 0.7
    mask[0, 0] = True
    weights = torch.randn(rows, generator=random, dtype=torch.float64)
    model = build(width)
    other = torch.randint(9, (3, length + 1), generator=random)
    (logprobs_of(model)(other).sum()).backward()
    direction = Direction(model, method="central", target=1e-5)
    against = [p.grad.clone() for p in model.parameters()]
    direction.take()
    return model, direction, against, ids, weights, mask


cases = {
    "seed": st.integers(0, 2**31), "rows": st.integers(1, 6), "length": st.integers(1, 5), "width": st.integers(1, 6)
}  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(**cases)
def test_exact_linear_and_indifferent_to_batching(seed, rows, length, width):
    model, direction, against, ids, weights, mask = case(seed, rows, length, width)
    function = logprobs_of(model)
    found = direction.products(function, ids, weights, mask)
    shares = -(weights * (function(ids) * mask).sum(1))
    for row, share in enumerate(shares):
        gradient = torch.autograd.grad(share, list(model.parameters()), retain_graph=True)
        want = float(sum((g * v).sum() for g, v in zip(gradient, against, strict=True))) / direction.length
        assert float(found[row]) == pytest.approx(want, rel=1e-4, abs=1e-7)
    twice = direction.products(function, ids, -2 * weights, mask)
    torch.testing.assert_close(twice, -2 * found, rtol=1e-4, atol=1e-7)
    parts = [MicroBatch(ids[i : i + 1], weights[i : i + 1], mask[i : i + 1]) for i in reversed(range(rows))]
    alone = torch.cat(direction.products_of(function, parts)).flip(0)
    torch.testing.assert_close(alone, found, rtol=1e-4, atol=1e-7)
    index = torch.arange(rows) // 2
    pooled = direction.products(function, ids, weights, mask, index=index)
    torch.testing.assert_close(pooled, torch.zeros_like(pooled).index_add_(0, index, found), rtol=1e-4, atol=1e-7)


@settings(deadline=None, max_examples=25)
@given(scale=st.floats(1e-6, 1e6), **cases)
def test_indifferent_to_the_length_of_the_gradient_and_restores(scale, seed, rows, length, width):
    model, direction, against, ids, weights, mask = case(seed, rows, length, width)
    before = [p.detach().clone() for p in model.parameters()]
    found = direction.products(logprobs_of(model), ids, weights, mask)
    other = Direction(model, method="central", target=1e-5)
    for parameter, gradient in zip(model.parameters(), against, strict=True):
        parameter.grad = scale * gradient
    assert other.take() == pytest.approx(scale * direction.length, rel=1e-9)
    torch.testing.assert_close(other.products(logprobs_of(model), ids, weights, mask), found, rtol=1e-4, atol=1e-7)
    assert all(map(torch.equal, before, model.parameters()))

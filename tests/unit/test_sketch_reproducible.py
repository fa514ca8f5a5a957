"""`Sketcher(reproducible=True)`: equal gradients give equal bits on any number of threads, in any order and cutting."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from gradalign import SketchError
from gradalign.countsketch import sketch_gradients
from gradalign.sketch import LocalGradient, Sketcher, compiled

INDEX = torch.tensor([0, 1, 1, 2, 0, 2])


@pytest.fixture(params=["compiled", "torch"])
def path(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(compiled, "available", lambda: False)
    elif not compiled.available():
        pytest.skip("numba is not installed")
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def build(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(17, 12), nn.Linear(12, 40), nn.LayerNorm(40), nn.Linear(40, 9))
    return model, Sketcher(model, dim=256, reproducible=True, **options)


IDS = torch.randint(0, 17, (6, 30), generator=torch.Generator().manual_seed(1))


def graded(**options):
    model, sketcher = build(**options)
    model(IDS).square().sum().backward()
    return model, sketcher


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_reference(path, dtype):
    model, sketcher = graded(dtype=dtype)
    row = sketcher.from_grads()
    exact = sketch_gradients({n: p.grad.numpy() for n, p in model.named_parameters()}, dim=256, seed=0)
    assert row.dtype == dtype
    assert np.linalg.norm(row.numpy() - exact) < 1e-6 * np.linalg.norm(exact)


def test_threads_change_no_bit(threads):
    rows = []
    gradient = torch.randn(2100, 700, generator=torch.Generator().manual_seed(1))
    layer = nn.Linear(700, 2100, bias=False)
    layer.weight.grad = gradient
    for count in (1, 2, 4):
        threads(count)
        rows.append(Sketcher(layer, dim=512, reproducible=True).from_grads())
    assert all(torch.equal(row, rows[0]) for row in rows)


def test_both_paths_give_the_same_bits(monkeypatch):
    _, sketcher = graded()
    row = sketcher.from_grads()
    monkeypatch.setattr(compiled, "available", lambda: False)
    assert torch.equal(sketcher.from_grads(), row)


def test_order_and_cutting_change_no_bit(path):
    model, sketcher = graded()
    row = sketcher.from_grads()
    parts = []
    for name, parameter in model.named_parameters():
        flat = parameter.grad.flatten()
        cuts = [0, len(flat) // 3, len(flat) // 2, len(flat)]
        parts += [LocalGradient(name, tuple(parameter.shape), a, flat[a:b]) for a, b in itertools.pairwise(cuts)]
    for seed in range(4):
        order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed)).tolist()
        assert torch.equal(sketcher.from_local_grads([parts[i] for i in order]), row)


def micro_batches(sketcher, model, order):
    captured = None
    for rows in order:
        with sketcher.capture(INDEX[list(rows)], problems=3, onto=captured) as captured:
            model(IDS[list(rows)]).square().sum().backward()
    return captured.sketches


def test_capture_in_any_order_of_micro_batches_and_on_any_threads(path, threads):
    model, sketcher = build()
    rows = []
    for count in (1, 2, 4):
        threads(count)
        for order in itertools.permutations([(0, 1), (2, 3), (4, 5)]):
            rows.append(micro_batches(sketcher, model, order))
    assert all(torch.equal(row, rows[0]) for row in rows)
    plain = Sketcher(model, dim=256)
    with plain.capture(INDEX) as captured:
        model(IDS).square().sum().backward()
    assert (captured.sketches - rows[0]).norm() < 1e-5 * rows[0].norm()


def test_exact_products_go_with_it():
    model, sketcher = graded()
    against = sketcher.gradients()
    exact = sketcher.from_grads(against=against)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).double().norm()
    assert exact.dot == pytest.approx(float(norm), rel=1e-6)
    assert exact.norm == pytest.approx(float(norm), rel=1e-6)
    assert torch.equal(exact.sketch, sketcher.from_grads())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.nan, r"0\.weight holds inf or NaN"),
        (torch.inf, r"0\.weight holds inf or NaN"),
        (1e8, "too large for repro"),
    ],
)
def test_what_does_not_fit_is_refused(path, value, message):
    model, sketcher = graded()
    model[0].weight.grad[3, 2] = value
    with pytest.raises(SketchError, match=message):
        sketcher.from_grads()


@pytest.mark.parametrize(("value", "message"), [(torch.nan, r"problems \[1\] hold inf"), (1e9, "too large for repro")])
def test_what_does_not_fit_is_refused_in_capture(path, value, message):
    layer = nn.Linear(4, 2)
    x = torch.ones(6, 4)
    x[1, 2] = value
    with pytest.raises(SketchError, match=message), Sketcher(layer, dim=8, reproducible=True).capture(INDEX):
        layer(x).sum().backward()

"""`Sketcher(reproducible=True)`: equal gradients give equal bits on any number of threads, in any order and cutting."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from gradalign import SketchError
from gradalign.sketch import LocalGradient, Sketcher
from gradalign.sketch.kernels import cpu as compiled
from gradalign.wire.countsketch import sketch_gradients

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


ROWS = torch.tensor([0, 1, 1, 1, 0, 2, 2, 2, 0])
PARTS = [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
SCALES = (1.0, 2.0**-18, 2.0**-41)


def whole_numbers():
    """A model and its rows, of whole numbers so small that a matrix library adds their products exactly in any order.

    Its gradients then are equal whatever the processor and the number of threads, which is what the promise begins with.
    """
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Embedding(17, 12), nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 9))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape, generator=generator))
    return model, torch.randint(0, 17, (len(ROWS), 30), generator=generator)


def micro_batches(sketcher, model, ids, order):
    """One capture after the other; a float32 sum of the three scales depends on their order."""
    captured = None
    for part in order:
        rows = list(PARTS[part])
        with sketcher.capture(ROWS[rows], problems=3, onto=captured) as captured:
            (model(ids[rows]).sum() * SCALES[part]).backward()
    return captured.sketches


def test_capture_in_any_order_of_micro_batches_and_on_any_threads(path, threads):
    model, ids = whole_numbers()
    fixed = Sketcher(model, dim=256, dtype=torch.float64, reproducible=True)
    plain = Sketcher(model, dim=256, dtype=torch.float32)
    rows, floats = [], []
    for count in (1, 2, 4):
        threads(count)
        for order in itertools.permutations(range(3)):
            rows.append(micro_batches(fixed, model, ids, order))
            floats.append(micro_batches(plain, model, ids, order))
    assert all(torch.equal(row, rows[0]) for row in rows)
    assert not all(torch.equal(row, floats[0]) for row in floats)


def test_capture_is_as_true_as_without(path):
    model, sketcher = build()
    plain = Sketcher(model, dim=256)
    with sketcher.capture(INDEX) as fixed:
        model(IDS).square().sum().backward()
    with plain.capture(INDEX) as captured:
        model(IDS).square().sum().backward()
    assert (captured.sketches - fixed.sketches).norm() < 1e-5 * fixed.sketches.norm()


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

"""A frozen diagonal before the projection: by hand, from Adam's state, in from_grads(), capture, dots and norms."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradalign import SketchError
from gradalign.sketch import Preconditioner, Sketcher
from gradalign.sketch.capture import accumulate
from gradalign.wire.countsketch import sketch_gradients

INDEX = torch.tensor([0, 1, 1, 2, 0])


class Small(nn.Module):
    """Every way a gradient is formed: look-ups, products, a norm, a weight with two uses, a bank of experts."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.linear = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.bank = nn.Parameter(torch.randn(2, 6, 6))

    def forward(self, ids):
        x = self.norm(self.linear(self.embed(ids)))
        x = x @ self.bank[0] + nn.functional.linear(self.linear(x), self.bank[1])
        return nn.functional.linear(x, self.embed.weight)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small().double()


IDS = torch.randint(0, 9, (5, 4), generator=torch.Generator().manual_seed(0))


def loss(model, rows=slice(None)):
    return model(IDS[rows]).square().sum((1, 2)).sum()


def drawn(model, **options):
    generator = torch.Generator().manual_seed(3)
    diagonal = {n: torch.rand(p.shape, generator=generator) + 0.1 for n, p in model.named_parameters()}
    return diagonal, Preconditioner(diagonal, **options)


def powers(form, validation):
    return 0.5 if form == "symmetric" else float(validation)


@pytest.mark.parametrize("form", ["symmetric", "validation"])
@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize("reproducible", [False, True])
def test_equals_scaled_gradients(model, form, validation, reproducible, monkeypatch):
    monkeypatch.setattr(accumulate, "cheaper", lambda *_: True)
    diagonal, preconditioner = drawn(model, form=form)
    sketcher = Sketcher(model, 64, dtype=torch.float64, preconditioner=preconditioner, reproducible=reproducible)
    side = sketcher.for_validation() if validation else sketcher
    assert side.projection == sketcher.projection
    loss(model).backward()
    against = sketcher.for_validation().gradients()
    rows, dots, norms = [], [], []
    for problem in range(3):
        model.zero_grad()
        loss(model, problem == INDEX).backward()
        scaled = {n: p.grad * diagonal[n].double() ** powers(form, validation) for n, p in model.named_parameters()}
        rows.append(sketch_gradients({n: g.numpy() for n, g in scaled.items()}, dim=64, seed=0))
        np.testing.assert_allclose(side.from_grads().numpy(), rows[-1], rtol=1e-6, atol=1e-7)
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in scaled.values())))
        length = math.sqrt(sum(float(v.square().sum()) for v in against.values()))
        dots.append(sum(float((scaled[n] * against[n]).sum()) for n in scaled) / length)
        exact = side.from_grads(against=against)
        assert (exact.dot, exact.norm) == pytest.approx((dots[-1], norms[-1]), rel=1e-6)
    model.zero_grad()
    with side.capture(INDEX, against=against) as captured:
        loss(model).backward()
    np.testing.assert_allclose(captured.sketches.numpy(), rows, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(captured.norms.numpy(), norms, rtol=1e-6)
    np.testing.assert_allclose(captured.dots.numpy(), dots, rtol=1e-6)
    kept = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    loss(model).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(kept[name], parameter.grad)
    with side.capture(INDEX) as captured:
        loss(model).backward()
    np.testing.assert_allclose(captured.sketches.numpy(), rows, rtol=1e-6, atol=1e-7)


def test_both_forms_give_the_same_products(model):
    _, symmetric = drawn(model)
    _, reference = drawn(model, form="validation")
    found = []
    for preconditioner in (symmetric, reference):
        sketcher = Sketcher(model, 64, dtype=torch.float64, preconditioner=preconditioner)
        model.zero_grad()
        loss(model, slice(0, 2)).backward()
        against = sketcher.for_validation().gradients()
        length = math.sqrt(sum(float(v.square().sum()) for v in against.values()))
        model.zero_grad()
        loss(model, slice(2, 5)).backward()
        found.append(sketcher.from_grads(against=against).dot * length)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def trained(model, kind=torch.optim.AdamW, **options):
    optimizer = kind(model.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-6, **options)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("kind", "options"),
    [(torch.optim.AdamW, {}), (torch.optim.Adam, {"amsgrad": True}), (torch.optim.Adam, {"foreach": False})],
)
def test_from_adam(model, kind, options):
    optimizer = trained(model, kind, **options)
    key = "max_exp_avg_sq" if options.get("amsgrad") else "exp_avg_sq"
    moments = {n: optimizer.state[p][key] / (1 - 0.99**3) for n, p in model.named_parameters()}
    count = sum(m.numel() for m in moments.values())
    typical = math.sqrt(sum(float(m.sum()) for m in moments.values()) / count)
    want = {n: ((typical + 1e-6) / (m.sqrt() + 1e-6)).clamp(0.1, 10.0) for n, m in moments.items()}
    ours, by_hand = Preconditioner.from_adam(model, optimizer, clamp=10.0, name="step-3"), Preconditioner(want)
    loss(model).backward()
    rows = [Sketcher(model, 64, dtype=torch.float64, preconditioner=p).from_grads() for p in (ours, by_hand)]
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-5, atol=1e-5)
    assert Sketcher(model, 64, preconditioner=ours).projection.preconditioner == "step-3"


def test_the_diagonal_is_frozen(model):
    optimizer = trained(model)
    preconditioner = Preconditioner.from_adam(model, optimizer)
    sketcher = Sketcher(model, 64, preconditioner=preconditioner)
    before = sketcher.from_grads()
    for state in optimizer.state.values():
        state["exp_avg_sq"].mul_(7)
    assert torch.equal(sketcher.from_grads(), before)
    assert Preconditioner.from_adam(model, optimizer, clamp=3.0).name != preconditioner.name


class Quantized:
    """Adam with v in 8 bits a block of 8, the way block-wise 8-bit optimizers keep it."""

    def __init__(self, optimizer):
        self.param_groups, self.state = optimizer.param_groups, {}
        for parameter, state in optimizer.state.items():
            flat = state["exp_avg_sq"].flatten()
            blocks = nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
            absmax = blocks.max(1, keepdim=True).values
            codes = (blocks / absmax.clamp(min=1e-30) * 255).round().to(torch.uint8)
            self.state[parameter] = {"step": 3, "state2": codes, "absmax2": absmax}


def read_quantized(parameter, state):
    blocks = state["state2"].float() / 255 * state["absmax2"]
    return blocks.flatten()[: parameter.numel()].view_as(parameter)


def test_an_optimizer_in_8_bits_is_read_by_a_function(model):
    optimizer = trained(model)
    exact = Preconditioner.from_adam(model, optimizer, clamp=5.0)
    coarse = Preconditioner.from_adam(model, Quantized(optimizer), clamp=5.0, second_moment=read_quantized)
    rows = [Sketcher(model, 256, preconditioner=p).from_grads() for p in (exact, coarse)]
    assert torch.nn.functional.cosine_similarity(*rows, dim=0) > 0.99
    with pytest.raises(SketchError, match=r"holds \['absmax2', 'state2', 'step'\] and no exp_avg_sq .* second_moment="):
        Preconditioner.from_adam(model, Quantized(optimizer))


def test_names_keep_other_makings_apart(model):
    diagonal, symmetric = drawn(model)
    _, reference = drawn(model, form="validation")
    changed = Preconditioner({**diagonal, "linear.bias": diagonal["linear.bias"] * 2})
    ids = {Sketcher(model, 64, preconditioner=p).projection.id for p in (None, symmetric, reference, changed)}
    assert len(ids) == 4
    assert reference.name == symmetric.name + "-validation"
    assert symmetric.name == drawn(model)[1].name


def test_refusals(model):
    diagonal, _ = drawn(model)
    with pytest.raises(SketchError, match="form is 'both'"):
        Preconditioner(diagonal, form="both")
    with pytest.raises(SketchError, match=r"multipliers of linear\.bias are not all positive"):
        Preconditioner({**diagonal, "linear.bias": torch.zeros(6)})
    with pytest.raises(SketchError, match=r"has linear\.bias as nothing, the model as \(6,\)"):
        Sketcher(model, preconditioner=Preconditioner({n: d for n, d in diagonal.items() if n != "linear.bias"}))
    with pytest.raises(SketchError, match=r"projection\.preconditioner is 'a b'"):
        Sketcher(model, preconditioner=Preconditioner(diagonal, name="a b"))
    with pytest.raises(SketchError, match=r"clamp is 0\.5"):
        Preconditioner.from_adam(model, trained(model), clamp=0.5)
    with pytest.raises(SketchError, match=r"holds no state of bank; take a step first"):
        Preconditioner.from_adam(model, torch.optim.AdamW(model.parameters()))

"""Products out of forward passes are those of exact gradients, for all ways to take them and kinds of models."""

import subprocess
import sys
import warnings

import pytest
import torch
from tiny_causal_lms import Batch, exact_products, gradients_of, logprobs_of, tiny
from torch import nn

from gradalign.forward import Direction, MicroBatch, head_norms
from gradalign.sketch import Preconditioner

# Some layers compute in float32 whatever their weights are, so a step may not be much smaller.
SMALL = 1e-3
METHODS = ("one-sided", "central", "forward-ad", "float32", "auto")


def lora():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads what transformers renames
        model = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return model.double().eval()


MODELS = {
    "dense": lambda: tiny(dtype=torch.float64),
    "tied": lambda: tiny("qwen3", dtype=torch.float64, tie_word_embeddings=True, head_dim=8),
    "conv1d": lambda: tiny("gpt2", dtype=torch.float64),
    "lora": lora,
    "experts": lambda: tiny(
        "qwen3_moe",
        experts_implementation="eager",
        dtype=torch.float64,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        head_dim=8,
    ),
}


def taken(model, batch, **settings):
    """A direction, and a copy of the gradients it was taken of."""
    batch.loss(model).backward()
    against = gradients_of(model)
    direction = Direction(model, **settings)
    direction.take()
    assert all(p.grad is None for p in model.parameters())
    return direction, against


def given(batch, model, method):
    """The arguments of products() for a batch."""
    with torch.no_grad():
        base = logprobs_of(model)(batch) if method in ("one-sided", "auto") else None
    return (logprobs_of(model), batch, batch.weights, batch.mask), {"logprobs_at": base}


def close(found, want, tolerance=5e-3):
    assert float((found - want).norm() / want.norm()) < tolerance


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MODELS)
def test_equals_exact_products(kind, method):
    model = MODELS[kind]()
    before = [p.detach().clone() for p in model.parameters()]
    validation, batch = Batch(seed=1), Batch(seed=2)
    direction, against = taken(model, validation, method=method, target=SMALL)
    assert direction.length == pytest.approx(float(torch.cat([g.flatten() for g in against.values()]).norm()))
    args, more = given(validation, model, method)
    check = direction.check(*args, **more)
    assert direction.quotient == pytest.approx(1, abs=1e-2)
    assert check.fidelity is None or check.fidelity > 0.999
    # A step may cross the threshold at which a router takes another expert.
    steps_over = kind == "experts" and method != "forward-ad"
    tolerance = 0.1 if method in ("one-sided", "auto") or steps_over else 5e-3
    close(check.products[0], exact_products(model, validation, against), tolerance)
    args, more = given(batch, model, method)
    close(direction.products(*args, **more), exact_products(model, batch, against), tolerance)
    assert all(map(torch.equal, before, model.parameters()))


def test_float32_by_default():
    model = tiny()
    validation, batch = Batch(seed=1), Batch(seed=2, rows=24)
    direction, against = taken(model, validation)
    assert direction.check(*given(validation, model, "central")[0]).method == "central"
    args, _ = given(batch, model, "central")
    found, want = direction.products(*args), exact_products(model, batch, against)
    assert float(torch.corrcoef(torch.stack([found, want]))[0, 1]) > 0.99


@pytest.mark.parametrize("low", ["autocast", "weights"])
def test_sixteen_bits_take_forward_mode(low):
    model = tiny(dtype=torch.float32)
    validation, batch = Batch(seed=1), Batch(seed=2, rows=24)
    validation.loss(model).backward()
    against = gradients_of(model)
    want = exact_products(model, batch, against)
    if low == "weights":
        model = model.bfloat16()
        for p, g in zip(model.parameters(), against.values(), strict=True):
            p.grad = g.bfloat16()
    else:
        for p, g in against.items():
            p.grad = g.clone()

    def logprobs(b):
        with torch.autocast("cpu", torch.bfloat16, enabled=low == "autocast"):
            return logprobs_of(model)(b)

    direction = Direction(model)
    direction.take()
    found = direction.products(logprobs, batch, batch.weights, batch.mask)
    assert float(torch.corrcoef(torch.stack([found, want]))[0, 1]) > 0.999
    wide = Direction(model, method="float32", target=0.005)
    for p, g in zip(model.parameters(), against.values(), strict=True):
        p.grad = g.to(p.dtype)
    wide.take()
    found = wide.products(logprobs, batch, batch.weights, batch.mask)
    assert float(torch.corrcoef(torch.stack([found, want]))[0, 1]) > 0.995


def test_falls_back_where_a_kernel_has_no_forward_derivative():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * x

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny(dtype=torch.bfloat16)

        def forward(self, **inputs):
            out = self.inner(**inputs)
            out.logits = Square.apply(out.logits)
            return out

    model, batch = Odd(), Batch(seed=1)
    Batch(seed=2).loss(model.inner).backward()
    direction = Direction(model, target=0.005)
    direction.take()
    found = direction.products(logprobs_of(model), batch, batch.weights, batch.mask)
    assert torch.isfinite(found).all()
    assert bool(found.any())


def test_only_what_is_trained_moves():
    model = tiny(dtype=torch.float64)
    model.model.layers[0].requires_grad_(False)
    direction, against = taken(model, Batch(seed=1), method="central", target=SMALL)
    assert len(against) < len(list(model.parameters()))
    batch = Batch(seed=2)
    close(direction.products(*given(batch, model, "central")[0]), exact_products(model, batch, against))


def test_keeps_gradients_when_asked():
    model = tiny(dtype=torch.float64)
    Batch(seed=1).loss(model).backward()
    against = gradients_of(model)
    direction = Direction(model, method="central", target=SMALL, offload=True)
    direction.take(copy=True)
    assert all(torch.equal(p.grad, g) for p, g in against.items())
    batch = Batch(seed=2)
    close(direction.products(*given(batch, model, "central")[0]), exact_products(model, batch, against))


def test_micro_batches_and_groups_and_rows_of_no_problem():
    model = tiny(dtype=torch.float64)
    direction, against = taken(model, Batch(seed=1), method="central", target=SMALL)
    batch = Batch(seed=2)
    want = exact_products(model, batch, against)
    halves = [
        MicroBatch({k: v[part] for k, v in batch.items()}, batch.weights[part], batch.mask[part])
        for part in (slice(0, 5), slice(5, 8))
    ]
    close(torch.cat(direction.products_of(logprobs_of(model), halves)), want)
    assert direction.products_of(logprobs_of(model), []) == []
    args, _ = given(batch, model, "central")
    index = torch.tensor([0, 2, -1, 0, 0, 2, -1, 3])
    found = direction.products(*args, index=index)
    close(found, torch.stack([want[index == p].sum() for p in range(4)]))
    assert found[1] == 0
    assert direction.products(*args, index=torch.full((8,), -1)).shape == (0,)
    assert not direction.products(args[0], batch, torch.zeros(8), batch.mask).any()


def test_packed_rows_take_tokens_of_several_rollouts():
    model = tiny(dtype=torch.float64)
    direction, against = taken(model, Batch(seed=1), method="central", target=SMALL)
    batch = Batch(seed=2)
    owners = (torch.arange(11) // 6).expand(8, 11) + 2 * torch.arange(8)[:, None]
    advantage = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = direction.products(
        logprobs_of(model), batch, advantage[owners], batch.mask, index=torch.where(owners == 5, -1, owners)
    )
    tokens = -advantage[owners] * logprobs_of(model)(batch) * batch.mask
    for rollout in (0, 1, 4, 5, 15):
        parameters = list(model.parameters())
        share = tokens[owners == rollout].sum() * (rollout != 5)
        gradient = torch.autograd.grad(share, parameters, retain_graph=True)
        want = sum((g * against[p]).sum() for p, g in zip(parameters, gradient, strict=True)) / direction.length
        assert float(found[rollout]) == pytest.approx(float(want), rel=2e-2, abs=1e-6)


@pytest.mark.parametrize("form", ["symmetric", "validation"])
@pytest.mark.parametrize("method", ["central", "forward-ad"])
def test_preconditioned(form, method):
    model = tiny(dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    diagonal = {n: torch.rand(p.shape, generator=random) + 0.1 for n, p in model.named_parameters()}
    preconditioner = Preconditioner(diagonal, form=form)
    validation, batch = Batch(seed=1), Batch(seed=2)
    direction, against = taken(model, validation, method=method, target=SMALL, preconditioner=preconditioner)
    scaled = {p: against[p] * diagonal[n].double() for n, p in model.named_parameters()}
    half = torch.cat([(against[p] * diagonal[n].double().sqrt()).flatten() for n, p in model.named_parameters()])
    whole = torch.cat([g.flatten() for g in scaled.values()])
    length = half.norm() if form == "symmetric" else whole.norm()
    assert direction.length == pytest.approx(float(length))
    close(
        direction.products(*given(batch, model, method)[0]),
        exact_products(model, batch, scaled) * whole.norm() / length,
    )
    assert direction.check(*given(validation, model, method)[0]).quotient == pytest.approx(1, abs=1e-2)


def test_masters_say_where_a_rounded_weight_is():
    masters = {n: p.detach().clone() for n, p in tiny(seed=5).named_parameters()}
    model = tiny(seed=5).bfloat16()
    batch = Batch(seed=2)
    Batch(seed=1).loss(model).backward()
    direction = Direction(model, method="float32", masters=masters, target=0.005)
    gradients = {n: p.grad.float() for n, p in model.named_parameters()}
    direction.take()
    found = direction.products(logprobs_of(model), batch, batch.weights, batch.mask)
    wide = tiny(seed=5)
    want = exact_products(wide, batch, {p: gradients[n] for n, p in wide.named_parameters()})
    assert float(torch.corrcoef(torch.stack([found, want]))[0, 1]) > 0.999


def test_later_weights_are_allowed_for_products_and_known():
    model = tiny(dtype=torch.float64)
    direction, against = taken(model, Batch(seed=1), method="central", target=SMALL)
    assert not direction.stale
    torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)
    assert direction.stale
    batch = Batch(seed=2)
    close(direction.products(*given(batch, model, "central")[0]), exact_products(model, batch, against))


def exact_head_norms(model, batch):
    head = model.get_output_embeddings().weight
    norms = [torch.autograd.grad(c, head, retain_graph=True)[0].norm() for c in batch.shares(model)]
    return torch.stack(norms).double()


@pytest.mark.parametrize("length", [12, 60])
def test_norms_of_the_head(length, monkeypatch):
    monkeypatch.setattr("gradalign.forward.norms._CHUNK", 2000)
    model = tiny(tie_word_embeddings=False)
    batch = Batch(seed=2, length=length)
    direction, _ = taken(model, Batch(seed=1), target=0.005)
    want = exact_head_norms(model, batch)
    args, more = given(batch, model, "one-sided")
    products, norms = direction.products_and_norms(*args, batch.labels, **more)
    torch.testing.assert_close(norms, want, rtol=2e-2, atol=0)
    torch.testing.assert_close(products, direction.products(*args, **more), rtol=1e-2, atol=1e-6)
    alone = Direction(model).head_norms(*args, batch.labels)
    torch.testing.assert_close(alone, want, rtol=1e-4, atol=0)
    heard = model.model(**batch).last_hidden_state[:, :-1].detach()
    other = head_norms(heard, model.lm_head, batch.labels, batch.weights, batch.mask, index=torch.arange(8) // 2)
    head, tokens = model.lm_head.weight, batch.shares(model)
    pairs = [torch.autograd.grad(tokens[i : i + 2].sum(), head, retain_graph=True)[0].norm() for i in range(0, 8, 2)]
    torch.testing.assert_close(other, torch.stack(pairs).double(), rtol=1e-4, atol=0)


def test_importing_gradalign_loads_no_torch():
    code = "import sys, gradalign; print('torch' in sys.modules, hasattr(gradalign, 'forward'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]

"""Nothing but the weights changes between passes, and afterwards nothing at all."""

import pytest
import torch
from tensorbytes import peak_bytes
from tiny_causal_lms import Batch, exact_products, gradients_of, logprobs_of, tiny
from torch import nn

from gradalign import DirectionError
from gradalign.forward import Direction, LocalParameter
from gradalign.forward.parameters.weights import Weights

METHODS = ("one-sided", "central", "forward-ad", "float32")


def ready(method="central", dtype=torch.float32, **more):
    model = tiny(dtype=dtype, **more)
    Batch(seed=1).loss(model).backward()
    direction = Direction(model, method=method, target=0.005)
    direction.take()
    return model, direction


def snapshot(model):
    return {n: (p, p.data_ptr(), p._version, p.detach().clone()) for n, p in model.named_parameters()}


def unchanged(model, before):
    for name, parameter in model.named_parameters():
        same, address, version, value = before[name]
        assert parameter is same
        assert parameter.data_ptr() == address
        assert parameter._version == version
        assert torch.equal(parameter, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("raised", [None, ValueError, KeyboardInterrupt])
def test_every_bit_comes_back(method, dtype, raised):
    model, direction = ready(method, dtype)
    batch, before, passes = Batch(seed=2), snapshot(model), []
    with torch.no_grad():
        base = logprobs_of(model)(batch) if method == "one-sided" else None

    def logprobs(b):
        passes.append(1)
        found = logprobs_of(model)(b)
        if raised and len(passes) == (1 if method == "forward-ad" else 2):
            raise raised
        return found

    def act():
        return direction.products(logprobs, batch, batch.weights, batch.mask, logprobs_at=base)

    if raised:
        with pytest.raises(raised):
            act()
    else:
        act()
    unchanged(model, before)


class Interrupting(dict):
    """Masters whose n-th look-up is where Ctrl-C comes."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def get(self, key, default=None):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return default


@pytest.mark.parametrize("at", [1, 2, 7, 21, 22, 30])
def test_ctrl_c_in_the_middle_of_a_move(at):
    model, direction = ready()
    direction._masters = Interrupting(at)
    batch, before = Batch(seed=2), snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        direction.products(logprobs_of(model), batch, batch.weights, batch.mask)
    unchanged(model, before)


def test_a_second_ctrl_c_waits_for_the_rest(monkeypatch):
    model, direction = ready()
    batch, before = Batch(seed=2), snapshot(model)
    hits = []
    put_back = __import__("gradalign.forward.parameters.weights", fromlist=["_put_back"])._put_back

    def interrupted(*args):
        hits.append(1)
        if len(hits) in (3, 5):
            raise KeyboardInterrupt
        return put_back(*args)

    monkeypatch.setattr("gradalign.forward.parameters.weights._put_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        direction.products(logprobs_of(model), batch, batch.weights, batch.mask)
    unchanged(model, before)


@pytest.mark.parametrize("how", ["replaced", "freed"])
def test_a_weight_that_does_not_come_back_is_told(how):
    model, direction = ready()
    batch = Batch(seed=2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def logprobs(b):
        found = logprobs_of(model)(b)
        weight = model.lm_head.weight
        if how == "replaced":
            weight.data = weight.data.clone()
        else:
            weight.untyped_storage().resize_(0)
        return found

    with pytest.raises(DirectionError, match=r"1 weights did not come back, the first is lm_head\.weight"):
        direction.products(logprobs, batch, batch.weights, batch.mask)
    others = [n for n in before if n != "lm_head.weight"]
    assert all(torch.equal(model.get_parameter(n), before[n]) for n in others)


def test_shards_that_share_memory_come_back():
    whole = torch.randn(8)
    before = whole.clone()
    gradient = torch.randn(8)
    parts = [LocalParameter("a", (8,), 0, whole, gradient), LocalParameter("b", (4,), 0, whole[:4], gradient[:4])]
    direction = Direction(parameters=parts, method="central", target=0.001)
    direction.take()
    mask = torch.ones(1, 8, dtype=torch.bool)
    direction.products(lambda _: whole[None] * 2, None, torch.ones(1), mask)
    assert torch.equal(whole, before)


def test_a_graph_of_before_still_runs_backward():
    model, direction = ready("one-sided", torch.float64)
    batch = Batch(seed=2)
    shares = logprobs_of(model)(batch)
    want = torch.autograd.grad(shares.sum(), model.lm_head.weight, retain_graph=True)[0]
    direction.products(logprobs_of(model), batch, batch.weights, batch.mask, logprobs_at=shares.detach())
    assert torch.equal(torch.autograd.grad(shares.sum(), model.lm_head.weight)[0], want)


@pytest.mark.parametrize("method", ["central", "float32", "forward-ad"])
def test_inside_an_autocast_region_no_cast_of_before_is_used(method):
    model, direction = ready(method)
    batch = Batch(seed=2, rows=24)
    Batch(seed=1).loss(model).backward()
    want = exact_products(model, batch, gradients_of(model))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            logprobs_of(model)(batch)
        direction._step._coarsest = 0.02
        found = direction.products(logprobs_of(model), batch, batch.weights, batch.mask)
        with torch.no_grad():
            after = logprobs_of(model)(batch)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(after, logprobs_of(model)(batch))
    assert float(torch.corrcoef(torch.stack([found, want]))[0, 1]) > (0.9 if method == "central" else 0.99)


class Dropped(nn.Module):
    """A language model with dropout of its own, seen by no module."""

    def __init__(self):
        super().__init__()
        self.inner = tiny(dtype=torch.float64)

    def forward(self, **inputs):
        out = self.inner(**inputs)
        out.logits = nn.functional.dropout(out.logits, 0.2, training=self.training)
        return out


def test_dropout_is_held_still():
    model = Dropped()
    Batch(seed=1).loss(model.inner).backward()
    against = gradients_of(model)
    direction = Direction(model, method="central", target=1e-3)
    direction.take()
    batch = Batch(seed=2)
    state = torch.get_rng_state()
    found = direction.products(logprobs_of(model), batch, batch.weights, batch.mask)
    assert torch.equal(torch.get_rng_state(), state)
    want = exact_products(model, batch, against)  # draws what the passes drew
    assert float((found - want).norm() / want.norm()) < 1e-2


def test_dropout_and_given_logprobs_are_refused():
    model = Dropped()
    Batch(seed=1).loss(model.inner).backward()
    direction = Direction(model)
    direction.take()
    batch, before = Batch(seed=2), snapshot(model)
    base = logprobs_of(model)(batch).detach()
    for _ in range(2):
        with pytest.raises(DirectionError, match=r"draws random numbers .*model.eval\(\)"):
            direction.products(logprobs_of(model), batch, batch.weights, batch.mask, logprobs_at=base)
        direction._trusts = True
    unchanged(model, before)


def test_buffers_are_put_back():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny(dtype=torch.float64)
            self.norm = nn.BatchNorm1d(64, dtype=torch.float64)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, **inputs):
            out = self.inner(**inputs)
            self.seen = self.seen + 1
            out.logits = self.norm(out.logits.transpose(1, 2)).transpose(1, 2)
            return out

    model = Counted().train()
    Batch(seed=1).loss(model.inner).backward()
    direction = Direction(model, method="central", target=1e-3)
    direction.take()
    batch, buffers = Batch(seed=2), {n: (b, b.clone()) for n, b in model.named_buffers()}
    direction.products(logprobs_of(model), batch, batch.weights, batch.mask)
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_a_cache_that_grows_is_refused():
    from transformers import DynamicCache

    model, direction = ready()
    batch, before = Batch(seed=2), snapshot(model)
    given = {**batch, "past_key_values": DynamicCache(config=model.config)}

    def logprobs(b):
        return logprobs_of(lambda **kw: model(**{**kw, "use_cache": True}))(b)

    with pytest.raises(DirectionError, match="a key-value cache that a forward makes longer"):
        direction.products(logprobs, given, batch.weights, batch.mask)
    unchanged(model, before)


@pytest.mark.parametrize("method", ["one-sided", "central"])
def test_memory_is_one_copy_of_the_weights(method):
    model = tiny(vocab_size=2048, hidden_size=64)
    trained = sum(p.numel() * 4 for p in model.parameters())
    Batch(seed=1).loss(model).backward()
    direction = Direction(model, method=method, target=0.005)
    assert peak_bytes(direction.take) < 0.5 * trained  # float64 sums, a chunk at a time
    batch = Batch(seed=2, rows=2)
    with torch.no_grad():
        base = logprobs_of(model)(batch)
    plain = peak_bytes(lambda: logprobs_of(model)(batch))
    peak = peak_bytes(
        lambda: direction.products(logprobs_of(model), batch, batch.weights, batch.mask, logprobs_at=base)
    )
    assert trained < peak < 1.1 * trained + 1.5 * plain


def test_take_with_a_copy_costs_that_copy():
    model = tiny()
    trained = sum(p.numel() * 4 for p in model.parameters())
    Batch(seed=1).loss(model).backward()
    assert trained <= peak_bytes(lambda: Direction(model).take(copy=True)) < 2.5 * trained


def test_weights_move_and_come_back_by_hand():
    shard = next(iter(Direction(tiny())._shards()))
    before = shard.weight.clone()
    part = torch.ones_like(before)
    with Weights([shard], [part], {}, lambda: None, offload=False).moved() as move:
        move(0.5)
        assert torch.equal(shard.weight, before + 0.5)
        move(-0.5)
        assert torch.equal(shard.weight, before - 0.5)
    assert torch.equal(shard.weight, before)

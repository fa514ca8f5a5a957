"""What a direction refuses, each with its reason, and with the weights as they were."""

import re

import pytest
import torch
from tiny_causal_lms import Batch, logprobs_of, tiny
from torch import nn

from gradalign import DirectionError
from gradalign.forward import Band, Direction, LocalParameter
from gradalign.sketch import Preconditioner


def pair(**settings):
    model = tiny()
    Batch(seed=1).loss(model).backward()
    direction = Direction(model, **settings)
    return model, direction


@pytest.fixture
def model_and_direction():
    model, direction = pair()
    direction.take()
    return model, direction


@pytest.fixture
def unmoved(request):
    """Checks that no weight of the model has changed."""
    model, _ = request.getfixturevalue("model_and_direction")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    yield
    after = dict(model.named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before if after[n].shape == before[n].shape)


def refused(message, act, *args, **more):
    with pytest.raises(DirectionError, match=message):
        act(*args, **more)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either a model or parameters"),
        ({"model": nn.Linear(1, 1), "parameters": []}, "either a model or parameters"),
        ({"model": nn.Linear(1, 1), "method": "backward"}, "method is 'backward'; expected one of 'auto', 'one-sided'"),
        ({"model": nn.Linear(1, 1), "target": 0.0}, "target is 0.0"),
        ({"parameters": [("w", (2,), 0, torch.zeros(2))], "method": "forward-ad"}, "needs a model"),
        ({"model": nn.Linear(1, 1).requires_grad_(False)}, "no parameter requires a gradient"),
        ({"parameters": []}, "lists no shard"),
        ({"parameters": [("w", (2,), 1, torch.zeros(2))]}, r"shape \(2,\) at offset 1, which does not lie in"),
        (
            {"parameters": [("w", (2,), 0, torch.zeros(2, dtype=torch.int8))]},
            "of torch.int8; expected a tensor of a float",
        ),
        ({"model": nn.Linear(2, 1), "masters": {"weight": torch.zeros(3)}}, r"masters\['weight'\] has shape \(3,\)"),
        ({"model": nn.Linear(2, 1), "masters": {"other": torch.zeros(3)}}, "no such name"),
        ({"model": nn.Linear(2, 1), "preconditioner": Preconditioner({"weight": torch.ones(1, 2)})}, "bias as nothing"),
    ],
)
def test_arguments(settings, message):
    refused(message, Direction, **settings)


@pytest.mark.parametrize("bands", [((0.9, 0.95), (0.5, 2)), ((0.9, 1.1), (0.95, 2)), ((0.9, 1.1), (-1, 2))])
def test_bands(bands):
    refused("two bands around 1", Band, *bands)


def test_gradients():
    model, direction = pair()
    model.zero_grad()
    refused("no trainable parameter has a .grad: run the validation", direction.take)
    batch = Batch()
    refused("no direction was taken", direction.products, logprobs_of(model), batch, batch.weights, batch.mask)
    refused("no direction was taken", lambda: direction.length)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    refused("the validation gradient is zero", direction.take)
    for bad in (torch.nan, torch.inf):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        model.lm_head.weight.grad[3, 2] = bad
        refused("gradient of lm_head.weight holds inf or NaN", direction.take)
    refused("no direction was taken", direction.products, logprobs_of(model), batch, batch.weights, batch.mask)


def test_an_older_direction_is_gone_after_a_take_that_failed(model_and_direction):
    _, direction = model_and_direction
    refused("no trainable parameter", direction.take)
    refused("no direction was taken", lambda: direction.length)


@pytest.mark.usefixtures("unmoved")
@pytest.mark.parametrize("change", ["resized", "frozen", "added", "dtype"])
def test_other_parameters(model_and_direction, change):
    model, direction = model_and_direction
    if change == "resized":
        model.lm_head.weight = nn.Parameter(torch.zeros(70, 32))
    elif change == "frozen":
        model.lm_head.weight.requires_grad_(False)
    elif change == "added":
        model.more = nn.Linear(1, 1)
    else:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().double())
    batch = Batch(seed=2)
    name = "more.weight" if change == "added" else "lm_head.weight"
    refused(
        f"taken with {re.escape(name)} as", direction.products, logprobs_of(model), batch, batch.weights, batch.mask
    )
    for parameter in model.parameters():
        if change == "dtype":
            parameter.data = parameter.data.float()


@pytest.mark.usefixtures("unmoved")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": torch.ones(8)}, r"mask has shape \(8,\); expected \[B, T\]"),
        ({"mask": torch.full((8, 11), 0.5)}, "mask holds values other than 0 and 1"),
        ({"weights": torch.ones(7)}, r"weights has shape \(7,\); expected \[8\]"),
        ({"weights": torch.full((8,), torch.nan)}, "weights holds NaN or inf"),
        ({"logprobs_at": torch.zeros(8, 12)}, r"logprobs_at has shape \(8, 12\)"),
        ({"logprobs_at": torch.full((8, 11), torch.nan)}, "logprobs_at gave nan at row 0"),
        ({"logprobs_at": torch.zeros(8, 11)}, r"logprobs_at differs from logprobs\(batch\) at these weights by"),
        ({"index": torch.zeros(8)}, "index has shape"),
        ({"index": torch.zeros(7, dtype=torch.long)}, "index has shape"),
        ({"logprobs": lambda b: torch.zeros(8, 12)}, r"gave shape \(8, 12\) and mask has shape \(8, 11\)"),
        ({"logprobs": lambda b: None}, "gave a NoneType"),
        ({"logprobs": lambda b: torch.full((8, 11), torch.nan)}, "gave nan at row 0, token 3"),
        ({"logprobs": lambda b: torch.zeros(8, 11)}, "does not run the weights that were moved"),
    ],
)
def test_batches(model_and_direction, changed, message):
    model, direction = model_and_direction
    batch = Batch(seed=2)
    call = {"logprobs": logprobs_of(model), "batch": batch, "weights": batch.weights, "mask": batch.mask, **changed}
    refused(message, direction.products, **call)


def test_nan_outside_the_mask_is_no_matter(model_and_direction):
    model, direction = model_and_direction
    batch = Batch(seed=2)

    def logprobs(b):
        return torch.where(batch.mask, logprobs_of(model)(b), torch.nan)

    assert torch.isfinite(direction.products(logprobs, batch, batch.weights, batch.mask)).all()


def test_one_sided_needs_its_base():
    model, direction = pair(method="one-sided")
    direction.take()
    batch = Batch(seed=2)
    refused("needs logprobs_at", direction.products, logprobs_of(model), batch, batch.weights, batch.mask)


def test_inference_mode_hides_derivatives():
    model, direction = pair(method="forward-ad")
    direction.take()
    batch = Batch(seed=2)

    @torch.inference_mode()
    def logprobs(b):
        return logprobs_of(model)(b)

    refused("came without derivatives", direction.products, logprobs, batch, batch.weights, batch.mask)


@pytest.mark.parametrize("factor", [0.3, 4.0, -1.0])
def test_sums_that_are_far_from_the_length(factor):
    model, direction = pair(target=0.001)
    direction.take()
    batch = Batch(seed=1)
    refused(f"add up to {factor:.1f}", direction.check, logprobs_of(model), batch, factor * batch.weights, batch.mask)
    assert direction.quotient is None


def test_sums_that_are_off_are_warned_of():
    model, direction = pair(method="central", target=0.001)
    direction.take()
    batch = Batch(seed=1)
    with pytest.warns(UserWarning, match="add up to 1.2"):
        direction.check(logprobs_of(model), batch, 1.2 * batch.weights, batch.mask)
    assert direction.quotient == pytest.approx(1.2, abs=0.01)


class Cut(nn.Module):
    """Two steps of one layer, the first of which lets no gradient through, as some recurrent models have it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.layer, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11)
        self.double()

    def logprobs(self, ids):
        x = self.tokens(ids[:, :-1])
        with torch.no_grad():
            x = x + self.layer(x).tanh()
        return self.head(x + self.layer(x).tanh()).log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]


def test_a_model_that_cuts_its_gradient_is_warned_of():
    model, random = Cut(), torch.Generator().manual_seed(1)
    ids, weights = torch.randint(11, (8, 6), generator=random), torch.randn(8, generator=random).double()
    (-weights @ model.logprobs(ids).sum(1)).backward()
    direction = Direction(model, method="central", target=0.005)
    direction.take()
    with pytest.warns(UserWarning, match=r"though they are steady .* the model cuts its own gradient"):
        check = direction.check(model.logprobs, ids, weights, torch.ones(8, 5, dtype=torch.bool))
    assert 1.05 < check.quotient < 1.1


def test_check_after_a_step_is_refused(model_and_direction):
    model, direction = model_and_direction
    with torch.no_grad():
        model.lm_head.weight.mul_(1.0)
    batch = Batch(seed=1)
    refused("from before the parameters changed", direction.check, logprobs_of(model), batch, batch.weights, batch.mask)


def test_heads(model_and_direction):
    model, direction = model_and_direction
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
    batch = Batch(seed=2)
    args = (logprobs_of(model), batch, batch.weights, batch.mask)
    refused("expected tokens", direction.head_norms, *args, batch.labels[:, 1:])
    refused("labels are other tokens", direction.head_norms, *args, batch.labels.flip(0))
    hot = (logprobs_of(model, 2.0), *args[1:])
    refused("the temperature is another", direction.head_norms, *hot, batch.labels)
    assert torch.isfinite(direction.head_norms(*hot, batch.labels, temperature=2.0)).all()
    base = logprobs_of(model)(batch).detach()
    refused("did not call the model's head", direction.head_norms, lambda b: base, *args[1:], batch.labels)
    refused("shows no whole head", Direction(model.model).head_norms, *args, batch.labels)


@pytest.mark.parametrize("gradient", [torch.zeros(3), lambda: torch.zeros(3)])
def test_shards_with_gradients_of_another_shape(gradient):
    part = LocalParameter("w", (4,), 0, torch.zeros(4), gradient)
    refused(r"gradient of w has shape \(3,\)", Direction(parameters=[part]).take)


@pytest.mark.parametrize("kind", ["FullyShardedDataParallel", "ZeRO-3"])
def test_engines_that_hide_their_parameters(kind):
    model = nn.Sequential(nn.Linear(2, 2))
    if kind == "ZeRO-3":
        model[0].weight.ds_id = 1
    else:
        model[0] = type(kind, (nn.Linear,), {})(2, 2)
    refused(r"Direction\(parameters=", Direction, model)

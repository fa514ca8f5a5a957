"""The examples of docs/forward.md, run as printed on a tiny model."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pageblocks import blocks_of
from tiny_causal_lms import Batch, exact_products, gradients_of, logprobs_of, tiny

from gradalign import Client
from gradalign.forward import Direction

PAGE = (Path(__file__).parents[2] / "docs/forward.md").read_text()
WHOLE, SHARDS, NORMS, CARRIED = (block.code for block in blocks_of(PAGE, "python"))


@pytest.fixture
def scope():
    """What the page's reader has: a model, its log-prob function, a validation batch and a batch of candidates."""
    model, validation, batch = tiny(), Batch(seed=1), Batch(seed=2)
    logprobs = logprobs_of(model)
    with torch.no_grad():
        old = logprobs(batch)
    return {
        "model": model, "logprobs": logprobs, "batch": batch, "weights": batch.weights, "mask": batch.mask,
        "labels": batch.labels, "old_logprobs": old, "problem_of_row": torch.arange(8) // 2,
        "validation_loss": lambda: validation.loss(model), "validation_batch": validation,
        "validation_weights": validation.weights, "validation_mask": validation.mask,
    }  # fmt: skip


def exact(scope):
    model, validation = scope["model"], scope["validation_batch"]
    validation.loss(model).backward()
    against = gradients_of(model)
    model.zero_grad()
    return exact_products(model, scope["batch"], against)


def test_products_and_norms_are_as_the_page_says(scope):
    want = exact(scope)
    exec(WHOLE, scope)
    assert 0.9 < scope["check"].quotient < 1.1
    torch.testing.assert_close(scope["products"], want, rtol=0.05, atol=0.05 * float(want.abs().max()))
    exec(NORMS, scope)
    by_problem = scope["products"]
    torch.testing.assert_close(by_problem, want.view(4, 2).sum(1), rtol=0.05, atol=0.05 * float(want.abs().max()))
    assert (scope["norms"] > 0).all()


def test_a_direction_that_decays_goes_to_the_scorer(scope, scorer, run_id):
    model, validation, direction = scope["model"], scope["validation_batch"], Direction(scope["model"])
    for _ in range(2):
        validation.loss(model).backward()
        direction.take(decay=0.7)
    of_validation = (scope["logprobs"], validation, validation.weights, validation.mask)
    products = direction.products(*of_validation).view(4, 2)
    with Client(scorer.url, run_id=run_id) as client:
        scope |= {"client": client, "ids": list("abcd"), "step": 0, "direction": direction, "products": products}
        exec(CARRIED, scope)
        assert client.run().products_quotient == pytest.approx(1.0, abs=0.02)
    assert direction.carried > 0


def test_an_engine_with_shards_of_its_own_gives_the_same(scope):
    want, model = exact(scope), scope["model"]

    def partition(name, parameter):
        part = SimpleNamespace(name=name, shape=parameter.shape, start=(0,) * parameter.ndim, master=parameter.data)
        part.gradient = parameter.grad
        return part

    moved = []
    scope["engine"] = SimpleNamespace(
        partitions=lambda: [partition(*named) for named in model.named_parameters()],
        gather_weights=lambda: moved.append(True),
        group=None,
    )
    exec(SHARDS, scope)
    scope["validation_loss"]().backward()
    direction = scope["direction"]
    direction.take()
    products = direction.products(*(scope[name] for name in ("logprobs", "batch", "weights", "mask")))
    torch.testing.assert_close(products, want, rtol=0.05, atol=0.05 * float(want.abs().max()))
    assert moved

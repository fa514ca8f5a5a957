"""What docs/at-scale.md computes of passes is what torch counts on a small model: operations, and memory."""

import warnings
from dataclasses import replace

import costs
import pytest
import torch
from costkit import JOB, build, flops, ids_of, logprobs_of, with_lora
from tensorbytes import peak_bytes

from gradalign.forward import Direction

LORA = replace(JOB, lora_rank=4)


def model_of(job):
    return with_lora(build(), job.lora_rank) if job.lora_rank else build()


def forward_and_backward(job, model):
    logprobs_of(model, job.at_once)(ids_of(job)).sum().backward()


@pytest.mark.parametrize("job", [JOB, LORA])
def test_parameters(job):
    model = model_of(job)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == job.trained
    assert sum(p.numel() for p in model.parameters()) == job.shape.parameters + job.lora


@pytest.mark.parametrize("job", [JOB, LORA])
def test_a_forward_and_a_backward(job):
    model = model_of(job)
    with torch.no_grad():
        assert flops(lambda: logprobs_of(model, job.at_once)(ids_of(job))) == costs.forward_flops(job)
    assert flops(lambda: forward_and_backward(job, model)) == costs.update_flops(job)


@pytest.mark.parametrize("job", [replace(JOB, recompute=True), replace(LORA, recompute=True)])
def test_a_backward_that_computes_activations_again(job):
    model = model_of(job).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5 has another name, 4 has this one alone
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert flops(lambda: forward_and_backward(job, model)) == costs.update_flops(job)


def products_of(method, job, model):
    """A way to take products of rows with the gradient of others, after one that has found its step."""
    logprobs, ids, mask = logprobs_of(model, job.at_once), ids_of(job), torch.ones(job.problems * job.rollouts, 23)
    weights = torch.randn(len(ids), generator=torch.Generator().manual_seed(2)) / mask.sum()
    direction = Direction(model, method=method, target=0.01)
    logprobs(ids_of(job, seed=3)).sum().backward()
    direction.take()
    with torch.no_grad():
        base = logprobs(ids)
    more = {"logprobs_at": base} if method == "one-sided" else {}

    def products():
        return direction.products(logprobs, ids, weights, mask, **more)

    products()
    return products


@pytest.mark.parametrize("job", [JOB, LORA])
@pytest.mark.parametrize("method", ["one-sided", "central", "forward-ad"])
def test_products(job, method):
    wanted = {
        "one-sided": costs.forward_flops(job), "central": 2 * costs.forward_flops(job),
        "forward-ad": costs.dual_flops(job),
    }[method]  # fmt: skip
    within = 0.05 if method == "forward-ad" and job.lora_rank else 1e-6  # see `dual_flops`
    assert flops(products_of(method, job, model_of(job))) == pytest.approx(wanted, rel=within)


@pytest.mark.parametrize("job", [replace(JOB, problems=1, at_once=1), replace(LORA, problems=1, at_once=1)])
def test_memory_of_products_is_a_copy_of_what_is_trained(job):
    model = model_of(job)
    products = products_of("central", job, model)
    plain = peak_bytes(lambda: logprobs_of(model, job.at_once)(ids_of(job)))
    assert peak_bytes(products) - plain == pytest.approx(costs.part(job), rel=0.15)

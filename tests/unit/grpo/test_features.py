"""Features of a pool: what they are, that they do not change, and that a resumed run keeps its own."""

import pytest
import torch

from gradalign import GradAlignError
from gradalign_trainer.grpo.features import PoolFeatures, principal_components, prompt_means
from gradalign_trainer.problems import Problem
from gradalign_trainer.worlds.arithmetic import CHARACTERS
from gradalign_trainer.worlds.tinymodel import character_tokenizer, tiny_model

TOKENIZER = character_tokenizer(CHARACTERS)
MODEL = tiny_model(TOKENIZER, seed=0)
POOL = [Problem(f"p{i}", prompt, "7") for i, prompt in enumerate(["12+34=", "9-1=", "77M20=", "4?4=", "1+1="])]


def test_a_prompt_is_the_mean_of_its_tokens_embeddings():
    means = prompt_means(MODEL, TOKENIZER, [problem.prompt for problem in POOL], prompts_per_batch=2)
    for problem, mean in zip(POOL, means, strict=True):
        ids = torch.tensor(TOKENIZER(problem.prompt)["input_ids"])
        torch.testing.assert_close(mean, MODEL.get_input_embeddings()(ids).mean(0), rtol=1e-5, atol=1e-6)


def test_components_are_those_of_the_singular_values_with_spread_one():
    states = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(12.0, 0, -1))
    found = principal_components(states, 5)
    assert found.shape == (200, 5)
    centred = states.double() - states.double().mean(0)
    left = torch.linalg.svd(centred, full_matrices=False).U[:, :5] * 200**0.5
    torch.testing.assert_close(found.double().abs(), left.abs(), rtol=1e-4, atol=1e-5)
    assert found.std(0, correction=0).tolist() == pytest.approx([1] * 5, rel=1e-5)


def test_components_without_a_spread_are_zero():
    states = torch.arange(6.0)[:, None] @ torch.ones(1, 4)
    found = principal_components(states, 16)
    assert found.shape == (6, 4)
    assert found[:, 1:].abs().max() == 0


def test_the_same_pool_has_the_same_bits_and_keeps_them():
    first, again = (PoolFeatures.of(MODEL, TOKENIZER, POOL, 3) for _ in range(2))
    ids = ["p3", "p0"]
    assert torch.equal(first.rows(ids), again.rows(ids))
    assert torch.equal(PoolFeatures.from_state(POOL, first.state()).rows(ids), first.rows(ids))
    with pytest.raises(GradAlignError, match="features of another pool than the 4 problems"):
        PoolFeatures.from_state(POOL[:4], first.state())

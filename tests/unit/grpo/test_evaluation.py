"""How good a policy is: exactly, against an enumeration and against sampling."""

import math

import pytest
import torch

from gradalign_trainer.grpo.evaluation import exact_pass_rates
from gradalign_trainer.grpo.generation import Sampling, generate
from gradalign_trainer.problems import Problem
from gradalign_trainer.worlds.tinymodel import character_tokenizer, tiny_model

EOS = 1
PROBLEMS = [
    Problem(f"{prompt}/{answer}", prompt, answer)
    for prompt, answer in (("ab", "a"), ("b", ""), ("baab", "ba"), ("a", "aab"), ("aaaaaaa", "b"))
]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = character_tokenizer("ab")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<stop>"]})
    return tokenizer


@pytest.fixture(params=["one end token", "two end tokens"])
def model(request, tokenizer):
    model = tiny_model(tokenizer, seed=2, hidden=32, mlp=64)
    if request.param == "two end tokens":
        model.generation_config.eos_token_id = [EOS, tokenizer.convert_tokens_to_ids("<stop>")]
    return model


def ends_of(model):
    configured = model.generation_config.eos_token_id
    return configured if isinstance(configured, list) else [configured]


@torch.no_grad()
def chance(model, tokenizer, problem, temperature):
    """The probability of the answer and then of any end token, one step at a time."""
    said, chance = tokenizer(problem.prompt)["input_ids"], 1.0
    for token in [*tokenizer(problem.answer)["input_ids"], None]:
        step = torch.softmax(model(input_ids=torch.tensor([said])).logits[0, -1] / temperature, 0)
        chance *= float(step[ends_of(model)].sum() if token is None else step[token])
        said = [*said, token]
    return chance


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_exact_rates_are_the_product_of_the_steps(model, tokenizer, temperature):
    rates = exact_pass_rates(model, tokenizer, PROBLEMS, temperature=temperature)
    expected = [chance(model, tokenizer, problem, temperature) for problem in PROBLEMS]
    assert rates.tolist() == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 0


def test_exact_rates_are_how_often_the_answer_is_sampled(model, tokenizer):
    problems, count = PROBLEMS[:3], 2000
    settings = Sampling(group_size=count, max_new_tokens=4)
    prompts = [problem.prompt for problem in problems]
    batch = generate(model, tokenizer, prompts, settings, torch.Generator().manual_seed(0))
    for index, (problem, rate) in enumerate(
        zip(problems, exact_pass_rates(model, tokenizer, problems).tolist(), strict=True)
    ):
        rows = range(index * count, (index + 1) * count)
        said = [batch.completion_ids[row][batch.completion_mask[row].bool()].tolist() for row in rows]
        answer = tokenizer(problem.answer)["input_ids"]
        found = sum(row[:-1] == answer and row[-1] in ends_of(model) for row in said) / count
        assert found == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / count))


def test_exact_rates_do_not_depend_on_the_batch(model, tokenizer):
    whole = exact_pass_rates(model, tokenizer, PROBLEMS)
    parts = exact_pass_rates(model, tokenizer, PROBLEMS, problems_per_batch=2)
    assert parts.tolist() == pytest.approx(whole.tolist(), rel=1e-4)
    assert whole.dtype == torch.float32

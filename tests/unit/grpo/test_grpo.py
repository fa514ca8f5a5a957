"""GRPO at ratio 1: advantages, and a loss that is one number per problem whatever the batch."""

import pytest
import torch
from positions import POSITIONS
from torch.testing import assert_close

from gradalign_trainer.grpo.generation import Sampling, generate
from gradalign_trainer.grpo.loss import advantages, completion_distributions, completion_logprobs, problem_losses

PROMPTS = ["abca", "b", "ccabcab"]
TEMPERATURE = 0.8


@pytest.fixture(scope="module", params=POSITIONS)
def model(request, tokenizer):
    return POSITIONS[request.param](tokenizer, seed=1)


@pytest.fixture(scope="module")
def rollouts(model, tokenizer):
    settings = Sampling(group_size=4, max_new_tokens=10, temperature=TEMPERATURE)
    rollouts = generate(model, tokenizer, PROMPTS, settings, torch.Generator().manual_seed(0))
    assert len(set(rollouts.completion_mask.sum(1).tolist())) > 2  # completions of several lengths
    return rollouts


@pytest.fixture(scope="module")
def advantage():
    return advantages(torch.rand(3, 4, generator=torch.Generator().manual_seed(5)))


def gradient(model, loss):
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


def alone(model, tokenizer, rollouts, row):
    """Log-probabilities of one completion's tokens: no padding, no batch, one token at a time."""
    prompt = tokenizer(PROMPTS[row // 4])["input_ids"]
    said = rollouts.completion_ids[row][rollouts.completion_mask[row].bool()].tolist()
    steps = []
    for place, token in enumerate(said):
        logits = model(input_ids=torch.tensor([prompt + said[:place]])).logits[0, -1] / TEMPERATURE
        steps.append(logits[token] - logits.logsumexp(0))
    return torch.stack(steps)


def test_advantages_are_rewards_less_their_groups_mean():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.2, 0.4, 0.6, 0.8]])
    assert_close(advantages(rewards), torch.tensor([[0.75, -0.25, -0.25, -0.25], [-0.3, -0.1, 0.1, 0.3]]))


def test_normalized_advantages_have_deviation_one():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.2, 0.4, 0.6, 0.8]])
    normal = advantages(rewards, normalize=True)
    assert_close(normal.square().mean(1), torch.ones(2), atol=1e-4, rtol=0)
    assert_close(normal.sum(1), torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3])
def test_equal_rewards_leave_no_dust(normalize, reward):
    assert not advantages(torch.full((2, 7), reward), normalize=normalize).any()


def test_distributions_sum_to_one_at_every_place(model, rollouts):
    distributions = completion_distributions(model, rollouts)
    assert distributions.shape == (12, rollouts.completion_ids.shape[1], 5)
    assert_close(distributions.exp().sum(-1), torch.ones(distributions.shape[:2]))


def test_logprobs_are_those_of_each_completion_alone(model, tokenizer, rollouts):
    logprobs = completion_logprobs(model, rollouts)
    assert not logprobs[rollouts.completion_mask == 0].any()
    for row in range(12):
        expected = alone(model, tokenizer, rollouts, row)
        assert_close(logprobs[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)


def test_losses_are_the_formula_token_by_token(model, tokenizer, rollouts, advantage):
    losses = problem_losses(model, rollouts, advantage)
    for problem in range(3):
        rows = [alone(model, tokenizer, rollouts, problem * 4 + i) for i in range(4)]
        tokens = sum(map(len, rows))
        loss = -sum(advantage[problem, i] * row.sum() for i, row in enumerate(rows)) / tokens
        assert_close(losses[problem], loss, atol=1e-5, rtol=1e-5)
        own = problem_losses(model, rollouts.groups([problem]), advantage[[problem]]).sum()
        assert_close(gradient(model, own), gradient(model, loss), atol=1e-5, rtol=1e-4)


def test_a_problems_loss_and_gradient_do_not_depend_on_the_batch(model, rollouts, advantage):
    whole = problem_losses(model, rollouts, advantage)
    for picked in ([0], [1], [2], [2, 0], [1, 2]):
        part = problem_losses(model, rollouts.groups(picked), advantage[picked])
        assert_close(part, whole[picked], atol=1e-6, rtol=1e-5)
        assert_close(
            gradient(model, part[0]),
            gradient(model, problem_losses(model, rollouts, advantage)[picked[0]]),
            atol=1e-6,
            rtol=1e-4,
        )


def test_a_group_without_signal_gives_nothing(model, rollouts, advantage):
    quiet = advantage.clone()
    quiet[1] = 0
    losses = problem_losses(model, rollouts, quiet)
    assert losses[1] == 0
    assert losses[0] != 0
    assert not gradient(model, losses[1]).any()

"""Products of a policy's rollouts along its validation gradient, as the trainer takes them."""

import pytest
import torch

from gradalign.errors import DirectionError
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.grpo.generation import Sampling, generate
from gradalign_trainer.grpo.loss import completion_logprobs, problem_losses
from gradalign_trainer.grpo.rollouts import ScoredRollouts
from gradalign_trainer.policy.products import CHECK_EVERY, ProductMeter
from gradalign_trainer.worlds.arithmetic import CHARACTERS, arithmetic_problem
from gradalign_trainer.worlds.tinymodel import character_tokenizer, tiny_model

GROUP = 4


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(CHARACTERS)


@pytest.fixture
def model(tokenizer):
    return tiny_model(tokenizer, seed=0, positions=32)


@pytest.fixture
def meter_of(tmp_path, model):
    def make(**settings):
        settings = {"problems_per_backward": 3, **settings}
        return ProductMeter(TrainConfig(run_id="r", output=tmp_path, alignment="forward", **settings), model)

    return make


@pytest.fixture
def rollouts_of(model, tokenizer):
    """Groups of rollouts with advantages of their own, the third without a signal."""

    def make(seed, count=5, silent=(2,)):
        problems = [arithmetic_problem(a, "+", 7 * seed + a) for a in range(count)]
        generator = torch.Generator().manual_seed(seed)
        rollouts = generate(model, tokenizer, [p.prompt for p in problems], Sampling(GROUP, 5), generator)
        advantages = torch.randn(count, GROUP, generator=generator)
        advantages[list(silent)] = 0
        return ScoredRollouts(problems, rollouts, advantages, advantages)

    return make


def gradient_of(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = torch.cat([p.grad.flatten().double() for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    return found


def mean_gradient(model, scored, *, pooled=True):
    losses = problem_losses(model, scored.rollouts, scored.advantages)
    shares = scored.rollouts.tokens.float() if pooled else torch.ones(len(losses))
    return gradient_of(model, (losses * shares / shares.sum()).sum())


def exact_products(model, scored, unit):
    """By one backward a rollout, [P, G]."""
    rows = []
    for p in range(len(scored.problems)):
        group = scored.rollouts.groups([p])
        for i in range(GROUP):
            share = scored.advantages[p, i] / group.tokens[0]
            rows.append(float(gradient_of(model, -(completion_logprobs(model, group)[i].sum() * share)) @ unit))
    return torch.tensor(rows, dtype=torch.float64).view(-1, GROUP)


def test_sampling_keeps_the_log_probs_that_the_loss_takes(model, rollouts_of):
    scored = rollouts_of(1)
    with torch.no_grad():
        again = completion_logprobs(model, scored.rollouts)
    assert torch.allclose(scored.rollouts.logprobs, again, atol=1e-5)
    part = scored.rollouts.groups([3, 1])
    with torch.no_grad():
        again = completion_logprobs(model, part)
    assert torch.allclose(part.logprobs, again, atol=1e-5)


@pytest.mark.parametrize("aggregation", ["pooled", "mean"])
def test_products_are_those_of_one_backward_a_rollout(model, meter_of, rollouts_of, aggregation):
    meter, trusted, scored = meter_of(aggregation=aggregation), rollouts_of(1), rollouts_of(2)
    v = mean_gradient(model, trusted, pooled=aggregation == "pooled")
    told = []
    sent = meter.validation(trusted, told.append)
    assert sum(told) == 5
    assert sent.length == pytest.approx(float(v.norm()), rel=1e-5)
    assert sent.carried is None
    assert sum(map(sum, sent.products)) == pytest.approx(sent.length, rel=0.02)
    assert sent.products[2] == [0.0] * GROUP
    assert all(parameter.grad is None for parameter in model.parameters())
    meter.keep(7, None)
    found = meter.candidates(scored)
    assert (found.version, found.rollout_weights, meter.kept_version) == (7, False, 7)
    wanted = exact_products(model, scored, v / v.norm())
    products = torch.tensor(found.products, dtype=torch.float64)
    assert float((products - wanted).norm() / wanted.norm()) < 0.05
    assert torch.corrcoef(torch.stack([products.flatten(), wanted.flatten()]))[0, 1] > 0.998
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_earlier_gradient_decays_into_the_next(model, meter_of, rollouts_of):
    meter = meter_of(validation_decay=0.5)
    first, second = rollouts_of(1), rollouts_of(2)
    old, new = mean_gradient(model, first), mean_gradient(model, second)
    assert meter.validation(first).carried == 0
    sent = meter.validation(second)
    v = 0.5 * old + new
    assert sent.length == pytest.approx(float(v.norm()), rel=1e-5)
    assert sent.carried == pytest.approx(float(0.5 * old @ v / v.norm()), rel=1e-4)
    assert sum(map(sum, sent.products)) + sent.carried == pytest.approx(sent.length, rel=0.05)


def test_without_a_signal_the_direction_stays(model, meter_of, rollouts_of):
    meter, scored = meter_of(), rollouts_of(3)
    meter.validation(rollouts_of(1))
    meter.keep(1, None)
    before = torch.tensor(meter.candidates(scored).products)
    silent = meter.validation(rollouts_of(2, silent=range(5)))
    assert not silent.signal
    again = torch.tensor(meter.candidates(scored).products)
    assert float((again - before).norm() / before.norm()) < 0.05  # the step is adapted from batch to batch
    nothing = meter.candidates(rollouts_of(4, silent=range(5)))
    assert not nothing.signal
    assert len(nothing.products) == 5


def test_the_fresh_gradient_is_kept_where_it_joins_the_update(model, meter_of, rollouts_of):
    meter, trusted = meter_of(train_on_validation=True, mode="weight"), rollouts_of(1)
    v = mean_gradient(model, trusted)
    meter.validation(trusted)
    fresh = torch.cat([meter.fresh.gradient[name].flatten() for name, _ in model.named_parameters()]).double()
    assert torch.allclose(fresh, v, atol=1e-6)
    tokens = trusted.rollouts.tokens
    assert meter.fresh.groups == 4
    assert meter.fresh.total == 1
    assert meter.fresh.signal_total == pytest.approx(float((tokens.sum() - tokens[2]) / tokens.sum()))


def test_it_goes_on_from_a_checkpoint_to_the_bit(model, meter_of, rollouts_of, tmp_path):
    meter, scored = meter_of(), rollouts_of(2)
    assert meter.state() is None
    meter.validation(rollouts_of(1))
    meter.keep(3, None)
    meter.candidates(scored)
    torch.save(meter.state(), tmp_path / "state")
    wanted = meter.candidates(scored)
    other = meter_of()
    other.load(None)
    with pytest.raises(DirectionError, match="no direction was taken"):
        other.candidates(scored)
    other.load(torch.load(tmp_path / "state", weights_only=True))
    assert other.kept_version == 3
    assert other.candidates(scored).products == wanted.products


def test_it_checks_itself_now_and_then(meter_of, rollouts_of, caplog):
    caplog.set_level("INFO")
    meter = meter_of()
    for _ in range(CHECK_EVERY + 1):
        meter.validation(rollouts_of(1))
    said = [record.message for record in caplog.records if "add up to" in record.message]
    assert len(said) == 2
    assert "Products by method one-sided: they add up to 1.0" in said[0]


def test_log_probs_that_are_of_other_weights_are_not_built_on(model, meter_of, rollouts_of, caplog):
    caplog.set_level("INFO")
    meter, scored = meter_of(), rollouts_of(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    sent = meter.validation(scored)
    assert sum(map(sum, sent.products)) == pytest.approx(sent.length, rel=0.02)
    assert "Products by method central" in caplog.text


def test_norms_of_the_head_come_with_the_products(model, meter_of, rollouts_of):
    meter, scored = meter_of(norms="head"), rollouts_of(2)
    meter.validation(rollouts_of(1))
    meter.keep(1, None)
    sent = meter.candidates(scored)
    assert sent.norms_kind == "head"
    for p in range(5):
        group = scored.rollouts.groups([p])
        model.zero_grad()
        problem_losses(model, group, scored.advantages[p : p + 1]).sum().backward()
        assert sent.norms[p] == pytest.approx(float(model.lm_head.weight.grad.norm()), rel=0.05, abs=1e-6)
    plain = torch.tensor(meter_of().validation(rollouts_of(1)).products)
    assert plain.shape == torch.tensor(sent.products).shape
    assert sent.norms[2] == 0
